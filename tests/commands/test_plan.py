"""jinstr plan: the compiler's figures against formulae, what does not fit, recipes of other commands."""

import dataclasses
import importlib.util
import json
import os

import pytest

from jinstr import run
from jinstr.commands import plan as plan_command
from jinstr.models import config
from jinstr.parallel import chips
from jinstr.train import ahead, costs, estimates

TINY = ["gin_configs/model/tiny.gin", "VOCAB_SIZE=512", "SEQ_LEN=128", "BATCH_TOKENS=2048"]
SEVEN = ["gin_configs/model/7b.gin", "VOCAB_SIZE=32000", "SEQ_LEN=4096"]


def plan(tmp_path, *words):
    """Exit status, and the figures."""
    status = run.main(["plan", *words, f"OUT={tmp_path}/plan"])
    path = tmp_path / "plan.json"
    return status, json.loads(path.read_text("utf-8")) if path.exists() else None


@pytest.mark.parametrize("mesh", [{"FSDP": 8}, {"FSDP": 2, "DATA": 2, "TENSOR": 2}], ids=str)
def test_a_compiled_step_is_what_the_formulae_say(tmp_path, capsys, mesh):
    words = [f"MESH_{axis}={size}" for axis, size in mesh.items()]
    status, found = plan(
        tmp_path, *TINY, "config.DecoderConfig.remat='full'", "TOPOLOGY=cpu:8", *words
    )
    assert status == 0 and (tmp_path / "plan.png").stat().st_size > 10_000
    assert found["arguments"] == pytest.approx(found["arguments_by_formula"], rel=0.05)
    assert found["loops_not_counted"] == 0
    if mesh == {"FSDP": 8}:  # gathers exactly; sums of gradients stand in the formula as rings
        gathered = found["collectives"]["all-gather"]["wire"]
        assert gathered == pytest.approx(found["wires_by_formula"]["kernels, gathered"], rel=0.05)
    assert "memory of one chip" in capsys.readouterr().out


def test_gpus_by_formula_and_the_nearest_that_fits(tmp_path, capsys):
    words = [*SEVEN, "TOPOLOGY=gpu:h100:8", "BATCH_TOKENS=1048576", "TOKENS=1e9"]
    status, found = plan(tmp_path, *words)
    assert status == 0 and not found["fits"] and found["nearest"]["fits"]
    assert found["nearest"]["mesh"]["fsdp"] == 8
    out = capsys.readouterr().out
    assert "does not fit" in out and "MESH_FSDP=8" in out and "not measured" in out
    low, high = found["time"]["utilisation"]
    assert 0 < low < high < 1 and found["days"][0] < found["days"][1]
    # The control: with FSDP it fits at once.
    status, sharded = plan(tmp_path, *words, "MESH_FSDP=8", "MICROBATCHES=16")
    assert sharded["fits"] and "nearest" not in sharded
    assert sharded["memory"]["parameters"] * 8 == pytest.approx(
        found["memory"]["parameters"], rel=0.01
    )


def test_a_search_lists_what_fits_best_first(tmp_path, capsys):
    status, found = plan(
        tmp_path, *SEVEN, "TOPOLOGY=gpu:h100:8", "BATCH_TOKENS=262144", "SEARCH=True"
    )
    times = [one["time"]["highest"] for one in found["found"]]
    assert status == 0 and len(times) == 4 and times == sorted(times)
    assert all(one["fits"] for one in found["found"])


def test_recipes_of_training_commands_are_read(tmp_path, capsys):
    recipe = [
        "gin_configs/recipe/pretrain_aozora_cpu.gin",
        "VOCAB_SIZE=8000",
        "TOPOLOGY=gpu:h200:1",
    ]
    status, found = plan(tmp_path, *recipe)
    assert status == 0 and (found["seq_len"], found["rows"]) == (512, 8)
    # Its own command line may stand behind it; a misspelt setting may not.
    assert (
        plan(tmp_path, *recipe, "DATA=x.jsonl", "RUN_DIR=runs/x", "SEQ_LEN=256")[1]["seq_len"]
        == 256
    )
    assert run.main(["plan", *recipe, "SEQLEN=4"]) == 78
    assert "SEQ_LEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, code",
    [
        ([*SEVEN, "TOPOLOGY=v5p:4x4"], "JI-PLAN-001"),
        (["gin_configs/model/7b.gin", "TOPOLOGY=gpu:h100:8"], "JI-PLAN-006"),
        ([*SEVEN, "TOPOLOGY=gpu:h100:8", "BATCH_TOKENS=8192"], "JI-PLAN-007"),
        ([*SEVEN, "TOPOLOGY=gpu:h100:8", "MESH_FSDP=3"], "JI-MESH-002"),
    ],
)
def test_what_is_refused(words, code, capsys):
    assert run.main(["plan", *words]) == 78
    assert code in capsys.readouterr().err


@pytest.mark.parametrize(
    "message, wanted",
    [
        ("Ran out of memory in memory space hbm. Used 20.10G of 15.75G hbm.", 20.10),
        (
            "E1000: CompileTimeHbmOom: Ran out of memory on HBM, total memory required for HLO temporaries (36.52G) "
            "exceeds available HBM (15.75G).",
            36.52,
        ),
    ],
)
def test_the_compilers_out_of_memory_is_read(message, wanted):
    error = ahead._too_large(f"RESOURCE_EXHAUSTED: {message}")
    assert (error.wanted, error.there) == pytest.approx((wanted * 2**30, 15.75 * 2**30))
    assert ahead._too_large("INVALID_ARGUMENT: no such option") is None
    assert (
        ahead._too_large("RESOURCE_EXHAUSTED: CompileTimeScopedVmemOom: memory space vmem") is None
    )


@pytest.mark.parametrize(
    "place, context, seq_len, attention",
    [
        ("v5p:4x4x4", 1, 4096, "splash"),
        ("v5p:4x4x4", 2, 4096, "blocked"),
        ("v5p:4x4x4", 1, 4000, "blocked"),
        ("gpu:h100:8", 1, 4096, "blocked"),
    ],
)
def test_attention_is_what_the_chip_would_take(place, context, seq_len, attention):
    shape = costs.Shape(64, seq_len, 1, {"data": 1, "fsdp": 64, "context": context, "tensor": 1})
    found = plan_command.computed(config.DecoderConfig(), chips.parse(place), shape)
    assert (found.attention, found.compute_dtype) == (attention, "bfloat16")


def test_flops_by_hand():
    """7B, one row of 4,096 places on one device, remat full: what is carried out, from the shapes alone."""
    model = config.DecoderConfig(
        vocab_size=32000, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128,
        mlp_size=11008, tie_embeddings=False, remat="full", compute_dtype="bfloat16",
    )  # fmt: skip
    shape = costs.Shape(1, 4096, 1, {"data": 1, "fsdp": 1, "context": 1, "tensor": 1})
    work = costs.work(model, shape)
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    by_hand = 4096 * (32 * (8 * layer - 2 * 4096 * 11008) + 6 * 4096 * 32000)
    assert work.products == pytest.approx(by_hand, rel=1e-6)
    assert work.attention == pytest.approx(32 * 4.5 * 4 * 4096 * 4096 * (4096 + 512) / 2, rel=1e-6)


def test_remat_is_a_ladder():
    """Of 7B on one device: each rung keeps less than the one before it, and what it saves is computed again."""
    shape = costs.Shape(1, 4096, 1, {"data": 1, "fsdp": 1, "context": 1, "tensor": 1})
    seven = config.DecoderConfig(
        vocab_size=32000, hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128,
        mlp_size=11008, compute_dtype="bfloat16",
    )  # fmt: skip
    models = {remat: dataclasses.replace(seven, remat=remat) for remat in config.REMAT}
    kept = [costs.temporaries(m, shape, 0)["activations that are kept"] for m in models.values()]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 0
    # Inputs, query, key, value, attention and out: six arrays of the width; gate and up.
    wide, layers = 4096 * 4096 * 2, 32
    assert kept[1] == layers * (6 * wide + 4096 * 2 * 11008 * 2)
    work = {remat: costs.work(model, shape) for remat, model in models.items()}
    assert work["none"][:3] == work["minimal"][:3]
    assert (
        work["attention"].products - work["none"].products == layers * 4096 * 2 * 2 * 4096 * 11008
    )
    assert work["offload"].host == 2 * layers * 6 * wide and work["attention"].host == 0
    # So fast a chip waits for its host.
    tpu = chips.parse("v6e:1x1")
    times = {remat: estimates.by_formula(tpu, {}, each) for remat, each in work.items()}
    assert times["none"].lowest < times["attention"].lowest < times["full"].lowest
    assert times["offload"].bound_by == "the way to the host"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="needs libtpu (pip install 'jinstr[plan]')",
)
def test_the_tpu_compiler(tmp_path):
    """7B on 64 chips of v5p, 2 rows on each: what MaxText's own step takes with the same compiler, or less."""
    words = [*SEVEN, "TOPOLOGY=v5p:4x4x4", "MESH_FSDP=64", f"BATCH_TOKENS={128 * 4096}"]
    _, found = plan(tmp_path, *words)
    assert found["peak"] <= 5.57 * 2**30 and found["fits"]
    assert found["arguments"] == pytest.approx(found["arguments_by_formula"], rel=0.05)
    wires = {kind: moved["wire"] / 2**30 for kind, moved in found["collectives"].items()}
    assert wires["all-gather"] <= 23.995 and wires["all-reduce"] <= 24.235
    assert found["wire"] == pytest.approx(sum(found["wires_by_formula"].values()), rel=0.01)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="needs libtpu (pip install 'jinstr[plan]')",
)
@pytest.mark.parametrize("remat", ["none", "offload"])
def test_the_tpu_compiler_with_slices(tmp_path, capsys, remat):
    """Sums of gradients alone go between slices, each chip its part, as the formula says; offload needs less memory."""
    words = [*TINY, "TOPOLOGY=2xv5e:2x2", "MESH_FSDP=4", f"config.DecoderConfig.remat='{remat}'"]
    status, found = plan(tmp_path, *words, "MESH_SLICES=-1")
    assert status == 0
    between = found["collectives"]["between slices"]["wire"]
    assert between == pytest.approx(found["wires_by_formula"][costs.BETWEEN], rel=0.05)
    if remat == "none":
        assert run.main(["plan", *words]) == 78
        assert "MESH_SLICES=-1" in capsys.readouterr().err
        assert run.main(["plan", *words, "MESH_SLICES=-1", "MESH_FSDP=8"]) == 78
        assert "JI-MESH-005" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="needs libtpu (pip install 'jinstr[plan]')",
)
def test_the_tpu_compiler_with_moments_on_the_host(tmp_path):
    """They are no arguments on the chip, and the step with its way to and from the host compiles."""
    words = [*TINY, "TOPOLOGY=v5e:2x2", "MESH_FSDP=4"]
    _, here = plan(tmp_path, *words)
    status, found = plan(tmp_path, *words, "MOMENTS=host")
    assert status == 0 and found["memory"]["optimizer"] < 0.01 * here["memory"]["optimizer"]
    away = here["arguments"] - found["arguments"]
    # On the chip norms of so small a model take tiles of their own, which the formula does not count.
    assert away == pytest.approx(here["memory"]["optimizer"], rel=0.1)
    assert found["work"]["host"] == pytest.approx(2 * here["memory"]["optimizer"], rel=0.01)
    assert found["time"]["host"] > 0 == here["time"]["host"]
