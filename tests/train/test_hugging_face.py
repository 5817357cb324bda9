"""A trained model leaves as a Hugging Face folder, and every training command starts from one."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jinstr import errors
from jinstr.commands import convert as convert_lib
from jinstr.decode import sampler
from jinstr.decode import text as text_lib
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.text import render
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import base as base_lib
from jinstr.train import metrics, serving
from tests.models import hf_cases

QUICK = ["BATCH_TOKENS=512", "SEQ_LEN=128", "SAMPLES=0", "TENSORBOARD=False", "CACHE_DIR=cache"]


def jinstr(folder, *words):
    code = "import sys; from jinstr import run; sys.exit(run.main(sys.argv[1:]))"
    flags = "--xla_backend_optimization_level=0"  # and one device
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(sys.path[0] or os.getcwd())}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def export(model, out, **settings):
    settings = dict(
        dtype="float32", weights="params", template="", adapter=False, base_name="", shard_gigabytes=1.0,
        max_new_tokens=64,
    ) | settings  # fmt: skip
    return convert_lib.convert(model=str(model), out=str(out), **settings)


def params_of(init, dtype="float32"):
    base = base_lib.open_base(init)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place),
        decoder.abstract_params(base.config),
    )
    return base.load(abstract)


@pytest.fixture(scope="module")
def place(world, tokenizer_path, tmp_path_factory):
    """A folder with a tuned model, runs/sft, and its export, out."""
    folder = tmp_path_factory.mktemp("hub")
    words = ["pretrain", "gin_configs/model/tiny.gin", f"DATA={world}/corpus.jsonl", "NUM_STEPS=2"]
    jinstr(folder, *words, f"TOKENIZER={tokenizer_path}", "RUN_DIR=runs/base", *QUICK)
    words = ["sft", "INIT=runs/base", f"DATA={world}/instructions.jsonl", "NUM_STEPS=2"]
    jinstr(folder, *words, "RUN_DIR=runs/sft", *QUICK)
    export(folder / "runs/sft", folder / "out")
    return folder


def test_the_export_is_the_model(place):
    names = {path.name for path in (place / "out").iterdir()}
    assert names >= {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.model",
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    }  # fmt: skip
    run, out = params_of(str(place / "runs/sft")), params_of(f"hf:{place}/out")
    jax.tree.map(np.testing.assert_array_equal, out, run)
    before = params_of(str(place / "runs/base"))
    assert not np.array_equal(before["norm_final"]["scale"], run["norm_final"]["scale"])
    config = base_lib.open_base(f"hf:{place}/out").config
    trained = base_lib.open_base(str(place / "runs/sft")).config
    assert config_lib.executed(config, trained) == trained
    tokenizer = tokenizer_lib.load(place / "out")
    generation = json.loads((place / "out/generation_config.json").read_text())
    ends = [tokenizer.piece(id) for id in generation["eos_token_id"]]
    assert ends == ["<|im_end|>", tokenizer.piece(tokenizer.eos_id)]
    assert generation["max_new_tokens"] == 64


@pytest.mark.slow
def test_tuning_goes_on_from_it_with_the_same_losses(place, world):
    """Weights, ids and template all came through: the first loss is the same to the last bit."""
    losses = {}
    for name, init in (("a", "runs/sft"), ("b", "hf:./out"), ("c", "runs/base")):
        words = ["sft", f"INIT={init}", f"DATA={world}/instructions.jsonl", "NUM_STEPS=2"]
        jinstr(place, *words, f"RUN_DIR=runs/on-{name}", *QUICK, "LOG_EVERY=1")
        lines = metrics.read_lines(place / f"runs/on-{name}/metrics.jsonl")
        losses[name] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses["a"] == losses["b"] and len(losses["a"]) == 2
    assert losses["c"] != losses["a"]  # negative control


def test_pretraining_goes_on_from_it_and_keeps_its_shape(place, world):
    words = ["pretrain", f"INIT=hf:{place}/out", f"DATA={world}/corpus.jsonl", "NUM_STEPS=1"]
    jinstr(place, *words, "RUN_DIR=runs/more", *QUICK)
    kept = json.loads((place / "runs/more/model.json").read_text())
    assert kept["hidden_size"] == base_lib.open_base(f"hf:{place}/out").config.hidden_size
    told = jinstr(place, *words, "RUN_DIR=runs/planned", *QUICK, "--dry_run")
    assert "parameters:" in told


def test_an_average_and_other_types_are_exported(place):
    export(place / "runs/sft", place / "narrow", dtype="bfloat16")
    narrow = params_of(f"hf:{place}/narrow", "bfloat16")
    wide = params_of(f"hf:{place}/out")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype("bfloat16")), narrow, wide)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(place, tmp_path):
    with pytest.raises(errors.StorageError, match="is there already and not empty"):
        export(place / "runs/sft", place / "out")
    with pytest.raises(errors.ConfigError, match="DTYPE='int8'"):
        export(place / "runs/sft", tmp_path / "x", dtype="int8")
    with pytest.raises(errors.StorageError, match="no model.json there"):
        export(tmp_path, tmp_path / "x")
    with pytest.raises(errors.StorageError, match="is not a folder"):
        export(f"hf:{tmp_path}/none", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_shape_beside_init_must_be_the_bases(place):
    base = base_lib.open_base(f"hf:{place}/out")
    base_lib.check_shape(config_lib.DecoderConfig(scan_layers=False), base)
    base_lib.check_shape(base.config, base)
    with pytest.raises(errors.ConfigError, match="mlp_size = 999, but INIT="):
        base_lib.check_shape(config_lib.DecoderConfig(mlp_size=999), base)


def test_another_tokenizer_is_refused(place, tmp_path):
    base = base_lib.open_base(f"hf:{place}/out")
    own = tokenizer_lib.load(place / "out")
    assert base_lib.for_tokenizer(base, own) is base
    # The .model of the same pieces is the same tokenizer in another file.
    assert (
        base_lib.for_tokenizer(base, tokenizer_lib.load(place / "runs/base")).config == base.config
    )
    hf_cases.write(tmp_path, "llama")
    short = tokenizer_lib.load(place / "out")
    short.vocab_size -= 1
    short.fingerprint = "other"
    with pytest.raises(errors.ConfigError, match="piece .* is missing and not"):
        base_lib.for_tokenizer(base, short)


@pytest.mark.peers
def test_it_chats_in_transformers_as_here(place):
    """pip install torch transformers; python -m pytest -m peers tests/train/test_hugging_face.py"""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    run = serving.load_run(place / "runs/sft")
    greedy = sampler.SamplingConfig(temperature=0.0, max_new_tokens=24)
    writer = text_lib.TextSampler(*run[:4], greedy)
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "out", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "out")
    conversations = [
        [{"role": "user", "content": "灯ヶ浦はどこにありますか。"}],
        [
            {"role": "system", "content": "短く。"},
            {"role": "user", "content": "</s><|im_end|>とは?"},
        ],
        [
            {"role": "user", "content": "3+4は?"},
            {"role": "assistant", "content": "7です。"},
            {"role": "user", "content": "では\n二倍は?"},
        ],
    ]
    prompts = [render.render_prompt(c, run.template, run.tokenizer) for c in conversations]
    answers = writer.answer_batch(prompts, [0, 1, 2])
    for messages, prompt, answer in zip(conversations, prompts, answers):
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        if "</s>" not in messages[-1]["content"]:  # there what people type becomes control tokens
            assert inputs["input_ids"][0].tolist() == prompt
        with torch.no_grad():
            whole = model.generate(torch.tensor([prompt]), max_new_tokens=24)
        assert whole[0, len(prompt) :].tolist() == list(answer.ids)
        shown = tokenizer.decode(whole[0, len(prompt) :], skip_special_tokens=True)
        assert shown.replace("\ufffd", "") == answer.text  # characters cut in two are left out here
