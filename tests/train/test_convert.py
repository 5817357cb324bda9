"""What an export keeps beside the weights: ends of answers, terms of use, the base of adapters; and others' folders."""

import json
import re
import shutil

import pytest

from jinstr import errors, run
from jinstr.commands import convert as convert_lib
from jinstr.models import peft_format
from jinstr.text import publish
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import adapters, endings, licences
from tests.models import hf_cases

TEXTS = {"LICENSE.txt": "terms", "NOTICE": "notice", "USE_POLICY.md": "policy"}
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 99}


def export(model, out, **settings):
    settings = dict(
        dtype="float32", weights="params", template="", adapter=False, base_name="", shard_gigabytes=1.0,
        max_new_tokens=0,
    ) | settings  # fmt: skip
    return convert_lib.convert(model=str(model), out=str(out), **settings)


def read(path):
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return tokenizer_lib.load(tokenizer_path)


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory):
    """A folder with models/llama: a chat model with two ends and terms of use."""
    place = tmp_path_factory.mktemp("convert")
    folder = place / "models/llama"
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    hf_cases.write(folder, "llama", vocab_size=2240, **ids, pad_token_id=tokenizer.pad_id)
    publish.write_tokenizer_files(folder, tokenizer, "chatml")
    ends = [tokenizer.eos_id, tokenizer.id_of("<|im_end|>"), 7]
    written = SAMPLING | {"eos_token_id": ends, "_from_model_config": True}
    (folder / endings.GENERATION).write_text(json.dumps(written), "utf-8")
    (folder / "README.md").write_text("---\nlicense: llama2\n---\n# its card\n", "utf-8")
    for name, text in TEXTS.items():
        (folder / name).write_text(text, "utf-8")
    return place


@pytest.fixture(scope="module")
def tuned(place, world):
    """A run of adapters on hf:models/llama, started where that is a relative folder."""
    words = ["sft", "INIT=hf:models/llama", f"DATA={world}/instructions.jsonl", "NUM_STEPS=2"]
    words += [
        "LORA_RANK=2",
        "LEARNING_RATE=1e-1",
        "RUN_DIR=runs/tuned",
        "SEQ_LEN=128",
        "BATCH_TOKENS=1024",
        "SAMPLES=0",
    ]
    words += ["TENSORBOARD=False", "CACHE_DIR=cache", "WORKERS=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run.main(words) == 0
    return place / "runs/tuned"


def test_every_end_and_the_sampling_of_a_base_are_kept(place, tokenizer, tmp_path):
    export(f"hf:{place}/models/llama", tmp_path / "out")
    found = read(tmp_path / "out" / endings.GENERATION)
    ends = [tokenizer.id_of("<|im_end|>"), tokenizer.eos_id, 7]
    assert found == SAMPLING | {
        "eos_token_id": ends, "bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id
    }  # fmt: skip
    assert read(tmp_path / "out/config.json")["eos_token_id"] == tokenizer.eos_id  # as the base's
    for name, text in TEXTS.items():
        assert (tmp_path / "out" / name).read_text("utf-8") == text
    assert "# its card" in (tmp_path / "out/README.md").read_text("utf-8")
    # Negative control: what was asked for wins.
    export(f"hf:{place}/models/llama", tmp_path / "short", max_new_tokens=5)
    assert read(tmp_path / "short" / endings.GENERATION)["max_new_tokens"] == 5


def test_an_export_of_a_tuned_model_has_the_terms_and_ends_of_its_base(tuned, tokenizer, tmp_path):
    export(tuned, tmp_path / "out")
    for name, text in TEXTS.items():
        assert (tmp_path / "out" / name).read_text("utf-8") == text
    found = read(tmp_path / "out" / endings.GENERATION)
    assert found["eos_token_id"] == [tokenizer.id_of("<|im_end|>"), tokenizer.eos_id, 7]
    assert not found["do_sample"] and found["max_new_tokens"] == endings.LENGTH
    config = read(tmp_path / "out/config.json")
    assert config["eos_token_id"] == tokenizer.id_of("<|im_end|>")
    text = (tmp_path / "out/README.md").read_text("utf-8")
    assert "llama2 (README.md)" in text and "base_model" not in licences.front_matter(text)


def test_a_template_that_cannot_be_trained_with_is_passed_on(place, tokenizer, tmp_path, capsys):
    folder = tmp_path / "odd"
    shutil.copytree(place / "models/llama", folder)
    # The last question stands first, so that no conversation begins with its own first turns.
    odd = (
        "{{ messages[-1].content }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(odd, "utf-8")
    export(f"hf:{folder}", tmp_path / "out")
    assert "JI-TEMPLATE-" in capsys.readouterr().out
    assert (tmp_path / "out/chat_template.jinja").read_text("utf-8") == odd
    found = read(tmp_path / "out" / endings.GENERATION)["eos_token_id"]
    assert set(found) == {tokenizer.id_of("<|im_end|>"), tokenizer.eos_id, 7}
    # Negative control: one that was asked for has to be usable.
    with pytest.raises(errors.JinstrError, match="JI-TEMPLATE-"):
        export(f"hf:{folder}", tmp_path / "x", template=str(folder / "chat_template.jinja"))
    assert {path.name for path in tmp_path.iterdir()} == {"odd", "out"}  # and nothing is left


def test_a_folder_beside_the_export_is_not_touched(place, tmp_path):
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part/work.txt").write_text("weeks", "utf-8")
    export(f"hf:{place}/models/llama", tmp_path / "mine")
    assert (tmp_path / "mine.part/work.txt").read_text("utf-8") == "weeks"
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "mine.part"}
    usual = tmp_path / "usual"
    usual.mkdir()
    assert (tmp_path / "mine").stat().st_mode == usual.stat().st_mode


def test_adapters_leave_with_card_tokenizer_and_the_name_of_their_base(tuned, tmp_path):
    export(tuned, tmp_path / "out", adapter=True, base_name="someone/llama@v2")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.model", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", *TEXTS,
    } - ({"tokenizer.model"} - {path.name for path in tuned.iterdir()})  # fmt: skip
    config = read(tmp_path / "out/adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/llama", "v2")
    text = (tmp_path / "out/README.md").read_text("utf-8")
    said = licences.front_matter(text)
    assert (said["base_model"], said["library_name"]) == ("someone/llama", "peft")
    assert "llama2 (README.md)" in text and said["license_name"] == "not-fully-known-see-card"
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(code, "card", "exec")
    assert "PeftModel.from_pretrained(base, name)" in code
    assert '"someone/llama", revision="v2"' in code
    # A folder is no name on the hub, and one of this machine is nothing for a card.
    export(tuned, tmp_path / "here", adapter=True, base_name="/home/me/models/llama")
    text = (tmp_path / "here/README.md").read_text("utf-8")
    assert "/home/me" not in text and '    "llama", dtype="auto"' in text
    export(tuned, tmp_path / "local", adapter=True, base_name="../llama")
    config = read(tmp_path / "local/adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("../llama", None)
    said = licences.front_matter((tmp_path / "local/README.md").read_text("utf-8"))
    assert "base_model" not in said


def test_a_base_that_others_cannot_open_is_refused(tuned, tmp_path):
    with pytest.raises(errors.ConfigError, match="JI-CONVERT-004.*models/llama.*BASE_NAME="):
        export(tuned, tmp_path / "out", adapter=True)
    assert list(tmp_path.iterdir()) == []
    record = adapters.read(tuned)
    text = (tuned / adapters.FILE).read_text("utf-8")
    try:
        for init, name, revision in (
            ("hf:org/name@r1", "org/name", "r1"),
            ("hf:org/name", "org/name", None),
        ):
            changed = json.loads(text) | {"init": init}
            (tuned / adapters.FILE).write_text(json.dumps(changed), "utf-8")
            export(tuned, tmp_path / name / str(revision), adapter=True)
            config = read(tmp_path / name / str(revision) / peft_format.CONFIG)
            assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)
        changed = json.loads(text) | {"init": "/home/me/runs/base@2"}
        (tuned / adapters.FILE).write_text(json.dumps(changed), "utf-8")
        with pytest.raises(errors.ConfigError, match="JI-CONVERT-004.*runs/base@2"):
            export(tuned, tmp_path / "run", adapter=True)
    finally:
        (tuned / adapters.FILE).write_text(text, "utf-8")
    assert record == adapters.read(tuned)


@pytest.mark.peers
def test_peft_takes_the_adapters_as_the_card_says(place, tuned, tmp_path, monkeypatch):
    """pip install torch transformers peft; python -m pytest -m peers tests/train/test_convert.py"""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    base = place / "models/llama"
    export(tuned, tmp_path / "tuned", adapter=True, base_name=str(base))
    export(tuned, tmp_path / "whole")
    text = (tmp_path / "tuned/README.md").read_text("utf-8")
    names = {}
    monkeypatch.chdir(tmp_path)  # where the names in the card are folders
    assert str(base) not in text and str(base) in json.dumps(
        read(tmp_path / "tuned/adapter_config.json")
    )
    (tmp_path / "llama").symlink_to(base)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    exec(compile(code.replace("256", "8"), "card", "exec"), names)
    ids = names["inputs"]["input_ids"]

    def logits(model):
        with torch.no_grad():
            return model.eval()(ids).logits

    load = transformers.AutoModelForCausalLM.from_pretrained
    got, want = logits(names["model"]), logits(load(tmp_path / "whole"))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)  # sums in another order
    assert (logits(load(base)) - want).abs().max() > 1e-2  # negative control
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "whole")
    assert (
        generation.eos_token_id
        == json.loads((tmp_path / "whole" / endings.GENERATION).read_text("utf-8"))["eos_token_id"]
    )
    # What the base had for sampling is accepted, and comes back the same.
    export(f"hf:{base}", tmp_path / "again")
    transformers.GenerationConfig.from_pretrained(tmp_path / "again").save_pretrained(tmp_path)
    found = read(tmp_path / endings.GENERATION)
    assert {name: found[name] for name in SAMPLING} == SAMPLING
