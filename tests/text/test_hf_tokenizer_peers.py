"""Conversations through a tokenizer.json and its own chat template: the ids that transformers gives them."""

import importlib.util
import pathlib

import pytest
import tokenizers

from jinstr.samples import build
from jinstr.text import publish, render, templates
from jinstr.text import tokenizer as tokenizer_lib

pytestmark = pytest.mark.peers
transformers = pytest.importorskip("transformers")

_path = pathlib.Path(__file__).with_name("test_hf_tokenizer.py")
_spec = importlib.util.spec_from_file_location("kinds_of_tokenizers", _path)
kinds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kinds)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def conversations():
    found = [row["messages"] for row in list(build.conversations())[::5]]
    for row in list(build.hand_written())[::10]:
        answer = row["output"] if isinstance(row["output"], str) else row["output"][0]
        turns = [("user", row["text"]), ("assistant", answer)]
        found.append([{"role": role, "content": text} for role, text in turns])
    return [messages for messages in found if messages[0]["role"] != "system"]


@pytest.mark.parametrize("kind", sorted(kinds.KINDS))
def test_apply_chat_template(kind, tmp_path):
    make, config = kinds.KINDS[kind]
    template = CHATML if "byte-level" in kind else LLAMA2
    config = dict(config) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    kinds.saved(tmp_path, make(), config | {"chat_template": template, "pad_token": None})
    own = tokenizer_lib.load(tmp_path)
    loaded = templates.load(templates.of_folder(tmp_path), own)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)

    def ids(messages, prompt):
        found = theirs.apply_chat_template(
            messages, add_generation_prompt=prompt, tokenize=True, truncation=False
        )
        return list(found["input_ids"])

    whole = 0
    for messages in conversations():
        rendered = render.render(messages, loaded, own)
        if not rendered.straddles:
            assert ids(messages, False) == rendered.tokens
            whole += 1
        if len(messages) == 2:
            assert ids(messages[:-1], True) == render.render_prompt(messages[:-1], loaded, own)
    assert whole > 10 or "byte-level" not in kind
    # Negative control.
    assert ids(messages, False) != rendered.tokens[:-1]


def test_a_published_model_without_padding(tmp_path):
    """As GPT-2: transformers knows no pad token, and "!" stays text."""
    path = pathlib.Path(__file__).with_name("test_hf_special.py")
    spec = importlib.util.spec_from_file_location("special_tokens", path)
    special = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(special)
    config = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    own = tokenizer_lib.load(kinds.saved(tmp_path, special.bytes_only(), config))
    publish.write_tokenizer_files(tmp_path / "out", own, "")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.pad_token is None and theirs.eos_token_id == own.eos_id
    ids = theirs("すごい!!", add_special_tokens=False)["input_ids"]
    assert ids == own.encode("すごい!!") and ids[-1] == own.pad_id
    assert theirs.decode(ids, skip_special_tokens=True) == "すごい!!"


def test_tags_have_the_ids_of_transformers(tmp_path):
    made = kinds.byte_level()
    made.no_truncation()
    made.add_tokens([tokenizers.AddedToken("</think>", normalized=False)])
    config = dict(kinds.CHAT) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    own = tokenizer_lib.load(kinds.saved(tmp_path, made, config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "<think>\n考え\n</think>\n\n答え"
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == own.encode(text) and made.token_to_id("</think>") in ids
    assert theirs.decode(ids, skip_special_tokens=True) == own.decode(ids) == text
    # Negative control: what could end a turn is text here, and a token there.
    typed = "<|im_end|>"
    assert theirs(typed, add_special_tokens=False)["input_ids"] != own.encode(typed)
