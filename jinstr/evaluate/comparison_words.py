"""What the figures of a comparison come to, in plain words, and how figures are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

MOST = 100_000  # prompts that human/power.py looks at
DECIDES = 20  # e at which a comparison is decided at 5 %
LITTLE, GOOD = (
    0.4,
    0.667,
)  # alpha below which agreement is called little, and from which good (Krippendorff)
NAMED = 3  # pairs named in a sentence


def percent(value: float | None, digits: int = 1) -> str:
    return "—" if value is None else f"{100 * value:.{digits}f} %"


def bare(value: float | None) -> str:
    """A percentage inside an interval."""
    return "—" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A difference of two rates."""
    return "—" if value is None else f"{100 * value:+.1f}"


def count(value: float | None) -> str:
    return "—" if value is None else f"{value:,.0f}"


def value(number: float | None) -> str:
    return "—" if number is None else f"{number:.2f}"


def probability(p: float | None) -> str:
    return "—" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _equals(p: float) -> str:
    return probability(p) if p < 0.001 else f"= {probability(p)}"


def stake(e: float | None) -> str:
    if e is None:
        return "—"
    return f"{e:.2f}" if e < 100 else f"{e:,.0f}" if e < 1e6 else "over 1,000,000"


def needed(prompts: int | None) -> str:
    if prompts is None:
        return "—"
    return f"over {MOST:,}" if prompts >= MOST else f"{prompts:,}"


FORMATS = {
    "percent": percent, "percent2": lambda v: percent(v, 2), "bare": bare, "points": points, "count": count,
    "value": value, "p": probability, "e": stake, "needed": needed,
}  # fmt: skip


def interval(of: Sequence[float | None] | None) -> str:
    return f"({'–'.join(map(bare, of))})" if of else ""


def is_decided(pair: Mapping[str, Any]) -> bool:
    """Did the stake once reach 20, and is the model that was called better still ahead?"""
    found = pair["sequential"]
    return bool(found["decided_at"]) and (pair["adjusted"]["rate"] > 0.5) == found["better"]


def decision(pair: Mapping[str, Any]) -> str:
    """Where the test of two models stands that may be looked at any time."""
    found, overlap = pair["sequential"], pair["overlap"]
    if found["decided_at"] and not is_decided(pair):
        return (
            f"Open again: {pair['model']} against {pair['other']} was decided at prompt {found['decided_at']} of "
            f"{found['prompts']}, but over all prompts the other side is ahead; that is not to be relied on."
        )
    if found["decided_at"]:
        better, worse = pair["model"], pair["other"]
        if not found["better"]:
            better, worse = worse, better
        return (
            f"Decided: {better} is preferred to {worse}, since prompt {found['decided_at']} of {found['prompts']} "
            f"(e reached {stake(found['largest'])}; {DECIDES} decides)."
        )
    if not found["prompts"]:
        return f"Not decided: no prompt has the verdicts of all {overlap} raters yet."
    now = f"Not decided: {pair['model']} against {pair['other']} has e = {stake(found['e'])}, {DECIDES} decides"
    ahead = found["forecast"]
    if ahead["median"] is None:
        return (
            f"{now}; in {percent(1 - ahead['decided'], 0)} of simulated futures it stays so for the next "
            f"{count(ahead['horizon'] * overlap)} judgements."
        )
    high = count(ahead["high"] * overlap) if ahead["high"] else "more than are simulated"
    return (
        f"{now}; if it goes on like this, about {count(ahead['median'] * overlap)} more judgements to go "
        f"(80 % of simulated futures: {count(ahead['low'] * overlap)} to {high})."
    )


def reading(facts: Mapping[str, Any]) -> list[str]:
    """Three to five sentences: what is known, what is not and what it would take, what to beware of, judges."""
    people = facts["people"]
    found = [_given(facts)]
    paired = [judge for judge in facts["judges"] if judge["summary"]][:NAMED]
    if people:
        return [*found, *_of(people, "people prefer"), *map(_beside, paired)]
    for judge in paired:
        found += _of(judge["summary"], f"the judge {judge['name']} prefers", is_judge=True)
    return found


def _of(found: Mapping[str, Any], prefer: str, is_judge: bool = False) -> list[str]:
    decided = [p for p in found["pairs"] if is_decided(p)]
    is_open = [p for p in found["pairs"] if not is_decided(p)]
    known = _listed(decided, _preferred)
    told = [f"Known: {prefer} {known}." if decided else "Known: nothing is decided yet."]
    if is_open:
        told.append(f"Not known: {_listed(is_open, _rate)}; {_would_take(is_open)}.")
    beware = [*([] if is_judge else [_agreeing(found)]), *_position(found), *_length(found)]
    sentence = "; ".join(beware) + "."
    return [*told, sentence[0].upper() + sentence[1:]] if beware else told


def _given(facts: Mapping[str, Any]) -> str:
    people, study = facts["people"], facts["study"]
    if not people:
        none = "There are no judgements of people here, so how far a judge agrees with people is unknown"
        return f"{none}: its figures say what the judge prefers."
    to_go = study["rows"] - study["done"]
    raters = "one rater" if len(people["raters"]) == 1 else f"{len(people['raters'])} raters"
    left = f", {count(to_go)} are to go" if to_go else ", all of them"
    return (
        f"{count(people['judgements'])} judgements by {raters} on {count(people['prompts'])} "
        f"prompts are in: {count(study['done'])} of {count(study['rows'])} rows are done{left}."
    )


def _preferred(pair: Mapping[str, Any]) -> str:
    rate, (low, high) = pair["adjusted"]["rate"], pair["adjusted"]["by_both"]
    if pair["sequential"]["better"]:
        return f"{pair['model']} to {pair['other']}, {percent(rate, 2)} {interval((low, high))}"
    return f"{pair['other']} to {pair['model']}, {percent(1 - rate, 2)} {interval((1 - high, 1 - low))}"


def _rate(pair: Mapping[str, Any]) -> str:
    rate = pair["adjusted"]
    return f"{pair['model']} against {pair['other']}, {percent(rate['rate'], 2)} {interval(rate['by_both'])}"


def _listed(pairs: Sequence[Mapping[str, Any]], told: Callable[[Mapping], str]) -> str:
    more = f"; and {len(pairs) - NAMED} more pairs" if len(pairs) > NAMED else ""
    return "; ".join(map(told, pairs[:NAMED])) + more


def _would_take(pairs: Sequence[Mapping[str, Any]]) -> str:
    """What it takes to decide the open comparison that is nearest to it."""

    def ahead(pair):
        forecast = pair["sequential"]["forecast"]
        return ((forecast or {}).get("median") or math.inf) * pair["overlap"]

    near = min(pairs, key=ahead)
    name = f"{near['model']} against {near['other']}"
    which = f" the nearest of these ({name})" if len(pairs) > 1 else " it"
    soon = (
        f"more judgements are not likely to decide{which} soon"
        if ahead(near) == math.inf
        else f"about {count(ahead(near))} more judgements would decide{which} if it goes on like this"
    )
    size = near["power"]["prompts_for_80_percent"]
    if size is None:
        return f"{soon}; so far all are ties"
    return (
        f"{soon}, and a new study of such a difference needs {needed(size)} prompts for 80 % power"
    )


def _agreeing(found: Mapping[str, Any]) -> str:
    verdict = found["agreement"].get("verdict") or {}
    if verdict.get("alpha") is None:
        why = (
            "all verdicts are alike" if verdict.get("units") else "two never judged one comparison"
        )
        return f"How far raters agree is not known, as {why}"
    word = (
        "little" if verdict["alpha"] < LITTLE else "fairly" if verdict["alpha"] < GOOD else "well"
    )
    return (
        f"Raters agree {word} (alpha {value(verdict['alpha'])}, {percent(verdict['equal'])} of pairs of verdicts are "
        "equal)"
    )


def _length(found: Mapping[str, Any]) -> list[str]:
    longer = (found["lengths"] or {}).get("longer_won")
    if not longer or not longer["of"] or longer["interval"][0] <= 0.5 <= longer["interval"][1]:
        return []
    is_longer = longer["share"] > 0.5
    share = longer["share"] if is_longer else 1 - longer["share"]
    return [
        f"the {'longer' if is_longer else 'shorter'} answer won {percent(share)} of decided judgements, so see the "
        "estimates at equal length"
    ]


def _position(found: Mapping[str, Any]) -> list[str]:
    low, high = found["position"]["interval"] if found["position"] else (0, 0)
    if low <= 0 <= high:
        return []
    return [
        f"the answer shown as {'A' if low > 0 else 'B'} wins too often, by "
        f"{100 * abs(found['position']['effect']):.1f} points"
    ]


def _beside(judge: Mapping[str, Any]) -> str:
    """A judge's agreement with people, in words."""
    found = judge["agreement"]
    if not found:
        return f"The judge {judge['name']}: agreement with people unknown."
    if not found["looks"]:
        return f"The judge {judge['name']}: no comparison in common with people, agreement unknown."
    among = found["people"]["share"]
    told = f"; people agree with each other in {percent(among)}" if among is not None else ""
    return (
        f"The judge {judge['name']} agrees with people in {percent(found['share'])} {interval(found['interval'])} "
        f"of {count(found['looks'])} looks{told}."
    )


def told(facts: Mapping[str, Any]) -> list[str]:
    """What a terminal shows: the reading, then a line for each pair; none of a judge without its agreement."""
    lines = list(facts["reading"])
    if people := facts["people"]:
        lines += [f"people: {_line(pair)}" for pair in people["pairs"]]
    for judge in facts["judges"]:
        pairs = judge["summary"]["pairs"] if judge["summary"] else []
        lines += [
            f"judge {judge['name']}: {_line(pair)}; agreement with people {_agreement(pair['agreement'])}"
            for pair in pairs
        ]
        for row in judge["safety"]:
            rates = (
                f"{label} {percent(row[key]['share'])} {interval((row[key]['low'], row[key]['high']))}"
                for key, label in (("acceptable", "許容回答率"), ("violating", "違反回答率"))
            )
            beside = _correlation(judge["agreement_of_grades"])
            lines.append(f"judge {judge['name']}: {row['model']} {', '.join(rates)}; {beside}")
    late = [name for name, fact in facts["progress"].items() if fact["late"]]
    if late:
        lines.append(f"late: {', '.join(late)}")
    if facts["problems"]:
        lines.append(f"{len(facts['problems'])} problems with cells of sheets (problems.csv)")
    return lines


def _agreement(found: Mapping[str, Any] | None) -> str:
    if not found or not found["looks"]:
        return "unknown"
    return (
        f"{percent(found['share'])} {interval(found['interval'])} of {count(found['looks'])} looks"
    )


def _correlation(found: Mapping[str, Any] | None) -> str:
    if not found or not found["looks"]:
        return "agreement with people unknown"
    between = found["interval"]
    told = f" ({value(between[0])} to {value(between[1])})" if between else ""
    return f"rank correlation with people {value(found['spearman'])}{told} over {count(found['looks'])} looks"


def _line(pair: Mapping[str, Any]) -> str:
    won = (
        f"{pair['shares'][name]['count']} {name} {percent(pair['shares'][name]['share'])} "
        f"{interval(pair['shares'][name]['interval'])}"
        for name in ("wins", "losses", "ties")
    )
    return (
        f"{pair['model']} against {pair['other']}: {', '.join(won)}; adjusted {percent(pair['adjusted']['rate'], 2)} "
        f"{interval(pair['adjusted']['by_both'])}; sign test p {_equals(pair['sign_test'])}"
    )
