"""Model cards of real tiny runs and of records made by hand: every licence in its row, every gap named."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import yaml

from jinstr import errors, run
from jinstr.data import contamination
from jinstr.data.eval_tasks import benchmark
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora, peft_format
from jinstr.train import base as base_lib
from jinstr.train import card, licences, lineage

DATA_HEAD = """from __gin__ import dynamic_registration
from jinstr.data import sources
"""


def source(name, path, **facts):
    lines = [f"{name}/sources.SourceConfig.path = {str(path)!r}"]
    lines += [f"{name}/sources.SourceConfig.{key} = {value!r}" for key, value in facts.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def runs(world, tokenizer_path, tmp_path_factory):
    """A model trained for four steps on the corpus, and one tuned from it for two on two sources."""
    folder = tmp_path_factory.mktemp("card")
    small = ["TENSORBOARD=False", "SAMPLES=0", f"CACHE_DIR={folder}/cache", "WORKERS=1"]
    small += ["REPLICA_CHECK_EVERY=0", "LOG_EVERY=1"]
    first = folder / "first.gin"
    first.write_text(
        DATA_HEAD
        + "DATA = (@a/sources.SourceConfig(),)\n"
        + source("a", f"{world}/corpus.jsonl", licence="CC0-1.0", commercial=True, holdout=0.05)
    )
    words = ["pretrain", "gin_configs/model/tiny.gin", str(first), f"TOKENIZER={tokenizer_path}"]
    words += [f"RUN_DIR={folder}/base", "NUM_STEPS=4", "BATCH_TOKENS=2048", "SEQ_LEN=128"]
    assert run.main([*words, *small]) == 0
    second = folder / "second.gin"
    second.write_text(
        DATA_HEAD
        + "DATA = (@a/sources.SourceConfig(), @b/sources.SourceConfig())\n"
        + source(
            "a",
            f"{world}/instructions.jsonl",
            licence="CC-BY-SA-4.0",
            provenance="https://huggingface.co/datasets/someone/pairs",
        )
        + source("b", f"{world}/conversations.jsonl")
    )
    words = ["sft", str(second), f"INIT={folder}/base", f"RUN_DIR={folder}/tuned", "NUM_STEPS=2"]
    words += [f"EVAL_TASKS=facts={world}/eval_facts.jsonl", "EVAL_QUESTIONS=8", "SEQ_LEN=256"]
    assert run.main([*words, "BATCH_TOKENS=2048", *small]) == 0
    return folder


def rows_of(text, heading):
    """The rows of the first table under a heading, as lists of cells."""
    part = text.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.split("\n") if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines][2:]


def unchecked(text):
    part = text.split("## 確認していないこと", 1)[1].split("\n## ", 1)[0]
    return [line[2:] for line in part.split("\n") if line.startswith("- ")]


def licence_rows(text):
    return {(row[0], row[1]): row[2] for row in rows_of(text, "学習データ")}


def test_the_card_of_real_runs(runs, tmp_path):
    facts = card.facts_of(runs / "tuned")
    text = card.write_card(tmp_path, facts).read_text("utf-8")
    assert licence_rows(text) == {
        ("base", "corpus"): "CC0-1.0",
        ("tuned", "instructions"): "CC-BY-SA-4.0",
        ("tuned", "conversations"): "不明 / not known",
    }
    gaps = unchecked(text)
    assert "ライセンスが不明なデータ（tuned）：conversations" in gaps
    assert not [gap for gap in gaps if "ライセンスが不明なデータ（base）" in gap]
    said = licences.front_matter(text)
    assert said["license"] == "other" and said["license_name"] == "not-fully-known-see-card"
    assert said["language"] == ["ja"] and said["datasets"] == ["someone/pairs"]
    assert said["library_name"] == "transformers" and "base_model" not in said
    assert str(runs) not in text and str(tmp_path) not in text


def test_figures_are_those_of_the_runs(runs, tmp_path):
    facts = card.facts_of(runs / "tuned")
    base, tuned = facts["stages"]
    assert (base["steps"], tuned["steps"], facts["step"]) == (4, 2, 2)
    summary = json.loads((runs / "tuned/summary.json").read_text("utf-8"))
    assert tuned["tokens"] == summary["tokens"] and tuned["hours"] > 0
    # Sixteen rows of 128 in each of four steps, over the packed rows of the corpus.
    (row,) = json.loads((runs / "base/data.json").read_text("utf-8"))
    (corpus,) = base["sources"]
    assert corpus["passes"] == 4 * 16 / row["rows"] and corpus["share"] == 1
    assert sum(row["share"] for row in tuned["sources"]) == pytest.approx(1)
    (accuracy,) = [row for row in tuned["evaluation"] if row["metric"] == "accuracy"]
    asked = summary["accuracy"]["facts"]
    shown = {"before": asked["base"], "value": asked["tuned"], "chance": asked["chance"]}
    assert {name: accuracy[name] for name in shown} == shown and accuracy["count"] == 8
    text = card.write_card(tmp_path, facts).read_text("utf-8")
    row = next(row for row in rows_of(text, "評価") if row[2] == "accuracy")
    assert row[:2] == ["tuned", "facts"] and row[6] == "8"
    assert [row[1] for row in rows_of(text, "評価") if row[0] == "base"] == ["corpus", "corpus"]


def test_an_earlier_step_is_told_as_such(runs):
    facts = card.facts_of(runs / "base", step=3)
    (stage,) = facts["stages"]
    lines = (runs / "base/metrics.jsonl").read_text("utf-8").splitlines()
    logged = next(line for line in map(json.loads, lines) if line["step"] == 3)
    assert stage["tokens"] == logged["train/tokens"] and not stage["finished"]
    assert stage["evaluation"] == [] and stage["hours"] is None
    assert any("途中" in japanese for japanese, _ in facts["unchecked"])
    # Negative control: the whole run.
    (whole,) = card.facts_of(runs / "base")["stages"]
    assert whole["tokens"] > stage["tokens"] and whole["finished"] and whole["evaluation"]


def make_run(folder, *, init="", command="sft", sources=(), run_dir="", **files):
    folder.mkdir(parents=True)
    settings = {"init": init, "run_dir": run_dir or str(folder), "seed": 0}
    settings |= {"data": {"seq_len": 128, "batch_tokens": 256, "data": "a.jsonl"}}
    config = {"command": command, "version": "0.1.0", "digest": "", "settings": settings}
    (folder / "config.json").write_text(json.dumps(config))
    summary = {"steps": 5, "tokens": 900.0, "train_seconds": 36.0, "wall_seconds": 72.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    empty = {"licence": "", "provenance": "", "commercial": None, "redistributable": None}
    rows = [empty | {"tokens": 100, "rows": 2} | row for row in sources]
    (folder / "data.json").write_text(json.dumps(rows))
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def free(name, licence="MIT"):
    return {"name": name, "licence": licence, "commercial": True, "redistributable": True}


def test_licences_follow_init_and_what_influenced_the_training(tmp_path):
    base = make_run(tmp_path / "base", command="pretrain", sources=[free("text")])
    sft = make_run(tmp_path / "sft", init=f"{base}@3", sources=[free("pairs")])
    facts = card.facts_of(sft)
    assert facts["licence"] == {"license": "mit"} and facts["commercial"] is True
    assert [stage["steps"] for stage in facts["stages"]] == [3, 5]
    strict = free("votes", "CC-BY-NC-SA-4.0") | {"commercial": False}
    reward = make_run(tmp_path / "reward", init=str(base), command="reward", sources=[strict])
    facts = card.facts_of(sft, influences=[reward])
    assert facts["licence"] == {"license": "other", "license_name": "mixed-see-card"}
    assert facts["commercial"] is False and facts["redistributable"] is True
    text = card.write_card(tmp_path, facts).read_text("utf-8")
    assert licence_rows(text)["reward", "votes"] == "CC-BY-NC-SA-4.0"


@pytest.fixture(scope="module")
def begun(world, runs):
    """A run that began as a stranger's PEFT adapter (LORA_INIT) of rank 3, with alpha left at twice the rank."""
    config = dataclasses.replace(
        base_lib.open_base(str(runs / "base")).config, lora=config_lib.LoraConfig(rank=3)
    )
    shapes = lora.trained(config, decoder.abstract_params(config))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    peft_format.write_adapter(runs / "somebodys", config.lora, zeros, config, "x/y")
    (runs / "somebodys/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n", "utf-8")
    (runs / "somebodys/NOTICE").write_text("by somebody", "utf-8")
    words = ["sft", f"DATA={world}/instructions.jsonl", f"INIT={runs}/base", "NUM_STEPS=1"]
    words += [f"LORA_INIT={runs}/somebodys", f"RUN_DIR={runs}/begun", "SEQ_LEN=128", "SAMPLES=0"]
    words += ["BATCH_TOKENS=1024", "TENSORBOARD=False", f"CACHE_DIR={runs}/cache", "WORKERS=1"]
    assert run.main(words) == 0
    return runs / "begun"


def test_adapters_are_told_and_their_licence_counts(begun, runs, tmp_path):
    text = card.write_card(tmp_path, card.facts_of(begun)).read_text("utf-8")
    row = "| LoRA | rank 3、alpha 6.0、query,key,value,out,gate,up,down、somebodys から（LORA_INIT） |"
    assert row in text and str(runs) not in text
    rows = licence_rows(text)
    assert rows["アダプター / adapter (begun)", "somebodys"] == "cc-by-nc-4.0 (README.md)"
    facts = card.facts_of(begun)
    assert "アダプター somebodys が何で学習されたかは、この記録にはない" in unchecked(text)
    assert lineage.folders(begun) == [runs / "somebodys"]
    # The licence alone: with all data free, the adapter's makes the difference.
    (begun / "data.json").write_text(json.dumps([free("pairs", "CC-BY-NC-4.0")]), "utf-8")
    (runs / "base/data.json").rename(runs / "data.json")
    (runs / "base/data.json").write_text(json.dumps([free("t", "CC-BY-NC-4.0")]), "utf-8")
    try:
        assert card.facts_of(begun)["licence"] == {"license": "cc-by-nc-4.0"}
        (runs / "somebodys/README.md").write_text("---\nlicense: mit\n---\n", "utf-8")
        assert card.facts_of(begun)["licence"]["license_name"] == "mixed-see-card"
        assert card.facts_of(begun)["commercial"] is None
    finally:
        (runs / "data.json").replace(runs / "base/data.json")
    # Negative control: a run that trained everything.
    assert facts["stages"][0]["name"] == "base" and not facts["stages"][0]["lora"]["rank"]
    card.write_card(tmp_path, card.facts_of(runs / "base"))
    assert "LoRA" not in (tmp_path / "README.md").read_text("utf-8")


def test_a_stage_that_is_gone_is_named(tmp_path):
    sft = make_run(tmp_path / "sft", init="runs/lost", sources=[free("pairs")])
    facts = card.facts_of(sft)
    assert [stage["found"] for stage in facts["stages"]] == [False, True]
    assert facts["licence"]["license"] == "other" and facts["commercial"] is None
    text = card.write_card(tmp_path, facts).read_text("utf-8")
    assert "lost" in unchecked(text)[0]
    assert licence_rows(text) == {
        ("lost", "不明 / not known"): "不明 / not known",
        ("sft", "pairs"): "MIT",
    }


def test_runs_that_were_moved_together_are_found(tmp_path, monkeypatch):
    make_run(tmp_path / "new/base", command="pretrain", run_dir="runs/base", sources=[free("t")])
    sft = make_run(tmp_path / "new/sft", init="runs/base", run_dir="runs/sft", sources=[free("p")])
    monkeypatch.chdir(tmp_path)
    assert [stage["found"] for stage in card.facts_of(sft)["stages"]] == [True, True]
    # Negative control: moved alone.
    sft.rename(tmp_path / "alone")
    assert not card.facts_of(tmp_path / "alone")["stages"][0]["found"]


@pytest.mark.parametrize(
    "files, licence, told_by",
    [
        ({"README.md": "---\nlicense: llama2\ndatasets:\n- c4\n---\n# x\n"}, "llama2", "README.md"),
        ({"README.md": "---\nlicense: other\nlicense_name: own-1\n---\n"}, "own-1", "README.md"),
        ({"LICENSE": "\n   Apache License\n  Version 2.0, January 2004"}, "apache-2.0", "LICENSE"),
        ({"README.md": "no head", "LICENSE.txt": "Terms of X"}, "Terms of X", "LICENSE.txt"),
        ({"README.md": "---\nlicense: [: \n---\n"}, "", ""),
        ({"README.md": "---\nlicense: !!python/object:os.system x\n---\n"}, "", ""),
        ({}, "", ""),
    ],
)
def test_the_licence_of_a_base(files, licence, told_by, tmp_path):
    folder = tmp_path / "youri-7b"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    base = licences.of_base(f"hf:{folder}")
    assert (base["name"], base["id"], base["licence"], base["licence_from"]) == (
        "youri-7b",
        "",
        licence,
        told_by,
    )
    sft = make_run(tmp_path / "sft", init=f"hf:{folder}", sources=[free("pairs")])
    text = card.write_card(tmp_path, card.facts_of(sft)).read_text("utf-8")
    gap = "ベースモデル youri-7b のライセンスは不明"
    assert (gap in unchecked(text)) == (licence == "")
    assert licence_rows(text)["ベースモデル / base", "youri-7b"].startswith(licence or "不明")


def test_a_base_of_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub/models--rinna--youri-7b"
    folder = place / "snapshots/0123abcd"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: llama2\n---\n")
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0123abcd")
    for word in ("hf:rinna/youri-7b", "hf:rinna/youri-7b@0123abcd", f"hf:{folder}"):
        base = licences.of_base(word)
        assert (base["id"], base["licence"]) == ("rinna/youri-7b", "llama2"), word
    sft = make_run(tmp_path / "sft", init="hf:rinna/youri-7b", sources=[free("p", "llama2")])
    text = card.write_card(tmp_path, card.facts_of(sft)).read_text("utf-8")
    said = licences.front_matter(text)
    assert said["base_model"] == "rinna/youri-7b" and said["license"] == "llama2"
    # Negative control: another revision is not there, so nothing is known of it.
    assert licences.of_base("hf:rinna/youri-7b@other")["licence"] == ""
    assert licences.of_base("hf:rinna/youri-7b@../../x")["licence"] == ""


@pytest.mark.parametrize(
    "found, wanted",
    [
        (["MIT", "mit"], {"license": "mit"}),
        (["CC BY-SA 4.0"], {"license": "cc-by-sa-4.0"}),
        (["MIT", "CC-BY-4.0"], {"license": "other", "license_name": "mixed-see-card"}),
        (["MIT", ""], {"license": "other", "license_name": "not-fully-known-see-card"}),
        (
            ["MIT", "not-fully-known-see-card"],
            {"license": "other", "license_name": "not-fully-known-see-card"},
        ),
        (["public domain"], {"license": "other", "license_name": "public-domain"}),
        (["", ""], {"license": "unknown"}),
        ([], {"license": "unknown"}),
    ],
)
def test_the_rule_of_licences(found, wanted):
    assert licences.decide(found) == wanted


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("from /home/taro/data/wiki.jsonl", "from wiki.jsonl"),
        ("出所は~/data/a.jsonl、C:\\Users\\taro\\b.csv", "出所はa.jsonl、b.csv"),
        ("file:///home/taro/a.txt", "a.txt"),
        ("https://example.com/a/b.txt と和文/英文", "https://example.com/a/b.txt と和文/英文"),
        ("https://me:pass1word@example.com/a", "https://[redacted]@example.com/a"),
    ],
)
def test_no_paths_and_no_secrets(text, wanted):
    assert lineage.published(text) == wanted


def test_hostile_names_are_inert(tmp_path):
    name = "a|b\n# x <script> [y](http://z) `q`"
    sft = make_run(tmp_path / "sft", sources=[free(name) | {"provenance": "/home/taro/x/y.jsonl"}])
    text = card.write_card(tmp_path, card.facts_of(sft)).read_text("utf-8")
    (row,) = rows_of(text, "学習データ")
    assert row[1] == r"a\|b # x &lt;script&gt; \[y\](http://z) \`q\`" and row[3] == "y.jsonl"
    assert "<script>" not in text and "taro" not in text
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "mit"


def test_the_code_of_the_card_is_python(tmp_path):
    for template in ("", "chatml\n"):
        files = {"template.txt": template} if template else {}
        folder = make_run(tmp_path / f"run{len(template)}", sources=[free("p")], **files)
        text = card.write_card(tmp_path, card.facts_of(folder)).read_text("utf-8")
        code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
        compile(code, "card", "exec")
        assert ("apply_chat_template" in code) == bool(template)


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_what_is_no_run(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(errors.StorageError, match="config.json") as found:
        card.facts_of(tmp_path)
    assert "\n" not in str(found.value)


def test_overlap_with_benchmarks_is_told(runs, tmp_path):
    (tmp_path / "a.txt").write_text("都会の反対は？\n", "utf-8")
    questions = {"1": "都会の反対は？", "2": "日本で一番高い山の名前は何ですか？"}
    examples = [
        benchmark.Example(id=id, fields={"question": text}, targets=("答",))
        for id, text in questions.items()
    ]
    before = card.facts_of(runs / "tuned")
    assert before["overlap"] == {} and "overlap of the evaluation questions" in str(
        before["unchecked"]
    )
    found = contamination.check({"quiz": examples}, {"a": str(tmp_path / "a.txt")})
    path = runs / "tuned" / contamination.FILE
    path.write_text(json.dumps(found), "utf-8")
    try:
        facts = card.facts_of(runs / "tuned")
        text = card.write_card(tmp_path, facts).read_text("utf-8")
    finally:
        path.unlink()
    assert "| quiz | a | 2 | 1 | 1 |" in text and "文字 8-gram の 50.0%" in text
    assert "overlap of the evaluation questions" not in text
    # Sources of both stages are called a; b is the one that nobody looked at.
    assert "overlap with the evaluation questions was not looked for in" in text
