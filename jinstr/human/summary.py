"""All that can be said of a set of judgements, as one dict for JSON: what the report shows, number by number."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jinstr.human import agreement, bootstrap, lengths, power, rates, sequential, strengths
from jinstr.human import judgements as judgements_lib


def summary(
    judged: Sequence[judgements_lib.Judgement],
    texts: lengths.Texts,
    *,
    seed: int,
    samples: int = 2000,
    planned: int = 0,
    overlap: int = 0,
    tokenize: Callable[[str], Sequence] | None = None,
    looks: Sequence[judgements_lib.Judgement] | None = None,
) -> dict[str, Any]:
    """{models, pairs, strengths, agreement, raters, position, lengths, axes}.

    texts: (prompt, model) → answer; what hangs on lengths is None where one is missing. planned: prompts of the study,
    0 = those that were judged. overlap: raters of each comparison, 0 = as most have. looks: where `judged` joins
    several looks at a pair (a judge's two orders), those, for what hangs on the side; position is None where models
    always stood on one side. NaN is written as None.
    Errors: ValueError without judgements.
    """
    first = [j for j in judged if not j.repeat]
    sides = first if looks is None else looks
    fitted = strengths.fit(sides)
    of_pair = {"seed": seed, "samples": samples, "planned": planned, "overlap": overlap}
    if not all((j.prompt, m) in texts for j in first for m in (j.left, j.right)):
        texts = {}
    if not first:
        raise ValueError("no judgements to summarise")
    models = sorted({m for j in first for m in (j.left, j.right)})
    found = {
        "models": models,
        "judgements": len(first),
        "prompts": len({j.prompt for j in first}),
        "raters": _raters(judged),
        "pairs": [
            pair(shown, model, other, texts, **of_pair)
            for model, other in itertools.combinations(models, 2)
            if (shown := rates.between(first, model, other))
        ],
        "strengths": _strengths(sides, fitted, seed, samples),
        "agreement": _agreement(judged, seed, samples),
        "position": None if math.isnan(fitted.side) else _position(sides, seed, samples),
        "lengths": _lengths(first, texts, tokenize) if texts else None,
        "axes": _axes(first, models, seed, samples),
    }
    return finite(found)


def pair(
    shown: Sequence[judgements_lib.Judgement],
    model: str,
    other: str,
    texts: lengths.Texts,
    *,
    seed: int,
    samples: int,
    planned: int = 0,
    overlap: int = 0,
) -> dict[str, Any]:
    """Two models: `model` is the one whose wins are counted."""
    outcomes = [judgements_lib.outcome(j, model) for j in shown]
    judgements, by_prompt = rates.tally(outcomes), rates.by_prompt(shown, model)
    prompts = rates.tally(by_prompt.values())
    raters = [j.rater for j in shown]
    several = len(set(raters)) > 1
    overlap = (
        overlap
        or collections.Counter(collections.Counter(j.prompt for j in shown).values()).most_common(
            1
        )[0][0]
    )
    drawn = bootstrap.means(outcomes, [j.prompt for j in shown], samples=samples, seed=seed)
    both = bootstrap.means(
        outcomes, [j.prompt for j in shown], raters if several else None, samples=samples, seed=seed
    )
    planned = planned or prompts.count
    return {
        "model": model,
        "other": other,
        "judgements": judgements._asdict(),
        "prompts": prompts._asdict(),
        "shares": {
            name: _share(count, judgements.count)
            for name, count in zip(judgements._fields, judgements)
        },
        "adjusted": {
            "rate": judgements.adjusted,
            "by_prompts": bootstrap.interval(drawn),
            "by_both": bootstrap.interval(both),
        },
        "difference": {
            "rate": 2 * judgements.adjusted - 1,
            "by_prompts": bootstrap.interval(2 * drawn - 1),
        },
        "sign_test": rates.sign_test(prompts.wins, prompts.losses),
        "power": _power(prompts),
        "overlap": overlap,
        "sequential": _decision(
            sequential.decide(shown, model, overlap=overlap, planned=planned, seed=seed)
        ),
        "lengths": _lengths_of_pair(shown, texts, model) if texts else None,
    }


def _power(prompts: rates.Tally) -> dict[str, Any]:
    """What prompts are worth if the shares seen are the true ones; None where nothing was decided."""
    if not prompts.wins + prompts.losses:
        return {"of_this_size": None, "prompts_for_80_percent": None, "curve": []}
    win, loss = prompts.wins / prompts.count, prompts.losses / prompts.count
    needed = power.prompts_needed(win, loss)
    most = max(2 * prompts.count, min(2 * needed, 2000))
    places = sorted({*map(round, np.geomspace(2, most, 32)), prompts.count})
    return {
        "of_this_size": power.of_prompts(prompts.count, win, loss),
        "prompts_for_80_percent": needed,
        "curve": [(n, power.of_prompts(n, win, loss)) for n in places],
    }


def _lengths_of_pair(shown, texts: lengths.Texts, model: str) -> dict[str, Any]:
    """points: by prompt, how many characters longer the answer of `model` is, and how often it won."""
    control = lengths.controlled(shown, texts, model)
    other = next(m for m in (shown[0].left, shown[0].right) if m != model)
    return {
        "longer_won": _share(*lengths.longer_wins(shown, texts)),
        "always_longer": lengths.always_longer(shown, texts, model),
        "controlled": control._asdict() if control else None,
        "points": [
            (len(texts[prompt, model]) - len(texts[prompt, other]), won)
            for prompt, won in rates.by_prompt(shown, model).items()
        ],
    }


def _raters(judged) -> dict[str, Any]:
    """agreement.raters, with intervals of the share of A among decided verdicts and of equal repeats."""
    found = {}
    for name, facts in agreement.raters(judged).items():
        shown = collections.Counter(j.verdict for j in judged if j.rater == name and not j.repeat)
        same = round(facts["with_oneself"] * facts["repeats"]) if facts["repeats"] else 0
        found[name] = dict(facts) | {
            "left": _share(shown["left"], shown["left"] + shown["right"]),
            "with_oneself": _share(same, int(facts["repeats"])),
        }
    return found


def _decision(found: sequential.Decision) -> dict[str, Any]:
    return found._asdict() | {"forecast": found.forecast._asdict() if found.forecast else None}


def _share(count: int, whole: int) -> dict[str, Any]:
    return {
        "count": count,
        "of": whole,
        "share": count / whole if whole else None,
        "interval": rates.wilson(count, whole),
    }


def _strengths(judged, found: strengths.Strengths, seed: int, samples: int) -> dict[str, Any]:
    # A fit for every sample: fewer of them, as intervals of a hundredth need no thousands.
    drawn = strengths.intervals(judged, samples=min(samples, 500), seed=seed)
    return {
        "log_odds": {
            m: {"value": float(v), "interval": drawn[m]}
            for m, v in zip(found.models, found.log_odds)
        },
        "side": found.side,
        "tie": found.tie,
        "groups": [list(group) for group in found.groups],
    }


def _agreement(judged, seed: int, samples: int) -> dict[str, Any]:
    rows = {"verdict": ("nominal", agreement.verdict_rows(judged))}
    rows |= {axis: ("ordinal", agreement.score_rows(judged, axis)) for axis in judgements_lib.AXES}
    same, again = agreement.with_oneself(judged)
    found: dict[str, Any] = {"with_oneself": _share(same, again)}
    for name, (level, of_name) in rows.items():
        if not of_name:
            continue
        _, units, values = agreement.table(of_name)
        found[name] = {
            "level": level,
            "alpha": agreement.alpha(values, level),
            "interval": agreement.alpha_interval(
                values, level, samples=min(samples, 1000), seed=seed
            ),
            "equal": agreement.raw(values),
            "units": int(((~np.isnan(values)).sum(0) >= 2).sum()),
        }
    return found


def _position(judged, seed: int, samples: int) -> dict[str, Any]:
    sides = [2 * judgements_lib.outcome(j, j.left) - 1 for j in judged]
    drawn = bootstrap.means(sides, [j.prompt for j in judged], samples=samples, seed=seed)
    return {"effect": rates.position_effect(judged), "interval": bootstrap.interval(drawn)}


def _lengths(judged, texts, tokenize) -> dict[str, Any]:
    shown = {(j.prompt, m) for j in judged for m in (j.left, j.right)}
    by_model = lengths.of_models({key: texts[key] for key in shown}, tokenize)
    won = {m: [] for m in by_model}
    for j in judged:
        for m in (j.left, j.right):
            won[m].append(judgements_lib.outcome(j, m))
    order = sorted(by_model)
    rate = [float(np.mean(won[m])) for m in order]
    longer, decided = lengths.longer_wins(judged, texts)
    return {
        "models": {
            m: by_model[m]
            | {"adjusted": r, "always_longer": lengths.always_longer(judged, texts, m)}
            for m, r in zip(order, rate)
        },
        "correlation": {
            of: lengths.correlation([by_model[m][of] for m in order], rate)
            for of in by_model[order[0]]
        },
        "longer_won": _share(longer, decided),
    }


def _axes(judged, models: Sequence[str], seed: int, samples: int) -> dict[str, Any]:
    """axis → model → mean score with its interval; no axis that nobody scored."""
    found: dict[str, Any] = {}
    for axis in judgements_lib.AXES:
        for model in models:
            rows = [
                (j.prompt, scores[axis])
                for j in judged
                for shown, scores in ((j.left, j.scores_left), (j.right, j.scores_right))
                if shown == model and axis in scores
            ]
            if rows:
                prompts, scores = zip(*rows)
                drawn = bootstrap.means(scores, prompts, samples=samples, seed=seed)
                found.setdefault(axis, {})[model] = {
                    "mean": float(np.mean(scores)),
                    "interval": bootstrap.interval(drawn),
                    "count": len(scores),
                }
    return found


def finite(value: Any) -> Any:
    """NaN and infinities as None, tuples as lists: what JSON can hold."""
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: finite(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(of) for of in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
