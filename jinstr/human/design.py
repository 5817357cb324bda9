"""Who judges which answers, on which side: loads, sides and hidden repeats that balance out.

Of every two models, counted over first showings: for each rater, for each prompt and in all, the times that a model
stood on the left and on the right differ by one at most; with hidden repeats, this stays so for each rater.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import random
from collections.abc import Sequence

from jinstr import errors
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
    given = assign(tasks, len(raters), config.overlap, rng)
    seen = _ranked(tasks, given, rng) if config.mode == "rank" else _sided(tasks, given)
    rows = []
    for number, rater in enumerate(raters):
        own = [(tasks[task][0], shown) for task, who, shown in seen if who == number]
        ordered = with_repeats(own, config.repeats, rng)
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


def assign(
    tasks: Sequence[tuple[str, tuple[str, ...]]], raters: int, overlap: int, rng: random.Random
) -> list[tuple[int, int]]:
    """(task, rater): each task goes to `overlap` raters, loads of raters differ by one at most.

    Second to that, a rater's rows are spread over the pairs of models, and over different prompts.
    """
    load = [0] * raters
    by_pair: dict = collections.Counter()
    by_item: dict = collections.Counter()
    order = list(range(len(tasks)))
    rng.shuffle(order)
    given = []
    for task in order:
        item, shown = tasks[task]
        draw = [rng.random() for _ in range(raters)]
        least = sorted(
            range(raters), key=lambda r: (load[r], by_pair[shown, r], by_item[item, r], draw[r])
        )
        for rater in least[:overlap]:
            load[rater] += 1
            by_pair[shown, rater] += 1
            by_item[item, rater] += 1
            given.append((task, rater))
    return given


def _sided(tasks, given) -> list[tuple[int, int, tuple[str, ...]]]:
    """(task, rater, models in the order shown) with balanced sides."""
    by_pair: dict[tuple[str, ...], list[tuple[int, int]]] = collections.defaultdict(list)
    for task, rater in given:
        by_pair[tasks[task][1]].append((task, rater))
    seen = []
    for pair, edges in by_pair.items():
        for (task, rater), straight in zip(edges, split(edges)):
            seen.append((task, rater, pair if straight else pair[::-1]))
    return seen


def split(edges: Sequence[tuple[int, int]]) -> list[bool]:
    """Half of the edges of a bipartite graph, such that at every vertex, and in all, both halves differ by one at most.

    Euler's way: vertices of odd degree are joined to one more vertex on the other side, then every closed walk is
    coloured in turns; in a bipartite graph its length is even.
    """
    ends = [(("task", task), ("rater", rater)) for task, rater in edges]
    degree = collections.Counter(itertools.chain.from_iterable(ends))
    odd = {
        side: [v for v in degree if v[0] == side and degree[v] % 2] for side in ("task", "rater")
    }
    extra_task, extra_rater = ("task", -1), ("rater", -1)
    ends += [(vertex, extra_rater) for vertex in odd["task"]]
    ends += [(extra_task, vertex) for vertex in odd["rater"]]
    if len(odd["task"]) % 2:
        ends.append((extra_task, extra_rater))
    at: dict = collections.defaultdict(list)
    for number, (left, right) in enumerate(ends):
        at[left].append(number)
        at[right].append(number)
    colour: list[bool | None] = [None] * len(ends)
    for start in list(at):
        vertex, turn = start, True
        while True:
            while at[vertex] and colour[at[vertex][-1]] is not None:
                at[vertex].pop()
            if not at[vertex]:
                break
            number = at[vertex].pop()
            # Walks begin at either side; what counts is the turn, seen from the tasks.
            colour[number] = turn
            turn = not turn
            left, right = ends[number]
            vertex = right if vertex == left else left
    return [bool(c) for c in colour[: len(edges)]]


def _ranked(tasks, given, rng: random.Random) -> list[tuple[int, int, tuple[str, ...]]]:
    """(task, rater, models in the order shown): each model stands at each place equally often for a rater, to ±1 while
    the prompts have answers of the same models."""
    shift: dict = collections.Counter()
    base: dict = {}
    seen = []
    for task, rater in given:
        shown = tasks[task][1]
        turn = shift[rater, shown] % len(shown)
        if turn == 0:  # a new order, so that neighbours change too
            base[rater, shown] = rng.sample(shown, len(shown))
        order = base[rater, shown]
        seen.append((task, rater, tuple(order[turn:] + order[:turn])))
        shift[rater, shown] += 1
    return seen


def with_repeats(
    own: Sequence[tuple[str, tuple[str, ...]]], share: float, rng: random.Random
) -> list[tuple[str, tuple[str, ...], int]]:
    """(item, models shown, repeat) in the order of the sheet.

    A repeat comes in the second half, of a row of the first half, with its answers in the opposite order, so that it
    is not known by its looks. Drawn are only rows whose repeats leave both sides of their models balanced.
    """
    order = list(own)
    rng.shuffle(order)
    half = (len(order) + 1) // 2
    wanted = round(share * len(order))
    shown_as = collections.Counter(shown for _, shown in order)
    chosen: set[int] = set()
    before = -1
    while before < len(chosen) < wanted:
        before = len(chosen)
        for place, (_, shown) in enumerate(order[:half]):
            turned = shown[::-1]
            # One pass does not always find all: a draw makes room for one of the opposite order.
            if (
                place not in chosen
                and len(chosen) < wanted
                and abs(shown_as[turned] + 1 - shown_as[shown]) <= 1
            ):
                chosen.add(place)
                shown_as[turned] += 1
    later = [(*row, 0) for row in order[half:]]
    slots = sorted(rng.sample(range(len(later) + len(chosen)), len(chosen)))
    for slot, place in zip(slots, sorted(chosen)):
        item, shown = order[place]
        later.insert(slot, (item, shown[::-1], 1))
    return [(*row, 0) for row in order[:half]] + later
