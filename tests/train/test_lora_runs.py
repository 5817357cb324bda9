"""A run of adapters: what it keeps, going on with it, and everybody reading its model as one that is whole."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jinstr import errors, run
from jinstr.models import config as config_lib
from jinstr.models import decoder, hf_write, lora, peft_format
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import adapters, checkpoint, serving, storage
from jinstr.train import base as base_lib
from jinstr.train import state as state_lib

MODEL = """
from __gin__ import dynamic_registration
from jinstr.models import config
config.DecoderConfig.hidden_size = 32
config.DecoderConfig.num_layers = 2
config.DecoderConfig.num_heads = 2
config.DecoderConfig.num_kv_heads = 1
config.DecoderConfig.head_dim = 16
config.DecoderConfig.mlp_size = 64
"""
COMMON = ["SEQ_LEN=128", "BATCH_TOKENS=1024", "EVAL_EVERY=0", "LOG_EVERY=1", "TENSORBOARD=False"]
COMMON += ["WORKERS=1", "MAX_NEW_TOKENS=4"]
LORA = ["LORA_RANK=4", "LORA_ALPHA=12", "LEARNING_RATE=1e-2", "EMA_DECAY=0.5"]


def start(place, world, name, *words):
    """Exit status of an sft run of two steps or more."""
    usual = [f"INIT={place}/base", f"DATA={world}/instructions.jsonl", "NUM_STEPS=4", *COMMON]
    usual += [f"CACHE_DIR={place}/cache", f"RUN_DIR={place}/{name}", "SAVE_EVERY=2"]
    last = {word.partition("=")[0]: word for word in (*usual, *words)}
    return run.main(["sft", *last.values()])


@pytest.fixture(scope="module")
def place(world, tokenizer_path, tmp_path_factory):
    """base: a model trained for two steps; tuned: adapters on it, trained for four."""
    place = tmp_path_factory.mktemp("lora")
    (place / "model.gin").write_text(MODEL, "utf-8")
    words = ["pretrain", str(place / "model.gin"), f"DATA={world}/corpus.jsonl", "NUM_STEPS=2"]
    words += [*COMMON, f"TOKENIZER={tokenizer_path}", f"CACHE_DIR={place}/cache", "SAMPLES=0"]
    assert run.main([*words, f"RUN_DIR={place}/base"]) == 0
    assert start(place, world, "tuned", *LORA, "HOLDOUT=0.2", "SAMPLES=1") == 0
    return place


def test_what_a_run_of_adapters_keeps(place):
    path = place / "tuned" / "checkpoints" / "4" / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    names = [*manifest["arrays"]["params"], *manifest["arrays"]["ema"]]
    assert len(names) == 28 and all("lora_a" in name or "lora_b" in name for name in names)
    moments = [facts["shape"] for facts in manifest["arrays"]["opt_state"].values()]
    assert [2, 32, 4] in moments and [2, 32, 64] not in moments
    record = adapters.read(place / "tuned")
    assert record.init == f"{place}/base@2" and record.lora.rank == 4 and record.lora.alpha == 12
    own, base = ((place / n / "model.json").read_text("utf-8") for n in ("tuned", "base"))
    assert own == base
    summary = json.loads((place / "tuned" / "summary.json").read_text("utf-8"))
    plain = config_lib.DecoderConfig.from_json(base)
    assert summary["parameters"] == decoder.count_params(plain)
    assert summary["trained_parameters"] < summary["parameters"] / 4
    losses = evaluated(place / "tuned")
    assert losses[4] < losses[0] - 0.01  # evaluated with the adapters, which learn


@pytest.mark.parametrize("weights", ["params", "ema"])
def test_readers_get_the_sum_of_base_and_adapters(place, weights):
    got = serving.load_run(place / "tuned", weights=weights)
    base = serving.load_run(place / "base")
    _, config, found = base_lib.open_adapters(f"{place}/tuned", weights)
    want = lora.merge(config, lora.join(found, base.params))
    assert got.config == base.config and got.step == 4
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(want)):
        np.testing.assert_array_equal(a, b)
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2))
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        decoder.abstract_params(base.config),
        decoder.param_shardings(base.config, mesh, mesh_lib.AxisRules()),
    )
    split = base_lib.open_base(f"{place}/tuned", weights).load(abstract)
    for a, b, like in zip(*map(jax.tree.leaves, (split, want, abstract))):
        np.testing.assert_allclose(a, b, atol=1e-7)
        assert a.sharding.is_equivalent_to(like.sharding, a.ndim)
    # Negative controls: it is neither the base, nor the sum of the step before.
    kernel = np.asarray(got.params["blocks"]["mlp"]["up"]["kernel"])
    older = serving.load_run(place / "tuned", 2, weights=weights)
    for other in (base, older):
        assert np.abs(kernel - other.params["blocks"]["mlp"]["up"]["kernel"]).max() > 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_base_is_read_in_the_type_that_is_wanted(place, dtype, monkeypatch):
    """Of what a run of adapters stands on no wider copy is made; the sums are rounded once."""
    asked, recorded = [], base_lib.recorded

    def spied(record, run_dir):
        base = recorded(record, run_dir)

        def load(abstract):
            asked.extend(str(leaf.dtype) for leaf in jax.tree.leaves(abstract))
            return base.load(abstract)

        return dataclasses.replace(base, load=load)

    monkeypatch.setattr(base_lib, "recorded", spied)
    monkeypatch.setattr(decoder, "compute_dtype", lambda config: jax.numpy.dtype(dtype))
    got = serving.load_run(place / "tuned").params
    assert set(asked) == {dtype}
    _, config, found = base_lib.open_adapters(f"{place}/tuned")
    base = serving.load_run(place / "base").params  # float32, as it was trained
    below = jax.tree.map(lambda leaf: leaf.astype(dtype), base)
    for a, b in zip(*map(jax.tree.leaves, (got, lora.merge(config, lora.join(found, below))))):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_array_equal(a, b)


def test_going_on_gives_the_same_bits(place, world):
    shutil.copytree(place / "tuned", place / "again")
    shutil.rmtree(place / "again" / "checkpoints" / "4")
    assert start(place, world, "again", *LORA, "HOLDOUT=0.2", "SAMPLES=1") == 0
    digests = [
        [
            checkpoint.tree_digest(base_lib.open_adapters(f"{place}/{name}", weights)[2])
            for weights in ("params", "ema")
        ]
        for name in ("tuned@4", "again@4", "tuned@2")
    ]
    assert digests[0] == digests[1] != digests[2]
    logged = [
        [
            line
            for line in (place / name / "metrics.jsonl").read_text().splitlines()
            if '"step": 4' in line
        ]
        for name in ("tuned", "again")
    ]
    kept = [json.loads(lines[0])["train/loss"] for lines in logged]
    assert kept[0] == kept[1]


def test_other_adapters_are_refused(place, world, capsys):
    for words in ([*LORA, "LORA_ALPHA=13"], [*LORA, "LORA_TARGETS=query"], [LORA[-1]]):
        assert start(place, world, "tuned", *words, "HOLDOUT=0.2") == 78
        told = capsys.readouterr().err
        assert "JI-LORA-006" in told and "LORA_ALPHA=12" in told
    assert adapters.read(place / "tuned").lora.alpha == 12


def test_a_base_that_is_gone_or_another_one_is_named(place):
    def load():
        return serving.load_run(place / "tuned")

    step = place / "base" / "checkpoints" / "2"
    for hidden in (place / "base", step):
        hidden.rename(place / "hidden")
        try:
            with pytest.raises(errors.StorageError, match="JI-LORA-004.*base@2"):
                load()
        finally:
            (place / "hidden").rename(hidden)
    text = (place / "tuned" / "lora.json").read_text("utf-8")
    try:
        shutil.copytree(place / "base", place / "moved")
        for init, code in ((f"{place}/moved@2", None), (f"{place}/tuned@4", "JI-LORA-005")):
            changed = json.loads(text) | {"init": init}
            (place / "tuned" / "lora.json").write_text(json.dumps(changed), "utf-8")
            if code is None:  # the same base in another place
                load()
                continue
            with pytest.raises(errors.StorageError, match=code):
                load()
        (place / "tuned" / "lora.json").write_text("[1]", "utf-8")
        with pytest.raises(errors.StorageError, match="JI-LORA-003"):
            load()
    finally:
        (place / "tuned" / "lora.json").write_text(text, "utf-8")
    load()  # negative control


def test_a_step_of_adapters_is_replayed(place):
    out = place / "report"
    words = ["replay", str(place / "tuned"), "STEP=3", f"OUT={out}"]
    assert run.main(words) == 0
    found = json.loads((out / "replay.json").read_text("utf-8"))
    assert found["same_place"] and {pair["relative"] for pair in found["values"].values()} == {0}
    assert set(found["norms"]) == {
        f"blocks.{part}.lora_{ab}"
        for part in ("attention.query", "attention.key", "attention.value", "attention.out",
                     "mlp.gate", "mlp.up", "mlp.down")
        for ab in "ab"
    }  # fmt: skip


def evaluated(folder):
    """Held-out loss by step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return {
        line["step"]: value
        for line in lines
        for name, value in line.items()
        if name.startswith("eval/") and name.endswith("/loss")
    }


@pytest.mark.slow
def test_a_run_begins_as_an_adapter_of_peft(place, world, capsys, monkeypatch):
    def refuse(params):
        raise AssertionError("nobody asks for a copy on one device")

    monkeypatch.setattr(serving, "on_one_device", refuse)
    record, config, found = base_lib.open_adapters(f"{place}/tuned")
    folder = place / "adapter"
    peft_format.write_adapter(folder, record.lora, found, config, f"{place}/base")
    words_of_start = [f"LORA_INIT={folder}", "LEARNING_RATE=1e-2", "HOLDOUT=0.2", "SAMPLES=0"]
    words_of_start += ["NUM_STEPS=1"]
    assert start(place, world, "from_peft", *words_of_start) == 0
    # In other kernels and another order of sums than when it was trained, hence not bit for bit.
    began, ended = evaluated(place / "from_peft")[0], evaluated(place / "tuned")
    assert began == pytest.approx(ended[4], rel=1e-6) and abs(began / ended[0] - 1) > 1e-3
    record = adapters.read(place / "from_peft")
    assert record.lora.rank == 4 and record.lora.scale == 3 and record.lora.start == str(folder)
    words = ["replay", str(place / "from_peft"), "STEP=1", f"OUT={place}/report"]
    assert run.main(words) == 0
    replayed = json.loads((place / "report" / "replay.json").read_text("utf-8"))
    assert {pair["relative"] for pair in replayed["values"].values()} == {0}
    capsys.readouterr()
    # Going on, all of it is in the run: the folder may be gone, or be in another place.
    folder.rename(place / "moved_adapter")
    for path, steps in ((folder, 2), (place / "moved_adapter", 3)):
        last = [*words_of_start[1:], f"LORA_INIT={path}", f"NUM_STEPS={steps}"]
        assert start(place, world, "from_peft", *last) == 0
        assert adapters.read(place / "from_peft").lora.start == str(path)
    assert evaluated(place / "from_peft")[3] != began
    last = [*words_of_start[1:], f"LORA_INIT={folder}"]
    assert start(place, world, "gone", *last) == 74 and "JI-PEFT-001" in capsys.readouterr().err
    words = [f"LORA_INIT={folder}", "LORA_RANK=4", "SAMPLES=0"]
    assert start(place, world, "both", *words) == 78 and "JI-LORA-008" in capsys.readouterr().err


@pytest.mark.slow
def test_adapters_on_adapters_and_training_on_from_them(place, world):
    words = ["NUM_STEPS=1", "SAMPLES=0", f"INIT={place}/tuned"]
    assert start(place, world, "second", *LORA, *words, "LORA_TARGETS=query,value") == 0
    record = adapters.read(place / "second")
    assert record.init == f"{place}/tuned@4" and record.lora.names == ("query", "value")
    whole = serving.load_run(place / "second").params
    below = serving.load_run(place / "tuned").params
    same = jax.tree.map(lambda a, b: bool((a == b).all()), whole, below)
    assert (
        same["blocks"]["mlp"]["up"]["kernel"] and not same["blocks"]["attention"]["query"]["kernel"]
    )
    assert start(place, world, "full", *words) == 0
    assert adapters.read(place / "full") is None
    words = [
        "pretrain",
        f"INIT={place}/tuned",
        f"DATA={world}/corpus.jsonl",
        "NUM_STEPS=1",
        *COMMON,
    ]
    words += [f"CACHE_DIR={place}/cache", "SAMPLES=0", "LORA_RANK=2", "LEARNING_RATE=1e-2"]
    assert run.main([*words, f"RUN_DIR={place}/third"]) == 0
    assert adapters.read(place / "third").init == f"{place}/tuned@4"


def test_adapters_on_a_hugging_face_model(place, world):
    """Named by its folder and known by every byte of its weights."""
    base = serving.load_run(place / "base")
    folder = place / "hf"
    hf_write.save(folder, base.config, base.params, dtype="float32", progress=False)
    for path in place.glob("base/tokenizer.*"):
        shutil.copy(path, folder)
    words = [*LORA, "NUM_STEPS=2", "SAMPLES=0", f"INIT=hf:{folder}"]
    assert start(place, world, "on_hf", *words) == 0
    record, config, own = base_lib.open_adapters(f"{place}/on_hf")
    assert record.init == f"hf:{folder}" and record.lora.rank == 4
    want = lora.merge(config, lora.join(own, base.params))
    got = serving.load_run(place / "on_hf")
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(want)):
        np.testing.assert_array_equal(a, b)
    # The two steps are those that the same base gives as a run of jinstr.
    assert start(place, world, "on_run", *LORA, "NUM_STEPS=2", "SAMPLES=0") == 0
    twin = base_lib.open_adapters(f"{place}/on_run")[2]
    assert checkpoint.tree_digest(own) == checkpoint.tree_digest(twin)
    changed = bytearray((folder / "model.safetensors").read_bytes())
    changed[-1] ^= 1
    (folder / "model.safetensors").write_bytes(changed)
    with pytest.raises(errors.StorageError, match="JI-LORA-005"):
        serving.load_run(place / "on_hf")
    shutil.rmtree(folder)
    with pytest.raises(errors.StorageError, match="JI-LORA-004"):
        serving.load_run(place / "on_hf")


def test_adapters_stay_with_the_commit_of_the_hub_that_they_began_on(
    place, world, capsys, monkeypatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    cache = place / "hub" / "models--org--name"
    commits = ["0" * 39 + digit for digit in "12"]
    (cache / "refs").mkdir(parents=True)
    for seed, commit in enumerate(commits):
        base, folder = serving.load_run(place / "base"), cache / "snapshots" / commit
        params = jax.tree.map(lambda leaf, seed=seed: leaf + seed, base.params)
        hf_write.save(folder, base.config, params, dtype="float32", progress=False)
        for path in place.glob("base/tokenizer.*"):
            shutil.copy(path, folder)
    (cache / "refs" / "main").write_text(commits[0])
    read, digest = [], storage.digest
    monkeypatch.setattr(storage, "digest", lambda path: read.append(path.name) or digest(path))
    words = [*LORA, "SAMPLES=0", "INIT=hf:org/name"]
    assert start(place, world, "of_hub", *words, "NUM_STEPS=1") == 0
    assert adapters.read(place / "of_hub").init == f"hf:org/name@{commits[0]}"
    assert read.count("model.safetensors") == 1  # every byte of a base is read for its digest once
    (cache / "refs" / "main").write_text(commits[1])
    assert start(place, world, "of_hub", *words, "NUM_STEPS=2") == 0
    assert adapters.read(place / "of_hub").init == f"hf:org/name@{commits[0]}"
    words = ["convert", f"{place}/of_hub", f"OUT={place}/of_hub_out", "ADAPTER=True"]
    assert run.main(words) == 0
    told = json.loads((place / "of_hub_out" / "adapter_config.json").read_text("utf-8"))
    assert (told["base_model_name_or_path"], told["revision"]) == ("org/name", commits[0])
    # Negative control: the other commit is another base.
    words = [*LORA, "SAMPLES=0", f"INIT=hf:org/name@{commits[1]}", "NUM_STEPS=3"]
    capsys.readouterr()
    assert start(place, world, "of_hub", *words) == 78
    assert "JI-LORA-006" in capsys.readouterr().err


def test_adapters_need_a_model_that_is_there(place, world, tokenizer_path, capsys):
    with pytest.raises(errors.StorageError, match="JI-LORA-009"):
        base_lib.open_adapters(f"{place}/base")
    with pytest.raises(errors.ConfigError, match="JI-INIT-008.*'latest' is no step"):
        base_lib.open_base(f"{place}/base@latest")
    assert base_lib.open_base(f"{place}/base@2").step == 2
    words = ["pretrain", str(place / "model.gin"), f"DATA={world}/corpus.jsonl", "NUM_STEPS=1"]
    words += [f"TOKENIZER={tokenizer_path}", f"RUN_DIR={place}/none", "LORA_RANK=2", *COMMON]
    assert run.main(words) == 78 and "JI-LORA-007" in capsys.readouterr().err


def test_the_plan_counts_what_is_trained(place, world, capsys):
    words = ["sft", f"INIT={place}/base", f"DATA={world}/instructions.jsonl", "NUM_STEPS=1"]
    words += ["LORA_RANK=4", f"RUN_DIR={place}/plan", "--dry_run", *COMMON]
    assert run.main(words) == 0
    told = capsys.readouterr().err
    _, _, found = base_lib.open_adapters(f"{place}/tuned")
    count = sum(leaf.size for leaf in jax.tree.leaves(found))
    assert f"parameters: {count:,} in adapters" in told and "base, not trained" in told


def test_only_adapters_move_and_every_mesh_agrees():
    """The step itself, with the base split over devices, in one batch and in parts."""
    model = config_lib.DecoderConfig(
        vocab_size=64, hidden_size=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
        mlp_size=24, lora=config_lib.LoraConfig(rank=2),
    )  # fmt: skip
    rules = mesh_lib.AxisRules()
    optimizer = state_lib.optimizer_lib.OptimizerConfig(learning_rate=1e-2, weight_decay=0.0)
    transform = state_lib.optimizer_lib.make_optimizer(optimizer, 10)
    tokens = np.random.default_rng(0).integers(0, 64, (8, 24)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "loss_weights": np.ones((8, 24), np.float32),
        "positions": np.tile(np.arange(24, dtype=np.int32), (8, 1)),
        "segment_ids": np.ones((8, 24), np.int32),
    }

    def train(mesh_config, devices, microbatches):
        mesh = mesh_lib.make_mesh(mesh_config, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            abstract = state_lib.abstract_state(model, transform, mesh, rules, False)
            whole = decoder.init_params(model, jax.random.key(1))
            frozen = jax.tree.map(
                lambda leaf, like: jax.device_put(leaf.astype(like.dtype), like.sharding),
                lora.split(whole)[1],
                state_lib.abstract_frozen(model, mesh, rules),
            )
            before = jax.device_get(frozen)
            state = state_lib.init_state(model, transform, abstract, 0)
            start = jax.device_get(state["params"])
            step = state_lib.make_step(
                model, optimizer, transform, mesh, rules, abstract, microbatches, frozen
            )
            losses = []
            for _ in range(3):
                state, values = step(state, state_lib.place_batch(batch, mesh, rules))
                losses.append(float(values["loss"]))
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(frozen))):
                np.testing.assert_array_equal(a, b)
            moved = jax.tree.map(
                lambda a, b: not np.array_equal(a, b), start, jax.device_get(state["params"])
            )
            assert all(jax.tree.leaves(moved)) and losses[-1] < losses[0]
        return losses

    one = train(mesh_lib.MeshConfig(data=1), 1, 1)
    split = train(mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2), 8, 1)
    parts = train(mesh_lib.MeshConfig(data=1), 1, 4)
    np.testing.assert_allclose(split, one, rtol=1e-5)
    np.testing.assert_allclose(parts, one, rtol=1e-5)
    assert abs(one[1] / one[0] - 1) > 1e-4  # negative control: steps differ by more than that
