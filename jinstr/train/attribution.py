"""What each example of a batch does to its loss and gradient.

Segments never see each other, so an example alone in a row has the loss that it has in its batch; losses and gradients
of a batch are the sums over its examples. B rows, T places, W the sum of the batch's loss weights, L layers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from jinstr.data import batching
from jinstr.models import config as config_lib
from jinstr.models import lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import state as state_lib

SHORTEST = 128  # places of the shortest row that is compiled for


class Segment(NamedTuple):
    """Where an example stands in a batch."""

    row: int
    number: int  # in its row, from 1
    places: np.ndarray


class Sums(NamedTuple):
    """A batch as the sum of its examples."""

    nll: float  # nats
    weight: float  # W
    gradient: dict  # of the summed loss, by parameter

    @property
    def loss(self) -> float:
        return self.nll / max(self.weight, 1e-8)

    @property
    def grad_norm(self) -> float:
        return float(optax.tree.norm(self.gradient)) / max(self.weight, 1e-8)


def segments(batch: dict[str, np.ndarray]) -> list[Segment]:
    """The segments of a batch in the order of Loader.example_ids: row by row."""
    found = []
    for row, ids_T in enumerate(batch["segment_ids"]):
        for number in range(1, int(ids_T.max()) + 1):
            found.append(Segment(row, number, np.flatnonzero(ids_T == number)))
    return found


def alone(batch: dict[str, np.ndarray], segment: Segment, sign: float = 1.0) -> dict:
    """The batch [1, T'] of one segment, T' a power of two; loss weights times `sign`."""
    seq_len = batch["tokens"].shape[1]
    length = min(seq_len, max(SHORTEST, 1 << (len(segment.places) - 1).bit_length()))
    found = {}
    for name in batching.FIELDS:
        array = np.zeros((1, length), batch[name].dtype)
        array[0, : len(segment.places)] = batch[name][segment.row, segment.places]
        found[name] = array
    found["segment_ids"] = np.minimum(found["segment_ids"], 1)
    found["loss_weights"] *= np.float32(sign)
    return found


def make_adder(
    model: config_lib.DecoderConfig,
    rules: mesh_lib.AxisRules,
    z_loss: float,
    frozen: dict | None = None,
) -> Callable[[dict, dict, dict], tuple]:
    """Jitted (params, gradient so far, batch [1, T']) → (nll, norm of its gradient, gradient with it added).

    frozen: the base, where params are adapters.
    """

    @jax.jit
    def add(params, gradient, row, frozen):
        (_, nll), grads = jax.value_and_grad(
            lambda params: state_lib.nll_sum(model, lora.join(params, frozen), row, rules, z_loss),
            has_aux=True,
        )(params)
        return nll, optax.tree.norm(grads), jax.tree.map(jnp.add, gradient, grads)

    return lambda params, gradient, row: add(params, gradient, row, frozen or {})


def attribute(
    add: Callable, params: dict, batch: dict[str, np.ndarray], where: Sequence[Segment]
) -> tuple[list[dict], Sums]:
    """(facts of each example, the sums over all), with a bar on a terminal.

    Facts: weight (trained tokens, weighted), loss (nats per trained token), share (its part of the batch's loss: these
    sum to it), fall (by how much the batch's loss falls without it), grad_norm (of its part of the batch's gradient).
    """
    gradient = jax.tree.map(jnp.zeros_like, params)
    nlls, norms = [], []
    for segment in tqdm.tqdm(where, unit="example", disable=not sys.stderr.isatty(), leave=False):
        nll, norm, gradient = add(params, gradient, alone(batch, segment))
        nlls.append(float(nll))
        norms.append(float(norm))
    weights = [float(batch["loss_weights"][s.row, s.places].sum()) for s in where]
    sums = Sums(math.fsum(nlls), math.fsum(weights), gradient)
    total = max(sums.weight, 1e-8)
    facts = []
    for segment, nll, weight, norm in zip(where, nlls, weights, norms):
        facts.append(
            {
                "row": segment.row,
                "segment": segment.number,
                "places": len(segment.places),
                "weight": weight,
                "loss": nll / weight if weight else 0.0,
                "share": nll / total,
                "fall": sums.loss - (sums.nll - nll) / max(sums.weight - weight, 1e-8),
                "grad_norm": norm / total,
            }
        )
    return facts, sums


def ranked(facts: Sequence[dict], name: str) -> list[int]:
    """Numbers of the examples, the largest value of `name` first; what is not finite before all others."""
    return sorted(
        range(len(facts)),
        key=lambda i: -facts[i][name] if math.isfinite(facts[i][name]) else -math.inf,
    )


def without(
    add: Callable, params: dict, batch: dict, sums: Sums, left_out: Sequence[Segment]
) -> Sums:
    """The sums of the batch without some examples: loss and gradient are linear in the loss weights."""
    nll, weight, gradient = sums
    for segment in left_out:
        row = alone(batch, segment, sign=-1.0)
        less, _, gradient = add(params, gradient, row)
        nll, weight = nll + float(less), weight + float(row["loss_weights"].sum())
    return Sums(nll, weight, gradient)


def norms(sums: Sums) -> dict[str, list[float]]:
    """Gradient norm of every parameter by its path: one number, or one for each layer of a stacked one."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(sums.gradient):
        names = [str(key.key) for key in path]
        axes = tuple(range(1 if names[0] == "blocks" else 0, leaf.ndim))
        squares = np.atleast_1d(jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes))
        found[".".join(names)] = (np.sqrt(squares) / max(sums.weight, 1e-8)).tolist()
    return found


def by_layer(norms: dict[str, list[float]]) -> dict[str, float]:
    """Gradient norm of each layer ("layer 0", …) and of each part outside them ("embed", …), in order of the model."""
    squares: dict[str, float] = {}
    for name, values in norms.items():
        part = name.partition(".")[0]
        for layer, value in enumerate(values):
            key = f"layer {layer}" if part == "blocks" else part
            squares[key] = squares.get(key, 0.0) + value**2
    last = {"norm_final": 2, "head": 3}
    order = sorted(squares, key=lambda key: last.get(key, 1 if key.startswith("layer") else 0))
    return {key: math.sqrt(squares[key]) for key in order}
