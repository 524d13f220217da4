"""portfolio: keeps what is held of each symbol. ``python -m quantum_bus.demo.portfolio``"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any, Final

from quantum_bus import names
from quantum_bus.bus import EventBus
from quantum_bus.demo.service import consumer_parser, run_service
from quantum_bus.demo.trading import EXECUTION_STREAM, PORTFOLIO, Execution
from quantum_bus.jsonlog import Logger, log_event

# Orders remembered, so that one that comes twice counts once: far more than can be under way.
REMEMBERED_ORDERS: Final = 10_000


class Positions:
    """What is held of each symbol. An execution that comes twice counts once."""

    def __init__(self) -> None:
        self._held: defaultdict[str, float] = defaultdict(float)
        self._counted: dict[str, None] = {}  # in the order they came

    def apply(self, execution: Execution) -> float:
        """Count an execution; what is held of its symbol now."""
        if execution.order_id not in self._counted:
            self._counted[execution.order_id] = None
            if len(self._counted) > REMEMBERED_ORDERS:
                del self._counted[next(iter(self._counted))]
            self._held[execution.symbol] += execution.qty if execution.side == "BUY" else -execution.qty
        return round(self._held[execution.symbol], 8)


def make_bus(log: Logger, **options: Any) -> EventBus:
    """The service's bus: one subscriber, ``options`` as it takes them."""
    bus = EventBus(service=PORTFOLIO)
    positions = Positions()

    @bus.subscriber(EXECUTION_STREAM, **options)
    async def update(execution: Execution) -> None:
        position = positions.apply(execution)
        log_event(
            log,
            "INFO",
            names.EVENT_POSITION_UPDATED,
            f"Position updated: {execution.symbol}",
            symbol=execution.symbol,
            order_id=execution.order_id,
            position=position,
        )

    return bus


def main(arguments: list[str] | None = None) -> int:
    """Run the service; its exit code."""
    options = vars(consumer_parser(PORTFOLIO, __doc__ or "").parse_args(arguments))
    return run_service(PORTFOLIO, lambda log: make_bus(log, **options).run())


if __name__ == "__main__":
    sys.exit(main())
