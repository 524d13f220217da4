"""Bad input: a clear error that names what would be right, at the earliest moment, and nothing half-done."""

import re
from typing import Any

import pytest
import redis.asyncio

import quantum_bus
import quantum_bus.sync
from quantum_bus import ConfigurationError, Event, Message, Retry
from tests.contract.backends import Backend
from tests.contract.entries import pending
from tests.contract.twins import ASYNCIO, TWINS, Buses


def make(twin: str, *arguments: Any, **options: Any) -> Any:
    return (quantum_bus if twin == ASYNCIO else quantum_bus.sync).EventBus(*arguments, **options)


@pytest.fixture(params=TWINS)
def which(request: pytest.FixtureRequest) -> str:
    """A twin, where no Redis is needed to be refused."""
    return str(request.param)


@pytest.fixture
def bus(which: str) -> Any:
    return make(which, "redis://127.0.0.1:1/0", service="svc")


@pytest.mark.parametrize("items", ["text", b"bytes", {"a": 1}, Event(1)], ids=["str", "bytes", "mapping", "Event"])
async def test_one_payload_is_no_series_of_them(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, items: Any
) -> None:
    # fails without: a look at what is given; a text was published letter by letter, and a mapping by its keys
    with pytest.raises(ConfigurationError, match=r"give publish_many\(\) a list"):
        await buses().publish_many(stream, items)
    assert not await redis_client.exists(stream)


async def test_an_event_is_no_payload(buses: Buses, redis_client: redis.asyncio.Redis, stream: str) -> None:
    # fails without: a look at what is given; its parts were published as one, under no event and no key
    with pytest.raises(ConfigurationError, match="its parts"):
        await buses().publish(stream, Event({"a": 1}, event="E", key="k"))
    assert not await redis_client.exists(stream)


# --- the bus -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("localhost:6379", "redis://"),
        ("http://localhost:6379", "redis://"),
        ("redis://", "names no host"),
        ("redis://host:notaport/0", "port"),
        ("redis://host:6379/zero", "database"),
        ("redis:// host", "space"),
        ("unix://relative.sock", "three slashes"),
        (6379, "give a str"),
    ],
)
def test_a_wrong_url_is_refused_when_the_bus_is_made(which: str, url: Any, right: str) -> None:
    with pytest.raises(ConfigurationError, match=right):
        make(which, url, service="svc")


def test_a_wrong_url_is_shown_without_its_password(which: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make(which, "redis://user:hun/ter2@host:6379/0", service="svc")
    assert "hun" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://user:hunter2@127.0.0.1:1/0?socket_timeout=soon", "socket_timeout"),
        ("redis://user:hunter2@127.0.0.1:1/0?max_conn=5", "max_conn"),
        ("rediss://user:hunter2@127.0.0.1:1/0?ssl_cert_reqs=maybe", "maybe"),
    ],
)
def test_a_wrong_option_in_the_url_is_named_when_the_bus_is_made(which: str, url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named) as refused:
        make(which, url, service="svc")
    assert "hunter2" not in str(refused.value)


def test_without_url_or_service_the_environment_is_named(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUANTUM_BUS_URL", "QUANTUM_BUS_SERVICE", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="QUANTUM_BUS_URL"):
        make(which, service="svc")
    with pytest.raises(ConfigurationError, match="QUANTUM_BUS_SERVICE"):
        make(which, "redis://localhost")
    monkeypatch.setenv("QUANTUM_BUS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-otel")
    assert make(which).config.service == "from-otel"
    monkeypatch.setenv("QUANTUM_BUS_SERVICE", "own")
    assert make(which).config.service == "own"


@pytest.mark.parametrize(
    "options",
    [
        {"service": ""},
        {"service": "two\nlines"},
        {"prefix": 7},
        {"max_payload_bytes": 0},
        {"max_payload_bytes": True},
        {"sampled": "yes"},
        {"send_baggage": 1},
        {"connect_timeout": 0},
        {"reply_timeout": -1},
        {"block": float("inf")},
        {"backoff_initial": "fast"},
        {"backoff_maximum": 0},
        {"busy_poll": 1},
        {"middleware": ["not callable"]},
        {"client": "redis"},
    ],
)
def test_a_wrong_option_is_named_when_the_bus_is_made(which: str, options: dict[str, Any]) -> None:
    given = {"service": "svc", **options}
    url = () if "client" in options else ("redis://127.0.0.1:1/0",)
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        make(which, *url, **given)


def test_a_client_of_the_other_twin_is_refused_and_the_right_one_named(which: str) -> None:
    wrong, right = (
        (redis.Redis(), "redis.asyncio.Redis") if which == ASYNCIO else (redis.asyncio.Redis(), "redis.Redis")
    )
    with pytest.raises(ConfigurationError, match=re.escape(right)):
        make(which, client=wrong, service="svc")


def test_a_client_and_a_url_are_one_too_many(which: str) -> None:
    client = redis.asyncio.Redis() if which == ASYNCIO else redis.Redis()
    with pytest.raises(ConfigurationError, match="not both"):
        make(which, "redis://localhost", client=client, service="svc")


def test_middleware_of_the_other_kind_is_refused(which: str, bus: Any) -> None:
    async def for_asyncio(item: Any, call_next: Any) -> Any: ...
    def for_threads(item: Any, call_next: Any) -> Any: ...

    with pytest.raises(ConfigurationError, match="async def"):
        bus.add_middleware(for_threads if which == ASYNCIO else for_asyncio)


# --- the subscriber ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        (("",), {}, "stream"),
        ((None,), {}, "stream"),
        (("or{ders",), {}, "stream"),
        (("orders", "orders"), {}, "each stream once"),
        (("orders",), {"group": ""}, "group"),
        (("orders",), {"batch": 0}, "batch"),
        (("orders",), {"concurrency": 1.5}, "concurrency"),
        (("orders",), {"ack_wait": 0}, "ack_wait"),
        (("orders",), {"timeout": -1}, "timeout"),
        (("orders",), {"retry": 5}, "retry"),
        (("orders",), {"start": "$"}, "start"),
        (("orders",), {"trace_mode": "none"}, "trace_mode"),
    ],
)
def test_a_wrong_subscriber_option_is_named_before_any_handler_is_given(
    bus: Any, arguments: tuple[Any, ...], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        bus.subscriber(*arguments, **options)


def test_a_subscriber_without_a_stream_is_told_to_name_one(bus: Any) -> None:
    with pytest.raises(ConfigurationError, match="name the stream"):

        @bus.subscriber
        def handle(payload: Any) -> None: ...


def test_two_subscribers_of_one_group_and_stream_are_refused(bus: Any) -> None:
    def first(payload: Any) -> None: ...
    def second(payload: Any) -> None: ...

    bus.subscriber("a", "b")(first)
    with pytest.raises(ConfigurationError, match=r"first handles 'b' for group 'svc'.*group of its own"):
        bus.subscriber("b", "c")(second)
    bus.subscriber("b", "c", group="other")(second)


def test_two_handlers_on_one_decorator_are_refused(bus: Any) -> None:
    subscribe = bus.subscriber("a")

    @subscribe
    def first(payload: Any) -> None: ...

    with pytest.raises(ConfigurationError, match="first handles 'a'"):

        @subscribe
        def second(payload: Any) -> None: ...


def test_a_handler_with_a_wrong_signature_is_refused_when_it_is_subscribed(bus: Any) -> None:
    def nothing() -> None: ...
    def two_payloads(a: int, b: int) -> None: ...
    def two_messages(a: Message, b: Message) -> None: ...
    def positional(payload: dict[str, Any], /) -> None: ...
    def generator(payload: Any) -> Any:
        yield payload

    def list_without_batch(messages: list[Message]) -> None: ...
    def unknown(payload: object()) -> None: ...  # type: ignore[valid-type]

    for handler, right in (
        (nothing, "payload, the message, or both"),
        (two_payloads, "there is one payload"),
        (two_messages, "message twice"),
        (positional, "positional-only"),
        (generator, "yields"),
        (list_without_batch, "batch="),
        (unknown, "annotate it as dict"),
        ("not a function", "no function"),
    ):
        with pytest.raises(ConfigurationError, match=right):
            bus.subscriber("a")(handler)
    bus.subscriber("a")(lambda payload: None)  # none of them was kept


def test_a_batch_handler_takes_lists(bus: Any) -> None:
    def message(message: Message) -> None: ...
    def payload(payload: dict[str, Any]) -> None: ...

    for handler in (message, payload):
        with pytest.raises(ConfigurationError, match=r"list"):
            bus.subscriber("a", batch=10)(handler)


def test_the_threads_bus_takes_no_async_def_handler() -> None:
    bus = make("threads", "redis://127.0.0.1:1/0", service="svc")

    async def handle(payload: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"async def.*write def"):
        bus.subscriber("a")(handle)


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": "5"},
        {"initial": -1},
        {"maximum": float("nan")},
        {"multiplier": 0.5},
        {"jitter": "some"},
        {"retry_on": "ValueError"},
        {"give_up_on": [ValueError]},
    ],
)
def test_a_wrong_retry_option_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Retry(**options)


async def test_subscribing_after_the_start_is_refused(buses: Buses, stream: str) -> None:
    bus = buses()
    async with bus:
        with pytest.raises(ConfigurationError, match="before the bus is started"):
            bus.subscriber(stream)


# --- what only Redis knows ---------------------------------------------------------------------------------------


async def test_a_key_that_is_no_stream_refuses_the_start_and_nothing_runs(
    buses: Buses, redis_client: redis.asyncio.Redis, stream: str, prefix: str
) -> None:
    handled: list[Any] = []
    bus = buses()

    @bus.subscriber(prefix + "fine")
    async def fine(payload: Any) -> None:
        handled.append(payload)

    @bus.subscriber(stream)
    async def wrong(payload: Any) -> None: ...

    await buses().publish(prefix + "fine", 1)
    await redis_client.set(stream, "text")
    with pytest.raises(ConfigurationError, match="is not a stream") as refused:
        await bus.start()
    assert stream in str(refused.value)
    assert await redis_client.get(stream) == b"text"
    assert not await pending(redis_client, prefix + "fine"), "the subscriber beside it took nothing"
    assert not handled


async def test_refused_credentials_are_a_configuration_error(
    buses: Buses, real_backend: Backend, redis_client: redis.asyncio.Redis, prefix: str
) -> None:
    user = re.sub(r"\W", "", prefix)
    assert real_backend.url is not None
    where = real_backend.url.removeprefix("redis://")
    bus = buses(url=f"redis://{user}:hunter2@{where}")
    with pytest.raises(ConfigurationError, match="refused the credentials") as refused:
        await bus.start()
    assert "hunter2" not in str(refused.value)


async def test_a_user_without_the_right_is_told_which(
    buses: Buses, real_backend: Backend, redis_client: redis.asyncio.Redis, stream: str, prefix: str
) -> None:
    user = re.sub(r"\W", "", prefix)
    assert real_backend.url is not None
    await redis_client.acl_setuser(user, enabled=True, passwords=["+pw"], keys=["*"], commands=["+ping", "+client"])
    try:
        where = real_backend.url.removeprefix("redis://")
        publisher = buses(url=f"redis://{user}:pw@{where}")
        with pytest.raises(quantum_bus.PublishError, match=r"\+xadd"):
            await publisher.publish(stream, 1)
        consumer = buses(url=f"redis://{user}:pw@{where}")

        @consumer.subscriber(stream)
        async def handle(payload: Any) -> None: ...

        with pytest.raises(ConfigurationError, match=r"\+xgroup"):
            await consumer.start()
    finally:
        await redis_client.acl_deluser(user)
