"""Exported tokenizer files in transformers: the same ids for plain text, prompts and conversations."""

import json

import pytest

from jinstr.samples import build
from jinstr.text import publish, render, templates
from jinstr.text import tokenizer as tokenizer_lib

pytestmark = pytest.mark.peers
transformers = pytest.importorskip("transformers")
NAMES = ("code10k_en20k_ja30k.ver2.1", "llm-jp-tokenizer-100k.ver3.1")


def opened(folder, model_type="llama"):
    """As people open it: beside a config.json of a model family, which makes transformers choose a class."""
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_real_lines(name, shared_data, real_lines, tmp_path):
    path = shared_data / "tokenizers" / f"{name}.model"
    made = tokenizer_lib.load(path)
    publish.write_tokenizer_files(tmp_path, made, "")
    lines = real_lines
    sp = made._model
    wanted = [sp.encode(line) for line in lines]
    theirs = opened(tmp_path)(lines, add_special_tokens=False)["input_ids"]
    again = tokenizer_lib.load(tmp_path)
    different = {
        "encode": sum(made.encode(line) != ids for line, ids in zip(lines, wanted)),
        "encode_array": sum(
            made.encode_array(line).tolist() != ids for line, ids in zip(lines, wanted)
        ),
        "tokenizer.json": sum(again.encode(line) != ids for line, ids in zip(lines, wanted)),
        "transformers": sum(map(list.__ne__, theirs, wanted)),
    }
    ties = {NAMES[0]: 2, NAMES[1]: 1}[name]  # f32 against f64 sums, see sentencepiece_json.py
    print(name, different)
    assert different == {
        "encode": 0,
        "encode_array": 0,
        "tokenizer.json": ties,
        "transformers": ties,
    }


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "gpt_neox", "mistral"])
def test_every_family_reads_it_the_same(model_type, prefixed, tokenizer, tmp_path):
    for number, either in enumerate((tokenizer, prefixed)):
        folder = tmp_path / str(number)
        publish.write_tokenizer_files(folder, either, "chatml")
        theirs = opened(folder, model_type)
        texts = [row["text"] for row in list(build.hand_written())[::9]] + ["  x", "\n", "a b"]
        for text in texts:
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ids == either.encode(text), text
            assert theirs(text)["input_ids"] == [either.bos_id, *ids]
            assert theirs.decode(either.encode(text)) == text
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
        ids = [either.bos_id, either.eos_id, either.pad_id, either.unk_id]
        assert [getattr(theirs, name) for name in names] == ids
        assert len(theirs) == either.vocab_size


def conversations(name):
    found = [row["messages"] for row in list(build.conversations())[::4]]
    for row in list(build.hand_written())[::8]:
        answer = row["output"] if isinstance(row["output"], str) else row["output"][0]
        turns = [("user", row["text"]), ("assistant", answer)]
        found.append([{"role": role, "content": text} for role, text in turns])
    return [m for m in found if not (name.startswith("rinna") and m[0]["role"] == "system")]


@pytest.mark.parametrize("name", sorted(templates.BUILT_IN))
def test_apply_chat_template(name, tokenizer, prefixed, tmp_path):
    for number, either in enumerate((tokenizer, prefixed)):
        template = templates.load(name, either)
        folder = tmp_path / str(number)
        publish.write_tokenizer_files(folder, either, name)
        theirs = opened(folder)

        def ids(messages, prompt, theirs=theirs):
            found = theirs.apply_chat_template(
                messages, add_generation_prompt=prompt, tokenize=True
            )
            return list(found["input_ids"])

        whole = 0
        for messages in conversations(name):
            rendered = render.render(messages, template, either)
            if not rendered.straddles:  # else one piece reaches across the border of an answer
                assert ids(messages, False) == rendered.tokens
                whole += 1
            if len(messages) <= 3 or not rendered.straddles:
                wanted = render.render_prompt(messages[:-1], template, either)
                assert ids(messages[:-1], True) == wanted
        assert whole > 10
        # Negative control.
        assert ids(messages, False) != ids(messages[:-1], True)
