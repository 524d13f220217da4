"""The services of deploy/compose.yaml, as `quantum-bus run trading:auto_executor` wants them: a function for each bus.

Yours go in their place: a module with an EventBus, copied into the image by the Dockerfile beside this file.
"""

from quantum_bus.bus import EventBus
from quantum_bus.demo import auto_executor as executor_service
from quantum_bus.demo import portfolio as portfolio_service
from quantum_bus.demo.trading import AUTO_EXECUTOR, PORTFOLIO
from quantum_bus.jsonlog import get_logger
from quantum_bus.otel import setup


def auto_executor() -> EventBus:
    """Turns intents into orders, with spans and metrics to where OTEL_EXPORTER_OTLP_ENDPOINT says."""
    setup(AUTO_EXECUTOR)
    return executor_service.make_bus(get_logger())


def portfolio() -> EventBus:
    """Keeps positions, from what was executed."""
    setup(PORTFOLIO)
    return portfolio_service.make_bus(get_logger())
