"""The rows that a rollout writes at a time: compiled functions on their state, and what the host remembers of them.

All rows write the same cache slot at a step, the clock. A row's text is left-padded: it begins at the row's own start
slot, so a row can take a new prompt at any time, which is read into the slots just before the clock.

state, by row: the cache, start_B (slot), row_ids_B, limit_B and length_B (tokens of its answer), token_B (its last
token, which the next step feeds), done_B (it writes no more), ended_B (an end token came).
B rows, S cache slots, P prompt places, R rows of one prefill, C steps of one chunk, V vocabulary, K key/value heads,
H head size. Cache arrays are as in `decode.step`: X = B·K, or B and K apart where heads are split over devices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jinstr.decode import sampler as sampler_lib
from jinstr.decode import step as step_lib
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import together


class Fixed(NamedTuple):
    """What the compiled functions depend on besides shapes."""

    config: config_lib.DecoderConfig
    sampling: sampler_lib.SamplingConfig
    stop_ids: tuple[int, ...]
    chunk: int
    rules: mesh_lib.AxisRules


def _pin(rules: mesh_lib.AxisRules, state: dict) -> dict:
    """Inside jit: every array split over the devices as `row_spec` says."""
    return jax.tree.map(lambda leaf: mesh_lib.constrain(leaf, row_spec(rules, leaf.ndim)), state)


def row_spec(rules: mesh_lib.AxisRules, ndim: int) -> PartitionSpec:
    """Spec of an array of the state: by rows, and heads by heads (only cache arrays have four axes)."""
    return step_lib.cache_spec(rules, ndim)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty(fixed: Fixed, rows: int, slots: int) -> dict:
    """A state of rows that write nothing."""
    config = fixed.config
    heads = config.num_kv_heads
    lead = (rows, heads) if step_lib.heads_are_split(config, fixed.rules) else (rows * heads,)
    shape = (*lead, slots, config.head_dim)
    dtype = decoder.compute_dtype(config)
    numbers = ("start_B", "row_ids_B", "limit_B", "length_B", "token_B")
    state = {name: jnp.zeros((rows,), jnp.int32) for name in numbers} | {
        "cache": {
            name: [jnp.zeros(shape, dtype) for _ in range(config.num_layers)] for name in ("k", "v")
        },
        "done_B": jnp.ones((rows,), bool),
        "ended_B": jnp.zeros((rows,), bool),
    }
    return _pin(fixed.rules, state)


def _after(fixed: Fixed, state: dict, ids_B, live_B) -> dict:
    """What a state becomes when its live rows have written one token each."""
    stop_B = jnp.zeros_like(live_B)
    if fixed.stop_ids:
        stop_B = live_B & jnp.isin(ids_B, jnp.array(fixed.stop_ids, jnp.int32))
    length_B = state["length_B"] + live_B
    return {
        "token_B": ids_B,
        "length_B": length_B,
        "ended_B": state["ended_B"] | stop_B,
        "done_B": state["done_B"] | stop_B | (length_B >= state["limit_B"]),
    }


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def insert(fixed: Fixed, params, serving, state, noise, clock, prompts_RP, new, rows_R):
    """Give rows_R of the state (B: dropped) new prompts and their first token: (state, ids [R], logp [R]).

    new: {lengths_B, row_ids_B, limit_B}, i32 [R] each; prompts are left-padded. With as many prompts as rows each
    stands where its row does (`Batch.places`), so that no device needs the keys and values of another.
    """
    R, P = prompts_RP.shape
    config = fixed.config
    logits_RV, cache = step_lib.prefill(
        config, params, serving, prompts_RP, new["lengths_B"], fixed.rules
    )
    new = {
        "start_B": clock - new["lengths_B"],
        "row_ids_B": new["row_ids_B"],
        "limit_B": new["limit_B"],
        "length_B": jnp.zeros((R,), jnp.int32),
        "token_B": jnp.zeros((R,), jnp.int32),
        "done_B": jnp.zeros((R,), bool),
        "ended_B": jnp.zeros((R,), bool),
    }
    ids_R, logp_R = sampler_lib.choose(fixed.sampling, new | noise, logits_RV, new["length_B"])
    new |= _after(fixed, new, ids_R, ~new["done_B"])

    is_own = R == len(state["done_B"])  # each prompt stands where its row does

    def taken(old_B, new_R):
        if not is_own:
            return old_B.at[rows_R].set(new_R, mode="drop")
        is_new_B = (rows_R < R).reshape(-1, *[1] * (old_B.ndim - 1))
        return jnp.where(is_new_B, new_R, old_B)

    def put(old_XSH, new_XPH):
        # Whole rows: what stands beside the prompt is never seen, and a write of whole rows needs no inner index.
        K, (S, H) = config.num_kv_heads, old_XSH.shape[-2:]
        new_RKPH = new_XPH.reshape(R, K, P, H).astype(old_XSH.dtype)
        if not is_own:  # rows change devices: sent as they are, before room is made around them
            heads = "kv_heads" if old_XSH.ndim == 4 else None
            new_RKPH = mesh_lib.constrain(new_RKPH, fixed.rules.spec(None, heads, None, None))
        row_RKSH = jax.lax.dynamic_update_slice(
            jnp.zeros((R, K, S, H), old_XSH.dtype), new_RKPH, (0, 0, clock - P, 0)
        )
        return taken(old_XSH.reshape(-1, K, S, H), row_RKSH).reshape(old_XSH.shape)

    put_in = {name: taken(state[name], new[name]) for name in new}
    state = state | put_in | {"cache": jax.tree.map(put, state["cache"], cache)}
    return _pin(fixed.rules, state), ids_R, logp_R


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def advance(fixed: Fixed, serving, state, noise, first):
    """Up to C steps from slot `first` on, until the cache is full or every row has ended.

    Returns (state, {ids_BC, logp_BC, count_B, done_B, ended_B, steps}): of what was written, row b's tokens are the
    first count_B[b] of ids_BC[b], as a row that has not ended writes at every step.
    """
    B, slots = state["done_B"].shape[0], state["cache"]["k"][0].shape[-2]
    before_B, until = state["length_B"], jnp.minimum(first + fixed.chunk, slots)

    def unfinished(carry):
        state, clock, _, _ = carry
        return (clock < until) & ~state["done_B"].all()

    def write(carry):
        state, clock, ids_BC, logp_BC = carry
        live_B = ~state["done_B"]
        logits_BV, cache = step_lib.step(
            fixed.config, serving, state["cache"], state["token_B"], clock, state["start_B"]
        )
        ids_B, logp_B = sampler_lib.choose(
            fixed.sampling, state | noise, logits_BV, state["length_B"]
        )
        place = (0, clock - first)
        ids_BC = jax.lax.dynamic_update_slice(ids_BC, ids_B[:, None], place)
        logp_BC = jax.lax.dynamic_update_slice(logp_BC, logp_B[:, None], place)
        state = state | {"cache": cache} | _after(fixed, state, ids_B, live_B)
        return _pin(fixed.rules, state), clock + 1, ids_BC, logp_BC

    ids_BC = jnp.zeros((B, fixed.chunk), jnp.int32)
    logp_BC = jnp.zeros((B, fixed.chunk), jnp.float32)
    carry = (_pin(fixed.rules, state), first, *_pin(fixed.rules, [ids_BC, logp_BC]))
    state, clock, ids_BC, logp_BC = jax.lax.while_loop(unfinished, write, carry)
    seen = {
        "ids_BC": ids_BC,
        "logp_BC": logp_BC,
        "count_B": state["length_B"] - before_B,
        "done_B": state["done_B"],
        "ended_B": state["ended_B"],
        "steps": clock - first,
    }
    return state, seen


@functools.partial(jax.jit, donate_argnums=0)
def _moved(cache_XSH, by):
    """One array of the cache, `by` slots nearer to its beginning."""
    return jnp.roll(cache_XSH, -by, axis=-2)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _taken(rules: mesh_lib.AxisRules, rows: int, leaf, rows_b):
    """Some rows of one array [B·…, …] of a state of `rows` rows."""
    taken = leaf.reshape(rows, -1, *leaf.shape[1:])[rows_b]
    return _pin(rules, taken.reshape(-1, *leaf.shape[1:]))


class Batch:
    """The rows that are being written: their state on the devices and what the host has to remember of it."""

    def __init__(self, fixed: Fixed, params, serving, noise, rows: int, slots: int, clock: int):
        self._fixed, self._params, self._serving, self._noise = fixed, params, serving, noise
        self._slots = slots
        self._clock = clock  # the slot that the next step writes
        self._state = empty(fixed, rows, slots)
        self._prompt_B = np.full(rows, -1)  # number of the prompt that a row answers; -1 = none
        self._start_B = np.zeros(rows, np.int64)
        self._firsts: tuple = (
            (),
            (),
            (),
        )  # (numbers and places, ids, logp): first tokens not yet fetched

    @property
    def rows(self) -> int:
        return len(self._prompt_B)

    @property
    def live(self) -> int:
        return int((self._prompt_B >= 0).sum())

    def places(self, count: int, read: int) -> np.ndarray:
        """Where `count` new prompts stand among the `read` that a prefill reads: where they will be, if it has place
        for all rows."""
        if read == self.rows:
            return np.flatnonzero(self._prompt_B < 0)[:count]
        return np.arange(count)

    def insert(self, numbers: Sequence[int], places, prompts_RP, new: dict, lengths_R) -> None:
        """Free rows answer the prompts of these numbers, which stand in these places; others are dropped."""
        free = np.flatnonzero(self._prompt_B < 0)[: len(numbers)]
        rows_R = np.full(len(prompts_RP), self.rows, np.int32)
        rows_R[places] = free
        self._prompt_B[free] = numbers
        self._start_B[free] = self._clock - lengths_R[places]
        self._state, ids_R, logp_R = insert(
            self._fixed,
            self._params,
            self._serving,
            self._state,
            self._noise,
            np.int32(self._clock),
            prompts_RP,
            new,
            rows_R,
        )
        self._firsts = (list(zip(numbers, places)), ids_R, logp_R)

    def advance(self) -> tuple[list[tuple], list[tuple], int]:
        """One chunk: ([(number, ids, logp)] that were written, [(number, ended)] that need no more, steps)."""
        self._state, seen = advance(
            self._fixed, self._serving, self._state, self._noise, np.int32(self._clock)
        )
        numbers, *firsts = self._firsts
        seen, (ids_R, logp_R) = together.fetch((seen, firsts))
        self._firsts = ((), (), ())
        written = [(n, ids_R[i : i + 1], logp_R[i : i + 1]) for n, i in numbers]
        finished = []
        for row in np.flatnonzero(self._prompt_B >= 0):
            number, count = self._prompt_B[row], seen["count_B"][row]
            written.append((number, seen["ids_BC"][row, :count], seen["logp_BC"][row, :count]))
            if seen["done_B"][row]:
                finished.append((number, bool(seen["ended_B"][row])))
                self._prompt_B[row] = -1
        self._clock += int(seen["steps"])
        return written, finished, int(seen["steps"])

    def make_room(self, places: int) -> bool:
        """Where less than a chunk of slots is left, move everything by what the rows leave free; was it moved?

        At least `places` slots stay before the clock, for the prompts that are read next.
        """
        if self._slots - self._clock >= self._fixed.chunk:
            return False
        by = int(min([self._clock - places, *self._start_B[self._prompt_B >= 0]]))
        if by <= 0:
            return False
        move = functools.partial(_moved, by=np.int32(by))
        self._state["cache"] = jax.tree.map(move, self._state["cache"])
        self._state["start_B"] = self._state["start_B"] - by
        self._start_B -= by
        self._clock -= by
        return True

    def compact(self, rows: int) -> None:
        """Go on with so many rows, the live ones among them."""
        rows_b = np.argsort(self._prompt_B < 0, kind="stable")[:rows]
        take = functools.partial(_taken, self._fixed.rules, self.rows, rows_b=rows_b)
        self._state = jax.tree.map(take, self._state)
        self._prompt_B, self._start_B = self._prompt_B[rows_b], self._start_B[rows_b]
