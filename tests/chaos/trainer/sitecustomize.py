"""Loaded by every process of a cluster before its own code: a clock that is off, a guard that is taken out."""

import os

from tests.chaos import sabotage

sabotage.shift_clock(float(os.environ.get("PYTHON_CHAOS_CLOCK_SHIFT_SECONDS") or 0))
sabotage.take_out(os.environ.get("PYTHON_CHAOS_WITHOUT") or None)
