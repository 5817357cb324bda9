"""A trained reward model: conversations to scores, as text, with its own tokenizer and template.

RUN_DIR/reward.json   {"format", "shift": what is taken off its scores, "spread": their standard deviation, "count",
                       "demonstrations": where they come from}

Scores are shifted so that demonstrations score 0 on average (Ouyang 2022, arXiv 2203.02155, appendix C.2): the loss of
a reward model sees differences only. B rows, T places.
"""

from __future__ import annotations

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


def load(model: str, step: int | None = None) -> RewardModel:
    """The reward model of a run directory, RUN_DIR or RUN_DIR@STEP, on the first device.

    Errors: ConfigError for a model without a score head; StorageError when it is not there, or not shifted yet.
    """
    run = serving.load_run(model, step, heads="score")
    shift = shift_of(pathlib.Path(model.partition("@")[0]).expanduser())
    return RewardModel(run.config, run.params, run.tokenizer, run.template, shift)


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


@functools.partial(jax.jit, static_argnums=0)
def _last_scores(config, params, tokens_BT, lengths_B):
    """Score at the last token of each row, f32 [B]."""
    T = tokens_BT.shape[1]
    places_BT = jnp.broadcast_to(jnp.arange(T)[None, :], tokens_BT.shape)
    real_BT = (places_BT < lengths_B[:, None]).astype(jnp.int32)
    params = state_lib.cast_params(config, params)
    hidden_BTD = decoder.forward(config, params, tokens_BT, places_BT * real_BT, real_BT)
    last_BD = jnp.take_along_axis(hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return decoder.scores(params, last_BD)


def _places(length: int) -> int:
    """Places of the rows that texts of this length are scored in: few shapes are compiled."""
    return max(SHORTEST, 1 << (length - 1).bit_length())


def score_ids(
    config: config_lib.DecoderConfig,
    params: dict,
    texts: Sequence[Sequence[int]],
    *,
    progress: bool = False,
) -> np.ndarray:
    """The score head at the last token of each text, f32 [N]; NaN for texts longer than the model is meant for.

    What a text gets does not depend, beyond rounding, on the texts beside it.
    """
    found = np.full(len(texts), np.nan, np.float32)
    fitting = [n for n, ids in enumerate(texts) if 0 < len(ids) <= config.max_positions]
    by_places: dict[int, list[int]] = {}
    for number in sorted(fitting, key=lambda n: len(texts[n])):
        by_places.setdefault(_places(len(texts[number])), []).append(number)
    with tqdm.tqdm(total=len(fitting), desc="score", disable=None if progress else True) as bar:
        for places, numbers in by_places.items():
            rows = max(1, BATCH_PLACES // places)
            for first in range(0, len(numbers), rows):
                part = numbers[first : first + rows]
                tokens_BT = np.zeros((rows, places), np.int32)
                lengths_B = np.ones(rows, np.int32)
                for row, number in enumerate(part):
                    tokens_BT[row, : len(texts[number])] = texts[number]
                    lengths_B[row] = len(texts[number])
                scores_B = np.asarray(_last_scores(config, params, tokens_BT, lengths_B))
                found[part] = scores_B[: len(part)]
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
    return score_ids(model.config, model.params, texts, progress=progress) - np.float32(model.shift)
