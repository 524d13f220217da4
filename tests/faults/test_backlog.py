"""What a dead consumer left is taken over, however much it is: in bounded memory, and beside what is new."""

from pathlib import Path

from tests.faults.history import RETURN, lines_of, read_history
from tests.faults.scenario import GROUP, Scenario

STREAM = "backlog"
PAGE = 10_000
GROWTH = 32 * 1024 * 1024
"""Bytes by which the consumer may grow while it works on the backlog, whatever its length."""

_LEAVE = """
for i = 1, tonumber(ARGV[1]) do
  redis.call('XADD', KEYS[1], '*', 'v', '1', 'data', '["ok"]')
end
redis.call('XREADGROUP', 'GROUP', ARGV[2], 'dead', 'COUNT', ARGV[1], 'STREAMS', KEYS[1], '>')
"""


async def left_by_a_dead_consumer(load: Scenario, count: int) -> None:
    await load.client.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    for _ in range(count // PAGE):
        await load.client.eval(_LEAVE, 1, STREAM, PAGE, GROUP)  # type: ignore[misc]


async def pending(load: Scenario) -> int:
    return int((await load.client.xpending(STREAM, GROUP))["pending"])


async def test_a_long_pending_list_is_taken_over_in_bounded_memory_and_beside_what_is_new(load: Scenario) -> None:
    """Of a million not all are waited for, but in the long form; none may be lost on the way either.

    With a read that blocks for a millisecond between two pages, 160 were taken over in a second, and not thousands.
    """
    count = load.form.of(100_000, 1_000_000)
    wanted = load.form.of(20_000, 20_000, count)
    await left_by_a_dead_consumer(load, count)
    worker = load.consumer(stream=STREAM)
    await load.progress(500)
    before = worker.rss
    load.publisher(stream=STREAM, count=200, lanes=4, mix={"ok": 1})
    largest = 0

    def new_is_handled() -> bool:
        nonlocal largest
        largest = max(largest, worker.rss)
        return not load.of("publisher") and published(load.folder) <= handled(load.folder)

    await load.until(new_is_handled, "what is new is handled")
    assert await pending(load) > load.form.of(0, count // 2), "while most of the backlog still waits"

    def enough() -> bool:
        nonlocal largest
        largest = max(largest, worker.rss)
        return load.count(f"ended {RETURN}") >= wanted

    await load.until(enough, f"{wanted} are handled", timeout=3000.0)
    assert largest - before < GROWTH
    await load.stopped([worker])
    left = await pending(load)
    assert len({one.entry_id for one in read_history(load.folder).handlings if one.outcome}) >= count + 200 - left


def published(folder: Path) -> set[str]:
    return {line["message_id"] for line in lines_of(folder) if line["what"] == "publish"}


def handled(folder: Path) -> set[str]:
    return {line["message_id"] for line in lines_of(folder) if line["what"] == "begun"}
