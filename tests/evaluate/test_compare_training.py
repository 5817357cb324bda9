"""From judged sheets to training: what compare export writes trains reward models, DPO and KTO."""

import json

import openpyxl
import pytest

from jinstr import run
from jinstr.samples import build
from jinstr.text import normalise, train_tokenizer

MODEL = """
from __gin__ import dynamic_registration
from jinstr.models import config
config.DecoderConfig.hidden_size = 32
config.DecoderConfig.num_layers = 1
config.DecoderConfig.num_heads = 2
config.DecoderConfig.num_kv_heads = 1
config.DecoderConfig.head_dim = 16
config.DecoderConfig.mlp_size = 64
"""
PROMPTS = 60


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small base model, and a study whose one rater knows the ranks of the built-in rankings."""
    place = tmp_path_factory.mktemp("training")
    world = build.write(place / "world", num_bytes=60_000)
    out = str(place / "tokenizer")
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=2200, threads=1)
    texts = [row["text"] for row in [*lines(world / "corpus.jsonl"), *build.hand_written()]]
    train_tokenizer.train({"a": texts}, out, config, normalise.NormaliseConfig())
    (place / "model.gin").write_text(MODEL, "utf-8")
    words = [
        "pretrain",
        f"{place}/model.gin",
        f"DATA={world}/corpus.jsonl",
        f"TOKENIZER={out}.model",
    ]
    assert (
        run.main([*words, "NUM_STEPS=2", "SAMPLES=0", f"RUN_DIR={place}/base", *usual(place)]) == 0
    )

    ranked = [row for row in lines(world / "rankings.jsonl") if len(set(row["responses"])) >= 3][
        :PROMPTS
    ]
    with (place / "answers.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(ranked):
            row = {"id": number, "prompt": row["prompt"], "responses": row["responses"][:3]}
            file.write(
                json.dumps(row | {"models": [["x"], ["y"], ["z"]]}, ensure_ascii=False) + "\n"
            )
    words = [f"STUDY={place}/study", f"ANSWERS={place}/answers.jsonl"]
    assert run.main(["compare", "make", *words]) == 0
    rank_of = {
        (row["prompt"], text): rank
        for row in ranked
        for text, rank in zip(row["responses"], row["ranks"])
    }
    path = place / "study" / "sheets" / "rater01.xlsx"
    book = openpyxl.load_workbook(path)
    sheet = book["評価"]
    for row in range(3, sheet.max_row + 1):
        a, b = (
            rank_of[sheet.cell(row, 2).value, sheet.cell(row, column).value] for column in (3, 5)
        )
        sheet.cell(row, 15).value = "A" if a < b else "B" if a > b else "引き分け"
        for column in range(7, 15):
            sheet.cell(row, column).value = max(1, 6 - (a if column % 2 else b))
    book.save(path)
    assert run.main(["compare", "read", f"STUDY={place}/study"]) == 0
    return place, ranked


def usual(place):
    words = ["BATCH_TOKENS=2048", "SEQ_LEN=256", "EVAL_EVERY=0", "LOG_EVERY=1", "TENSORBOARD=False"]
    return [*words, "WORKERS=1", f"CACHE_DIR={place}/cache"]


def export(place, form, *words):
    out = place / f"{form}.jsonl"
    assert (
        run.main(
            ["compare", "export", f"STUDY={place}/study", f"OUTPUT={out}", f"FORM={form}", *words]
        )
        == 0
    )
    return out


def trained(place, command, name, data, *words):
    usual_words = [f"INIT={place}/base", f"DATA={data}", "TEMPLATE=chatml", "NUM_STEPS=4"]
    words = [*usual_words, f"RUN_DIR={place}/{name}", *usual(place), *words]
    assert run.main([command, *words]) == 0
    found = [
        line["train/loss"] for line in lines(place / name / "metrics.jsonl") if "train/loss" in line
    ]
    assert len(found) == 4 and all(0 < loss < 10 for loss in found)


@pytest.mark.slow
def test_exported_rankings_are_those_of_the_rater_and_train_a_reward_model(place):
    place, ranked = place
    data = export(place, "groups")
    rows = {row["id"]: row for row in lines(data)}
    assert len(rows) > PROMPTS / 2
    for number, row in rows.items():
        source = dict(zip(ranked[int(number)]["responses"][:3], ranked[int(number)]["ranks"][:3]))
        found = dict(zip(row["responses"], row["ranks"]))
        assert found.keys() == source.keys()
        for one in source:
            for other in source:
                assert (found[one] < found[other]) == (source[one] < source[other])
    trained(place, "reward", "reward", data)
    trained(place, "dpo", "dpo", data)


@pytest.mark.slow
def test_exported_pairs_and_labels_train(place):
    place, _ = place
    trained(place, "dpo", "dpo_pairs", export(place, "pairs", "LENGTH_SHARE=0.5"))
    labels = export(place, "labels")
    assert {row["label"] for row in lines(labels)} == {"desired", "undesired"}
    trained(place, "dpo", "kto", labels, "LOSS=kto")
