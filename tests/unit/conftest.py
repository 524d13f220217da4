"""Hypothesis as a test suite needs it: no verdict by the clock of a loaded machine, no folder left behind."""

import os

from hypothesis import settings

settings.register_profile("suite", deadline=None, database=None, derandomize=bool(os.environ.get("CI")))
settings.register_profile("thorough", deadline=None, database=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))
