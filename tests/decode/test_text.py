"""Text from a real tokenizer: streams against batches, stop strings, control tokens; files of `jinstr generate`."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
import sentencepiece

from jinstr import errors
from jinstr.commands import generate as generate_lib
from jinstr.decode import requests, sampler, text
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.text import tokenizer as tokenizer_lib

SENTENCES = [
    "昔々あるところに、おじいさんとおばあさんが住んでいました。",
    "山の上に白い雲が浮かび、川では子どもたちが魚を追いかけていた。",
    "春になると桜が咲き、町の人々は公園で花見をする。",
    "図書館で本を借りて、静かな部屋でゆっくり読んだ。",
] * 25


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    prefix = str(tmp_path_factory.mktemp("tokenizer") / "small")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=prefix, vocab_size=370, byte_fallback=True,
        pad_id=0, unk_id=1, bos_id=2, eos_id=3, control_symbols=["<|turn|>"], hard_vocab_limit=False,
        normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    return tokenizer_lib.load(prefix + ".model")


@pytest.fixture(scope="module")
def model(tokenizer):
    """A random model with six rows more than the tokenizer has pieces: most of what it writes are byte pieces."""
    config = config_lib.DecoderConfig(
        vocab_size=tokenizer.vocab_size + 6,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        mlp_size=24,
    )
    return config, decoder.init_params(config, jax.random.key(0))


def text_sampler(model, tokenizer, stop_ids=(), stop_strings=(), **settings):
    template = types.SimpleNamespace(stop_ids=stop_ids, stop_strings=())
    settings = {"temperature": 1.0, "max_new_tokens": 48} | settings
    sampling = sampler.SamplingConfig(stop_strings=tuple(stop_strings), **settings)
    return text.TextSampler(*model, tokenizer, template, sampling)


PROMPTS = [[2, 300], [2] + [310] * 9, [2, 305, 306]]


def test_streamed_text_equals_batch_text(model, tokenizer):
    stop_ids = (3, *range(200, 215))
    settings = dict(stop_ids=stop_ids, stop_strings=["山", "あ"])
    s = text_sampler(model, tokenizer, **settings)
    answers = s.answer_batch(PROMPTS, [1, 2, 3], pad_rows=4)
    for prompt, row, answer in zip(PROMPTS, [1, 2, 3], answers):
        pieces = list(s.stream(prompt, row))
        assert "".join(pieces) == answer.text and all(pieces)
        assert not any(0xD800 <= ord(c) < 0xE000 for c in answer.text)
    # The other way round, and in batches of two: order and neighbours do not matter.
    again = dict(s.answer_all(PROMPTS[::-1], [3, 2, 1], batch_rows=2))
    assert [again[i].text for i in (2, 1, 0)] == [a.text for a in answers]
    other = s.answer_batch(PROMPTS, [4, 5, 6])
    assert [a.text for a in other] != [a.text for a in answers]


def test_ends_and_stop_strings(model, tokenizer):
    free = text_sampler(model, tokenizer).answer_batch(PROMPTS, [1, 2, 3])
    assert all(a.finish == "length" and len(a.ids) == 48 for a in free)
    long = max(range(3), key=lambda i: len(free[i].text))
    middle = free[long].text[len(free[long].text) // 2 :][:3]
    cut = text_sampler(model, tokenizer, stop_strings=[middle]).answer_batch(PROMPTS, [1, 2, 3])
    assert cut[long].finish == "stop"
    assert cut[long].text == free[long].text[: free[long].text.index(middle)]
    assert free[long].ids[: len(cut[long].ids)] == cut[long].ids
    assert len(cut[long].ids) < 48 and cut[long].logp > free[long].logp
    stop = free[0].ids[5]
    ended = text_sampler(model, tokenizer, stop_ids=(stop,)).answer_batch(PROMPTS[:1], [1])[0]
    assert ended.finish == "end" and stop not in ended.ids
    assert ended.ids == free[0].ids[: free[0].ids.index(stop)]


def test_control_tokens_and_spare_rows_are_never_written(model, tokenizer):
    s = text_sampler(model, tokenizer, stop_ids=(3,), temperature=50.0, max_new_tokens=200)
    control = {i for i in range(tokenizer.vocab_size) if tokenizer.is_control(i)}
    spare = range(tokenizer.vocab_size, tokenizer.vocab_size + 6)
    assert {0, 2, 3, tokenizer.id_of("<|turn|>")} <= control
    ids = {i for a in s.answer_batch([[2]] * 16, range(16)) for i in a.ids}
    assert ids.isdisjoint({*control, tokenizer.unk_id, *spare}) and len(ids) > 200
    # Negative control: without the mask they come.
    raw = sampler.Sampler(model[0], s.sampling, (), tokenizer.pad_id)
    rollout = raw(model[1], np.full((16, 1), 2), np.ones(16, int), np.arange(16), jax.random.key(0))
    assert not {int(i) for i in np.asarray(rollout.ids).ravel()}.isdisjoint({*control, *spare})


class Letters:
    """A stream of single characters, whose ids are code points: what an Assembler needs of a tokenizer."""

    push = staticmethod(chr)

    @staticmethod
    def flush():
        return ""


@pytest.mark.parametrize("stops", [["###"], ["終わり", "終点"], ["aab", "ab"], []])
def test_assembler_equals_a_search_in_the_whole_text(stops):
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(200):
        whole = "".join(rng.choice(list("a#b終わり点"), 20))
        assembler = text.Assembler(Letters, stops)
        pieces = [assembler.push(ord(c)) for c in whole] + [assembler.flush()]
        found = [at for at in map(whole.find, stops) if at >= 0]
        if assembler.stopped:
            # The first stop string to be complete ends the answer; nothing of it was emitted before.
            done = min(at + len(s) for s in stops if (at := whole.find(s)) >= 0)
            want = min(at for s in stops if (at := whole[:done].find(s)) >= 0)
            assert "".join(pieces) == assembler.text == whole[:want]
        else:
            assert not found and "".join(pieces) == whole
        stopped += assembler.stopped
    assert (stopped > 0) == bool(stops)


def test_prompts_are_read_in_every_shape_and_bad_lines_are_named(tmp_path):
    rows = [
        {"id": "a", "prompt": "富士山の高さは?"},
        {"instruction": "要約して", "input": "長い文"},
        {"ID": 7, "text": "質問"},
        {"messages": [{"role": "user", "content": "や"}, {"role": "assistant", "content": "答"}]},
        {"id": "e", "roles": ["system", "user"], "contents": ["丁寧に", "はい?"]},
    ]
    path = tmp_path / "prompts.jsonl"
    requests.write_jsonl(path, rows)
    got = requests.read_prompts(path)
    assert [p["id"] for p in got] == ["a", "2", "7", "4", "e"]
    assert got[1]["contents"] == ["要約して\n長い文"] and got[3]["roles"] == ["user"]
    for bad in ("{", "[1]", '{"x": 1}', '{"prompt": 3}', '{"id": "a", "prompt": "二度目"}'):
        path.write_text(json.dumps(rows[0]) + "\n" + bad + "\n", encoding="utf-8")
        with pytest.raises(errors.DataError, match="prompts.jsonl:2"):
            requests.read_prompts(path)


def test_answer_log_survives_a_cut_line(tmp_path):
    log = requests.AnswerLog(tmp_path / "x.answers.jsonl")
    log.add({"key": "k1", "text": "一\u2028行"})
    log.add({"key": "k2", "text": "二"})
    log.close()
    data = log.path.read_bytes()
    log.path.write_bytes(data[:-4])  # killed in the middle of a write
    again = requests.AnswerLog(log.path)
    assert list(again.answers) == ["k1"] and again.answers["k1"]["text"] == "一\u2028行"
    again.add({"key": "k2", "text": "二"})
    again.close()
    assert log.path.read_bytes() == data


def test_sheet_is_blind_and_distinct():
    prompt = {"id": "p", "roles": ["user"], "contents": ["?"]}

    def answer(model, words, temperature=0.7):
        return {"model": model, "text": words, "temperature": temperature, "finish": "end"}

    first = [answer("sft", "はい"), answer("base", "いいえ"), answer("base", "はい ", 1.0)]
    (row,) = requests.sheet([prompt], {"p": first})
    at = row["responses"].index("はい")
    assert sorted(row["responses"]) == ["いいえ", "はい"]
    assert row["models"][at] == ["base", "sft"] and row["models"][1 - at] == ["base"]
    assert row["temperatures"][at] == [0.7, 1.0]
    # Whoever wrote what, and in whatever order it came, raters see the same page.
    swapped = [answer("base", "はい"), answer("sft", "いいえ")][::-1]
    (other,) = requests.sheet([prompt], {"p": swapped})
    assert other["responses"] == row["responses"] and other["answer_ids"] == row["answer_ids"]
    assert other["models"] != row["models"]


def test_generate_resumes_and_merges_models(monkeypatch, model, tokenizer, tmp_path):
    prompts = tmp_path / "in.jsonl"
    requests.write_jsonl(
        prompts, [{"id": f"q{i}", "prompt": s} for i, s in enumerate(SENTENCES[:4])]
    )
    loaded = (*model, tokenizer, None, 5)
    monkeypatch.setattr(
        generate_lib.serving, "load_run", lambda *a, **k: generate_lib.serving.Run(*loaded)
    )
    settings = dict(
        models="a=runs/a,b=runs/b",
        input=str(prompts),
        answers=2,
        temperatures="0,1.0",
        sampling=sampler.SamplingConfig(max_new_tokens=12),
        batch_rows=3,
        step=None,
        weights="params",
        template="",
    )
    whole = generate_lib.generate(output=str(tmp_path / "whole.jsonl"), **settings)
    assert whole == {"prompts": 4, "answers": 24, "distinct": 12, "new": 24}
    # Both names are the same model: each answer is there once, with both names.
    rows = [
        json.loads(line) for line in (tmp_path / "whole.jsonl").read_text("utf-8").split("\n")[:-1]
    ]
    assert all(m == ["a", "b"] for row in rows for m in row["models"])
    # A log that stops in the middle of its tenth line: nothing finished is written twice, the result is the same.
    lines = (tmp_path / "whole.jsonl.answers.jsonl").read_bytes().split(b"\n")
    cut = tmp_path / "cut.jsonl.answers.jsonl"
    cut.write_bytes(b"\n".join(lines[:9]) + b"\n" + lines[9][:20])
    resumed = generate_lib.generate(output=str(tmp_path / "cut.jsonl"), **settings)
    assert resumed["new"] == 24 - 9
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    # Other settings are other answers.
    changed = settings | {"sampling": dataclasses.replace(settings["sampling"], seed=1)}
    assert generate_lib.generate(output=str(tmp_path / "cut.jsonl"), **changed)["new"] == 24


def test_models_and_temperatures_are_parsed_or_refused():
    assert generate_lib.parse_models("a=r/1, r/2") == [("a", "r/1"), ("r/2", "r/2")]
    assert generate_lib.parse_temperatures("0,0.7") == [0.0, 0.7]
    assert generate_lib.parse_temperatures(0.7) == [0.7]
    for wrong in ("", "a=x,a=y"):
        with pytest.raises(errors.ConfigError):
            generate_lib.parse_models(wrong)
    with pytest.raises(errors.ConfigError):
        generate_lib.parse_temperatures("warm")
