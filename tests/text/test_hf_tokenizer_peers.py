"""Conversations through a tokenizer.json and its own chat template: the ids that transformers gives them."""

import importlib.util
import pathlib

import pytest

from jinstr.samples import build
from jinstr.text import render, templates
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
