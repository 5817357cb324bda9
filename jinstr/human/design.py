"""Who judges which answers, on which side: a study from items, models and a few numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Sequence

from jinstr import errors
from jinstr.human import balance
from jinstr.human import study as study_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class DesignConfig:
    """How a study is laid out."""

    mode: str = "ab"  # ab: two answers a row and a verdict; rank: all answers of a prompt in a row
    raters: str | int | tuple = 1  # names, comma separated, or how many
    overlap: int = 1  # raters of every row
    repeats: float = 0.0  # share of a rater's rows that come a second time
    baseline: str = ""  # compare every model with this one; "" = all with all
    seed: int = 0

    def __post_init__(self):
        names = rater_names(self.raters)
        if self.mode not in study_lib.MODES:
            raise errors.ConfigError(
                "JI-STUDY-003", f"MODE={self.mode!r} is none of {study_lib.MODES}"
            )
        if not 1 <= self.overlap <= len(names):
            raise errors.ConfigError(
                "JI-STUDY-004",
                f"OVERLAP={self.overlap} with {len(names)} raters: it is 1 to {len(names)}",
            )
        if not 0 <= self.repeats <= 0.5:
            raise errors.ConfigError(
                "JI-STUDY-005", f"REPEATS={self.repeats:g} is not from 0 to 0.5"
            )


def rater_names(raters: str | int | tuple) -> tuple[str, ...]:
    """Names of raters, which become names of files. Errors: ConfigError."""
    if isinstance(raters, int):
        width = max(2, len(str(raters)))
        return tuple(f"rater{n:0{width}d}" for n in range(1, raters + 1))
    parts = raters.split(",") if isinstance(raters, str) else map(str, raters)
    names = tuple(part.strip() for part in parts if part.strip())
    bad = [n for n in names if set(n) & set('/\\:*?"<>|\0') or n.startswith((".", "~")) or ":" in n]
    if not names or bad or len({name.casefold() for name in names}) < len(names):
        raise errors.ConfigError(
            "JI-STUDY-006",
            f"RATERS={raters!r}: distinct names that can name a file, comma separated, or a number",
        )
    return names


def lay_out(
    items: Sequence[study_lib.Item], models: Sequence[str], config: DesignConfig
) -> study_lib.Study:
    """The study of these items. Errors: ConfigError, DataError when nothing is left to compare."""
    raters = rater_names(config.raters)
    if config.baseline and config.baseline not in models:
        raise errors.ConfigError(
            "JI-STUDY-007",
            f"BASELINE={config.baseline!r} is none of the models {', '.join(models)}",
        )
    rng = random.Random(f"jinstr/{config.seed}")
    tasks, identical = _tasks(items, models, config)
    if not tasks:
        raise errors.DataError("JI-STUDY-008", "no prompt has two different answers to compare")
    given = balance.assign(tasks, len(raters), config.overlap, rng)
    seen = (
        balance.ranked(tasks, given, rng) if config.mode == "rank" else balance.sided(tasks, given)
    )
    rows = []
    for number, rater in enumerate(raters):
        own = [(tasks[task][0], shown) for task, who, shown in seen if who == number]
        ordered = balance.with_repeats(own, config.repeats, rng)
        for place, (item, shown, repeat) in enumerate(ordered, 1):
            # Of nothing that tells a model, as a rater may read it; no number, which Excel would make of 12e45.
            name = "r" + hashlib.sha256(f"{config.seed}/{rater}/{place}".encode()).hexdigest()[:12]
            rows.append(study_lib.Row(
                id=name, rater=rater, number=place, item=item, shown=shown, repeat=repeat
            ))  # fmt: skip
    return study_lib.Study(
        mode=config.mode,
        seed=config.seed,
        models=tuple(models),
        raters=raters,
        items=tuple(items),
        rows=tuple(rows),
        identical=identical,
    )


def _tasks(items, models, config) -> tuple[list[tuple[str, tuple[str, ...]]], int]:
    """([(item, models to show)], pairs left out because both answers are one text)."""
    tasks, identical = [], 0
    for item in items:
        present = [model for model in models if model in item.answers]
        if config.mode == "rank":
            distinct = {study_lib.answer_text(item, model): model for model in reversed(present)}
            shown = tuple(model for model in present if model in distinct.values())
            identical += len(present) - len(shown)
            if len(shown) > len(study_lib.LETTERS):
                raise errors.DataError(
                    "JI-STUDY-009",
                    f"prompt {item.id} has {len(shown)} answers; {len(study_lib.LETTERS)} can be ranked at a time",
                )
            tasks += [(item.id, shown)] if len(shown) > 1 else []
            continue
        for pair in itertools.combinations(present, 2):
            if config.baseline and config.baseline not in pair:
                continue
            if study_lib.answer_text(item, pair[0]) == study_lib.answer_text(item, pair[1]):
                identical += 1
            else:
                tasks.append((item.id, pair))
    return tasks, identical
