"""`jinstr compare make | read | export | report`: people compare answers in workbooks, blind; what they say becomes
judgements, and judgements become training data and a report."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib

from jinstr import errors
from jinstr.decode import requests
from jinstr.evaluate import (
    candidates,
    comparison,
    comparison_report,
    comparison_words,
    judge_files,
    prompt_sets,
)
from jinstr.human import design as design_lib
from jinstr.human import judgements as judgements_lib
from jinstr.human import preferences as preferences_lib
from jinstr.human import sheet_foreign, sheet_reading, sheet_results, sheet_tables, sheets
from jinstr.human import study as study_lib
from jinstr.text import tokenizer as tokenizer_lib

ACTIONS = ("make", "read", "export", "report")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a report shows beside people's judgements, and how intervals are drawn."""

    judge: str = ""  # folders of jinstr judge, or their files, comma separated
    tokenizer: str = ""  # file or folder, to count tokens of answers; "" = characters alone
    samples: int = 2000  # of bootstrap intervals

    def __post_init__(self):
        if self.samples < 100:
            raise errors.ConfigError("JI-COMPARE-010", f"SAMPLES={self.samples} is below 100")


def compare(
    *,
    action: str,
    study: str,
    answers: str,
    prompts: str,
    design: design_lib.DesignConfig,
    input: str,
    models: str,
    preferences: preferences_lib.ExportConfig,
    output: str,
    report: ReportConfig,
) -> dict:
    """make: workbooks for raters, and the key to them. read: what came back. export: rankings, pairs or labels of it.
    report: a page of what is known, and report.json.

    study: the folder of all files of a study (human/study.py says which). What each action uses is in compare.gin.
    """
    if action not in ACTIONS:
        raise errors.ConfigError("JI-COMPARE-001", f"{action!r} is none of {', '.join(ACTIONS)}")
    if action == "make":
        return make(study, answers, prompts, design)
    if action == "export":
        return export(study, preferences, output)
    if action == "report":
        return write_report(study, answers, prompts, report, design.seed)
    return read(study, input, models, prompts)


def make(study: str, answers: str, prompts: str, design: design_lib.DesignConfig) -> dict:
    """Workbooks and key of a new study. Errors: ConfigError where one is already; DataError."""
    folder = pathlib.Path(study)
    if (folder / "key" / "study.json").exists():
        raise errors.ConfigError(
            "JI-COMPARE-002",
            f"STUDY={study} holds a study already, whose sheets may be filled in; take another folder",
        )
    if not answers:
        raise errors.ConfigError(
            "JI-COMPARE-003", "compare make needs ANSWERS=FILE or ANSWERS=name=FILE,name=FILE"
        )
    items, models, notes = candidates.read(answers, prompts, every=design.mode == "rank")
    found = design_lib.lay_out(items, models, design)
    if telling := study_lib.naming(items, models):
        notes.append(
            f"{len(telling)} prompts have an answer that names a model, which is not blind: {', '.join(telling[:10])}"
        )
    if found.identical:
        notes.append(
            f"{found.identical} comparisons are left out, as both answers are the same text"
        )
    paths = sheets.write_all(folder, found)
    study_lib.write(folder, found)
    for note in notes:
        print(f"jinstr: {note}")
    for path in paths:
        own = [row for row in found.rows if row.rater == path.stem]
        print(f"{path}: {len(own)} rows, {sum(row.repeat for row in own)} of them repeats")
    print(f"{folder / 'key'}: what raters do not get (study.json, assignments.csv)")
    return {"raters": len(paths), "rows": len(found.rows), "models": models, "notes": notes}


def read(study: str, input: str, models: str, prompts: str) -> dict:
    """Judgements of all sheets that came back. Errors: DataError where a cell cannot be read; the rest is written.

    models: "A=name,B=name" for sheets of one's own, in which models always stand on the same side; "" for those of
    `make`. prompts: gives prompts of such sheets their ids.
    """
    folder = pathlib.Path(study)
    if models and not input:
        raise errors.ConfigError(
            "JI-COMPARE-006", "MODELS=A=name,B=name needs INPUT=folder of the sheets"
        )
    try:
        paths, others = sheet_tables.files_of(input or str(folder / "sheets"))
    except FileNotFoundError as error:
        raise errors.ConfigError("JI-COMPARE-004", f"INPUT: {error} is not there") from None
    if models:
        known = prompt_sets.read(prompts) if prompts else []
        _check_foreign(folder)
        found, reading = sheet_foreign.read(paths, sheet_foreign.sides(models), known)
        if found.rows:
            study_lib.write(folder, found)
    else:
        found = study_lib.read(folder)
        reading = sheet_reading.read_study(found, paths)
    given = sheet_results.judgements_of(found, reading)
    target = folder / "judgements.jsonl"
    changes = _changes(target, given)
    judgements_lib.write(target, given)
    if found.mode == "rank":
        requests.write_jsonl(
            folder / "rankings.jsonl", list(sheet_results.rankings_of(found, reading))
        )
    _write_problems(folder / "problems.csv", reading.problems)
    warnings = list(sheet_results.contradictions(found, reading))
    notes = [
        *reading.notes,
        *(f"{name}: not .xlsx, .xlsm or .csv; not read" for name in others),
        *warnings,
        *changes,
    ]
    for note in notes:
        print(f"jinstr: {note}")
    table = sheet_results.progress(found, reading)
    for line in sheet_results.told(table):
        print(line)
    for problem in reading.problems:
        print(problem)
    done = sum(count["done"] for count in table.values())
    print(f"{target}: {len(given)} judgements of {done} rows; {len(found.rows) - done} rows to go")
    if reading.problems:
        raise errors.DataError(
            "JI-COMPARE-005",
            f"{len(reading.problems)} problems, listed above and in {folder / 'problems.csv'}; all other rows are kept",
        )
    return {
        "judgements": len(given),
        "progress": {k: dict(v) for k, v in table.items()},
        "warnings": warnings,
    }


def export(study: str, config: preferences_lib.ExportConfig, output: str) -> dict:
    """Write STUDY/judgements.jsonl as training data. Errors: ConfigError, DataError."""
    if not output:
        raise errors.ConfigError("JI-COMPARE-008", "compare export needs OUTPUT=FILE.jsonl")
    source = pathlib.Path(study) / "judgements.jsonl"
    if not source.exists():
        raise errors.DataError(
            "JI-COMPARE-009", f"{source} is not there; jinstr compare read writes it"
        )
    given = judgements_lib.read(source)
    found = preferences_lib.export(study_lib.read(study), given, config)
    requests.write_jsonl(output, found.rows)
    counts = found.counts
    print(
        f"{output}: {len(found.rows)} {config.form} of {counts['judged']} prompts, {len(given)} judgements"
    )
    for name, why in _LEFT_OUT.items():
        if counts.get(name):
            print(f"  {counts[name]} {why}")
    before, after = (f"{100 * counts[name]:.1f} %" for name in ("longer_before", "longer_after"))
    kept = f", {after} of those kept" if counts["length"] else ""
    print(f"  the longer answer is preferred in {before} of the preferences{kept}")
    return counts


def write_report(study: str, answers: str, prompts: str, config: ReportConfig, seed: int) -> dict:
    """STUDY/report.html and report.json of what was read so far, and of what judges said.

    answers, prompts: texts of answers that a judge judged without a study. Errors: ConfigError, DataError where there
    is nothing to report.
    """
    folder = pathlib.Path(study)
    found = study_lib.read(folder) if (folder / "key" / "study.json").exists() else None
    given = judge_files.read(config.judge)
    source = folder / "judgements.jsonl"
    judged = judgements_lib.read(source) if found and source.exists() else []
    people = [j for j in judged if not j.rater.startswith("judge:")]
    if not people and not given:
        raise errors.DataError(
            "JI-COMPARE-011",
            f"nothing to report: {source} holds no judgements of people; jinstr compare read writes them, and "
            "JUDGE=FOLDER shows what jinstr judge wrote",
        )
    items = found.items if found else ()
    _check_known(people, comparison.texts_of(items), source)
    if answers:
        items = [*items, *candidates.read(answers, prompts, every=False, least=1)[0]]
    tokenize = tokenizer_lib.load(config.tokenizer).encode if config.tokenizer else None
    counting = comparison.Counting(seed=seed, samples=config.samples, tokenize=tokenize)
    facts = comparison.facts(
        folder.resolve().name,
        found,
        people,
        given,
        comparison.texts_of(items),
        _read_problems(folder / "problems.csv") if found else [],
        counting,
    )
    page = comparison_report.write(folder, facts)
    for line in comparison_words.told(facts):
        print(line)
    newer = [path for path in folder.glob("sheets/*.xlsx") if people and _is_newer(path, source)]
    if newer:
        print(f"jinstr: {len(newer)} sheets changed since jinstr compare read: {newer[0].name}, …")
    print(f"{page}: the page, every figure of it in report.json")
    return facts


def _check_known(people, texts, source: pathlib.Path) -> None:
    """Errors: DataError for a judgement of something that the study does not hold."""
    for j in people:
        if not {(j.prompt, j.left), (j.prompt, j.right)} <= texts.keys():
            raise errors.DataError(
                "JI-COMPARE-015",
                f"{source}: the study has no answers of {j.left} and {j.right} to prompt {j.prompt!r} ({j.where}); "
                "jinstr compare read writes the file anew",
            )


def _is_newer(path: pathlib.Path, than: pathlib.Path) -> bool:
    return path.stat().st_mtime > than.stat().st_mtime


_LEFT_OUT = {
    "tied": "ties, which prefer nothing, left out",
    "between": "answers neither good nor bad enough for a label, left out",
    "turns": "judgements on several turns, whose answers have no prompt in common, left out",
    "blank": "judgements on an empty answer, left out",
    "length": "prompts or pairs left out by LENGTH_SHARE",
}


def _check_foreign(folder: pathlib.Path) -> None:
    """Errors: ConfigError where the folder holds a study of `make`, whose key would be lost."""
    if (folder / "key" / "study.json").exists() and study_lib.read(folder).source != "sheets":
        raise errors.ConfigError(
            "JI-COMPARE-007",
            f"STUDY={folder} holds a study of compare make; MODELS is for sheets from elsewhere: take another folder",
        )


def _changes(path: pathlib.Path, given) -> list[str]:
    """What is not as it was when the sheets were read before."""
    if not path.exists():
        return []

    def key(j):
        return j.prompt, j.rater, frozenset((j.left, j.right)), j.repeat

    before = {key(j): j for j in judgements_lib.read(path)}
    now = {key(j): j for j in given}
    gone = [before[k] for k in before if k not in now]
    notes = [
        f"{j.where}: was judged when the sheets were read before, and is no more" for j in gone
    ]
    for k, j in now.items():
        if k in before and (old := before[k]).winner != j.winner:
            told = [{None: "a tie"}.get(x.winner, x.winner) for x in (old, j)]
            notes.append(
                f"{j.where}: the verdict was {told[0]} when the sheets were read before, now {told[1]}"
            )
    return notes


def _write_problems(path: pathlib.Path, problems) -> None:
    """A table for those who ask the raters; in UTF-8 with a mark, so that Excel shows it well."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["ファイル", "シート", "セル", "値", "お願い", "problem", "code"])
    for p in problems:
        # A value may begin like a formula: in front of text, Excel takes it for what it is.
        writer.writerow(
            [
                p.file,
                p.sheet,
                p.cell,
                f"「{p.value}」" if p.value else "",
                p.japanese,
                p.english,
                p.code,
            ]
        )
    part = path.with_name(path.name + ".part")
    part.write_bytes(table.getvalue().encode("utf-8-sig"))
    part.replace(path)


def _read_problems(path: pathlib.Path) -> list[dict[str, str]]:
    """What `read` could not read, by the table it wrote."""
    if not path.exists():
        return []
    rows = csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline=""))
    names = ("file", "sheet", "cell", "value", "request", "problem", "code")
    return [dict(zip(names, row)) for row in list(rows)[1:]]
