"""A critic of its own beside the policy, and the text that PPO-ptx keeps the policy's likelihood on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jinstr import errors
from jinstr.data import dataset as dataset_lib
from jinstr.data import loader as loader_lib
from jinstr.models import config as config_lib
from jinstr.parallel import processes
from jinstr.rlhf import objectives, practice
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import base as base_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import startup
from jinstr.train import state as state_lib

PREFIX = "critic_"  # before the names of its arrays in checkpoints


class Critic(NamedTuple):
    """A model that values the states of answers."""

    model: config_lib.DecoderConfig
    abstract: dict  # of its state
    first: Callable[[], dict]  # its state before the first update
    step: Callable[[dict, dict], tuple[dict, dict]]


def make(
    critic: str,
    init: str,
    tokenizer,
    execution: config_lib.ExecutionConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    loss: objectives.ValueLossConfig,
    mesh,
    rules,
    *,
    updates: int,
    microbatches: int,
    seed: int,
) -> Critic:
    """A critic that begins as a copy of INIT ("policy") or as a reward model (its RUN_DIR), and trains all parameters.

    Errors: ConfigError for a reward model with another tokenizer: a critic reads the policy's tokens.
    """
    base = base_lib.open_base(init if critic == "policy" else critic)
    if tokenizer_lib.load(base.tokenizer_path).fingerprint != tokenizer.fingerprint:
        raise errors.ConfigError(
            "JI-PPO-001",
            f"CRITIC={critic} has another tokenizer than INIT={init}: a critic reads the policy's tokens; give "
            "CRITIC=policy or shared (as REWARD it may be used, which is given text)",
        )
    base = base_lib.with_heads(base, "score")
    plain = dataclasses.replace(execution, lora=config_lib.LoraConfig())
    model = config_lib.executed(base.config, plain)
    transform, abstract, step = trained(
        model, optimizer, loss, mesh, rules, updates=updates, microbatches=microbatches
    )
    first = functools.partial(startup.first_state, model, transform, abstract, seed, base)
    return Critic(model, abstract, first, step)


def trained(
    model: config_lib.DecoderConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    loss: objectives.ValueLossConfig,
    mesh,
    rules,
    *,
    updates: int,
    microbatches: int,
    options: dict[str, str] | None = None,
) -> tuple:
    """(transformation, abstract state, step) of a critic's model. options: as in state.make_step."""
    transform = optimizer_lib.make_optimizer(optimizer, updates)
    abstract = state_lib.abstract_state(
        model, transform, mesh, rules, ema=False, moments=optimizer.moments
    )
    step = state_lib.make_step(
        model, optimizer, transform, mesh, rules, abstract, microbatches,
        objective=objectives.value_objective(model, loss, rules), options=options,
    )  # fmt: skip
    return transform, abstract, step


def prefixed(state: dict) -> dict:
    """The critic's arrays under names of their own."""
    return {f"{PREFIX}{name}": value for name, value in state.items()}


def taken_apart(state: dict | None) -> tuple[dict | None, dict | None]:
    """(policy's state, critic's) of what a checkpoint held; both are at the same update. None of what is not there."""
    if state is None:
        return None, None
    own = {name.removeprefix(PREFIX): v for name, v in state.items() if name.startswith(PREFIX)}
    rest = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    return rest, own | {"step": jax.numpy.array(rest["step"])} if own else None


def make_values(model: config_lib.DecoderConfig, rules, mesh=None) -> Callable:
    """Jitted (parameters, batch) → (values [R, T],)."""

    def values(params, batch):
        return (objectives.values(model, params, batch, rules),)

    return practice.on_mesh(jax.jit(values), mesh)


def text_loader(
    coefficient: float,
    text: dataset_lib.DataConfig,
    base,
    template: str,
    prepare,
    seed: int,
    *,
    multiple: int,
) -> loader_lib.Loader | None:
    """The text of PPO-ptx; None without. multiple: what the rows of a batch must divide by.

    Errors: ConfigError where only one of text and coefficient is given, or for a batch that does not divide.
    """
    if bool(coefficient) != bool(text.data):
        raise errors.ConfigError(
            "JI-PPO-002",
            f"TEXT={text.data!r} TEXT_COEFFICIENT={coefficient:g}: set both, or neither",
        )
    if not coefficient:
        return None
    rows = dataset_lib.batch_rows(text)
    if rows % multiple:
        wanted = -(-rows // multiple) * multiple * text.seq_len
        raise errors.ConfigError(
            "JI-PPO-004",
            f"TEXT_BATCH_TOKENS={text.batch_tokens} is {rows} rows of text, which do not divide over {multiple} parts "
            f"(devices times MICROBATCHES); set {wanted}",
        )
    found = dataset_lib.load(
        text, tokenizer_path=base.tokenizer_path, template=template, prepare_config=prepare, seed=seed,
        may_prepare=processes.count() == 1,
    )  # fmt: skip
    return found.train


def text_batch(loader: loader_lib.Loader | None, update: int) -> dict[str, np.ndarray]:
    """The text of an update, its weights adding up to 1; {} without."""
    if loader is None:
        return {}
    batch = loader.read(update)
    total = max(1e-8, float(batch["loss_weights"].sum()))
    batch |= {"loss_weights": batch["loss_weights"] / np.float32(total)}
    return {f"{objectives.TEXT}{name}": value for name, value in batch.items()}


def means(prefix: str, updates: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each number that a critic's updates returned."""
    if not updates:
        return {}
    counted = ("weight", "tokens", "square")
    names = [name for name in updates[0] if name not in counted]
    return {f"{prefix}/{name}": float(np.mean([u[name] for u in updates])) for name in names}
