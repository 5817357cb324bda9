"""README.md of a model that leaves jinstr: the model card, in Japanese with an English summary.

`facts_of` reads what the runs left in their directories, `write_card` writes it down. What the record does not say is
named as such; licences follow INIT through every stage, and what influenced the training (a reward model) counts too.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import jinja2
import yaml

from jinstr import errors
from jinstr.data import contamination
from jinstr.train import licences, lineage, report

FILE = "README.md"
_HUB_DATASET = re.compile(r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/?")
_COMMANDS = {  # command → what a stage is called
    "pretrain": ("事前学習", "pretraining"),
    "sft": ("指示チューニング", "instruction tuning"),
    "reward": ("報酬モデルの学習", "reward model"),
    "dpo": ("回答の比較による調整", "preference tuning"),
}


class _Ready(str):
    """Text that is Markdown already."""


def facts_of(run_dir, *, step: int = 0, influences: Sequence = ()) -> dict:
    """What the card of a run's model tells, as JSON values.

    step: the checkpoint that is published; 0 = the end of the run. influences: directories of further runs whose data
    shaped the training without being INIT, such as a reward model. Returns {"name", "step", "template", "parameters",
    "shape", "stages" (oldest first), "influences" (a list of stages each), "base", "licence", "overlap" (with
    questions of benchmarks), "commercial", "redistributable", "unchecked" ((Japanese, English) pairs)}.
    Errors: StorageError where `run_dir` or one of `influences` is no run, or a file there cannot be read.
    """
    run_dir = pathlib.Path(run_dir)
    for place in (run_dir, *map(pathlib.Path, influences)):
        if not (place / "config.json").is_file():
            raise errors.StorageError(
                "JI-CARD-002",
                f"{place} has no config.json, so its training is not known; give a RUN_DIR of a training command",
            )
    stages, init = lineage.chain(run_dir, step)
    others = [lineage.chain(place) for place in influences]
    bases = [
        licences.of_base(word) for word in dict.fromkeys([init, *(w for _, w in others)]) if word
    ]
    everything = [*stages, *(stage for found, _ in others for stage in found)]
    rows = [row for stage in everything for row in stage["sources"]]
    starts = [stage["adapter"] for stage in everything if stage["adapter"]]
    terms = [found["licence"] for found in (*rows, *bases, *starts)]
    # What a stage that is not there was trained on is not known, and neither is what a base was.
    gaps = [""] * sum(not stage["found"] or not stage["sources"] for stage in everything)
    flags = {
        name: licences.all_of(
            [*(row[name] for row in rows), *(None for _ in (*bases, *starts, *gaps))]
        )
        for name in ("commercial", "redistributable")
    }
    facts = {
        "name": run_dir.absolute().name,
        "step": stages[-1]["steps"],
        "template": stages[-1]["template"],
        "parameters": stages[-1]["parameters"],
        "shape": lineage.read(run_dir / "model.json", {}),
        "stages": stages,
        "influences": [found for found, _ in others],
        "bases": bases,
        "base": bases[0] if init else None,
        "licence": licences.decide([*terms, *gaps]),
        "overlap": _overlap(run_dir),
        **flags,
    }
    return facts | {"unchecked": [list(pair) for pair in unchecked(facts)]}


def _overlap(run_dir: pathlib.Path) -> dict:
    """What contamination.json of a run says, by benchmark and source; {} where nobody looked."""
    found = lineage.read(run_dir / contamination.FILE, {})
    rows = [
        {
            "benchmark": name,
            "source": source,
            "examples": result["examples"],
            "found": count,
            "whole": len(
                {
                    question["id"]
                    for question in result["questions"]
                    if question["source"] == source and question["overlap"] == "whole"
                }
            ),
        }
        for name, result in found.get("benchmarks", {}).items()
        for source, count in result["found"].items()
    ]
    return (
        {name: found[name] for name in ("n", "threshold", "sources")} | {"rows": rows}
        if found
        else {}
    )


def _all_stages(facts: Mapping) -> list[dict]:
    return [*facts["stages"], *(stage for found in facts["influences"] for stage in found)]


def unchecked(facts: Mapping) -> Iterator[tuple[str, str]]:
    """(Japanese, English) of everything that the record does not answer."""
    for stage in _all_stages(facts):
        yield from _unchecked_of(stage)
    for base in facts["bases"]:
        if not base["licence"]:
            yield (
                f"ベースモデル {base['name']} のライセンスは不明",
                f"the licence of the base model {base['name']} is not known",
            )
        yield (
            f"ベースモデル {base['name']} が何で学習されたかは、この記録にはない",
            f"what the base model {base['name']} was trained on is not part of this record",
        )
    for adapter in [stage["adapter"] for stage in _all_stages(facts) if stage["adapter"]]:
        if not adapter["licence"]:
            yield (
                f"学習の始まりのアダプター {adapter['name']} のライセンスは不明",
                f"the licence of the adapter {adapter['name']}, which training began with, is not known",
            )
        yield (
            f"アダプター {adapter['name']} が何で学習されたかは、この記録にはない",
            f"what the adapter {adapter['name']} was trained on is not part of this record",
        )
    last = facts["stages"][-1]
    if not last["evaluation"]:
        yield "評価は行われていない", "no evaluation was run"
    elif not any(row["chance"] is not None for row in last["evaluation"]):
        yield (
            "正解のある問題での評価は行われていない（損失のみ）",
            "no task with known answers was evaluated, only losses",
        )
    elif not facts["overlap"]:
        yield (
            "評価の問題が学習データと重なっていないかは調べていない",
            "overlap of the evaluation questions with the training data was not looked for",
        )
    if facts["overlap"]:
        names = [row["name"] for stage in _all_stages(facts) for row in stage["sources"]]
        lacking = [n for n in dict.fromkeys(names) if n not in facts["overlap"]["sources"]]
        if lacking:
            yield (
                f"評価の問題との重なりを調べていない学習データ：{'、'.join(lacking)}",
                f"overlap with the evaluation questions was not looked for in {', '.join(lacking)}",
            )
    yield (
        "ほかのモデルとは比較していない",
        "the model was never compared with another one",
    )
    yield (
        "人による評価も、有害な出力・事実の誤り・偏りの検査も行われていない",
        "no people judged its answers; harmful output, factual errors and bias were not examined",
    )
    yield (
        "トークナイザーの学習データとそのライセンスは記録にない",
        "what its tokenizer was trained on, and under which licence, is not recorded",
    )


def _unchecked_of(stage: Mapping) -> Iterator[tuple[str, str]]:
    name = stage["name"]
    if not stage["found"]:
        yield (
            f"前の段階 {name} の記録が見つからず、そのデータもライセンスも不明",
            f"the record of the earlier stage {name} was not found: its data and their licences are not known",
        )
        return
    if not stage["sources"]:
        yield f"{name} が何で学習されたかは不明", f"what {name} was trained on is not known"
    for key, japanese, english in (
        ("licence", "ライセンス", "licence"),
        ("provenance", "出所", "provenance"),
        ("commercial", "商用利用の可否", "commercial use"),
        ("redistributable", "再配布の可否", "redistribution"),
    ):
        lacking = [row["name"] for row in stage["sources"] if row[key] in (None, "")]
        if lacking:
            listed = "、".join(lacking), ", ".join(lacking)
            yield (
                f"{japanese}が不明なデータ（{name}）：{listed[0]}",
                f"{english} not known for data of {name}: {listed[1]}",
            )
    if not stage["finished"]:
        yield (
            f"{name} は途中（{stage['steps']:,}ステップ）のもので、記録は一部だけ",
            f"{name} is taken before its end (step {stage['steps']:,}), so parts of its record are missing",
        )
    if stage["changed"]:
        yield (
            f"{name} の設定は途中で変わっている（{stage['changed']}回）。この表は最後の設定",
            f"settings of {name} changed on the way ({stage['changed']} times); the table shows the last ones",
        )


def front_matter(facts: Mapping, peft_base: tuple[str, str] | None = None) -> str:
    """The YAML at the head of the card, as the Hugging Face Hub reads it."""
    rows = [row for stage in facts["stages"] for row in stage["sources"]]
    # Only addresses of the Hub name its data sets for sure; org/name alone may be a repository elsewhere.
    named = [_HUB_DATASET.fullmatch(row["provenance"]) for row in rows]
    datasets = list(dict.fromkeys(found[1] for found in named if found))
    base = facts["base"]["id"] if facts["base"] else ""
    if peft_base:
        base = peft_base[0] if licences.is_hub_name(peft_base[0]) else ""
    scores = facts["shape"].get("heads") == "score"
    tags = ["jinstr", "japanese", *(stage["command"] for stage in facts["stages"][-1:])]
    values = (
        {"language": ["ja"]}
        | facts["licence"]
        | {"library_name": "peft" if peft_base else "transformers"}
        | {"pipeline_tag": "text-classification" if scores else "text-generation"}
        | ({"base_model": base} if base else {})
        | ({"datasets": datasets} if datasets else {})
        | {"tags": [*tags, "lora"] if peft_base else tags}
    )
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)


def escaped(value) -> str:
    """A value as Markdown text in one line, in which nothing is markup."""
    if isinstance(value, _Ready):
        return value
    text = "" if value is None else str(value)
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, instead)
    return re.sub(r"([|`*\[\]\\])", r"\\\1", " ".join(text.split()))


def _number(value) -> str:
    return "—" if value is None else report.number(value)


def _percent(value) -> str:
    return "—" if value is None else f"{value:.1%}"


def _flag(value) -> str:
    return {True: "可", False: "不可", None: "不明"}[value]


def _flag_english(value) -> str:
    return {True: "yes", False: "no", None: "not known"}[value]


def _stage_name(stage: Mapping) -> str:
    return _COMMANDS.get(stage.get("command", ""), (stage.get("command") or "不明",))[0]


def _code(text: str) -> _Ready:
    """A text as Python and JSON write it."""
    return _Ready(json.dumps(text, ensure_ascii=False))


def write_card(folder, facts: Mapping, peft_base: tuple[str, str] | None = None) -> pathlib.Path:
    """Write FOLDER/README.md from what `facts_of` returned; returns its path. Errors: StorageError.

    peft_base: of adapters for PEFT, (name, revision or "") of the base that they stand on.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=False,  # `finalize` does it, for Markdown
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": _number,
        "percent": _percent,
        "flag": _flag,
        "flag_english": _flag_english,
        "stage_name": _stage_name,
    }
    text = environment.get_template("card.md.j2").render(
        facts=facts,
        stages=_all_stages(facts),
        front_matter=_Ready(front_matter(facts, peft_base)),
        own=_code(facts["name"]),
        peft_base=[_code(lineage.published(word)) for word in peft_base or () if word],
    )
    path = pathlib.Path(folder) / FILE
    aside = path.with_name(f".{FILE}.part")
    try:
        aside.write_text(text, "utf-8")
        os.replace(aside, path)
    except OSError as error:
        raise errors.StorageError("JI-CARD-003", f"cannot write {path}: {error}") from None
    return path
