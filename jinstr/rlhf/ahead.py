"""Every function that an iteration of PPO or GRPO runs, compiled for devices that may not be there.

These are the very functions of `jinstr ppo` and `jinstr grpo`, on the arrays of rlhf/shapes.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jinstr import errors
from jinstr.decode import step as step_lib
from jinstr.models import lora
from jinstr.rlhf import critics, objectives, practice, reward_model, shapes
from jinstr.rlhf import rows as rows_lib
from jinstr.train import ahead, costs
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib


class Program(NamedTuple):
    """One function of an iteration."""

    name: str
    lower: Callable[[], jax.stages.Lowered]
    own: list  # of its arguments, those that are neither kept nor lent
    lent: tuple[str, ...] = ()  # parts that are there beside what is kept all the time


def _writing(
    models: shapes.Models, shape: shapes.PracticeShape, place: shapes.Place, kept: dict, lent: dict
):
    """The programs of a rollout."""
    fixed, sizes = shapes.rollout_of(models, shape, place)
    params = lora.join(kept["policy"], kept.get("its base, not trained", {}))
    state = lent["rows"] | {"cache": lent["cache"]}
    serving, while_writing = lent["copy that writes"], tuple(lent)
    vocabulary = jax.ShapeDtypeStruct((fixed.config.vocab_size,), bool)
    noise = {"key": jax.eval_shape(lambda: jax.random.key(0)), "allowed_V": vocabulary}
    noise = place.put(noise)
    read = sizes.prefilled(min(sizes.rows, shape.prompts * shape.answers))
    prompts = jax.ShapeDtypeStruct((read, sizes.places), jnp.int32)
    columns = ("row_ids_B", "limit_B", "lengths_B")
    new = dict.fromkeys(columns, jax.ShapeDtypeStruct((read,), jnp.int32))
    clock, rows = np.int32(sizes.places), np.zeros(read, np.int32)
    inputs = (clock, place.put(prompts, "batch", None), place.put(new, "batch"), rows)
    yield Program(
        "copy of one layer",
        lambda: step_lib.serving_layer.lower(fixed.config, place.rules, params["blocks"], 0),
        [], while_writing[:1],
    )  # fmt: skip
    yield Program(
        f"read {read} prompts of {sizes.places}",
        lambda: rows_lib.insert.lower(fixed, params, serving, state, noise, *inputs),
        [noise["allowed_V"], *inputs[1:3]], while_writing,
    )  # fmt: skip
    yield Program(
        f"write a token in {sizes.rows} rows",
        lambda: rows_lib.advance.lower(fixed, serving, state, noise, clock),
        [noise["allowed_V"]], while_writing,
    )  # fmt: skip


def _reading(
    kind: str,
    models: shapes.Models,
    shape: shapes.PracticeShape,
    place: shapes.Place,
    kept: dict,
    batch,
):
    """The passes that only read: scores, log-probabilities, values."""
    rules, temperature = place.rules, shape.rollout().temperature
    rows, length = batch["tokens"].shape
    model = shapes.attending(models.policy, place, length)
    params = lora.join(kept["policy"], kept.get("its base, not trained", {}))
    places = reward_model.row_places(shape.prompt_length + shape.max_new_tokens)
    texts = reward_model.rows_of(places, shape.prompts * shape.answers, place.row_devices)
    tokens = place.put(jax.ShapeDtypeStruct((texts, places), jnp.int32), "batch", None)
    lengths = place.put(jax.ShapeDtypeStruct((texts,), jnp.int32), "batch")
    for part, judge in shapes.judges(models).items():
        judge = shapes.attending(judge, place, places)
        yield Program(
            f"{part}, {texts} answers",
            lambda: reward_model.last_scores.lower(judge, rules, kept[part], tokens, lengths),  # noqa: B023
            [tokens, lengths],
        )
    logps = practice.make_logps(model, temperature, rules, place.mesh).jitted
    size = f"{rows} rows of {length}"
    yield Program(f"log p, policy, {size}", lambda: logps.lower(params, batch), [batch])
    below = kept.get("reference") or kept.get("its base, not trained")
    if "reference" in kept or kind == "ppo":
        name = f"log p, reference, {size}"
        yield Program(name, lambda: logps.lower(below, batch, True), [batch])
    if kind == "ppo":
        critic = shapes.attending(models.critic, place, length) if models.critic else model
        values = critics.make_values(critic, rules, place.mesh).jitted
        valuing = kept["critic"] if models.critic else params
        yield Program(
            f"values, {size}",
            lambda: values.lower(valuing, batch),
            [batch],
        )


def _updating(kind, models, shape, optimizer, place: shapes.Place, kept: dict, batch: dict):
    """The updates of policy and critic."""
    rows, length = batch["tokens"].shape
    model = shapes.attending(models.policy, place, length)
    loss = objectives.PolicyLossConfig(kl_loss=shape.kl_loss)
    value_loss = objectives.ValueLossConfig()
    temperature, options = shape.rollout().temperature, _options(place)
    objective = objectives.policy_objective(model, loss, temperature, place.rules)
    if kind == "ppo":
        coefficient = shape.text_coefficient
        objective = objectives.ppo_objective(
            model, loss, value_loss, 0.1, coefficient, temperature, place.rules
        )
    transform, state = shapes.state_of(model, optimizer, place)
    frozen = kept.get("its base, not trained", {})
    step = state_lib.make_step(
        model, optimizer, transform, *place, state, shape.microbatches, frozen, objective, options
    )
    beside = shapes.text_of(shape, place) if kind == "ppo" else {}
    text = f" and {len(beside[objectives.TEXT + 'tokens'])} of text" if beside else ""
    yield Program(
        f"update, {rows} rows of {length}{text}",
        lambda: step.jitted.lower(state, batch | beside, frozen),
        [batch, beside],
    )
    if models.critic:
        _, own, valuing = critics.trained(
            shapes.attending(models.critic, place, length), optimizer, value_loss, *place, updates=1000,
            microbatches=shape.microbatches, options=options,
        )  # fmt: skip
        yield Program(
            f"update of the critic, {rows} rows of {length}",
            lambda: valuing.jitted.lower(own, batch, {}),
            [batch],
        )


def _options(place: shapes.Place) -> dict[str, str]:
    is_cpu = place.mesh.devices.flat[0].platform == "cpu"
    return state_lib.compiler_options() if is_cpu else {}


def programs(kind, models, shape, optimizer, place: shapes.Place, kept: dict, lent: dict):
    """Every function of an iteration, in its order."""
    read, update = shapes.batch_of(kind, shape, place)
    yield from _writing(models, shape, place, kept, lent)
    yield from _reading(kind, models, shape, place, kept, read)
    yield from _updating(kind, models, shape, optimizer, place, kept, update)


def planned(
    kind: str,
    models: shapes.Models,
    shape: shapes.PracticeShape,
    optimizer: optimizer_lib.OptimizerConfig,
    place: shapes.Place,
    told: Callable[[str], None],
) -> dict:
    """All figures of a run, bytes on a device: {"kept": by part, "lent": by part, "programs": [...], "peak"}.

    Of each program: arguments, what it takes while it runs beside what is kept and lent, the sum with all of that, and
    what it sends. A loop of which only the data say how long it runs (writing answers) counts once: it is one token a
    row. told: called with the name of a program before it is compiled.
    Errors: ConfigError for settings that do not divide; those of PracticeShape's own classes.
    """
    if shape.rollout_rows % place.row_devices:
        raise errors.ConfigError(
            "JI-PLAN-008",
            f"ROLLOUT_ROWS={shape.rollout_rows} does not divide over {place.row_devices} devices; set "
            f"{-(-shape.rollout_rows // place.row_devices) * place.row_devices}",
        )
    kept = shapes.kept_of(kind, models, shape, optimizer, place)
    lent = shapes.lent_of(models, shape, place)
    sizes = {name: costs.tree_bytes(tree) for name, tree in (kept | lent).items()}
    found = []
    for program in programs(kind, models, shape, optimizer, place, kept, lent):
        told(program.name)
        found.append(_compiled(program, place, sizes, tuple(kept)))
    return {
        "kept": {name: sizes[name] for name in kept},
        "lent": {name: sizes[name] for name in lent},
        "programs": found,
        "peak": max(one["together"] for one in found),
    }


def _compiled(program: Program, place: shapes.Place, sizes: dict[str, int], kept: tuple) -> dict:
    """The figures of one program; bytes of all that is there beside it are in `sizes`."""
    with jax.set_mesh(place.mesh):
        lowered = program.lower()
    there = sum(sizes[name] for name in (*kept, *program.lent))
    one = {"name": program.name, "lent": program.lent}
    try:
        compiled = ahead.compile_lowered(lowered, place.mesh, {})
    except ahead.TooLarge as error:
        return one | {"refused": True, "together": max(there, error.wanted)}
    moved = compiled.found
    # Arguments that a function does not read are not among the compiler's: what it takes beside them is.
    running = costs.tree_bytes(program.own) + compiled.peak - compiled.arguments
    return one | {
        "refused": False,
        "arguments": compiled.arguments,
        "running": running,
        "together": there + running,
        "collectives": {name: kind._asdict() for name, kind in moved.kinds.items()},
        "largest_gather": moved.largest,
        "wire": moved.wire,
        "loops_not_counted": moved.unknown,
        "compile_seconds": compiled.seconds,
    }
