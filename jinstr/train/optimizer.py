"""Optimizer and learning-rate schedules, all in one place."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jinstr import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What one update does."""

    name: str = "adamw"  # adamw | muon (matrices by Muon, the rest by AdamW) | adafactor
    learning_rate: float = 3e-4  # peak
    schedule: str = "cosine"  # cosine | wsd (warm up, stay, decay) | constant
    warmup_steps: int = 100  # linear from 0; at most a tenth of the run
    decay_share: float = 0.2  # wsd: share of all steps that decays
    final_share: float = 0.1  # learning rate at the end, as a share of the peak
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # not on norms and biases
    clip_norm: float = 1.0  # global gradient norm; 0 = no clipping
    mu_dtype: str = "float32"  # type of the first moment
    moments: str = "device"  # where they wait between updates: device | host
    z_loss: float = 0.0  # weight of logsumexp²
    muon_learning_rate: float = 0.02  # peak for the matrices under muon
    ema_decay: float = 0.0  # keep an average of the parameters too; 0 = no

    def __post_init__(self):
        choices = {
            "name": ("adamw", "muon", "adafactor"),
            "schedule": ("cosine", "wsd", "constant"),
            "moments": ("device", "host"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise errors.ConfigError(
                    "JI-OPT-001",
                    f"OptimizerConfig.{field} = {getattr(self, field)!r}; allowed: {allowed}",
                )


def make_schedule(config: OptimizerConfig, num_steps: int, peak: float):
    """step → learning rate. The warm-up is at most a tenth of the run, so that short runs train too."""
    warmup = min(config.warmup_steps, max(1, num_steps // 10))
    start, end = (
        peak / (warmup + 1),
        peak * config.final_share,
    )  # the first update is not a zero one
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(start, peak, warmup)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            start, peak, warmup, max(num_steps, warmup + 1), end
        )
    decay = max(1, int(num_steps * config.decay_share))
    stay = max(0, num_steps - warmup - decay)
    return optax.join_schedules(
        [
            optax.linear_schedule(start, peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, end, decay),
        ],
        [warmup, warmup + stay],
    )


def decay_mask(params):
    """True where weight decay applies: matrices and stacks of matrices (adapters too), not norms and biases."""

    def is_matrix(path, leaf):
        names = [str(getattr(key, "key", key)) for key in path]
        return names[-1] in ("kernel", "embedding", "lora_a", "lora_b")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _muon_dimensions(params):
    """Muon orthogonalises the kernels of the blocks (stacked [L, in, out]); embedding and head stay with AdamW."""

    def dimensions(path, leaf):
        names = [str(getattr(key, "key", key)) for key in path]
        if names[0] != "blocks" or names[-1] != "kernel":
            return None
        return contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def make_optimizer(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
    """The optax transformation, clipping first. AdamW: arXiv 1711.05101; Muon: K. Jordan 2024, arXiv 2502.16982."""
    rate = make_schedule(config, num_steps, config.learning_rate)
    if config.name == "adamw":
        update = optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
            mu_dtype=jnp.dtype(config.mu_dtype),
        )
    elif config.name == "muon":
        update = contrib.muon(
            make_schedule(config, num_steps, config.muon_learning_rate),
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            weight_decay_mask=decay_mask,
            adam_weight_decay=config.weight_decay,
            adam_learning_rate=rate,
            mu_dtype=jnp.dtype(config.mu_dtype),
            muon_weight_dimension_numbers=_muon_dimensions,
        )
    else:
        update = optax.adafactor(rate, weight_decay_rate=config.weight_decay or None)
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return update
