"""Training state as a plain dict, and the pure step that advances it.

state = {"params", "opt_state", "step" i32[], "rng" uint32 key data, and "ema" when asked for}. Under LoRA, "params" are
the adapters, and the base that they stand on is not part of the state: it goes beside it, as `frozen`.
B batch rows, T places, A microbatches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jinstr import errors
from jinstr.losses import lm
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import together
from jinstr.testing import faults
from jinstr.train import optimizer as optimizer_lib


def abstract_state(
    model: config_lib.DecoderConfig,
    transform: optax.GradientTransformation,
    mesh: Mesh,
    rules: mesh_lib.AxisRules,
    ema: bool,
    moments: str = "device",
) -> dict:
    """State with ShapeDtypeStruct leaves that carry their sharding: the target of init and of restore.

    moments: of OptimizerConfig; on the host, they lie in parts as on the devices.
    """
    params = lora.trained(model, decoder.abstract_params(model))
    shardings = lora.trained(model, decoder.param_shardings(model, mesh, rules))
    whole = mesh_lib.replicated(mesh)
    opt_state = jax.eval_shape(transform.init, params)

    def place(leaf, param, sharding):
        if isinstance(leaf, optax.MaskedNode):  # another optimizer's parameter
            return leaf
        # Factored moments (adafactor) have other shapes than their parameter: small, so kept whole.
        if leaf.shape != param.shape:
            return whole
        return sharding.with_memory_kind("pinned_host") if moments == "host" else sharding

    # Without this the optimizer's `count` would sit on one device and fail only after a restore.
    opt_shardings = optax.tree_map_params(
        transform,
        place,
        opt_state,
        params,
        shardings,
        transform_non_params=lambda _: whole,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )
    shapes = {
        "params": params,
        "opt_state": opt_state,
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "rng": jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))),
    }
    places = {"params": shardings, "opt_state": opt_shardings, "step": whole, "rng": whole}
    if ema:
        shapes["ema"], places["ema"] = params, shardings
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )


def frozen_dtype(model: config_lib.DecoderConfig) -> jnp.dtype:
    """The type that parameters which are only read are kept in: the narrower one of theirs and of computing."""
    types = jnp.dtype(model.param_dtype), decoder.compute_dtype(model)
    return min(types, key=lambda dtype: dtype.itemsize)


def abstract_frozen(model: config_lib.DecoderConfig, mesh: Mesh, rules: mesh_lib.AxisRules) -> dict:
    """The base under adapters, with shardings as in `abstract_state`; {} where everything is trained.

    It is only read, and cast to the compute type then, so it is kept in the narrower type: no bit of a step changes.
    """
    if not model.lora.rank:
        return {}
    dtype = frozen_dtype(model)
    _, shapes = lora.split(decoder.abstract_params(model))
    _, shardings = lora.split(decoder.param_shardings(model, mesh, rules))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place),
        shapes,
        shardings,
    )


def shardings_of(abstract: dict) -> dict:
    """The sharding of every leaf of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_state(
    model: config_lib.DecoderConfig,
    transform: optax.GradientTransformation,
    abstract: dict,
    seed: int,
) -> dict:
    """Fresh state, made in place on every device."""

    def make():
        init_key, _ = jax.random.split(jax.random.key(seed))
        params = lora.trained(model, decoder.init_params(model, init_key))
        state = {"params": params} | _beside(params, transform, seed)
        return state | ({"ema": params} if "ema" in abstract else {})

    return jax.jit(make, out_shardings=shardings_of(abstract))()


def state_with(
    params: dict, transform: optax.GradientTransformation, abstract: dict, seed: int
) -> dict:
    """Fresh state around given parameters (a warm start), which it takes over: nothing is held twice on the way."""
    places = shardings_of(abstract)
    params = together.put(params, places["params"])
    others = {name: place for name, place in places.items() if name not in ("params", "ema")}
    make = jax.jit(lambda params: _beside(params, transform, seed), out_shardings=others)
    state = {"params": params} | make(params)
    if "ema" in abstract:  # a copy: donated buffers must not be shared
        state["ema"] = jax.tree.map(jnp.copy, params)
    return state


def _beside(params: dict, transform: optax.GradientTransformation, seed: int) -> dict:
    """What a fresh state holds besides its parameters."""
    _, run_key = jax.random.split(jax.random.key(seed))
    return {
        "opt_state": transform.init(params),
        "step": jnp.int32(0),
        "rng": jax.random.key_data(run_key),
    }


def cast_params(model: config_lib.DecoderConfig, params: dict) -> dict:
    """Parameters in the compute type, cast before they are gathered from the other devices."""
    dtype = decoder.compute_dtype(model)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def nll_sum(
    model: config_lib.DecoderConfig,
    params: dict,
    batch: dict,
    rules: mesh_lib.AxisRules,
    z_loss: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """(sum of weighted nll with z-loss, plain sum of weighted nll) of a batch, in nats."""
    params = cast_params(model, params)
    hidden_BTD = decoder.forward(
        model, params, batch["tokens"], batch["positions"], batch["segment_ids"], rules=rules
    )
    return lm.weighted_nll(
        hidden_BTD,
        decoder.head_kernel(model, params, rules),
        batch["targets"],
        batch["loss_weights"],
        z_loss,
        model.logit_softcap,
    )


@functools.cache
def compiler_options() -> dict[str, str]:
    """Options of XLA for a training step; none on accelerators.

    On CPU jaxlib 0.10 gives matrix products to YNNPACK by default. A whole step is 5 to 10 % faster with Eigen, which
    takes transposed operands as they are. A later XLA may not know the option; then its defaults hold.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(jnp.float32(0)).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def _advance(transform, ema_decay: float, state: dict, grads: dict) -> dict:
    """The state after one update; its step stays."""
    updates, opt_state = transform.update(grads, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    new = state | {"params": params, "opt_state": opt_state}
    if "ema" in state:
        new["ema"] = jax.tree.map(
            lambda old, now: ema_decay * old + (1 - ema_decay) * now, state["ema"], params
        )
    return new


def advance_if_finite(advance: Callable, loss, grad_norm, state: dict, grads: dict) -> dict:
    """`advance(state, grads)` where loss and gradient norm are finite, else the state as it was.

    Decided on the device, before the update, and not by a multiplication: 0 · NaN is NaN. Both are sums over the whole
    batch, so every device decides alike.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    return jax.lax.cond(finite, advance, lambda state, grads: state, state, grads)


def _with_faults(step, nll, grads):
    """Loss and gradients with the faults that a test has armed for some steps (jinstr.testing.faults)."""
    if bad := faults.planned("nan_gradient"):  # in one number of one array
        leaves, tree = jax.tree.flatten(grads)
        broken = jnp.isin(step, jnp.array(bad))
        place = (0,) * leaves[0].ndim
        leaves[0] = leaves[0].at[place].set(jnp.where(broken, jnp.nan, leaves[0][place]))
        grads = jax.tree.unflatten(tree, leaves)
    if bad := faults.planned("infinite_loss"):
        nll = jnp.where(jnp.isin(step, jnp.array(bad)), jnp.inf, nll)
    if bad := faults.planned("spike"):
        factor = jnp.where(jnp.isin(step, jnp.array(bad)), 1000.0, 1.0)
        grads = jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
    return nll, grads


def _poisoned(state: dict) -> dict:
    """The state with parameters that a test has made non-finite behind the check's back."""
    if not (bad := faults.planned("nan_parameter")):
        return state
    broken = jnp.isin(state["step"], jnp.array(bad))
    params = jax.tree.map(lambda p: jnp.where(broken, jnp.nan, p), state["params"])
    return state | {"params": params}


def _sizes(batch: dict) -> dict:
    """tokens (non-padding places) and square (sum over segments of their length squared) of a batch, f32."""
    real = batch["segment_ids"] > 0
    # The sum over a segment of (2·position + 1) is its length squared.
    square = jnp.sum(jnp.where(real, 2 * batch["positions"] + 1, 0).astype(jnp.float32))
    return {"tokens": real.sum().astype(jnp.float32), "square": square}


class Objective(NamedTuple):
    """What a step minimises: a sum over the batch divided by a weight of the batch."""

    # (params, batch, frozen) → (f32 to differentiate, {"loss": f32, …}): sums; the others are logged beside the loss
    sums: Callable[[dict, dict, dict], tuple[jax.Array, dict]]
    weight: Callable[[dict], jax.Array]  # batch → f32


def language_objective(
    model: config_lib.DecoderConfig, rules: mesh_lib.AxisRules, z_loss: float
) -> Objective:
    """Weighted negative log-likelihood of the targets, a token."""

    def sums(params, batch, frozen):
        total, nll = nll_sum(model, lora.join(params, frozen), batch, rules, z_loss)
        return total, {"loss": nll}

    return Objective(sums, lambda batch: batch["loss_weights"].sum())


def _accumulate(gradient: Callable, microbatches: int, params: dict, batch: dict, frozen: dict):
    """(sums, gradients) of a batch, computed in `microbatches` parts."""
    if microbatches == 1:
        (_, sums), grads = gradient(params, batch, frozen)
        return sums, grads

    def add(total, part):
        (_, sums), grads = gradient(params, part, frozen)
        return jax.tree.map(jnp.add, total, (sums, grads)), None

    # Row r goes to microbatch r mod A, so that every device keeps its own rows.
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    (_, sums), _ = jax.eval_shape(gradient, params, first, frozen)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (sums, params))
    return jax.lax.scan(add, zero, parts)[0]


def make_step(
    model: config_lib.DecoderConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    transform: optax.GradientTransformation,
    mesh: Mesh,
    rules: mesh_lib.AxisRules,
    abstract: dict,
    microbatches: int = 1,
    frozen: dict | None = None,
    objective: Objective | None = None,
    options: dict[str, str] | None = None,
) -> Callable[[dict, dict], tuple[dict, dict]]:
    """Jitted (state, batch) → (state, metrics); the state is donated.

    The gradient is that of sum(weight · nll) / sum(weight) over the whole global batch (or of another objective): with
    `microbatches` > 1 the sums are accumulated first and divided once, so uneven numbers of trained tokens do not
    matter. A step whose loss or gradient norm is not finite changes nothing but `step`. frozen: what is read and not
    trained; under LoRA, the base (see `abstract_frozen`).
    options: of XLA; None = those of this machine's devices.
    metrics: loss and the objective's other sums over weight, grad_norm, weight, tokens (non-padding places), square
    (sum of segment len²).
    """
    frozen = frozen or {}
    objective = objective or language_objective(model, rules, optimizer.z_loss)
    gradient = jax.value_and_grad(objective.sums, has_aux=True)
    accumulate = functools.partial(_accumulate, gradient, microbatches)
    advance = functools.partial(_advance, transform, optimizer.ema_decay)

    def step(state, batch, frozen):
        if jax.config.jax_disable_jit:  # JINSTR_DEBUG: here values are numbers, not tracers
            objective.sums(state["params"], batch, frozen)
        sums, grads = accumulate(state["params"], batch, frozen)
        if optimizer.moments == "host":
            state = state | {
                "opt_state": jax.device_put(state["opt_state"], jax.memory.Space.Device)
            }
        weight = jnp.maximum(objective.weight(batch), 1e-8)
        grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
        sums["loss"], grads = _with_faults(state["step"] + 1, sums["loss"], grads)
        values = {name: value / weight for name, value in sums.items()}
        grad_norm = optax.tree.norm(grads)
        new = advance_if_finite(advance, values["loss"], grad_norm, state, grads)
        new = _poisoned(new | {"step": state["step"] + 1})
        return new, values | {"grad_norm": grad_norm, "weight": weight} | _sizes(batch)

    place = shardings_of(abstract)
    whole = mesh_lib.replicated(mesh)
    jitted = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(place, mesh_lib.batch_sharding(mesh, rules), shardings_of(frozen)),
        out_shardings=(place, whole),
        compiler_options=compiler_options() if options is None else options,
    )

    def call(state, batch):
        with jax.set_mesh(
            mesh
        ):  # for what the model pins, and kernels that every device runs by itself
            # The base is an argument and not a constant of the program: that would be a second copy of it.
            return jitted(state, batch, frozen)

    call.jitted = jitted
    return call


def places_here(mesh: Mesh, rules: mesh_lib.AxisRules, rows: int) -> Sequence[int] | None:
    """Which rows of a batch of so many the devices of this process hold; None = all. Errors: ConfigError."""
    parts = mesh_lib.devices_along(mesh, rules.batch)
    if rows % parts:
        raise errors.ConfigError(
            "JI-MESH-006",
            f"{rows} rows in a batch do not divide over the {parts} devices that share them; change BATCH_TOKENS",
        )
    return together.rows_here(mesh_lib.batch_sharding(mesh, rules), rows)


def place_rows(batch: dict, mesh: Mesh, rules: mesh_lib.AxisRules, rows: int) -> dict:
    """Host arrays [B', T] with the rows of `places_here` → global arrays [B, T], B = rows."""
    return together.place_rows(batch, mesh_lib.batch_sharding(mesh, rules), rows)


def place_batch(batch: dict, mesh: Mesh, rules: mesh_lib.AxisRules) -> dict:
    """Host arrays [B, T], whole and equal in all processes → global arrays."""
    if together.count() == 1:
        return place_rows(batch, mesh, rules, 0)
    return together.put(batch, mesh_lib.batch_sharding(mesh, rules))


def make_evaluator(model, mesh: Mesh, rules: mesh_lib.AxisRules):
    """Jitted (params, batch) → (nll, weight): sums over one batch, in nats and tokens."""

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def evaluate(params, batch):
        _, nll = nll_sum(model, params, batch, rules)
        return nll, batch["loss_weights"].sum()

    def call(params, batch):
        with jax.set_mesh(mesh):
            return evaluate(params, batch)

    return call
