"""A trained reward model: conversations to scores, as text, with its own tokenizer and template.

RUN_DIR/reward.json   {"format", "shift": what is taken off its scores, "spread": their standard deviation, "count",
                       "demonstrations": where they come from}

Scores are shifted so that demonstrations score 0 on average (Ouyang 2022, arXiv 2203.02155, appendix C.2): the loss of
a reward model sees differences only. B rows, T places.
"""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import together
from jinstr.text import render
from jinstr.train import serving, storage
from jinstr.train import state as state_lib

FILE = "reward.json"
FORMAT = 1
BATCH_PLACES = 8192  # places that are scored at a time
SHORTEST = 64  # places of the shortest rows that are compiled for


class RewardModel(NamedTuple):
    """A model with a score head, and all that scoring text takes."""

    config: config_lib.DecoderConfig
    params: dict
    tokenizer: Any
    template: Any
    shift: float  # taken off the head's output
    mesh: Any = None  # that it lies on in parts; None = on one device
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules()


def load(
    model: str,
    step: int | None = None,
    mesh=None,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
) -> RewardModel:
    """The reward model of a run directory, RUN_DIR or RUN_DIR@STEP, on the first device or in parts on a mesh.

    Errors: ConfigError for a model without a score head; StorageError when it is not there, or not shifted yet.
    """
    run = serving.load_run(model, step, heads="score", mesh=mesh, rules=rules)
    shift = shift_of(pathlib.Path(model.partition("@")[0]).expanduser())
    return RewardModel(run.config, run.params, run.tokenizer, run.template, shift, mesh, rules)


def shift_of(run_dir: pathlib.Path) -> float:
    """What is taken off the scores of a run's model. Errors: StorageError when it is not written yet."""
    path = run_dir / FILE
    try:
        return float(json.loads(path.read_text("utf-8"))["shift"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.StorageError(
            "JI-REWARD-001",
            f"{path} cannot be used ({error!r}); `jinstr reward` writes it at its end: let it finish",
        ) from None


def write_shift(run_dir, scores: np.ndarray, demonstrations: str) -> dict:
    """Write reward.json from the scores of demonstrations before any shift, f32 [N]; returns what it says."""
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        raise errors.DataError(
            "JI-REWARD-002",
            f"none of {len(scores)} demonstrations ({demonstrations}) could be scored",
        )
    facts = {
        "format": FORMAT,
        "shift": float(finite.mean()),
        "spread": float(finite.std()),
        "count": len(finite),
        "demonstrations": demonstrations,
    }
    storage.write_json(pathlib.Path(run_dir) / FILE, facts)
    return facts


@functools.partial(jax.jit, static_argnums=(0, 1))
def last_scores(config, rules: mesh_lib.AxisRules, params, tokens_BT, lengths_B):
    """Score at the last token of each row, f32 [B]."""
    T = tokens_BT.shape[1]
    places_BT = jnp.broadcast_to(jnp.arange(T)[None, :], tokens_BT.shape)
    real_BT = (places_BT < lengths_B[:, None]).astype(jnp.int32)
    params = state_lib.cast_params(config, params)
    hidden_BTD = decoder.forward(
        config, params, tokens_BT, places_BT * real_BT, real_BT, rules=rules
    )
    last_BD = jnp.take_along_axis(hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return decoder.scores(params, last_BD)


def _by_rows(mesh, rules: mesh_lib.AxisRules, ndim: int) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, rules.spec("batch", *[None] * (ndim - 1)))


def row_places(length: int) -> int:
    """Places of the rows that texts of this length are scored in: few shapes are compiled."""
    return max(SHORTEST, 1 << (length - 1).bit_length())


def rows_of(places: int, count: int, devices: int) -> int:
    """Rows that are scored at a time, of so many places, where `count` texts are left: alike on every device, and on
    several of them no more than there are texts for."""
    each = max(1, BATCH_PLACES // places)
    while devices > 1 and each > 1 and devices * (each // 2) >= count:
        each //= 2
    return each * devices


def score_ids(
    config: config_lib.DecoderConfig,
    params: dict,
    texts: Sequence[Sequence[int]],
    *,
    progress: bool = False,
    mesh=None,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
) -> np.ndarray:
    """The score head at the last token of each text, f32 [N]; NaN for texts longer than the model is meant for.

    What a text gets does not depend, beyond rounding, on the texts beside it.
    """
    found = np.full(len(texts), np.nan, np.float32)
    fitting = [n for n, ids in enumerate(texts) if 0 < len(ids) <= config.max_positions]
    devices = 1 if mesh is None else mesh_lib.devices_along(mesh, rules.batch)
    by_places: dict[int, list[int]] = {}
    for number in sorted(fitting, key=lambda n: len(texts[n])):
        by_places.setdefault(row_places(len(texts[number])), []).append(number)
    with tqdm.tqdm(total=len(fitting), desc="score", disable=None if progress else True) as bar:
        for places, numbers in by_places.items():
            rows = rows_of(places, len(numbers), devices)
            for first in range(0, len(numbers), rows):
                part = numbers[first : first + rows]
                tokens_BT = np.zeros((rows, places), np.int32)
                lengths_B = np.ones(rows, np.int32)
                for row, number in enumerate(part):
                    tokens_BT[row, : len(texts[number])] = texts[number]
                    lengths_B[row] = len(texts[number])
                with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
                    if mesh is not None:
                        tokens_BT = together.put(tokens_BT, _by_rows(mesh, rules, 2))
                        lengths_B = together.put(lengths_B, _by_rows(mesh, rules, 1))
                    scores_B = last_scores(config, rules, params, tokens_BT, lengths_B)
                found[part] = together.fetch(scores_B)[: len(part)]
                bar.update(len(part))
    return found


def score(
    model: RewardModel, conversations: Sequence[Sequence[Mapping]], *, progress: bool = False
) -> np.ndarray:
    """Scores f32 [N] of conversations that end with an answer; NaN where there is none to score: never 0."""
    texts = [
        render.render(messages, model.template, model.tokenizer).tokens
        for messages in conversations
    ]
    place = {"mesh": model.mesh, "rules": model.rules}
    scores = score_ids(model.config, model.params, texts, progress=progress, **place)
    return scores - np.float32(model.shift)
