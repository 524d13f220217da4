"""File → collector → Loki, as ``benchmarks/pipeline.py`` measures it, on all cores: nothing else is under way."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any, Final

from benchmarks.runner import ROOT

from .trial import Outcome, Trial, main

FIGURES: Final = ("lines_per_second", "missing", "duplicates", "collector_cpu", "loki_cpu")


def lines(trial: Trial) -> Outcome:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    command = [ROOT / ".venv/bin/python", "-m", "benchmarks.pipeline", "--json", "--lines", str(trial.count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("["):
        raise RuntimeError(done.stderr[-2000:])
    run: dict[str, Any] = json.loads(done.stdout)[0]
    return Outcome({name: run[name] for name in FIGURES}, run)


if __name__ == "__main__":
    main({"lines": lines})
