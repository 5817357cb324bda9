"""A judge that jinstr runs itself, and the same model behind a server: what it writes is the same."""

import json

import pytest

from jinstr import run
from jinstr.evaluate import judge_local, judge_prompts
from jinstr.samples import build
from jinstr.text import normalise, publish, train_tokenizer
from jinstr.text import tokenizer as tokenizer_lib
from tests.models import hf_cases


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """hf:FOLDER of a random chat model with room for a prompt of a judge."""
    folder = tmp_path_factory.mktemp("judge") / "small"
    config = train_tokenizer.TokenizerTrainingConfig(vocab_size=1600, threads=1)
    told = [p.template for p in judge_prompts.OWN.values()]
    texts = told + [row["text"] for row in build.hand_written()]
    prefix = str(folder.parent / "tokenizer")
    train_tokenizer.train({"a": texts}, prefix, config, normalise.NormaliseConfig())
    tokenizer = tokenizer_lib.load(prefix + ".model")
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    hf_cases.write(
        folder, "llama", vocab_size=tokenizer.vocab_size, max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_id, **ids,
    )  # fmt: skip
    publish.write_tokenizer_files(folder, tokenizer, "chatml")
    return f"hf:{folder}"


SETTINGS = dict(template="", temperature=0.0, max_tokens=12, seed=0, batch_rows=4)


def judge(model, folder, *words):
    usual = [
        f"ANSWERS={folder}/answers.jsonl",
        f"MODEL={model}",
        f"OUT={folder}/local",
        "MAX_NEW_TOKENS=12",
    ]
    last = {word.partition("=")[0]: word for word in (*usual, "BATCH_ROWS=4", *words)}
    return run.main(["judge", *last.values()])


def texts(folder):
    lines = (folder / "replies.jsonl").read_text("utf-8").splitlines()
    return {tuple([r["prompt"], *r["shown"]]): r["text"] for r in map(json.loads, lines)}


def test_texts_are_those_of_the_same_model_behind_a_server(model, tmp_path, server, capsys):
    rows = [
        {
            "id": f"q{n}",
            "prompt": "海は何色ですか。" * n,
            "responses": [f"青{n}", f"赤{n}"],
            "models": [["a"], ["b"]],
        }
        for n in (1, 2)
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    # A random model gives no verdict: told as such, and every text is kept.
    assert judge(model, tmp_path) == 65
    assert "gave no verdict on any of 4 questions" in capsys.readouterr().err
    local = judge_local.Local(model, **SETTINGS)

    def answer(messages):
        ((_, reply),) = local.ask_each([messages])
        return reply.text

    server.answer = answer
    words = [f"URL={server.url}", "MODEL=small", "CONNECTIONS=1", f"OUT={tmp_path}/far"]
    assert judge(model, tmp_path, *words) == 65
    own, theirs = texts(tmp_path / "local"), texts(tmp_path / "far")
    assert own == theirs and len(own) == 4 and len(set(own.values())) > 1
    # Negative control: sampled, it writes something else.
    assert judge(model, tmp_path, "TEMPERATURE=1.0", f"OUT={tmp_path}/warm") == 65
    assert texts(tmp_path / "warm") != own


def test_what_is_too_long_is_named(model, tmp_path):
    local = judge_local.Local(model, **SETTINGS)
    asked = [[{"role": "user", "content": word * 2000}] for word in ("海", "")]
    asked[1][0]["content"] = "海は？"
    replies = dict(local.ask_each(asked))
    assert replies[0].fault == "long" and "the model reads 1012" in replies[0].why
    assert (
        replies[1].fault == "" and replies[1].finish in ("length", "end") and replies[1].tokens > 3
    )
