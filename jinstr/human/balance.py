"""Loads, sides and hidden repeats that balance out.

Of every two models, counted over first showings: for each rater, for each prompt and in all, the times that a model
stood on the left and on the right differ by one at most; with hidden repeats, this stays so for each rater.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Sequence


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


def sided(tasks, given) -> list[tuple[int, int, tuple[str, ...]]]:
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


def ranked(tasks, given, rng: random.Random) -> list[tuple[int, int, tuple[str, ...]]]:
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
