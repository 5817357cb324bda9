"""The one check that losses make on their settings."""

from __future__ import annotations

from jinstr import errors


def one_of(name: str, value, allowed: tuple) -> None:
    """ConfigError JI-LOSS-001 unless `value` is among `allowed`."""
    if value not in allowed:
        raise errors.ConfigError("JI-LOSS-001", f"{name} = {value!r}; allowed: {allowed}")
