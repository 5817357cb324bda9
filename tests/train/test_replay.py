"""A past step computed again: the logged numbers, the examples behind them, and a run that stays as it was."""

import json
import random

import jax
import numpy as np
import pytest

from jinstr import run
from jinstr.commands import replay
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import attribution, storage
from jinstr.train import replay as replay_lib

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
STEPS = 24
COMMON = ["SEQ_LEN=128", "BATCH_TOKENS=1024", "EVAL_EVERY=0", "LOG_EVERY=1", "LOG_EXAMPLES=True"]
COMMON += ["TENSORBOARD=False", "WORKERS=1", "SAMPLES=0", "KEEP=9"]


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def place(world, tokenizer_path, tmp_path_factory):
    """A run over eight devices whose corpus holds one document of noise, id "noise"."""
    place = tmp_path_factory.mktemp("replay")
    (place / "model.gin").write_text(MODEL, "utf-8")
    corpus = (world / "corpus.jsonl").read_text("utf-8").splitlines()
    words = [json.loads(line)["text"] for line in corpus[:40]]
    noise = "".join(
        random.Random(0).choice(words)[5] + random.Random(i).choice("ÀÿĀ漫鬮齊") for i in range(60)
    )
    corpus.insert(9, json.dumps({"id": "noise", "text": noise}))
    (place / "corpus.jsonl").write_text("\n".join(corpus) + "\n", "utf-8")
    words = [
        "pretrain",
        str(place / "model.gin"),
        f"DATA={place}/corpus.jsonl",
        f"NUM_STEPS={STEPS}",
    ]
    words += [*COMMON, f"TOKENIZER={tokenizer_path}", f"CACHE_DIR={place}/cache", "SAVE_EVERY=8"]
    assert run.main([*words, f"RUN_DIR={place}/run", "LEARNING_RATE=3e-3"]) == 0
    return place


def replayed(folder, *words):
    """Exit status and the facts of a replay."""
    out = folder.parent / "report"
    status = run.main(["replay", str(folder), *words, f"OUT={out}"])
    name = "audit" if "AUDIT=True" in words else "replay"
    return status, json.loads((out / f"{name}.json").read_text("utf-8"))


def files_of(folder):
    return {p: storage.digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_on_the_same_devices_every_bit_is_as_logged(place, capsys):
    before = files_of(place / "run")
    with storage.lease(place / "run"):  # as if it were still training
        before |= files_of(place / "run")
        status, found = replayed(place / "run", "STEP=19")
        assert files_of(place / "run") == before
    assert status == 0 and found["same_place"] and found["base"] == 16
    assert found["here"]["devices"] == "8 × cpu" and found["digest"] == found["logged_digest"]
    assert {pair["relative"] for pair in found["values"].values()} == {0}
    assert found["way"] == {"steps": 2, "equal": 2, "largest": 0, "digests": 2, "problems": []}
    assert "every bit" in capsys.readouterr().out
    # Negative control: the neighbouring step has another loss.
    _, other = replayed(place / "run", "STEP=20")
    assert other["values"]["loss"]["computed"] != found["values"]["loss"]["computed"]


@pytest.fixture(scope="module")
def on_one_device(place):
    """The replay, on one device, of the last step that saw the noise."""
    seen = [
        line["step"]
        for line in lines(place / "run" / "examples.jsonl")
        if any(id.endswith("noise") for _, id, _ in line["examples"])
    ]
    return replayed(place / "run", f"STEP={max(seen)}", "DEVICES=1")[1]


def test_on_another_device_count_the_losses_agree_and_the_culprit_is_named(place, on_one_device):
    found = on_one_device
    assert not found["same_place"] and found["here"]["devices"] == "1 × cpu"
    assert all(pair["relative"] < 1e-5 for pair in found["values"].values())
    assert found["digest"] == found["logged_digest"]
    by_loss = [found["examples"][i]["id"] for i in found["by_loss"]]
    assert by_loss[0].endswith("noise") and not by_loss[1].endswith("noise")
    page = (place / "report" / "replay.html").read_text("utf-8")
    assert page.index("noise") < page.index(by_loss[1]) and "http" not in page


def test_examples_sum_to_the_batch(on_one_device):
    found = on_one_device
    logged = found["values"]["loss"]["logged"]
    assert abs(found["sum_of_shares"] / logged - 1) < 1e-5
    shares = [example["share"] for example in found["examples"]]
    assert abs(sum(shares) / logged - 1) < 1e-5
    # Negative control: without the smallest one they do not.
    assert abs((sum(shares) - min(shares)) / logged - 1) > 1e-5
    squares = sum(value**2 for value in found["by_layer"].values())
    assert abs(squares**0.5 / found["values"]["grad_norm"]["logged"] - 1) < 1e-4
    assert list(found["by_layer"]) == ["embed", "layer 0", "layer 1", "norm_final"]


def test_without_an_example_is_as_if_it_had_no_weight(model, open_loader):
    """Held against the loss of the whole batch with the example's weights set to 0."""
    params = attribution.state_lib.decoder.init_params(model, jax.random.key(0))
    rules = mesh_lib.AxisRules()
    batch = open_loader().read(0)
    where = attribution.segments(batch)
    add = attribution.make_adder(model, rules, 1e-3)
    facts, sums = attribution.attribute(add, params, batch, where)
    assert len(where) == len(open_loader().example_ids(0)) > 8
    first = where[attribution.ranked(facts, "fall")[0]]
    less = attribution.without(add, params, batch, sums, [first])
    weights = batch["loss_weights"].copy()
    weights[first.row, first.places] = 0
    masked = batch | {"loss_weights": weights}

    def loss(params):
        total, nll = attribution.state_lib.nll_sum(model, params, masked, rules, 1e-3)
        return total / weights.sum(), nll / weights.sum()

    (_, nll), grads = jax.value_and_grad(loss, has_aux=True)(params)
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    assert abs(less.loss / float(nll) - 1) < 1e-5 and abs(less.grad_norm / norm - 1) < 1e-4
    # Negative control: with it, loss and gradient are others.
    assert abs(sums.loss / float(nll) - 1) > 1e-5 and abs(sums.grad_norm / norm - 1) > 1e-4
    best = max(fact["fall"] for fact in facts)
    assert abs(sums.loss - less.loss - best) < 1e-5


@pytest.mark.slow
def test_audit_finds_one_changed_number(place, capsys):
    folder = place / "run"
    words = ["AUDIT=True", "WINDOWS=9"]
    status, found = replayed(folder, *words)
    assert status == 0 and found["passed"] and found["same_place"]
    windows = [(row["base"], row["last"], row["steps"]) for row in found["windows"]]
    assert windows == [(0, 20, 20), (8, 24, 16), (16, 24, 8)]
    assert all(row["equal"] == row["steps"] == row["digests"] for row in found["windows"])
    status, found = replayed(folder, *words, "DEVICES=2")
    assert status == 0 and found["tolerance"] == 1e-5 and not found["same_place"]
    # Negative control: one loss of one step, in its fifth digit.
    path = folder / "metrics.jsonl"
    text = path.read_text("utf-8")
    changed = lines(path)
    index = next(i for i, line in enumerate(changed) if line["step"] == 19)
    changed[index]["train/loss"] *= 1.00005
    path.write_text("".join(json.dumps(line) + "\n" for line in changed), "utf-8")
    for more in ([], ["DEVICES=2"]):
        capsys.readouterr()
        status, found = replayed(folder, *words, *more)
        assert status == 1 and not found["passed"]
        assert "JI-REPLAY-005" in (told := capsys.readouterr().err) and "STEP=19" in told
    path.write_text(text, "utf-8")
    # And a batch that was another one.
    path = folder / "examples.jsonl"
    text = path.read_text("utf-8")
    path.write_text(text.replace(lines(path)[18]["digest"], "0" * 16), "utf-8")
    status, found = replayed(folder, *words)
    path.write_text(text, "utf-8")
    assert status == 1 and "digest" in found["windows"][-1]["problems"][0]


def test_a_tuned_model_is_replayed_from_its_start(place, world):
    words = ["sft", f"INIT={place}/run", f"DATA={world}/instructions.jsonl", "NUM_STEPS=4"]
    words += [*COMMON, f"CACHE_DIR={place}/cache", f"RUN_DIR={place}/tuned", "EMA_DECAY=0.9"]
    assert run.main(words) == 0
    status, found = replayed(place / "tuned", "STEP=3", "TOP=2")
    assert status == 0 and found["command"] == "sft" and found["base"] == 0 and found["same_place"]
    assert {pair["relative"] for pair in found["values"].values()} == {0}
    shown = [found["examples"][i] for i in found["by_loss"][:2]]
    assert all("⟦" in example["text"] and "<|im_start|>" in example["text"] for example in shown)
    assert len(found["left_out"]) == 3


def test_what_cannot_be_replayed_is_said(place, tmp_path, capsys):
    for words, code in (
        ([f"{place}/run", "STEP=25"], "JI-REPLAY-003"),
        ([f"{place}/run"], "JI-REPLAY-003"),
        ([f"{place}/run", "again"], "JI-CLI-002"),
        ([str(tmp_path), "STEP=1"], "JI-RECORD-001"),
    ):
        assert run.main(["replay", *words]) == 78
        assert code in capsys.readouterr().err


def test_a_checkpoint_that_is_deleted_meanwhile_is_passed_over(place, monkeypatch):
    command, kwargs = replay.record.read(place / "run")
    past = replay_lib.open_run(place / "run", kwargs, 1)
    restore = past.checkpointer.restore
    moved = place / "run" / "checkpoints" / "16"

    def gone(step, abstract):
        if step == 16:
            moved.rename(place / "kept")
            raise FileNotFoundError("manifest.json")
        return restore(step, abstract)

    monkeypatch.setattr(past.checkpointer, "restore", gone)
    try:
        assert replay_lib.state_at(past, 20)[1] == 8
    finally:
        (place / "kept").rename(moved)
    # Negative control: an error while the checkpoint is there stays one.
    monkeypatch.setattr(past.checkpointer, "restore", lambda *_: open(place / "nothing"))
    with pytest.raises(FileNotFoundError):
        replay_lib.state_at(past, 20)


@pytest.mark.parametrize(
    "config, rows, count, wanted",
    [
        ({}, 8, 8, {"data": 8}),
        ({}, 6, 8, {"data": 2}),
        ({"fsdp": 2}, 8, 8, {"data": 4, "fsdp": 2}),
        ({"fsdp": 4}, 8, 2, {"fsdp": 2}),
        ({"fsdp": 2, "tensor": 2}, 8, 1, {}),
        ({"data": 16}, 8, 8, {"data": 8}),
    ],
)
def test_the_mesh_that_fits_here(config, rows, count, wanted):
    mesh = replay_lib.mesh_for(mesh_lib.MeshConfig(**config), rows, 32, jax.devices()[:count])
    assert {axis: size for axis, size in mesh.shape.items() if size > 1} == wanted
