"""The code that a card prints, run with transformers on a small model with a chat template, and on one without."""

import json
import re

import pytest

from jinstr.train import card

pytestmark = pytest.mark.peers
transformers = pytest.importorskip("transformers")
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def published(tmp_path):
    """A function: chat template → folder with a random Llama of transformers and its card."""
    import tokenizers

    def make(template):
        folder = tmp_path / "small"
        letters = {chr(code): number for number, code in enumerate(range(32, 127))}
        inner = tokenizers.Tokenizer(
            tokenizers.models.BPE(letters | {"<unk>": 95, "</s>": 96}, [], unk_token="<unk>")
        )
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", chat_template=template
        )
        tokenizer.save_pretrained(folder)
        config = transformers.LlamaConfig(
            vocab_size=97, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, eos_token_id=96, pad_token_id=96,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        run_dir = tmp_path / "runs/small"
        run_dir.mkdir(parents=True)
        (run_dir / "config.json").write_text(json.dumps({"command": "sft", "settings": {}}))
        if template:
            (run_dir / "template.txt").write_text("chatml\n")
        return card.write_card(folder, card.facts_of(run_dir))

    return make


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["chat", "text"])
def test_the_code_of_the_card_runs(template, published, monkeypatch, capsys):
    path = published(template)
    code = re.search(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)[1]
    assert 'name = "small"' in code
    monkeypatch.chdir(path.parent.parent)
    names = {}
    exec(compile(code.replace("256", "8"), "card", "exec"), names)
    assert 0 < names["output"].shape[1] - names["inputs"]["input_ids"].shape[1] <= 8
    assert capsys.readouterr().out.endswith("\n")
    # Negative control: the code asks for the folder that it names.
    with pytest.raises(OSError):
        exec(compile(code.replace('"small"', '"./nowhere"'), "card", "exec"), {})
