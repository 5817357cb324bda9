"""`PROFILE=first:last`: a trace of some steps, to be opened with TensorBoard or xprof."""

from __future__ import annotations

import pathlib

import jax

from jinstr import errors


class Trace:
    """Traces steps first to last, both included, into RUN_DIR/profile; nothing when the setting is empty."""

    def __init__(self, window: str, run_dir):
        """Errors: ConfigError for a window that is not first:last."""
        self._folder = str(pathlib.Path(run_dir) / "profile")
        self._running = False
        self._first = self._last = -1
        if not window:
            return
        first, _, last = window.partition(":")
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise errors.ConfigError(
                "JI-LOOP-003", f"PROFILE={window!r} is not first:last, as in PROFILE=10:15"
            )
        self._first, self._last = int(first), int(last)

    def before(self, step: int) -> None:
        """Start or stop, as the step that comes next wants it; a resumed run may begin inside the window."""
        wanted = self._first <= step <= self._last
        if wanted and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        elif not wanted:
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
