"""quantum-bus for threads."""

from __future__ import annotations

import time

from quantum_bus import setup_json_logging
from quantum_bus.jsonlog import close_logging
from quantum_bus.sync import EventBus

from .filling import stored
from .observed import Observed, lines_in
from .trial import EVENT, PAYLOAD, SERVICE, STREAM, WARM_UP, Outcome, Trial, main


def publish(trial: Trial) -> Outcome:
    observed = Observed(trial.level)
    log = setup_json_logging(SERVICE, path=trial.folder / "bench.jsonl", announce=False) if trial.level.logs else None
    warm = int(trial.count * WARM_UP)
    started = 0.0
    with EventBus(trial.url, service=SERVICE) as bus:
        for number in range(trial.count):
            if number == warm:
                started = time.perf_counter()
            bus.publish(STREAM, PAYLOAD, event=EVENT)
            if log is not None:
                log.info("Intent created", event=EVENT, symbol="BTCUSDT", number=number)
        elapsed = time.perf_counter() - started
    facts = observed.end()
    close_logging()
    facts["lines"] = lines_in(trial.folder)
    return Outcome({"rate": (trial.count - warm) / elapsed}, facts | stored(trial.url, STREAM))


if __name__ == "__main__":
    main({"publish": publish})
