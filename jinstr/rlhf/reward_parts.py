"""What REWARD= says: "runs/reward*1.0,my_rewards:polite*0.5" as parts of a weighted sum. Opens nothing."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from jinstr import errors, redact
from jinstr.rlhf import rewards_http, rewards_worker

_FUNCTION = re.compile(r"(?:[^\W\d]\w*(?:\.[^\W\d]\w*)*)?:[^\W\d]\w*")


KINDS = ("model", "function", "http")


class Part(NamedTuple):
    """One part of the sum."""

    text: str  # RUN_DIR, number, constraints, module:function, http://…
    kind: str  # model | function | http
    weight: float
    name: str  # as metrics show it; no two parts share one


def read(text: str, module: str = "") -> list[Part]:
    """The parts of "a*1.0,b*0.5"; a part without a weight has 1. No part holds a comma.

    module: where functions without a module are (":polite"). Errors: ConfigError.
    """
    weighed = [_weighed(part, text) for part in text.split(",")]
    texts = [module + part if part.startswith(":") else part for part, _ in weighed]
    kinds = [_kind(part) for part in texts]
    names = _names(texts, kinds)
    return [
        Part(part, kind, weight, name)
        for part, kind, (_, weight), name in zip(texts, kinds, weighed, names)
    ]


def _weighed(part: str, text: str) -> tuple[str, float]:
    name, _, weight = part.rpartition("*") if "*" in part else (part, "", "1")
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not name.strip() or not math.isfinite(value):
        raise errors.ConfigError(
            "JI-REWARDS-011",
            f"REWARD={redact.text(text)}: {redact.text(part)!r} is no reward; give NAME or NAME*WEIGHT, parted by "
            "commas",
        )
    return name.strip(), value


def _kind(text: str) -> str:
    if text.startswith(("http://", "https://")):
        return "http"
    if text in rewards_worker.BUILT_IN:
        return "function"
    if pathlib.Path(text.partition("@")[0]).expanduser().is_dir():
        return "model"
    if not _FUNCTION.fullmatch(text):
        raise errors.ConfigError(
            "JI-REWARDS-012",
            f"REWARD={redact.text(text)}: no such directory; give the RUN_DIR of `jinstr reward`, "
            f"{', '.join(rewards_worker.BUILT_IN)}, module:function or http://host:port/path",
        )
    if text.startswith(":"):
        raise errors.ConfigError(
            "JI-REWARDS-013", f"REWARD={text}: say MODULE= for the module that it is in"
        )
    return "function"


def _names(texts: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """A short name for each part; the whole text where short names are the same."""
    short = []
    for text, kind in zip(texts, kinds):
        if kind == "model":
            text = pathlib.Path(text).expanduser().resolve().name
        short.append(rewards_http.name_of(text) if kind == "http" else text)
    names = [s if short.count(s) == 1 else text for s, text in zip(short, texts)]
    for name in names:
        if names.count(name) > 1:
            raise errors.ConfigError(
                "JI-REWARDS-014", f"{redact.text(name)} is named twice; add up its weights"
            )
    return names
