"""Every option that cannot work is refused when it is given, and the text says what would be right."""

from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quantum_bus.config import (
    BusConfig,
    Retry,
    SubscriberConfig,
    check_address,
    check_stream,
    hash_tag,
    masked_url,
)
from quantum_bus.errors import ConfigurationError
from tests.unit.hostile import hostile_text

RIGHT_URL = "a right one is 'redis://localhost:6379/0'"


def bus(**options: Any) -> BusConfig:
    return BusConfig(**{"url": "redis://localhost", "service": "auto_executor", **options})


def subscriber(**options: Any) -> SubscriberConfig:
    return SubscriberConfig(**{"streams": ("orders",), "group": "auto_executor", **options})


# --- what works ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6379/0",
        "redis://localhost:6379/",
        "rediss://user:p%40ss@cache.example.com:6380/15?ssl_cert_reqs=none",
        "redis://:secret@10.0.0.1",
        "redis://[::1]:6379/0",
        "unix:///run/redis.sock?db=2",
        "unix://user:secret@/run/redis.sock",
    ],
)
def test_right_urls(url: str) -> None:
    assert bus(url=url).url == url


def test_defaults_are_as_documented() -> None:
    config = bus()
    assert (config.prefix, config.max_payload_bytes, config.sampled, config.send_baggage) == ("", 1_048_576, True, True)
    handling = subscriber()
    assert (handling.batch, handling.concurrency, handling.ack_wait, handling.timeout) == (1, 16, 30.0, None)
    assert (handling.start, handling.trace_mode, handling.retry) == ("beginning", "continue", Retry())
    assert Retry().max_attempts == 5


def test_what_is_at_the_edge_works() -> None:
    bus(url=None, max_payload_bytes=1, block=0.001, service="s" * 128, prefix="staging:")
    subscriber(streams=("orders{eu}", "{orders}"), batch=1, concurrency=1, timeout=0.1, start="new", trace_mode="link")
    Retry(max_attempts=1, initial=0, maximum=0, multiplier=1, jitter="none", retry_on=(), give_up_on=KeyError)


# --- what does not -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:6379", "does not begin with one of redis://, rediss://, unix://"),
        ("http://localhost", "does not begin with one of"),
        ("REDIS://localhost", "does not begin with one of"),
        (" redis://localhost", "does not begin with one of"),
        ("redis:/localhost", "does not begin with one of"),
        ("", "does not begin with one of"),
        ("redis://local host", "holds a space"),
        ("redis://localhost\n", "holds a space or a character that cannot be printed"),
        ("redis://localhost/\udcff", "a character that cannot be printed"),
        ("redis://", "names no host"),
        ("redis:///0", "names no host"),
        ("redis://:6379", "names no host"),
        ("redis://:secret@", "names no host"),
        ("redis://localhost:port", "a port of 1 to 65535"),
        ("redis://localhost:70000", "a port of 1 to 65535"),
        ("redis://[::1", "cannot be read"),
        ("redis://:pa/ss@localhost", "one of / ? # @ : must be percent-encoded"),
        ("redis://localhost/first", "the database behind the slash is a number"),
        ("redis://localhost/0/1", "the database behind the slash is a number"),
        ("redis://localhost/-1", "the database behind the slash is a number"),
        (b"redis://localhost", "url is of type bytes: give a str"),
        (5, "url is of type int: give a str"),
    ],
)
def test_a_wrong_url(url: Any, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bus(url=url)
    assert said in str(caught.value)
    assert RIGHT_URL in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("url", ["unix://", "unix://run/redis.sock", "unix://user:secret@"])
def test_a_wrong_socket(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"behind three slashes, 'unix:///run/redis.sock'") as caught:
        bus(url=url)
    assert "secret" not in str(caught.value)


NUMBER_ABOVE = "give a finite number above 0"
NUMBER_FROM = "give a finite number of 0 or more"
WHOLE = "give a whole number of 1 or more"


def wrong(option: str, said: str, *values: object) -> list[Any]:
    return [pytest.param({option: value}, said, id=f"{option}={value!r:.20}") for value in values]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *wrong("service", "name the service, as service='auto_executor' or in QUANTUM_BUS_SERVICE", "", "  ", None, 5),
        *wrong("service", "give 1 to 128 printable characters, as 'auto_executor'", "a\nb", "s" * 129, "\udcff"),
        *wrong("prefix", "give a str, for example 'staging:'", None, 5, b"x"),
        *wrong("prefix", "text that UTF-8 can carry", "\ud800"),
        *wrong("max_payload_bytes", WHOLE, 0, -1, 1.5, True, "1"),
        *wrong("sampled", "give True or False", "no", 1, None),
        *wrong("send_baggage", "give True or False", "no", 0),
        *[
            case
            for option in ("connect_timeout", "reply_timeout", "block", "backoff_initial", "backoff_maximum")
            for case in wrong(option, NUMBER_ABOVE, 0, -1, float("nan"), float("inf"), "5", None, True)
        ],
        *wrong("busy_poll", "give a finite number of 0 or more", -1, float("nan"), float("inf"), "5", None, True),
        *wrong("busy_poll", "give at most 0.01 seconds, for it keeps a processor busy; 0.000100 is usual", 0.02, 100),
    ],
)
def test_a_wrong_bus_option(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bus(**options)
    assert said in str(caught.value)
    assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *wrong("streams", "needs a stream: @bus.subscriber('orders')", ()),
        *wrong("streams", "give a stream's name, as 'orders'", ("",), (None,), ("orders", 5), (b"orders",)),
        *wrong("streams", "name each stream once", ("orders", "orders")),
        *wrong("streams", "braces that are no Redis hash tag; leave them out, or write a tag as 'orders{eu}'", ("a{b",), ("a}b",), ("{}a",), ("}{",), ("{}{a}",)),  # noqa: E501
        *wrong("streams", "text that UTF-8 can carry", ("\ud800",)),
        *wrong("group", "give the consumer group's name", "", None, 5),
        *wrong("group", "text that UTF-8 can carry", "\udcff"),
        *wrong("batch", WHOLE, 0, 1.0, True, None),
        *wrong("concurrency", WHOLE, 0, -5, "16"),
        *wrong("ack_wait", NUMBER_ABOVE, 0, None, float("nan")),
        *wrong("timeout", NUMBER_ABOVE, 0, -1, "5", float("inf")),
        *wrong("retry", "give a Retry, as Retry(max_attempts=3)", None, 3, Retry),
        *wrong("start", "give 'beginning' or 'new'", "$", "0", None, "end"),
        *wrong("trace_mode", "give 'continue' or 'link'", "parent", None),
    ],
)  # fmt: skip
def test_a_wrong_subscriber_option(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        subscriber(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *wrong("max_attempts", WHOLE, 0, 1.5, True),
        *wrong("initial", NUMBER_FROM, -1, None, float("nan")),
        *wrong("maximum", NUMBER_FROM, -1, float("inf")),
        *wrong("multiplier", "give a finite number of 1 or more", 0.5, float("inf"), float("nan"), "2", True, None),
        *wrong("jitter", "give 'full' or 'none'", "half", True),
        *wrong("retry_on", "give an exception class or a tuple of them", "KeyError", KeyError(), [KeyError], (KeyError, 5), int),  # noqa: E501
        *wrong("give_up_on", "give an exception class or a tuple of them", None, (None,)),
    ],
)  # fmt: skip
def test_a_wrong_retry(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Retry(**options)
    assert said in str(caught.value)
    assert next(iter(options)) in str(caught.value)


# --- what the environment fills in ---------------------------------------------------------------


def resolve(url: str | None = None, service: str | None = None, *, has_client: bool = False, **env: str) -> BusConfig:
    return BusConfig.resolve(url, service, has_client=has_client, env=env)


def test_the_environment_fills_in_what_is_left_out() -> None:
    config = resolve(QUANTUM_BUS_URL="redis://env", QUANTUM_BUS_SERVICE="env", OTEL_SERVICE_NAME="otel")
    assert (config.url, config.service) == ("redis://env", "env")
    assert resolve("redis://h", OTEL_SERVICE_NAME="otel").service == "otel"
    assert resolve("redis://h", QUANTUM_BUS_SERVICE="", OTEL_SERVICE_NAME="otel").service == "otel"


def test_what_is_given_goes_before_the_environment() -> None:
    config = resolve("redis://given", "given", QUANTUM_BUS_URL="redis://env", QUANTUM_BUS_SERVICE="env")
    assert (config.url, config.service) == ("redis://given", "given")


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTUM_BUS_URL", "redis://process")
    monkeypatch.setenv("QUANTUM_BUS_SERVICE", "process")
    config = BusConfig.resolve(None, None, has_client=False)
    assert (config.url, config.service) == ("redis://process", "process")


def test_beside_a_client_no_url_is_looked_for() -> None:
    assert resolve(None, "s", has_client=True, QUANTUM_BUS_URL="redis://env").url is None


def test_options_reach_the_configuration() -> None:
    assert BusConfig.resolve("redis://h", "s", has_client=False, env={}, prefix="x:", sampled=False).prefix == "x:"


def test_no_url_anywhere() -> None:
    with pytest.raises(ConfigurationError, match=r"EventBus\('redis://localhost:6379/0'\), or set QUANTUM_BUS_URL"):
        resolve(None, "s")
    with pytest.raises(ConfigurationError, match="QUANTUM_BUS_URL"):
        resolve(None, "s", QUANTUM_BUS_URL="")


def test_no_service_anywhere() -> None:
    with pytest.raises(ConfigurationError, match=r"service='auto_executor'\), or set QUANTUM_BUS_SERVICE"):
        resolve("redis://h")


def test_an_empty_service_is_not_taken_for_none() -> None:
    with pytest.raises(ConfigurationError, match="name the service"):
        resolve("redis://h", "", QUANTUM_BUS_SERVICE="env")


def test_url_and_client() -> None:
    with pytest.raises(ConfigurationError, match="either a url or a client, not both"):
        resolve("redis://h", "s", has_client=True)


def test_an_option_that_is_none_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match=r"max_payload: .* did you mean max_payload_bytes\?"):
        BusConfig.resolve("redis://h", "s", has_client=False, env={}, max_payload=5)
    with pytest.raises(ConfigurationError, match=r"xyz: .* there are prefix, max_payload_bytes, "):
        BusConfig.resolve("redis://h", "s", has_client=False, env={}, xyz=5)


# --- stream names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("orders", None), ("{a}", "a"), ("x{a}y", "a"), ("{a}{b}", "a"), ("{{a}}", "{a"), ("{}", None), ("{}{a}", None),
        ("{", None), ("}", None), ("}{", None), ("}{a}", "a"), ("{a", None), ("", None),
    ],
)  # fmt: skip
def test_hash_tags_are_redis_clusters(key: str, tag: str | None) -> None:
    assert hash_tag(key) == tag


@given(st.text(alphabet="a{}:", min_size=1, max_size=8))
def test_an_accepted_name_and_its_side_key_share_a_slot(stream: str) -> None:
    def slot_part(key: str) -> str:
        start = key.find("{")
        end = key.find("}", start + 1)
        return key[start + 1 : end] if start >= 0 and end > start + 1 else key

    try:
        check_stream(stream)
    except ConfigurationError:
        return
    side = f"{stream}:dlq" if hash_tag(stream) is not None else f"{{{stream}}}:dlq"
    assert slot_part(side) == slot_part(stream)


# --- passwords are not shown ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@localhost:6379/0", "redis://:***@localhost:6379/0"),
        ("redis://user:secret@localhost", "redis://user:***@localhost"),
        ("rediss://user:secret@[::1]:6380/1", "rediss://user:***@[::1]:6380/1"),
        ("redis://secret@localhost", "redis://***@localhost"),
        ("redis://h?password=secret&db=1", "redis://h?password=***"),
        ("redis://h?db=1&PassWord=secret", "redis://h?db=1&PassWord=***"),
        ("redis://h?p%61ssword=secret", "redis://h?p%61ssword=***"),
        ("redis://h?ssl_password=secret", "redis://h?ssl_password=***"),
        ("redis://h?db=1&token=secret", "redis://h?db=1&token=***"),
        ("redis://h?password=se&cret", "redis://h?password=***"),
        ("redis://h?password=se#cret", "redis://h?password=***#***"),
        ("redis://h?password=se@cret", "redis://***"),
        ("redis://h?hunter2", "redis://h?***"),
        ("redis://h?db=1&ssl_cert_reqs=none", "redis://h?db=1&ssl_cert_reqs=none"),
        ("redis://user:se@cret@h/0", "redis://user:***@h/0"),
        ("redis://user:se/cret@h/0", "redis://user:***@h/0"),
        ("redis://user:se:cret@h/0", "redis://user:***@h/0"),
        ("redis://user:se?cret@h/0", "redis://***"),
        ("redis://user:se#cret@h/0", "redis://***"),
        ("redis://:secret", "redis://:***"),
        ("redis://user:secret", "redis://user:***"),
        ("redis://user:secret/0", "redis://user:***"),
        ("redis://:se:c/r?e#t", "redis://:***"),
        ("redis://h:6379x/0", "redis://h:***"),
        ("redis://[::1:secret", "redis://[:***"),
        ("redis://[::1]:secret", "redis://[::1]:***"),
        ("user:secret@localhost", "user:***@localhost"),
        ("redis://se/cret:more@h", "redis://***@h"),
        ("unix://user:secret@/run/redis.sock?db=1", "unix://user:***@/run/redis.sock?db=1"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock?password=***"),
        ("", ""),
        ("://", "://"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert masked_url(url) == shown


SECRET = hostile_text(30, "/?#@:&=[]%;+ ").map(lambda text: f"§{text}§")


def ambiguous(secret: str, form: str) -> bool:
    """Whether a part of the secret cannot be told from a host or a user, by anyone."""
    return (form == "redis://:{}" and "@" in secret) or (form == "redis://{}@h" and ":" in secret)


@given(
    SECRET,
    st.sampled_from(
        [
            "redis://:{}@h:6379/0", "redis://user:{}@h", "redis://{}@h", "rediss://u:{}@[::1]:1/0?db=1", "redis://h?password={}",
            "redis://u:x@h/0?db=1&password={}", "unix://u:{}@/s.sock", "unix:///s.sock?db=1&password={}&x=y", "redis://:{}",
            "u:{}@h", "redis://u:{}@h?client_name=a", "redis://h?ssl_password={}", "redis://u:{}@", "http://u:{}@h",
        ]
    ),
    st.booleans(),
)  # fmt: skip
def test_no_password_is_ever_shown_encoded_or_not(secret: str, form: str, encoded: bool) -> None:
    """Not even a piece of it: the secret's first and last character stand nowhere else."""
    assume(not ambiguous(secret, form))
    written = secret
    if encoded:
        try:
            written = quote(secret, safe="")
        except UnicodeEncodeError:
            assume(False)
    shown = masked_url(form.format(written))
    assert "§" not in shown
    assert "%C2%A7" not in shown


@given(SECRET, st.sampled_from(["redis://:{}@h:6379/0", "redis://u:{}@h/x", "redis://:{}", "u:{}@h", "unix://u:{}@x/y", "redis://u:{}@h:99999"]))  # fmt: skip  # noqa: E501
def test_no_error_shows_a_password_nor_does_its_cause(secret: str, form: str) -> None:
    assume(not ambiguous(secret, form))
    url = form.format(secret)
    try:
        shown = repr(bus(url=url))
    except ConfigurationError as error:
        shown = f"{error}{error.__cause__!r}{error.__context__!r}" if not error.__suppress_context__ else f"{error}"
    assert "§" not in shown
    assert ascii("§")[1:-1] not in shown


@given(hostile_text(60, "redis:/?#@&=[]"))
def test_masking_never_raises(url: str) -> None:
    masked_url(url)
    try:
        bus(url=url)
    except ConfigurationError as error:
        assert str(error).isprintable()  # noqa: PT017


def test_a_configuration_may_be_logged() -> None:
    assert "secret" not in repr(bus(url="redis://:secret@h"))


@pytest.mark.parametrize(
    ("address", "read"),
    [("127.0.0.1:8080", ("127.0.0.1", 8080)), ("[::1]:0", ("::1", 0)), ("localhost:65535", ("localhost", 65535))],
)
def test_an_address_to_listen_on_is_read(address: str, read: tuple[str, int]) -> None:
    assert check_address("probes", address) == read


@pytest.mark.parametrize(
    "address",
    ["", "8080", ":8080", "h:", "h:x", "h:-1", "h:65536", "h:١", "h:9" + "9" * 9999, "::1:80", "[]:80", "a b:80",
     "http://h:80", "h:80/", "h\n:80", None, 8080, True],
)  # fmt: skip
def test_what_is_no_address_to_listen_on_is_refused_and_a_right_one_shown(address: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^probes=.*give an address and a port, as '127\.0\.0\.1:8080'"):
        check_address("probes", address)
