"""What the demo's services say to each other: two streams, and the payload of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

INTENT_STREAM: Final = "quantum:stream:intent"
EXECUTION_STREAM: Final = "quantum:stream:execution"

AI_ENGINE: Final = "ai_engine"
AUTO_EXECUTOR: Final = "auto_executor"
PORTFOLIO: Final = "portfolio"
SERVICES: Final = (AI_ENGINE, AUTO_EXECUTOR, PORTFOLIO)

CONSUMERS: Final = {INTENT_STREAM: AUTO_EXECUTOR, EXECUTION_STREAM: PORTFOLIO}
"""Who handles what arrives on a stream."""

Side = Literal["BUY", "SELL"]


@dataclass(frozen=True, slots=True)
class Intent:
    """What ai_engine would like to have done.

    Attributes:
        intent_id: names it for good; an intent that is published twice is the same one.
        qty: in units of the symbol's first asset.
        price: of the market when it was made, in the symbol's second asset.
        confidence: from 0 to 1.
    """

    intent_id: str
    symbol: str
    side: Side
    qty: float
    price: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Execution:
    """What the exchange did: auto_executor's answer to an :class:`Intent`."""

    order_id: str
    intent_id: str
    symbol: str
    side: Side
    qty: float
    price: float
