"""What an iteration of PPO or GRPO takes, from its programs: how arrays lie, bytes by hand, what is compiled."""

import dataclasses
import importlib.util
import json
import os

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jinstr import run
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import ahead, practice, reward_model, rollout, rows, shapes
from jinstr.train import costs
from jinstr.train import optimizer as optimizer_lib

MODEL = config_lib.DecoderConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=64,
    tie_embeddings=False, compute_dtype="float32",
)  # fmt: skip
RULES = mesh_lib.AxisRules()
SHAPE = shapes.PracticeShape(
    prompt_length=20, max_new_tokens=12, rollout_rows=16, rollout_chunk=4, prompts=8, answers=4, minibatches=2,
    microbatches=1, critic="policy", reward="", kl_reward=0.1, kl_loss=0.0, text_coefficient=0.5, text_seq_len=16,
    text_batch_tokens=128,
)  # fmt: skip
OPTIMIZER = optimizer_lib.OptimizerConfig()


def place_of(**sizes):
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(**{"data": 1} | sizes), jax.devices()[:8])
    return shapes.Place(mesh, RULES)


def weights_of(model, seed=0):
    leaves, tree = jax.tree.flatten(decoder.init_params(model, jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return jax.tree.unflatten(tree, noisy)


@pytest.mark.parametrize(
    "sizes, heads, spec",
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, 2, (("data", "fsdp"), "tensor", None, None)),
        ({"fsdp": 8}, 2, (("data", "fsdp"), None, None)),
        # More devices than heads: a cache of them is whole along `tensor`.
        ({"fsdp": 2, "tensor": 4}, 2, (("data", "fsdp"), None, None)),
    ],
)
def test_the_cache_is_split_by_rows_and_heads(sizes, heads, spec):
    """In the state that a rollout begins with, after prompts were read into it, and after tokens were written."""
    place = place_of(**sizes)
    model = dataclasses.replace(MODEL, num_kv_heads=heads)
    settings = SHAPE.rollout()
    sampler = rollout.sampler_of(model, settings, shapes.STOPS, shapes.PAD)
    fixed = rollout.fixed_of(sampler, settings, RULES)
    params = jax.device_put(weights_of(model), decoder.param_shardings(model, *place))
    by_row = NamedSharding(place.mesh, PartitionSpec(("data", "fsdp")))
    noise = {"key": jax.random.key(0), "allowed_V": sampler.allowed_V}
    noise = jax.device_put(noise, mesh_lib.replicated(place.mesh))
    numbers = jax.device_put(np.arange(8, dtype=np.int32), by_row)
    new = {"lengths_B": numbers + 1, "row_ids_B": numbers, "limit_B": numbers + 9}
    prompts = jax.device_put(np.full((8, 16), 5, np.int32), by_row)
    with jax.set_mesh(place.mesh):
        serving = sampler.serve(params, RULES)
        begun = rows.empty(fixed, 8, 32)
        inputs = (noise, np.int32(16), prompts, new, np.arange(8, dtype=np.int32))
        begun_places = [leaf.sharding for leaf in jax.tree.leaves(begun["cache"])]
        read, *_ = rows.insert(fixed, params, serving, begun, *inputs)
        read_places = [leaf.sharding for leaf in jax.tree.leaves(read["cache"])]
        written, _ = rows.advance(fixed, serving, read, noise, np.int32(16))
        # What a plan takes for granted is what lies there.
        shaped = shapes.lent_of(shapes.Models(model, None, ()), SHAPE, place)
    leaves = jax.tree.leaves(written["cache"])
    assert len(leaves) == 2 * model.num_layers and leaves[0].ndim == len(spec)
    wanted = NamedSharding(place.mesh, PartitionSpec(*spec))
    for own in (*begun_places, *read_places, *(leaf.sharding for leaf in leaves)):
        assert own.is_equivalent_to(wanted, len(spec))
    parts = 8 if len(spec) == 4 or sizes == {"fsdp": 8} else 2
    assert leaves[0].addressable_shards[0].data.size * parts == leaves[0].size
    for real, said in zip(jax.tree.leaves(serving), jax.tree.leaves(shaped["copy that writes"])):
        assert real.shape == said.shape and real.dtype == said.dtype
        assert real.sharding.is_equivalent_to(said.sharding, real.ndim)
    assert {str(leaf.sharding.spec) for leaf in jax.tree.leaves(shaped["cache"])} == {
        str(PartitionSpec(*spec))
    }


def test_what_is_kept_and_lent_by_hand():
    place = place_of(fsdp=8)
    models = shapes.models_of("ppo", MODEL, SHAPE)
    kept = shapes.kept_of("ppo", models, SHAPE, OPTIMIZER, place)
    kept = {name: costs.tree_bytes(tree) for name, tree in kept.items()}
    count = decoder.count_params(MODEL)
    norms = 32 * (2 * 2 + 1)  # whole everywhere
    policy = 4 * ((count - norms) // 8 + norms)
    assert kept["policy"] == kept["reference"] == policy
    assert kept["its optimizer"] == pytest.approx(2 * policy, rel=0.01)
    scored = policy - 4 * 32 * 64 // 8 + 4 * 32 // 8  # a score for a language head
    assert kept["critic"] == kept["reward model"] == scored
    lent = {n: costs.tree_bytes(t) for n, t in shapes.lent_of(models, SHAPE, place).items()}
    assert lent["copy that writes"] == 4 * count
    slots = (
        32 + 12 + 64
    )  # prompts of 20 stand in 32 places; slack, as there are more answers than rows
    assert lent["cache"] == 2 * 2 * (16 // 8) * 2 * slots * 8 * 4
    # GRPO without a penalty keeps no reference, and a shared critic is a head on the policy.
    free = dataclasses.replace(SHAPE, kl_reward=0.0, critic="shared", reward="number")
    assert list(shapes.kept_of("grpo", shapes.models_of("grpo", MODEL, free), free, OPTIMIZER, place)) == [
        "policy", "its optimizer",
    ]  # fmt: skip
    shared = shapes.kept_of("ppo", shapes.models_of("ppo", MODEL, free), free, OPTIMIZER, place)
    assert "score" in shared["policy"] and "critic" not in shared and "reward model" not in shared


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_every_function_of_an_iteration_is_there(kind):
    place, models = place_of(fsdp=8), shapes.models_of(kind, MODEL, SHAPE)
    kept = shapes.kept_of(kind, models, SHAPE, OPTIMIZER, place)
    lent = shapes.lent_of(models, SHAPE, place)
    found = [p.name for p in ahead.programs(kind, models, SHAPE, OPTIMIZER, place, kept, lent)]
    size = "16 rows of 32"  # 16 answers of 12 tokens to prompts of 20
    wanted = ["copy of one layer", "read 16 prompts of 32", "write a token in 16 rows"]
    wanted += ["reward model, 32 answers", f"log p, policy, {size}", f"log p, reference, {size}"]
    if kind == "ppo":
        wanted += [f"values, {size}", f"update, {size} and 8 of text", f"update of the critic, {size}"]  # fmt: skip
    else:
        wanted += [f"update, {size}"]
    assert found == wanted


def test_a_plan_of_a_recipe(tmp_path, capsys):
    """The command of a recipe decides what is planned, and what was said to it is what is planned."""
    small = [f"config.DecoderConfig.{name}={getattr(MODEL, name)}" for name in (
        "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_size", "vocab_size",
    )]  # fmt: skip
    words = [
        "gin_configs/run/grpo.gin", *small, "TOPOLOGY=cpu:8", "MESH_FSDP=8", "PROMPT_LENGTH=20", "MAX_NEW_TOKENS=12",
        "ROLLOUT_ROWS=16", "PROMPTS_PER_ITERATION=8", "ANSWERS=2", "REWARD=number", f"OUT={tmp_path}/plan",
    ]  # fmt: skip
    assert run.main(["plan", *words]) == 0
    found = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert found["what"] == "grpo" and found["remat"] == "none"
    assert (tmp_path / "plan.png").stat().st_size > 10_000
    by_name = {one["name"]: one for one in found["programs"]}
    assert set(found["kept"]) == {"policy", "its optimizer"} and len(by_name) == 5
    kept, lent = (sum(found[name].values()) for name in ("kept", "lent"))
    writing, update = by_name["write a token in 16 rows"], by_name["update, 16 rows of 32"]
    assert writing["together"] == kept + lent + writing["running"]
    assert update["together"] == kept + update["running"]
    assert writing["loops_not_counted"] == 1 and update["loops_not_counted"] == 0
    # A step reads the copy and the cache where they lie, and a row is written by one device.
    assert writing["wire"] < 1000 < by_name["copy of one layer"]["wire"]
    assert update["collectives"]["all-gather"]["wire"] > 0
    assert "while answers are written" in capsys.readouterr().out
    assert run.main(["plan", *words, "ROLLOUT_ROWS=12"]) == 78
    assert "ROLLOUT_ROWS=12 does not divide over 8 devices; set 16" in capsys.readouterr().err
    assert run.main(["plan", *words, "TOPOLOGY=gpu:h100:8"]) == 78
    assert "jinstr grpo --dry_run" in capsys.readouterr().err


def test_passes_that_read_are_those_of_one_device():
    """Log-probabilities and scores on a mesh. Tolerance: sums over devices have another order."""
    place = place_of(fsdp=4, tensor=2)
    batch, _ = shapes.batch_of("grpo", SHAPE, place)
    random = np.random.default_rng(0)
    filled = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in batch.items()}
    filled["tokens"][:] = random.integers(3, 64, filled["tokens"].shape)
    filled["targets"][:] = random.integers(3, 64, filled["tokens"].shape)
    filled["positions"][:] = np.arange(32)
    filled["segment_ids"][:] = 1
    filled["answer_places"][:] = np.arange(filled["answer_places"].shape[1]) + 19
    params = weights_of(MODEL)
    split = jax.device_put(params, decoder.param_shardings(MODEL, *place))
    plain = practice.make_logps(MODEL, 1.0, RULES)(params, filled)
    own = jax.device_put(filled, mesh_lib.batch_sharding(*place))
    found = practice.make_logps(MODEL, 1.0, RULES, place.mesh)(split, own)
    np.testing.assert_allclose(found[0], plain[0], atol=1e-5)
    assert np.abs(plain[0]).max() > 1

    judge = dataclasses.replace(MODEL, heads="score")
    params = weights_of(judge, 3)
    split = jax.device_put(params, decoder.param_shardings(judge, *place))
    texts = [random.integers(3, 64, n).tolist() for n in range(1, 40)]
    wanted = reward_model.score_ids(judge, params, texts)
    scores = reward_model.score_ids(judge, split, texts, mesh=place.mesh, rules=RULES)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert np.std(wanted) > 0.01 and not np.allclose(scores, wanted[::-1], atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="needs libtpu (pip install 'jinstr[plan]')",
)
def test_ppo_of_7b_on_64_chips(tmp_path):
    words = [
        "gin_configs/run/ppo.gin", "gin_configs/model/7b.gin", "VOCAB_SIZE=32000", "TOPOLOGY=v5p:4x4x4",
        "MESH_FSDP=64", "PROMPT_LENGTH=512", "MAX_NEW_TOKENS=512", "PROMPTS_PER_ITERATION=512", "ROLLOUT_ROWS=512",
        "MINIBATCHES=4", "CRITIC=policy", "REMAT=full", f"OUT={tmp_path}/plan",
    ]  # fmt: skip
    assert run.main(["plan", *words]) == 0
    found = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert found["fits"] and not any(one["refused"] for one in found["programs"])
    rows, slots = 512 // 64, 512 + 512
    assert found["lent"]["cache"] == 2 * 32 * rows * 32 * slots * 128 * 2
