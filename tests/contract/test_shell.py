"""`publish`, `tail` and `lag`, as a shell and a script use them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.contract.terminals import Ended, Terminals
from tests.servers import RedisPool, series_to_test


@pytest.fixture(scope="module")
def terminals() -> Iterator[Terminals]:
    made = Terminals()
    yield made
    made.close()


@pytest.fixture(scope="module", params=series_to_test()[-1:])
def url(request: pytest.FixtureRequest, redis_pool: RedisPool) -> str:
    return redis_pool.of(request.param).url


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url, decode_responses=True) as made:
        yield made


@pytest.fixture
def publish(terminals: Terminals, url: str, stream: str) -> Any:
    def run(*arguments: str, stdin: str = "") -> Ended:
        return terminals.run("publish", stream, *arguments, "--url", url, stdin=stdin)

    return run


def test_a_message_has_what_its_options_say(publish: Any, client: redis.Redis, stream: str) -> None:
    ended = publish(
        '{"symbol":"BTCUSDT"}', "--event", "ORDER", "--key", "BTC", "--header", "tenant=eu=1", "--correlation-id",
        "mine", "--message-id", "m-1", "--service", "ops",
    )  # fmt: skip
    [receipt] = [json.loads(line) for line in ended.lines]
    [(entry_id, fields)] = client.xrange(stream)
    assert receipt == {"stream": stream, "id": entry_id, "message_id": "m-1", "correlation_id": "mine"}
    wanted = {
        "data": '{"symbol":"BTCUSDT"}', "event": "ORDER", "key": "BTC", "h.tenant": "eu=1", "correlation_id": "mine",
        "message_id": "m-1", "service": "ops",
    }  # fmt: skip
    assert {name: fields[name] for name in wanted} == wanted
    assert publish("plain words", "--text").code == 0
    assert client.xrevrange(stream, count=1)[0][1]["data"] == '"plain words"'
    assert json.loads(publish("1", "--delay", "600").out)["id"] is None
    twice = [json.loads(publish("1", "--message-id", "once", "--dedupe", "60").out)["id"] for _ in range(2)]
    assert twice[0] == twice[1]


def test_each_line_is_a_message_in_order_with_a_receipt_and_a_flow_of_its_own(
    publish: Any, client: redis.Redis, stream: str
) -> None:
    ended = publish(stdin="".join(f'{{"n":{n}}}\n\n' for n in range(50)))
    receipts = [json.loads(line) for line in ended.lines]
    assert (ended.code, ended.err) == (0, "")
    assert [receipt["line"] for receipt in receipts] == [1 + 2 * n for n in range(50)]
    assert [json.loads(fields["data"])["n"] for _, fields in client.xrange(stream)] == list(range(50))
    assert [receipt["id"] for receipt in receipts] == [entry_id for entry_id, _ in client.xrange(stream)]
    assert len({receipt["correlation_id"] for receipt in receipts}) == 50


LINES = '{"n":1}\nnot json\n{"n":3}\n'


def test_the_first_bad_line_ends_it_and_is_named_with_what_was_done(
    publish: Any, client: redis.Redis, stream: str
) -> None:
    ended = publish(stdin=LINES)
    assert (ended.code, len(ended.lines), client.xlen(stream)) == (1, 1, 1)
    bad, summary = ended.err.splitlines()
    assert bad.startswith("quantum-bus: publish: line 2: it is not JSON")
    assert summary == "quantum-bus: publish: stopped at line 2; published 1 message, 1 failed"


def test_with_keep_going_the_rest_is_published_and_it_still_ends_with_1(
    publish: Any, client: redis.Redis, stream: str
) -> None:
    ended = publish("--keep-going", stdin=LINES)
    assert (ended.code, len(ended.lines), client.xlen(stream)) == (1, 2, 2)
    assert ended.err.splitlines()[-1] == "quantum-bus: publish: published 2 messages, 1 failed"


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["{"], "", 2, "PAYLOAD: it is not JSON"),
        (["1", "--header", "tenant"], "", 2, "give NAME=VALUE"),
        (["-", "--message-id", "m"], "1\n", 2, "--message-id names one message"),
        (["1", "--delay", "-1"], "", 2, "delay=-1.0: give seconds"),
        (["-", "--events"], '{"n":1}\n', 1, "line 1: give an object with its payload"),
        (["-", "--events"], '{"payload":1,"evnt":"E"}\n', 1, "'evnt' is none of payload, event"),
        (["-", "--events"], '{"payload":1,"event":7}\n', 1, "line 1: event=7: give a str"),
        (["-"], f'"{"x" * 1_100_000}"\n', 1, "line 1: "),
    ],
)
def test_what_cannot_be_published_is_told_with_what_would_be_right(
    publish: Any, client: redis.Redis, stream: str, arguments: list[str], stdin: str, code: int, says: str
) -> None:
    if len(stdin) > 60_000:  # more than a pipe takes
        ended = subprocess.run(
            [sys.executable, "-m", "quantum_bus", "publish", stream, "--url",
             "redis://127.0.0.1:{port}/0".format(**client.connection_pool.connection_kwargs)],
            input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
        ended = Ended(ended.returncode, ended.stdout, ended.stderr)
    else:
        ended = publish(*arguments, stdin=stdin)
    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert client.xlen(stream) == 0


def test_events_on_lines_have_options_of_their_own_and_tail_shows_them(
    publish: Any, terminals: Terminals, url: str, stream: str
) -> None:
    lines = [
        {"payload": {"a": {"b": 1}}, "event": "A", "key": "k", "headers": {"tenant": "eu"}, "message_id": "m-1"},
        {"payload": [1, 2], "event": "B", "correlation_id": "mine"},
        {"payload": None},
    ]
    assert publish("--events", "--event", "DEFAULT", stdin="\n".join(map(json.dumps, lines))).code == 0

    def tail(*arguments: str) -> list[Any]:
        options = ("--last", "9", "--json", "--url", url)
        return [json.loads(line) for line in terminals.run("tail", stream, *options, *arguments).lines]

    shown = tail("--count", "3")
    assert [message["event"] for message in shown] == ["A", "B", "DEFAULT"]
    assert [message["data"] for message in shown] == [{"a": {"b": 1}}, [1, 2], None]
    for arguments, event in (
        (["--event", "B"], "B"),
        (["--correlation-id", "mine"], "B"),
        (["--field", "a.b=1"], "A"),
        (["--field", "tenant=eu", "--field", "key=k", "--service", "quantum-bus-cli"], "A"),
    ):
        assert [message["event"] for message in tail("--count", "1", *arguments)] == [event]


def test_tail_tells_numbers_of_any_size(terminals: Terminals, url: str, client: redis.Redis, stream: str) -> None:
    payload = '{"n":123456789012345678901234567890,"m":1.5,"yes":true}'
    client.xadd(stream, {"data": payload})
    options = ("--last", "9", "--count", "1", "--json", "--url", url)
    for field in ("n=123456789012345678901234567890", "m=1.5", "yes=true"):
        ended = terminals.run("tail", stream, *options, "--field", field)
        assert ended.code == 0
        assert payload in ended.out.replace("\n", "")


def test_lag_ends_with_1_over_a_limit_and_names_it(
    terminals: Terminals, url: str, client: redis.Redis, stream: str
) -> None:
    client.xgroup_create(stream, "behind", "0", mkstream=True)
    client.xgroup_create(stream, "done", "0")
    for _ in range(3):
        client.xadd(stream, {"data": "1"}, id="1767435323456-*")
    client.xreadgroup("done", "c", {stream: ">"})

    def lag(*arguments: str) -> Ended:
        return terminals.run("lag", "--stream", stream, "--url", url, *arguments)

    assert (lag().code, lag("--max-messages", "3").code) == (0, 0)
    over = lag("--max-messages", "2", "--max-seconds", "60")
    assert over.code == 1
    assert [line.partition(f"{stream} / ")[2] for line in over.err.splitlines()] == [
        "behind: 3 messages wait, over 2",
        over.err.splitlines()[1].partition(f"{stream} / ")[2],
    ]
    assert "the oldest message has waited for" in over.err.splitlines()[1]
    assert lag("--group", "done", "--max-messages", "0", "--max-seconds", "0").code == 0
    missing = lag("--group", "nobody", "--max-messages", "9")
    assert (missing.code, missing.err) == (1, "quantum-bus: lag: nobody is not there\n")
    gone = terminals.run("lag", "--stream", f"{stream}:none", "--max-messages", "9", "--url", url)
    assert (gone.code, gone.err) == (1, f"quantum-bus: lag: {stream}:none is not there\n")


def test_tail_leaves_no_group_and_no_consumer(terminals: Terminals, url: str, client: redis.Redis, stream: str) -> None:
    client.xadd(stream, {"data": "1"})
    assert terminals.run("tail", stream, "--last", "1", "--count", "1", "--url", url).code == 0
    assert client.xinfo_groups(stream) == []
