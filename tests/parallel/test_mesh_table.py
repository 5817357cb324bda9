"""Every product of the mesh axes is the run of one device: losses, gradients, parameters; and what lies where, what is
sent.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import collectives
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

# V · D is less than one layer, and a layer far less than all of them: a gather of all layers at once is the largest.
MODEL = config_lib.DecoderConfig(
    vocab_size=96, hidden_size=32, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=8,
    mlp_size=64, tie_embeddings=False, scan_layers=True, remat="full",
)  # fmt: skip
RULES = mesh_lib.AxisRules()
OPTIMIZER = optimizer_lib.OptimizerConfig(learning_rate=1e-3, warmup_steps=2)
ROWS, LENGTH = 8, 32
LAYER_BYTES = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)

QUICK = [
    {"fsdp": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "context": 2, "tensor": 2},
]
TABLE = [
    {"data": 8},
    {"context": 8},
    {"tensor": 8},
    {"data": 2, "fsdp": 4},
    {"data": 4, "fsdp": 2},
    {"data": 4, "context": 2},
    {"data": 2, "context": 4},
    {"data": 4, "tensor": 2},
    {"fsdp": 4, "context": 2},
    {"fsdp": 2, "context": 4},
    {"fsdp": 4, "tensor": 2},
    {"fsdp": 2, "tensor": 4},
    {"context": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "context": 2},
    {"data": 2, "context": 2, "tensor": 2},
]
MESHES = [pytest.param(axes, id=str(axes)) for axes in QUICK]
MESHES += [pytest.param(axes, id=str(axes), marks=pytest.mark.slow) for axes in TABLE]

# The whole of the sharding, by parameter: what model code and rules have to come to.
SPECS = {
    "embed.embedding": ("tensor", "fsdp"),
    "head.kernel": ("fsdp", "tensor"),
    "blocks.attention.query.kernel": (None, "fsdp", "tensor"),
    "blocks.attention.key.kernel": (None, "fsdp", "tensor"),
    "blocks.attention.value.kernel": (None, "fsdp", "tensor"),
    "blocks.attention.out.kernel": (None, "tensor", "fsdp"),
    "blocks.mlp.gate.kernel": (None, "fsdp", "tensor"),
    "blocks.mlp.up.kernel": (None, "fsdp", "tensor"),
    "blocks.mlp.down.kernel": (None, "tensor", "fsdp"),
    "blocks.norm_attention.scale": (None, None),
    "blocks.norm_mlp.scale": (None, None),
    "norm_final.scale": (None,),
}


def batch_of(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(8, 24, ROWS)  # two texts in a row
    places = np.arange(LENGTH)[None, :]
    second = places >= lengths[:, None]
    shape = (ROWS, LENGTH)
    return {
        "tokens": rng.integers(0, MODEL.vocab_size, shape).astype(np.int32),
        "targets": rng.integers(0, MODEL.vocab_size, shape).astype(np.int32),
        "loss_weights": (rng.random(shape) < np.linspace(0.2, 0.9, ROWS)[:, None]).astype(
            np.float32
        ),
        "positions": np.where(second, places - lengths[:, None], places).astype(np.int32),
        "segment_ids": (1 + second).astype(np.int32),
    }


@functools.cache
def run(axes=(), seed=0, model=MODEL, steps=10):
    """Losses, gradients of step 1, parameters after 5 steps, the abstract state, collectives of the compiled step."""
    rules, sizes = RULES, {"data": 1} | dict(axes)
    mesh = mesh_lib.make_mesh(
        mesh_lib.MeshConfig(**sizes), jax.devices()[: int(np.prod(list(sizes.values())))]
    )
    transform = optimizer_lib.make_optimizer(OPTIMIZER, 10)
    abstract = state_lib.abstract_state(model, transform, mesh, rules, ema=False)
    state = state_lib.init_state(model, transform, abstract, seed)
    objective = state_lib.language_objective(model, rules, 0.0)
    batches = [state_lib.place_batch(batch_of(i), mesh, rules) for i in range(max(1, steps))]
    with jax.set_mesh(mesh):
        gradient = jax.jit(jax.grad(lambda params, batch: objective.sums(params, batch, {})[0]))
        gradients = jax.device_get(gradient(state["params"], batches[0]))
    step = state_lib.make_step(model, OPTIMIZER, transform, mesh, rules, abstract)
    with jax.set_mesh(mesh):
        text = step.jitted.lower(abstract, batches[0], {}).compile().as_text()
    losses, params = [], None
    for number, batch in enumerate(batches[:steps]):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if number == 4:
            params = jax.device_get(state["params"])
    return np.array(losses), gradients, params, abstract, collectives.read(text)


def distances(tree, other):
    """Largest difference of each leaf, relative to the largest value of the second."""
    return [
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    ]


@pytest.mark.parametrize("axes", MESHES)
def test_a_mesh_is_the_run_of_one_device(axes):
    losses, gradients, params, _, found = run(tuple(axes.items()))
    one_losses, one_gradients, one_params, _, _ = run()
    assert np.abs(losses / one_losses - 1).max() < 1e-5
    assert max(distances(gradients, one_gradients)) < 1e-5
    assert max(distances(params, one_params)) < 1e-4
    assert found.unknown == 0
    assert found.largest <= LAYER_BYTES
    if axes.get("fsdp", 1) > 1:
        assert found.kinds["all-gather"].count > 0


def test_another_seed_is_another_run():
    """Negative control of the comparison."""
    losses, gradients, params, _, _ = run(seed=1)
    one_losses, one_gradients, one_params, _, _ = run()
    assert np.abs(losses / one_losses - 1).max() > 1e-4
    assert max(distances(gradients, one_gradients)) > 1e-2
    assert max(distances(params, one_params)) > 1e-2


def specs_of(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def wrong(specs):
    """Parameters that do not lie as the table says."""
    return {
        name for name in specs | SPECS if specs.get(name) != PartitionSpec(*SPECS.get(name, ()))
    }


def abstract_of(rules):
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=2, fsdp=2, tensor=2))
    transform = optimizer_lib.make_optimizer(OPTIMIZER, 10)
    return state_lib.abstract_state(MODEL, transform, mesh, rules, ema=True)


def test_every_parameter_lies_where_the_table_says():
    abstract = abstract_of(RULES)
    assert wrong(specs_of(abstract["params"])) == set()
    # What the optimizer keeps of a parameter, and its average, lie as it does.
    state = specs_of(abstract["opt_state"]) | specs_of({"ema": abstract["ema"]})
    for name, spec in SPECS.items():
        kept = [each for path, each in state.items() if path.endswith("." + name)]
        assert len(kept) == 3, name  # mu, nu, ema
        assert all(each == PartitionSpec(*spec) for each in kept), name
    # Negative control: a wrong rule is seen, at the parameters that it moves.
    moved = mesh_lib.AxisRules(mlp=None)
    assert wrong(specs_of(abstract_of(moved)["params"])) == {
        f"blocks.mlp.{name}.kernel" for name in ("gate", "up", "down")
    }


def test_a_gather_of_all_layers_is_seen(monkeypatch):
    """Negative control of the largest gather: kernels that are pinned whole before the loop over layers."""
    forward = decoder.forward

    def whole_at_once(config, params, *args, **kwargs):
        pin = functools.partial(mesh_lib.constrain, spec=PartitionSpec())
        return forward(
            config, params | {"blocks": jax.tree.map(pin, params["blocks"])}, *args, **kwargs
        )

    monkeypatch.setattr(decoder, "forward", whole_at_once)
    found = run.__wrapped__((("fsdp", 8),), steps=5)[-1]
    assert found.largest > LAYER_BYTES


@pytest.mark.parametrize("places", [1, 4096], ids=["by what is looked up", "by the table"])
@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_looking_up_is_the_same_either_way(axes, places, monkeypatch):
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(**{"data": 1} | axes))
    rng = np.random.default_rng(0)
    table = rng.standard_normal((96, 32)).astype(np.float32)
    tokens = rng.integers(0, 96, (8, 4 if places == 1 else 128)).astype(np.int32)
    weights = rng.standard_normal((*tokens.shape, 32)).astype(np.float32)

    def value(table, tokens):
        x = decoder._look_up(table, tokens, RULES, np.float32)
        return (x * weights).sum(), x

    sharding = jax.sharding.NamedSharding(mesh, RULES.spec("vocab", "embed"))
    placed = jax.device_put(table, sharding)
    rows = jax.device_put(tokens, mesh_lib.batch_sharding(mesh, RULES))
    with jax.set_mesh(mesh):
        both = jax.jit(jax.value_and_grad(value, has_aux=True))
        text = both.lower(placed, rows).compile().as_text()
        (_, x), gradient = both(placed, rows)
    np.testing.assert_array_equal(jax.device_get(x), table[tokens])
    np.testing.assert_allclose(
        gradient, jax.grad(lambda t: (t[tokens] * weights).sum())(table), atol=1e-5
    )
    kinds = {kind for kind in collectives.read(text).kinds}
    assert ("all-to-all" in kinds) == (places == 1), kinds


@pytest.mark.parametrize(
    "remat",
    [
        "none",
        *(pytest.param(r, marks=pytest.mark.slow) for r in ("minimal", "dots", "attention")),
        "full",
        "offload",
    ],
)
def test_kernels_are_gathered_once_a_pass(remat):
    """Of every layer forward and backward, held by none in between; the head once, the embedding looked up in parts.

    Scanned: of unrolled layers the CPU's compiler makes one gather of the two, whatever it is told.
    """
    model = MODEL if remat == "full" else dataclasses.replace(MODEL, remat=remat, num_layers=2)
    found = run((("fsdp", 8),), model=model, steps=10 if model is MODEL else 0)[-1]
    kernels = 2 * model.num_layers * LAYER_BYTES + 4 * 96 * 32
    assert found.kinds["all-gather"].payload == pytest.approx(kernels, rel=0.05)
