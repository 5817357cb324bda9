"""Rollouts of PPO and GRPO: answers to many prompts, by a batch whose rows are given new prompts as they end.

When no prompt is left, the rows that still write are put together in ever smaller batches. What runs on the devices
is in `rlhf.rows`.

Noise is keyed by (key, row id, place in the answer), as in `decode.sampler`: what is written for a prompt depends
neither on the rows beside it nor on when it had its turn, and equals what `decode.sampler.Sampler` writes.

R rows of one prefill, P prompt places.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jinstr import errors
from jinstr.decode import sampler as sampler_lib
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import together
from jinstr.rlhf import rows as rows_lib

# Fewest rows of a prefill and of a batch: below, a step costs as much.
FEWEST_ROWS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers are sampled: from the whole distribution, no filters, or ratios and KL would be of another one."""

    temperature: float = 1.0  # > 0; that of all log-probabilities: rollout, old, new, reference
    max_new_tokens: int = 256
    rows: int = 64  # answers written at a time; a multiple of the devices that share a batch
    chunk: int = 16  # steps between looks at which rows have ended
    slack: int = 64  # cache slots beyond those of the longest row: how seldom the cache is moved

    def __post_init__(self):
        sound = {
            "temperature": self.temperature > 0,
            "max_new_tokens": self.max_new_tokens >= 1,
            "rows": self.rows >= 1,
            "chunk": self.chunk >= 1,
            "slack": self.slack >= 0,
        }
        for field, good in sound.items():
            if not good:
                raise errors.ConfigError(
                    "JI-ROLLOUT-001",
                    f"RolloutConfig.{field} = {getattr(self, field)!r}; it must be "
                    + {"temperature": "above 0", "slack": "0 or more"}.get(field, "1 or more"),
                )


class Written(NamedTuple):
    """One answer, on the host. It has at least one token."""

    ids: np.ndarray  # i32 [n]; the end token included when there is one
    # f32 [n], nats: log p(id) at the sampling temperature, normalised over the whole vocabulary as the trainer does it.
    logp: np.ndarray
    ended: bool  # an end token came; else the answer was cut at its longest length


class Rollouts(NamedTuple):
    """Answers in the order of the prompts, and what they cost."""

    answers: list[Written]
    slots: int  # decode slots that were computed: rows x steps
    useful: int  # of these, the slots that wrote a token of an answer (its first one comes from the prefill)
    steps: int  # decode steps
    prefills: int  # times that rows were given prompts
    moves: int  # times that the cache was moved towards its beginning
    compactions: int  # times that the batch became smaller


class Shapes(NamedTuple):
    """What programs of a rollout are compiled for."""

    places: int  # of a prompt
    slots: int  # of the cache
    rows: int  # of the first batch
    least: int  # rows of the smallest batch and prefill

    def prefilled(self, count: int) -> int:
        """Rows of the prefill that reads `count` prompts: `least` · 2^n."""
        return self.least << max(0, (-(-count // self.least) - 1).bit_length())


def shapes_of(config: RolloutConfig, longest_prompt: int, count: int, devices: int) -> Shapes:
    """The shapes for `count` prompts on devices that share the rows."""
    places = sampler_lib.prompt_places(longest_prompt)
    least = -(-FEWEST_ROWS // devices) * devices
    rows = _halved(config.rows, count, least, devices)
    # Where every prompt has its row at once, the cache is never moved. Each step reads all of it, the slack too.
    slots = places + config.max_new_tokens + (config.slack if count > rows else 0)
    return Shapes(places, slots, rows, least)


def sampler_of(
    model: config_lib.DecoderConfig,
    config: RolloutConfig,
    stop_ids: Sequence[int],
    pad_id: int,
    forbidden_ids: Sequence[int] = (),
) -> sampler_lib.Sampler:
    """How tokens are chosen: at the temperature, without filters."""
    sampling = sampler_lib.SamplingConfig(
        temperature=config.temperature, max_new_tokens=config.max_new_tokens
    )
    return sampler_lib.Sampler(model, sampling, stop_ids, pad_id, forbidden_ids)


def fixed_of(
    sampler: sampler_lib.Sampler, config: RolloutConfig, rules: mesh_lib.AxisRules
) -> rows_lib.Fixed:
    """What the programs of `rows` depend on besides shapes."""
    return rows_lib.Fixed(sampler.config, sampler.fixed, sampler.stop_ids, config.chunk, rules)


def _halved(rows: int, wanted: int, least: int, devices: int) -> int:
    """`rows` halved while `wanted` rows still fit, down to `least`, and only to numbers that the devices divide."""
    while rows % (2 * devices) == 0 and rows // 2 >= max(wanted, least):
        rows //= 2
    return rows


def _check(config, prompts, row_ids, limits, rollout_config, devices: int) -> None:
    """Refuse what cannot be sampled."""
    if rollout_config.rows % devices:
        raise errors.ConfigError(
            "JI-ROLLOUT-003",
            f"RolloutConfig.rows = {rollout_config.rows} does not divide over {devices} devices; "
            f"set {-(-rollout_config.rows // devices) * devices}",
        )
    if len(row_ids) != len(prompts) or (limits is not None and len(limits) != len(prompts)):
        given = f"{len(row_ids)} row ids" + ("" if limits is None else f", {len(limits)} limits")
        raise errors.DataError(
            "JI-ROLLOUT-004", f"{len(prompts)} prompts, but {given}; give each prompt one"
        )
    if limits is not None and len(limits) and min(limits) < 1:
        raise errors.DataError(
            "JI-ROLLOUT-005", f"limit {min(limits)}: an answer has at least one token"
        )
    room = config.max_positions - rollout_config.max_new_tokens
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise errors.DataError(
                "JI-ROLLOUT-006", f"prompt {number} has no tokens; leave it out of the data"
            )
        if len(prompt) > room:
            raise errors.DataError(
                "JI-ROLLOUT-007",
                f"prompt {number} has {len(prompt)} tokens; with max_new_tokens = {rollout_config.max_new_tokens} "
                f"the model (max_positions = {config.max_positions}) has room for {room}: shorten it, leave it out "
                "or set fewer new tokens",
            )


def _read(prompts, columns, pad_id, shapes: Shapes, mesh, rules, numbers: range, at):
    """The prompts of these numbers, left-padded [R, P], and their columns {name: [R]}, at these places of R."""
    rows = shapes.prefilled(len(numbers))
    chosen = [[pad_id]] * rows
    for place, number in zip(at, numbers):
        chosen[place] = prompts[number]
    prompts_Rp, lengths_R = sampler_lib.left_pad(chosen, pad_id)
    extra = shapes.places - prompts_Rp.shape[1]
    prompts_RP = np.pad(prompts_Rp, ((0, 0), (extra, 0)), constant_values=pad_id)
    new = {name: np.zeros(rows, column.dtype) for name, column in columns.items()}
    for name, column in columns.items():
        new[name][at] = column[numbers]
    new["lengths_B"] = lengths_R
    if mesh is None:
        return prompts_RP, new, lengths_R
    return (
        together.put(prompts_RP, NamedSharding(mesh, rows_lib.row_spec(rules, 2))),
        together.put(new, NamedSharding(mesh, rows_lib.row_spec(rules, 1))),
        lengths_R,
    )


def _write_all(batch: rows_lib.Batch, count: int, read, shapes: Shapes, devices: int) -> Rollouts:
    """The loop: make room, give free rows the next prompts, write a chunk, take out what has ended."""
    parts: list[list[tuple]] = [[] for _ in range(count)]
    ended = [False] * count
    taken = slots = steps = prefills = moves = compactions = 0
    while taken < count or batch.live:
        moves += batch.make_room(shapes.places)
        numbers = range(taken, min(count, taken + batch.rows - batch.live))
        if numbers:
            places = batch.places(len(numbers), shapes.prefilled(len(numbers)))
            batch.insert(numbers, places, *read(numbers, places))
            taken = numbers.stop
            prefills += 1
        if taken == count:
            rows = _halved(batch.rows, batch.live, shapes.least, devices)
            if rows < batch.rows:
                batch.compact(rows)
                compactions += 1
        written, finished, done = batch.advance()
        for number, ids, logp in written:
            parts[number].append((ids, logp))
        for number, by_token in finished:
            ended[number] = by_token
        steps += done
        slots += done * batch.rows
    answers = [
        Written(*(np.concatenate(column) for column in zip(*pieces)), by_token)
        for pieces, by_token in zip(parts, ended)
    ]
    useful = sum(len(answer.ids) for answer in answers) - count
    return Rollouts(answers, slots, useful, steps, prefills, moves, compactions)


def rollout(
    config: config_lib.DecoderConfig,
    params: dict,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    key: jax.Array,
    *,
    rollout_config: RolloutConfig,
    stop_ids: Sequence[int],
    pad_id: int,
    forbidden_ids: Sequence[int] = (),
    mesh: Mesh | None = None,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
    limits: Sequence[int] | None = None,
) -> Rollouts:
    """One answer to each prompt, sampled from the policy.

    params: those that are trained, as they lie on the mesh. row_ids: what keys each answer's noise beside `key`; two
    answers to one prompt are different samples only if their ids differ. stop_ids end an answer; forbidden_ids are
    never sampled. limits: the longest length of each answer, at most max_new_tokens; for curricula of length and for
    benchmarks that need known lengths.
    Shapes are few, and compiled once a process: the batch is `rows` halved, a prefill a power of two of rows, prompts
    are padded to a power of two of places (above 256 to a multiple of it).
    Errors: ConfigError, DataError for prompts, row ids or settings that cannot be sampled.
    """
    devices = 1 if mesh is None else mesh_lib.devices_along(mesh, rules.batch)
    _check(config, prompts, row_ids, limits, rollout_config, devices)
    longest = rollout_config.max_new_tokens
    sampler = sampler_of(config, rollout_config, stop_ids, pad_id, forbidden_ids)
    fixed = fixed_of(sampler, rollout_config, rules)
    limits = np.minimum(longest if limits is None else limits, longest)
    columns = {
        "row_ids_B": np.array(row_ids, np.int32),
        "limit_B": np.broadcast_to(limits, len(prompts)).astype(np.int32),
    }
    longest_prompt = max(map(len, prompts), default=1)
    shapes = shapes_of(rollout_config, longest_prompt, len(prompts), devices)
    read = functools.partial(_read, prompts, columns, pad_id, shapes, mesh, rules)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        serving, noise = sampler.serve(params, rules), {"key": key, "allowed_V": sampler.allowed_V}
        if mesh is not None:
            noise = together.put(noise, mesh_lib.replicated(mesh))
        sizes = (shapes.rows, shapes.slots, shapes.places)
        batch = rows_lib.Batch(fixed, params, serving, noise, *sizes)
        return _write_all(batch, len(prompts), read, shapes, devices)
