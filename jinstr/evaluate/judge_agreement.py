"""How far a judge agrees with people on the same pairs, how much its verdict hangs on the order, and who won by it."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Sequence

from jinstr.evaluate import verdicts
from jinstr.human import bootstrap, judgements, rates

Pair = tuple[str, str, str]  # prompt, model, model; the models in alphabetical order
OUTCOMES = ("first", "second", "tie")  # of a pair
WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}
SAMPLES = 2000  # of intervals, by drawing prompts again


def pair_of(judgement: judgements.Judgement) -> Pair:
    return (judgement.prompt, *sorted((judgement.left, judgement.right)))


def outcome(judgement: judgements.Judgement) -> str:
    """Which model of `pair_of` was preferred."""
    if judgement.winner is None:
        return "tie"
    return "first" if judgement.winner == pair_of(judgement)[1] else "second"


def of_pairs(judged: Iterable[judgements.Judgement]) -> dict[Pair, str | None]:
    """A judge's outcome of every pair, both orders together: a tie where they disagree; None where one is missing."""
    straight: dict[Pair, str] = {}
    swapped: dict[Pair, str] = {}
    for judgement in judged:
        pair = pair_of(judgement)
        (straight if judgement.left == pair[1] else swapped)[pair] = judgement.verdict
    sides = {"left": "first", "right": "second", "tie": "tie", None: None}
    pairs = sorted(straight.keys() | swapped.keys())
    return {p: sides[verdicts.of_both_orders(straight.get(p), swapped.get(p))] for p in pairs}


def table(judged: Sequence[judgements.Judgement]) -> list[dict]:
    """For every two models, by pairs that were judged in both orders: {"first", "second", "prompts", "wins", "losses",
    "ties" of the first, "win_rate" with Wilson's "win_interval", "adjusted" (ties count half) with its
    "adjusted_interval" by drawing prompts again, "same" (share of pairs with one verdict in both orders), "left" (share
    of decided looks that went to the answer shown first; 0.5 without a preference for a place)}.
    """
    rows = []
    by_models = collections.defaultdict(list)
    for judgement in judged:
        by_models[pair_of(judgement)[1:]].append(judgement)
    for (first, second), group in sorted(by_models.items()):
        whole = {pair: found for pair, found in of_pairs(group).items() if found is not None}
        counts = collections.Counter(whole.values())
        looks = collections.defaultdict(list)
        for judgement in group:
            looks[pair_of(judgement)].append(outcome(judgement))
        decided = [judgement.verdict for judgement in group if judgement.verdict != "tie"]
        count = len(whole)
        rows.append(
            {
                "first": first,
                "second": second,
                "prompts": count,
                "wins": counts["first"],
                "losses": counts["second"],
                "ties": counts["tie"],
                "win_rate": _share(counts["first"], count),
                "win_interval": rates.wilson(counts["first"], count),
                "adjusted": _share(counts["first"] + counts["tie"] / 2, count),
                "adjusted_interval": _interval(
                    [(pair[0], WORTH[found]) for pair, found in whole.items()]
                ),
                "same": _share(sum(len(set(looks[pair])) == 1 for pair in whole), count),
                "left": _share(decided.count("left"), len(decided)),
            }
        )
    return rows


def agreement(
    judge: Sequence[judgements.Judgement], people: Sequence[judgements.Judgement]
) -> dict:
    """One judge beside people on the pairs that both looked at.

    A judge's outcome is that of both orders (`of_pairs`); each first look of a person counts. Returns {"judge",
    "pairs", "looks", "agree" (looks with the same outcome, ties too), "share"; "decided" (looks where neither says
    tie), "decided_agree", "decided_share"; "kappa" (Cohen 1960: agreement beyond what both would have by chance);
    "table" {person's outcome: {judge's: looks}}; "people": the same between two people on a pair, "looks", "agree",
    "share": what a judge can be held to}; "interval", "people_interval": of both shares, by drawing prompts again}.
    Shares are None without a look.
    """
    found = {pair: value for pair, value in of_pairs(judge).items() if value is not None}
    looks = [(pair_of(j), j.rater, outcome(j)) for j in people if not j.repeat]
    looks = [look for look in looks if look[0] in found]
    both = [(value, found[pair]) for pair, _, value in looks]
    among = _between(looks)
    decided = [(one, other) for one, other in both if "tie" not in (one, other)]
    return {
        "judge": ",".join(sorted({j.rater for j in judge})),
        "pairs": len({pair for pair, _, _ in looks}),
        **_counted(both),
        **{f"decided{'_' + n if n != 'looks' else ''}": v for n, v in _counted(decided).items()},
        "kappa": _kappa(both),
        "table": {one: {other: both.count((one, other)) for other in OUTCOMES} for one in OUTCOMES},
        "people": _counted([two for _, two in among]),
        "interval": _interval(
            [(look[0][0], one == other) for look, (one, other) in zip(looks, both)]
        ),
        "people_interval": _interval([(prompt, one == other) for prompt, (one, other) in among]),
    }


def whole_pairs(judged: Sequence[judgements.Judgement]) -> list[judgements.Judgement]:
    """One judgement for each pair that was judged in both orders: of the judge, the first model by name on the left."""
    sides = {"first": "left", "second": "right", "tie": "tie"}
    rater = ",".join(sorted({j.rater for j in judged}))
    return [
        judgements.Judgement(
            prompt=prompt, rater=rater, left=first, right=second, verdict=sides[found]
        )
        for (prompt, first, second), found in of_pairs(judged).items()
        if found is not None
    ]


def _interval(of_prompt: Sequence[tuple[str, float]]) -> tuple[float, float] | None:
    """Of the mean of (prompt, value), by drawing prompts again; None of nothing."""
    if not of_prompt:
        return None
    prompts, values = zip(*of_prompt)
    return bootstrap.interval(bootstrap.means(values, prompts, samples=SAMPLES, seed=0))


def _between(looks: Sequence[tuple[Pair, str, str]]) -> list[tuple[str, tuple[str, str]]]:
    """(prompt, outcomes) of every two people on a pair."""
    of_pair: dict[Pair, dict[str, str]] = collections.defaultdict(dict)
    for pair, rater, value in looks:
        of_pair[pair].setdefault(rater, value)
    return [
        (pair[0], two)
        for pair, values in of_pair.items()
        for two in itertools.combinations(values.values(), 2)
    ]


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _counted(both: Sequence[tuple[str, str]]) -> dict:
    same = sum(one == other for one, other in both)
    return {"looks": len(both), "agree": same, "share": _share(same, len(both))}


def _kappa(both: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa; None where chance alone would make all agree."""
    count = len(both)
    if not count:
        return None
    one, other = (collections.Counter(side) for side in zip(*both))
    by_chance = sum(one[value] * other[value] for value in OUTCOMES) / count**2
    observed = sum(a == b for a, b in both) / count
    return (observed - by_chance) / (1 - by_chance) if by_chance < 1 else None
