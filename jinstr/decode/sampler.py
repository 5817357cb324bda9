"""Answers from prompts: prefill, then a jitted loop of one token a row and step until every row has ended.

Prompts are left-padded, so all rows write the same cache slot at each step. The loop runs on a cache of few slots that
grows as the text does: attention reads little beyond what is there. Noise is keyed by (key, row id, place in the
answer), one uniform each: a row's text does not depend on its neighbours, the batch or the mesh.

B rows, P prompt places, N new tokens, V vocabulary, S cache slots.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jinstr import errors
from jinstr.decode import filters
from jinstr.decode import step as step_lib
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are chosen. The filters apply in the order of the fields."""

    repetition_penalty: float = (
        1.0  # > 1 makes tokens of the prompt and the answer so far less likely
    )
    temperature: float = 0.7  # 0 = greedy: always the likeliest token
    top_k: int = 0  # keep the k likeliest tokens; 0 = all
    top_p: float = 1.0  # keep the likeliest tokens that together have this probability; 1 = all
    min_p: float = 0.0  # keep tokens at least this share as likely as the likeliest; 0 = all
    max_new_tokens: int = 512
    stop_strings: tuple[str, ...] = ()  # the answer ends before the first of these
    seed: int = 0

    def __post_init__(self):
        sound = {
            "repetition_penalty": self.repetition_penalty > 0,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "max_new_tokens": self.max_new_tokens >= 1,
            "stop_strings": not isinstance(self.stop_strings, str) and all(self.stop_strings),
        }
        for field, good in sound.items():
            if not good:
                raise errors.ConfigError(
                    "JI-DECODE-001", f"SamplingConfig.{field} = {getattr(self, field)!r}"
                )


class Rollout(NamedTuple):
    """What was written. Row b's answer is ids[b, :length[b]], its end token included when it has one."""

    ids: jax.Array  # i32 [B, N]; the pad id after the end
    mask: (
        jax.Array
    )  # bool [B, N]: written by the model (from its end-of-sequence state, never from ids)
    logp: jax.Array  # f32 [B, N], nats: log p(id) at the sampling temperature, before any filter; 0 where not mask
    ended: jax.Array  # bool [B]: an end token came
    length: jax.Array  # i32 [B]: tokens written, the end token included


def prompt_places(length: int) -> int:
    """Places that prompts of this length are padded to: a power of two, then multiples of the prefill piece."""
    if length > step_lib.PREFILL_PLACES:
        return -(-length // step_lib.PREFILL_PLACES) * step_lib.PREFILL_PLACES
    return max(16, 1 << (length - 1).bit_length())


def cache_slots(needed: int) -> int:
    """Slots of the cache that holds `needed`: quarter steps of an octave, at least 64, so that shapes stay few."""
    unit = max(64, 1 << max(0, needed.bit_length() - 3))
    return -(-needed // unit) * unit


def left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(prompts_BP left-padded i32, lengths_B i32) from lists of ids; empty prompts are refused."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if not lengths.all():
        raise errors.DataError("JI-DECODE-002", "a prompt has no tokens")
    padded = np.full((len(prompts), lengths.max()), pad_id, np.int32)
    for row, prompt in zip(padded, prompts):
        row[len(row) - len(prompt) :] = prompt
    return padded, lengths


def uniforms(key, row_ids_B, places_B):
    """The noise of every row: one f32 in [0, 1) for (key, row id, place in the answer), whatever stands beside it."""

    def uniform(row_id, place):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, row_id), place))

    return jax.vmap(uniform)(row_ids_B, places_B)


def choose(sampling: SamplingConfig, state: dict, logits_BV, places_B):
    """(ids [B], logp [B]) of the next token of each row, place places_B of its answer.

    Reads of the state: allowed_V; unless greedy, key and row_ids_B; with a repetition penalty, seen_BV.
    """
    ids_logits = jnp.where(state["allowed_V"], logits_BV, filters.MASKED)
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        ids_logits = filters.repetition_penalty(ids_logits, state["seen_BV"], penalty)
    if sampling.temperature == 0:
        ids_B = filters.likeliest(ids_logits)
        reference_BV = logits_BV
    else:
        reference_BV = filters.temperature(logits_BV, sampling.temperature)
        kept_BV = filters.temperature(ids_logits, sampling.temperature)
        if sampling.top_k:
            kept_BV = filters.keep_top_k(kept_BV, sampling.top_k)
        if sampling.top_p < 1:
            kept_BV = filters.keep_top_p(kept_BV, sampling.top_p)
        if sampling.min_p > 0:
            kept_BV = filters.keep_min_p(kept_BV, sampling.min_p)
        noise_B = uniforms(state["key"], state["row_ids_B"], places_B)
        ids_B = filters.draw(kept_BV, noise_B)
    chosen_B = jnp.take_along_axis(reference_BV, ids_B[:, None], axis=-1)[:, 0]
    return ids_B, chosen_B - jax.nn.logsumexp(reference_BV, axis=-1)


def _write(sampling: SamplingConfig, stop_ids, pad_id, state: dict, logits_BV) -> dict:
    """Choose the next token of every row that has not ended and record it."""
    live_B = ~state["done_B"]
    # Rows that have ended choose as well: what they choose is not recorded.
    places_B = jnp.full(live_B.shape, state["written"])
    ids_B, logp_B = choose(sampling, state, logits_BV, places_B)
    stop_B = jnp.isin(ids_B, jnp.array(stop_ids, jnp.int32)) if stop_ids else jnp.zeros_like(live_B)
    ids_B = jnp.where(live_B, ids_B, pad_id)
    place = (0, state["written"])
    new = {
        "ids_BN": jax.lax.dynamic_update_slice(state["ids_BN"], ids_B[:, None], place),
        "logp_BN": jax.lax.dynamic_update_slice(
            state["logp_BN"], jnp.where(live_B, logp_B, 0.0)[:, None], place
        ),
        "token_B": ids_B,
        "length_B": state["length_B"] + live_B,
        "ended_B": state["ended_B"] | (live_B & stop_B),
        "done_B": state["done_B"] | stop_B,
        "written": state["written"] + 1,
    }
    if "seen_BV" in state:
        rows = jnp.arange(ids_B.shape[0])
        new["seen_BV"] = state["seen_BV"].at[rows, ids_B].max(live_B)
    return state | new


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _begin(
    config, sampling, stop_ids, pad_id, new_tokens, params, serving, prompts_BP, lengths_B, noise
):
    """Prefill and the first token: the state that `_continue` carries on."""
    B, P = prompts_BP.shape
    logits_BV, cache = step_lib.prefill(config, params, serving, prompts_BP, lengths_B)
    row_ids_B, key, allowed_V = noise
    state = {
        "cache": cache,
        "start_B": P - lengths_B,
        "row_ids_B": row_ids_B,
        "key": key,
        "allowed_V": allowed_V,
        "ids_BN": jnp.full((B, new_tokens), pad_id, jnp.int32),
        "logp_BN": jnp.zeros((B, new_tokens), jnp.float32),
        "token_B": jnp.zeros((B,), jnp.int32),
        "length_B": jnp.zeros((B,), jnp.int32),
        "ended_B": jnp.zeros((B,), bool),
        "done_B": jnp.zeros((B,), bool),
        "written": jnp.int32(0),
        "index": jnp.int32(P),
    }
    if sampling.repetition_penalty != 1.0:
        real_BP = jnp.arange(P)[None, :] >= state["start_B"][:, None]
        unseen_BV = jnp.zeros((B, allowed_V.shape[0]), bool)
        state["seen_BV"] = unseen_BV.at[jnp.arange(B)[:, None], prompts_BP].max(real_BP)
    return _write(sampling, stop_ids, pad_id, state, logits_BV)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def _continue(config, sampling, stop_ids, pad_id, serving, state, until):
    """Write tokens until `until` are there, the cache is full or every row has ended."""
    slots = state["cache"]["k"][0].shape[-2]

    def unfinished(state):
        return (state["written"] < until) & (state["index"] < slots) & ~state["done_B"].all()

    def advance(state):
        logits_BV, cache = step_lib.step(
            config, serving, state["cache"], state["token_B"], state["index"], state["start_B"]
        )
        state = state | {"cache": cache, "index": state["index"] + 1}
        return _write(sampling, stop_ids, pad_id, state, logits_BV)

    return jax.lax.while_loop(unfinished, advance, state)


@functools.partial(jax.jit, static_argnums=1)
def _grow(cache, slots):
    """The cache with room for `slots` slots."""

    def pad(x_XSH):
        most = [*x_XSH.shape[:-2], slots, x_XSH.shape[-1]]
        return jnp.pad(x_XSH, [(0, size - own) for size, own in zip(most, x_XSH.shape)])

    return jax.tree.map(pad, cache)


class Decoding:
    """A batch being written. `advance` as often as wanted, `finish` rows that need no more, then `rollout`."""

    def __init__(self, sampler: Sampler, serving: dict, state: dict):
        self._sampler, self._serving, self._state = sampler, serving, state

    @property
    def done(self) -> np.ndarray:
        """bool [B]: rows that write no more."""
        return np.asarray(self._state["done_B"])

    @property
    def written(self) -> int:
        """Places of the answers that are decided."""
        return int(self._state["written"])

    def advance(self, until: int) -> bool:
        """Write until `until` tokens (or the limit) are there or all rows are done; True while there is more to do."""
        s = self._sampler
        limit = s.sampling.max_new_tokens
        until = min(until, limit)
        while self.written < until and not self.done.all():
            slots = self._state["cache"]["k"][0].shape[-2]
            index = int(self._state["index"])
            if index == slots:
                # The last token of an answer is never fed: no more slots than that are ever needed.
                most = index + limit - self.written
                room = min(cache_slots(index + 1), cache_slots(most))
                self._state["cache"] = _grow(self._state["cache"], room)
            self._state = _continue(
                s.config, s.fixed, s.stop_ids, s.pad_id, self._serving, self._state, until
            )
        return self.written < limit and not self.done.all()

    def finish(self, rows_B) -> None:
        """Let these rows (bool [B]) write no more; what they have written stays."""
        self._state["done_B"] = self._state["done_B"] | jnp.asarray(rows_B)

    def rollout(self) -> Rollout:
        """Everything written so far."""
        s = self._state
        mask = jnp.arange(s["ids_BN"].shape[1])[None, :] < s["length_B"][:, None]
        return Rollout(s["ids_BN"], mask, s["logp_BN"], s["ended_B"], s["length_B"])


class Sampler:
    """Samples answers: `sampler(params, prompts_BP, lengths_B, row_ids_B, key)`.

    `stop_ids` end a row when sampled; `forbidden_ids` (control tokens, padded vocabulary rows) are never sampled.
    Stop strings and the seed of `sampling` are for the callers that deal in text (`decode.text`).
    """

    def __init__(
        self,
        config: config_lib.DecoderConfig,
        sampling: SamplingConfig,
        stop_ids: Sequence[int],
        pad_id: int,
        forbidden_ids: Sequence[int] = (),
    ):
        self.config, self.sampling, self.pad_id = config, sampling, pad_id
        self.stop_ids = tuple(sorted(set(stop_ids)))
        if pad_id in self.stop_ids:
            raise errors.ConfigError("JI-DECODE-003", f"the pad id {pad_id} is a stop id")
        # What the compiled loop depends on: nothing that only the callers read.
        self.fixed = dataclasses.replace(sampling, seed=0, stop_strings=(), max_new_tokens=1)
        self.allowed_V = np.ones(config.vocab_size, bool)
        self.allowed_V[list(set(forbidden_ids) - set(self.stop_ids))] = False

    def serve(
        self,
        params: dict,
        rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
    ) -> dict:
        """The copy of the parameters that steps read; make it once and pass it to several `start` calls."""
        return step_lib.serving_params(self.config, params, rules)

    def start(self, params, prompts_BP, lengths_B, row_ids_B, key, serving=None) -> Decoding:
        """Read the prompts (left-padded, lengths_B tokens each) and choose every row's first token."""
        serving = self.serve(params) if serving is None else serving
        P = prompts_BP.shape[1]
        extra = prompt_places(P) - P
        prompts_BP = jnp.pad(
            jnp.asarray(prompts_BP, jnp.int32), ((0, 0), (extra, 0)), constant_values=self.pad_id
        )
        noise = (jnp.asarray(row_ids_B), key, jnp.asarray(self.allowed_V))
        state = _begin(
            self.config,
            self.fixed,
            self.stop_ids,
            self.pad_id,
            self.sampling.max_new_tokens,
            params,
            serving,
            prompts_BP,
            jnp.asarray(lengths_B, jnp.int32),
            noise,
        )
        return Decoding(self, serving, state)

    def __call__(self, params, prompts_BP, lengths_B, row_ids_B, key) -> Rollout:
        """Write all rows to their end or to `max_new_tokens`."""
        decoding = self.start(params, prompts_BP, lengths_B, row_ids_B, key)
        decoding.advance(self.sampling.max_new_tokens)
        return decoding.rollout()
