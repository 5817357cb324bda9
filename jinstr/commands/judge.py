"""`jinstr judge`: verdicts and grades by a model in the place of people, and how far it agrees with them."""

from __future__ import annotations

import pathlib

from jinstr import errors
from jinstr.decode import requests
from jinstr.evaluate import (
    candidates,
    judge_agreement,
    judge_grades,
    judge_http,
    judge_local,
    judge_prompts,
    judges,
)
from jinstr.human import judgements, study


def judge(
    *,
    study_dir: str,
    answers: str,
    prompts: str,
    mode: str,
    baseline: str,
    model: str,
    url: str,
    name: str,
    judge_prompt: str,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    http: judge_http.HttpConfig,
    template: str,
    batch_rows: int,
    people: str,
    out: str,
) -> dict:
    """Ask a judge about answers, read what it says, and write it down; see `evaluate.judges` for the files of `out`.

    The answers are those of a study (study_dir) or of files (answers, prompts: `evaluate.candidates`). mode: pairs,
    each in both orders; single grades; or grades of safety. people: their judgements on the same answers, beside which
    the judge is put. Started again, it asks for what has no verdict yet. Returns the summary that is written.
    """
    if bool(study_dir) == bool(answers):
        raise errors.ConfigError(
            "JI-JUDGE-018", f"STUDY={study_dir!r} ANSWERS={answers!r}: give one of them"
        )
    told = judge_prompts.load(judge_prompt, mode)
    if study_dir:
        items, notes = study.read(study_dir).items, []
    else:
        least = 2 if mode == "pairwise" else 1
        items, _, notes = candidates.read(answers, prompts, every=False, least=least)
    for note in notes:
        print(f"jinstr: {note}")
    models = sorted({model for item in items for model in item.answers})
    if baseline and baseline not in models:
        raise errors.ConfigError(
            "JI-JUDGE-019", f"BASELINE={baseline!r} is none of the models {', '.join(models)}"
        )
    name = name or model.rstrip("/").rpartition("/")[2]
    sampling = {"temperature": temperature, "max_tokens": max_new_tokens, "seed": seed}
    if url:
        asked = judge_http.Chat(url, model, http, **sampling)
        identity = [model, sampling]
    else:
        asked = judge_local.Local(model, template=template, batch_rows=batch_rows, **sampling)
        identity = [*asked.identity, sampling]
    asks = judges.asks_of(items, models, mode, told, identity, baseline)
    if not asks:
        raise errors.DataError(
            "JI-JUDGE-020", "no two different answers to one prompt; MODE=single grades each alone"
        )

    folder = pathlib.Path(out)
    log = requests.AnswerLog(folder / "replies.jsonl")
    before = len(log.answers)
    try:
        failures = judges.ask(asked, asks, log)
    finally:
        log.close()
    judged, grades, faults = judges.results(asks, log, failures, f"judge:{name}")
    looks = _people(people, study_dir)
    summary = {
        "judge": name,
        "mode": mode,
        "prompts": sorted({p.name for p in told}),
        "asked": len(asks),
        "faults": judges.counted(faults),
        "pairs": judge_agreement.table(judged),
        "grades": judge_grades.table(grades),
        "agreement": judge_agreement.agreement(judged, looks) if judged and looks else None,
        "agreement_of_grades": judge_grades.agreement(grades, looks) if grades and looks else None,
    }
    if mode == "safety":
        summary["safety"] = judge_grades.safety(grades)
    judges.write(folder, judged, grades, faults, summary)
    for line in _told(summary, folder, len(log.answers) - before):
        print(line)
    if faults and not judged and not grades:
        first = faults[0]
        raise errors.DataError(
            "JI-JUDGE-021",
            f"{model} gave no verdict on any of {len(asks)} questions; the first one: {first.fault}: "
            f"{first.text[:200]!r}",
        )
    return summary


def _people(path: str, study_dir: str) -> list[judgements.Judgement]:
    """What people said of the same answers; nothing where it is not there and was not asked for."""
    own = pathlib.Path(study_dir) / "judgements.jsonl" if study_dir else None
    if not path and (own is None or not own.is_file()):
        return []
    found = judgements.read(path or own)
    return [judgement for judgement in found if not judgement.rater.startswith("judge:")]


def _told(summary: dict, folder: pathlib.Path, new: int) -> list[str]:
    """What is printed. No figure of a judge stands without what is known of its agreement with people."""
    missing = sum(summary["faults"].values())
    lines = [
        f"{folder}: {summary['asked'] - missing} verdicts on {summary['asked']} questions, {new} new texts"
    ]
    if missing:
        named = ", ".join(f"{count} {fault}" for fault, count in summary["faults"].items())
        lines.append(
            f"without a verdict: {named} (faults.jsonl); the same command asks for these again"
        )
    beside = _beside(summary)
    for row in summary["pairs"]:
        lines.append(
            f"{row['first']} against {row['second']}: {row['wins']} won, {row['losses']} lost, {row['ties']} ties of "
            f"{row['prompts']} pairs in both orders; win rate {_with(row['win_rate'], row['win_interval'])}, with half "
            f"of the ties {_with(row['adjusted'], row['adjusted_interval'])}"
        )
        lines.append(
            f"    both orders alike {_percent(row['same'])}, decided for the one shown first {_percent(row['left'])}; "
            f"{beside}"
        )
    for row in summary["grades"]:
        named = "".join(f", {axis} {value:.2f}" for axis, value in row["axes"].items())
        lines.append(
            f"{row['model']}: {row['grade']:.2f} on average of {row['count']}{named}; {beside}"
        )
    for row in summary.get("safety", ()):
        rates = (
            f"{label} {_percent(row[key]['share'])} ({_percent(row[key]['low'])}–{_percent(row[key]['high'])})"
            for key, label in (("acceptable", "許容回答率 / acceptable"), ("violating", "違反回答率 / violating"))
        )  # fmt: skip
        lines.append(f"{row['model']}: {', '.join(rates)} of {row['count']}; {beside}")
    return lines


def _beside(summary: dict) -> str:
    """The agreement with people, in words."""
    if found := summary["agreement"]:
        if not found["looks"]:
            return "agreement with people: no pair in common"
        among = found["people"]["share"]
        told = f" (people among themselves {_percent(among)})" if among is not None else ""
        share = _with(found["share"], found["interval"])
        return f"agreement with people {share} of {found['looks']} looks{told}"
    if found := summary["agreement_of_grades"]:
        if not found["looks"]:
            return "agreement with people: no answer in common"
        rank = found["spearman"]
        told = "–" if rank is None else f"{rank:.2f}"
        if found["interval"]:
            told += " ({:.2f} to {:.2f})".format(*found["interval"])
        return f"rank correlation with people {told} over {found['looks']} looks"
    return "agreement with people: not measured (PEOPLE=judgements.jsonl)"


def _with(share: float | None, interval) -> str:
    """A share with its interval."""
    if share is None or not interval:
        return _percent(share)
    return f"{_percent(share)} ({'–'.join(map(_percent, interval))})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
