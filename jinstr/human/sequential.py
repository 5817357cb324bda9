"""Is it decided yet? A test that may be looked at after every sheet, and stopped at any look.

Each prompt brings x, the mean outcome of its judgements: 1 won, 0 lost, ties half. Under the null hypothesis that
neither model is better, x has mean 1/2. Whoever bets on x with λ in (-1, 1) multiplies his stake by 1 + λ (2x - 1), on
average by 1 under the null; the mean stake of many such players, e, is a test martingale, so that
P(e ever reaches 1/α) ≤ α (Ville's inequality; Waudby-Smith & Ramdas, JRSS B 86, 2024, for bounded means). Ties multiply
by 1. Where x is 0 or 1 a player is the likelihood ratio of a coin with p = (1 + λ) / 2 against a fair one.
N prompts, L players, S simulated futures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jinstr.human import judgements as judgements_lib

ALPHA = 0.05
# The players' p lie around 1/2 as Beta(A, A): most expect 60:40 to 75:25, few are ready for 95:5.
A = 4.0
PLAYERS = 99


def players() -> tuple[np.ndarray, np.ndarray]:
    """(λ [L], share of the stakes that each has [L])."""
    p_L = (np.arange(PLAYERS) + 0.5) / PLAYERS
    weight_L = (p_L * (1 - p_L)) ** (A - 1)
    return 2 * p_L - 1, weight_L / weight_L.sum()


def log_e(outcomes: np.ndarray) -> np.ndarray:
    """log e after every prompt, f64 [..., N], of mean outcomes f64 [..., N] in the order in which they came."""
    bet_L, weight_L = players()
    total = np.log1p(bet_L * (2 * np.asarray(outcomes, float)[..., None] - 1)).cumsum(-2)
    return np.logaddexp.reduce(total + np.log(weight_L), axis=-1)


def complete(judged: Sequence[judgements_lib.Judgement], model: str, overlap: int) -> list[float]:
    """Mean outcomes for `model` of the prompts that `overlap` people have judged, in the order they were done.

    A prompt counts once, when it is done: or its judgements would pass for several prompts.
    """
    seen: dict[str, list[float]] = {}
    found = []
    for judgement in judged:
        outcomes = seen.setdefault(judgement.prompt, [])
        if judgement.repeat or len(outcomes) >= overlap:
            continue
        outcomes.append(judgements_lib.outcome(judgement, model))
        if len(outcomes) == overlap:
            found.append(float(np.mean(outcomes)))
    return found


class Forecast(NamedTuple):
    """Prompts that are still to be judged until it is decided, if what was seen goes on."""

    median: float  # inf where most futures are not decided within the horizon
    low: float  # a tenth of the futures need fewer
    high: float  # a tenth need more
    decided: float  # share of the futures that are decided within the horizon
    horizon: int


def forecast(
    outcomes: Sequence[float], *, horizon: int, samples: int, seed: int, alpha: float = ALPHA
) -> Forecast:
    """Simulated futures: rates of wins, ties and losses drawn from their posterior, then prompts from those."""
    rng = np.random.default_rng(seed)
    x = np.asarray(outcomes, float)
    counts = [(x > 0.5).sum(), (x == 0.5).sum(), (x < 0.5).sum()]
    rates_S3 = rng.dirichlet(np.array(counts) + 0.5, samples)
    draw_SN = rng.random((samples, horizon))
    future_SN = np.where(
        draw_SN < rates_S3[:, :1],
        1.0,
        np.where(draw_SN < rates_S3[:, :2].sum(1, keepdims=True), 0.5, 0.0),
    )
    bet_L, weight_L = players()
    before_L = np.log1p(bet_L * (2 * x[:, None] - 1)).sum(0) + np.log(weight_L)
    # A player's stake depends on how many were won and lost, not on their order.
    won_SN, lost_SN = (future_SN == 1).cumsum(1), (future_SN == 0).cumsum(1)
    needed_S = np.full(samples, math.inf)
    for sample in range(samples):
        stake_NL = (
            before_L
            + won_SN[sample, :, None] * np.log1p(bet_L)
            + lost_SN[sample, :, None] * np.log1p(-bet_L)
        )
        reached = np.logaddexp.reduce(stake_NL, axis=1) >= -math.log(alpha)
        if reached.any():
            needed_S[sample] = reached.argmax() + 1
    low, median, high = np.quantile(needed_S, [0.1, 0.5, 0.9], method="higher")
    return Forecast(
        float(median), float(low), float(high), float(np.isfinite(needed_S).mean()), horizon
    )


class Decision(NamedTuple):
    prompts: int  # that are judged by all who shall
    e: float  # the stake: 20 decides at 5 %
    largest: float  # e at its best look; what was decided stays decided
    decided_at: int  # prompts after which it was; 0 = not yet
    better: bool | None  # is `model` the better one? None = not decided
    path: tuple[float, ...]  # e after every prompt
    forecast: Forecast | None  # None once it is decided


def decide(
    judged: Sequence[judgements_lib.Judgement],
    model: str,
    *,
    overlap: int,
    planned: int,
    seed: int,
    samples: int = 400,
    alpha: float = ALPHA,
) -> Decision:
    """Where it stands. planned: prompts of the study; the forecast looks twice as far."""
    outcomes = complete(judged, model, overlap)
    path = np.exp(np.minimum(log_e(np.array(outcomes)), 700)) if outcomes else np.array([])
    reached = np.flatnonzero(path >= 1 / alpha)
    at = int(reached[0]) + 1 if len(reached) else 0
    better = None if not at else bool(np.mean(outcomes[:at]) > 0.5)
    horizon = max(50, 2 * planned - len(outcomes))
    ahead = (
        None if at else forecast(outcomes, horizon=horizon, samples=samples, seed=seed, alpha=alpha)
    )
    last, most = (float(path[-1]), float(path.max())) if outcomes else (1.0, 1.0)
    return Decision(len(outcomes), last, most, at, better, tuple(map(float, path)), ahead)
