"""Strengths of several models from comparisons of pairs: Bradley–Terry with Davidson's ties and a term for the side.

    P(left wins) : P(right wins) : P(tie) = e^(a + s) : e^b : t · e^((a + b + s) / 2)

a, b strengths, s what the left side is worth, t how common ties are (Bradley & Terry 1952; Davidson 1970; Davidson &
Beaver 1977 for the order). Differences are log odds; 400 / ln 10 times that is Elo's scale. Fitted by Newton's method,
as the log-likelihood is concave. M models, C cells (left, right), Q free parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.sparse import csgraph

from jinstr.human import bootstrap, rates
from jinstr.human import judgements as judgements_lib

# A normal prior of standard deviation 10 on every parameter: where a model never loses, its strength stays finite.
PRECISION = 0.01


class Strengths(NamedTuple):
    models: tuple[str, ...]
    log_odds: np.ndarray  # f64 [M], mean 0
    covariance: np.ndarray  # f64 [M, M], of judgements as if each was of a prompt of its own
    side: float  # log odds that the left side is worth; NaN where models always stood on one side, which tells nothing
    tie: float  # t; 0 where nobody saw a tie
    groups: tuple[tuple[str, ...], ...]  # more than one: between them nothing can be said


def counts(judged: Sequence[judgements_lib.Judgement], models: Sequence[str], weights=None):
    """f64 [M, M, 3]: (left, right, outcome) with outcomes left, right, tie."""
    number = {model: n for n, model in enumerate(models)}
    found = np.zeros((len(models), len(models), 3))
    weights = np.ones(len(judged)) if weights is None else weights
    for judgement, weight in zip(judged, weights, strict=True):
        outcome = judgements_lib.VERDICTS.index(judgement.verdict)
        found[number[judgement.left], number[judgement.right], outcome] += weight
    return found


def groups_of(found: np.ndarray) -> np.ndarray:
    """The group of each model, [M]: models that a chain of comparisons connects."""
    played = found.sum(-1)
    return csgraph.connected_components(played + played.T, directed=False)[1]


def fit_counts(found: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(log odds [M], covariance [M, M], side, tie) of counts [M, M, 3]."""
    M = len(found)
    has_ties = found[..., 2].sum() > 0
    # Contrasts of the strengths, whose mean is 0, then the side, then the log of t.
    contrast_MQ = np.linalg.qr(np.eye(M) - 1 / M)[0][:, : M - 1]
    left, right = np.nonzero(found.sum(-1))
    n_CO = found[left, right]
    apart_CQ = contrast_MQ[left] - contrast_MQ[right]
    with_side = np.c_[apart_CQ, np.ones(len(left))]
    # Where a side always holds the same model, what it is worth cannot be told from what the model is worth.
    has_side = int(np.linalg.matrix_rank(with_side) > np.linalg.matrix_rank(apart_CQ))
    Q = M - 1 + has_side + has_ties
    outcomes = 3 if has_ties else 2
    x_COQ = np.zeros((len(left), outcomes, Q))
    x_COQ[:, 0, : M - 1] = contrast_MQ[left]
    x_COQ[:, 1, : M - 1] = contrast_MQ[right]
    if has_side:
        x_COQ[:, 0, M - 1] = 1.0
    if has_ties:
        x_COQ[:, 2] = (x_COQ[:, 0] + x_COQ[:, 1]) / 2
        x_COQ[:, 2, -1] = 1.0
    n_CO = n_CO[:, :outcomes]
    theta_Q = np.zeros(Q)
    for _ in range(100):
        u_CO = x_COQ @ theta_Q
        p_CO = np.exp(u_CO - u_CO.max(1, keepdims=True))
        p_CO /= p_CO.sum(1, keepdims=True)
        total_C = n_CO.sum(1)
        gradient_Q = np.einsum("co,coq->q", n_CO - total_C[:, None] * p_CO, x_COQ)
        gradient_Q = gradient_Q - PRECISION * theta_Q
        mean_CQ = np.einsum("co,coq->cq", p_CO, x_COQ)
        hessian_QQ = np.einsum("c,co,coq,cor->qr", total_C, p_CO, x_COQ, x_COQ)
        hessian_QQ -= np.einsum("c,cq,cr->qr", total_C, mean_CQ, mean_CQ)
        hessian_QQ += PRECISION * np.eye(Q)
        step_Q = np.linalg.solve(hessian_QQ, gradient_Q)
        # A long first step can overshoot where a model never loses.
        theta_Q = theta_Q + step_Q * min(1.0, 2.0 / max(1e-12, np.abs(step_Q).max()))
        if np.abs(step_Q).max() < 1e-9:
            break
    covariance_QQ = np.linalg.inv(hessian_QQ)[: M - 1, : M - 1]
    tie = math.exp(theta_Q[-1]) if has_ties else 0.0
    return (
        contrast_MQ @ theta_Q[: M - 1],
        contrast_MQ @ covariance_QQ @ contrast_MQ.T,
        float(theta_Q[M - 1]) if has_side else math.nan,
        tie,
    )


def fit(judged: Sequence[judgements_lib.Judgement]) -> Strengths:
    """Strengths of all models that were compared, by name. Errors: ValueError without judgements."""
    shown = [j for j in judged if not j.repeat]
    models = tuple(sorted({m for j in shown for m in (j.left, j.right)}))
    if not models:
        raise ValueError("no judgements")
    found = counts(shown, models)
    group_M = groups_of(found)
    groups = [
        tuple(m for m, g in zip(models, group_M) if g == group) for group in range(max(group_M) + 1)
    ]
    return Strengths(models, *fit_counts(found), tuple(groups))


def intervals(
    judged: Sequence[judgements_lib.Judgement], *, samples: int, seed: int, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Intervals of the strengths by drawing whole prompts again."""
    shown = [j for j in judged if not j.repeat]
    models = tuple(sorted({m for j in shown for m in (j.left, j.right)}))
    prompt_N = bootstrap.numbered([j.prompt for j in shown])
    cells_P = np.zeros((prompt_N.max() + 1, len(models), len(models), 3))
    number = {model: n for n, model in enumerate(models)}
    for prompt, j in zip(prompt_N, shown):
        outcome = judgements_lib.VERDICTS.index(j.verdict)
        cells_P[prompt, number[j.left], number[j.right], outcome] += 1
    drawn_SP = bootstrap.draws(len(cells_P), samples, np.random.default_rng(seed))
    drawn = np.einsum("sp,pijo->sijo", drawn_SP, cells_P)
    found_SM = np.array([fit_counts(cells)[0] for cells in drawn])
    return {m: bootstrap.interval(found_SM[:, n], level) for n, m in enumerate(models)}


def wald(strengths: Strengths, z: float = rates.Z) -> dict[str, tuple[float, float]]:
    """Intervals by the curvature of the likelihood: right where every judgement is of a prompt of its own."""
    half = z * np.sqrt(np.diag(strengths.covariance))
    middle = strengths.log_odds
    return {
        m: (float(middle[n] - half[n]), float(middle[n] + half[n]))
        for n, m in enumerate(strengths.models)
    }
