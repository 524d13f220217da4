"""The one piece of module state: which pipeline is set up now.

As in the standard library's ``logging``, a logger made anywhere must find what the program set up once, before or
after. Only ``setup_json_logging`` and ``capture_logs`` change it.
"""

from __future__ import annotations

import os
from typing import Final

from .forward import ForwardingPipeline
from .pipeline import Pipeline


class Active:
    """The pipeline in force; ``emit`` and ``threshold`` are its own, here to save each call a step."""

    __slots__ = ("emit", "pipeline", "threshold")

    def __init__(self) -> None:
        self.install(ForwardingPipeline())

    def install(self, pipeline: Pipeline) -> None:
        """Put a pipeline in force."""
        self.pipeline: Pipeline = pipeline
        self.emit = pipeline.emit
        self.threshold: int = pipeline.threshold

    def after_fork(self) -> None:
        """Called in the child of a fork."""
        self.pipeline.after_fork()


active: Final = Active()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=active.after_fork)
