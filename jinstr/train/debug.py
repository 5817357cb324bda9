"""JINSTR_DEBUG=1: a run that can be stepped through. No jit, a check for NaN after every operation.

Layers are computed one after the other in Python, and the first NaN raises FloatingPointError where it arises. Each
step goes through the model once without gradients, so that print, breakpoint() and float(x.max()) see numbers, and then
with them, where values are tracers that only print as numbers. For small models; nobody trains like this.
An environment variable and not a setting: it says how a run is watched, not what is trained, so it belongs into no
config.json, and it holds for every command, also for `resume` and `replay`, which read their settings from there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from jinstr import errors

VARIABLE = "JINSTR_DEBUG"


def is_on() -> bool:
    """Errors: ConfigError for a value that is neither 0 nor 1."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise errors.ConfigError("JI-DEBUG-001", f"{VARIABLE}={value!r}; write 1, or 0 for off")
    return value == "1"


@contextlib.contextmanager
def mode() -> Iterator[None]:
    """Within, this thread computes without jit and with checks, if the variable asks for it."""
    if not is_on():
        yield
        return
    import jax  # not above: run.py imports this module for every command, also for --help

    print(f"jinstr: {VARIABLE}=1: no jit, a check for NaN after every operation", file=sys.stderr)
    with jax.disable_jit(), jax.debug_nans(True):
        yield


@contextlib.contextmanager
def compiled() -> Iterator[None]:
    """Within, everything is compiled and unchecked again: the way to the place that is looked at."""
    import jax

    with jax.disable_jit(False), jax.debug_nans(False):
        yield
