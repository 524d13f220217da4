"""Messages of one key one after the other, retries included; different keys side by side.

Publishes the steps of three accounts, handles them, and ends. One step fails at first: the later ones of its account
wait for it, the other accounts do not.
"""

import asyncio

from quantum_bus import EventBus, Message, Retry, setup_json_logging

ACCOUNTS = ("ada", "bob", "cyd")
STEPS = ("opened", "paid in", "paid out", "closed")
FAILS_AT_FIRST = ("bob", "paid in")

log = setup_json_logging("ledger")
bus = EventBus(service="ledger")  # the URL comes from QUANTUM_BUS_URL
left = len(ACCOUNTS) * len(STEPS)


@bus.subscriber("accounts", ordered=True, ack_wait=15.0, retry=Retry(initial=3.0, jitter="none"))
async def book(step: dict, message: Message) -> None:
    """`key=` says what is in order with what. Start this twice: one of the two leads, the other stands by."""
    global left  # noqa: PLW0603  # handlers of one event loop
    if (message.key, step["name"]) == FAILS_AT_FIRST and message.attempt == 1:
        raise ConnectionError("the bank does not answer")
    await asyncio.sleep(0.01)
    log.info(
        "%s: %s", message.key, step["name"],
        event="STEP_BOOKED", account=message.key, step=step["name"], attempt=message.attempt,
    )  # fmt: skip
    left -= 1
    if left == 0:
        bus.request_stop()


async def main() -> None:
    """Publishes the steps in turn, one of each account, and handles them."""
    for step in STEPS:
        for account in ACCOUNTS:
            await bus.publish(
                "accounts", {"name": step}, event="ACCOUNT_STEP", key=account, correlation_id=f"account-{account}"
            )
    await bus.run()  # until the last one is booked, or Ctrl-C


if __name__ == "__main__":
    asyncio.run(main())
