"""`jinstr grpo`: tune a model by scores of its own answers, compared within each question (GRPO and its relatives)."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time

import jax
import numpy as np

from jinstr import errors
from jinstr.losses import advantages as advantages_lib
from jinstr.losses import checks
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import boundary, objectives, practice, recorder, rewards, rewards_shared
from jinstr.rlhf import prompts as prompts_lib
from jinstr.rlhf import rollout as rollout_lib
from jinstr.train import adapters, model_files, replicas, startup
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """How the scores of the answers to one question become advantages, and what a token counts."""

    advantage: str = "grpo"  # grpo (over the standard deviation) | dr_grpo (minus the mean) | rloo
    reduction: str = (
        "dapo"  # grpo (answers alike) | dapo (tokens alike) | dr_grpo (by the longest allowed)
    )
    overlong_buffer: int = (
        0  # last tokens before the longest length that cost up to 1 (DAPO); 0 = none
    )
    leave_out_cut: bool = False  # answers that did not end are not trained on (DAPO)

    def __post_init__(self):
        checks.one_of("GroupConfig.advantage", self.advantage, advantages_lib.GROUP_KINDS)
        checks.one_of("GroupConfig.reduction", self.reduction, objectives.REDUCTIONS)


def grpo(
    *,
    init: str,
    template: str,
    questions: prompts_lib.PromptConfig,
    reward: rewards.RewardConfig,
    rollout: rollout_lib.RolloutConfig,
    group: GroupConfig,
    loss: objectives.PolicyLossConfig,
    config: practice.PracticeConfig,
    limits: recorder.LimitConfig,
    execution: config_lib.ExecutionConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    checkpoint: checkpoint_lib.CheckpointConfig,
    mesh: mesh_lib.MeshConfig,
    rules: mesh_lib.AxisRules,
    run_dir: str,
    module: str,
    tensorboard: bool,
    wandb: str,
    seed: int,
) -> dict:
    """Write several answers to each question, score them, and make those above their group's mean likelier.

    init: the policy to begin from, usually of `jinstr sft`; it is the reference of the KL penalties too (under LoRA by
    turning the adapters off; without a penalty none is kept). Returns the summary that is written to
    RUN_DIR/summary.json.
    """
    started = time.time()
    if config.answers < 2:
        raise errors.ConfigError(
            "JI-GRPO-001", f"ANSWERS={config.answers}: a group has at least two answers to compare"
        )
    startup.use_compile_cache()
    run_dir = pathlib.Path(run_dir)
    own = boundary.open_policy(run_dir, init, "language", template, execution)
    model, base = own.model, own.base
    prompts = boundary.open_prompts(questions, own, seed)

    devices = mesh_lib.make_mesh(mesh)
    opened = rewards_shared.open_rewards(reward, module, devices, rules)
    transform = optimizer_lib.make_optimizer(optimizer, config.iterations * config.updates)
    abstract = state_lib.abstract_state(
        model, transform, devices, rules, ema=optimizer.ema_decay > 0, moments=optimizer.moments
    )
    checkpointer = checkpoint_lib.Checkpointer(run_dir, checkpoint)
    frozen, record = startup.frozen_base(run_dir, model, base, devices, rules)
    has_reference = bool(config.kl_reward or loss.kl_loss)
    reference = startup.reference(model, base, abstract) if has_reference else {}
    identity = {"prompts": prompts.identity, "config": boundary.identity(config, rollout)}
    state, done, rl = boundary.restore(checkpointer, abstract, identity)
    if state is None:
        state = startup.first_state(model, transform, abstract, seed, base)
    recorder.check_separate(reference, frozen, state["params"])
    # Only now: a start that is refused above must not touch the files of the model that is there.
    model_files.write(run_dir, model, base.tokenizer_path, own.template)
    adapters.write(run_dir, record)

    step_function = state_lib.make_step(
        model, optimizer, transform, devices, rules, abstract, config.microbatches, frozen,
        objectives.policy_objective(model, loss, rollout.temperature, rules),
    )  # fmt: skip
    logps = practice.make_logps(model, rollout.temperature, rules, devices)
    place = functools.partial(state_lib.place_batch, mesh=devices, rules=rules)
    write = boundary.make_write(own, rollout, devices, rules)
    flight = recorder.Recorder(
        run_dir, config.iterations, done, limits, decoder.compute_dtype(model).name,
        before=rl.get("recorder", {}), tensorboard=tensorboard, wandb=wandb,
    )  # fmt: skip
    root = jax.random.key(seed)

    def evaluate(iteration: int) -> None:
        if asked := prompts.held_out[: config.eval_prompts]:
            params = lora.join(state["params"], frozen)
            written = write(params, asked, 1, jax.random.fold_in(root, practice.EVALUATION))
            flight.evaluated(iteration, written, practice.score(opened, written).total)

    with boundary.running(config, checkpointer) as watch:
        between = boundary.Boundary(
            config, checkpointer, replicas.make_check(abstract["params"], devices), evaluate, flight, watch,
            identity, startup.place_of(model, devices),
        )  # fmt: skip
        between.before(run_dir, done)
        for number in range(done + 1, config.iterations + 1):
            between.phase("rollout", number)
            asked = practice.questions_of(prompts, number - 1, config.prompts, seed)
            params = lora.join(state["params"], frozen)
            written = write(params, asked, config.answers, jax.random.fold_in(root, number - 1))

            between.phase("score", number)
            found = practice.score(opened, written)
            scores = _scores(config, group, rollout, found.total, written)

            # What the trainer's own forward says of the answers, in the rows of the first pass.
            between.phase("forward", number)
            split = practice.splitter(
                written, scores, config, (seed, number - 1),
                longest_prompt=questions.longest, pad_id=own.tokenizer.pad_id,
                devices=mesh_lib.devices_along(devices, rules.batch),
            )  # fmt: skip
            forward = functools.partial(
                practice.forward, parts=split(0), mask=written.mask, place=place, count=2
            )
            old, entropy = forward(functools.partial(logps, params))
            reference_logp = old
            if has_reference:
                below = reference or frozen
                reference_logp, _ = forward(lambda batch, p=below: logps(p, batch, True))
            kl = ((old - reference_logp) * written.mask).sum(1)
            rewarded = scores - config.kl_reward * kl
            arrays, trained, flat = _arrays(config, group, rewarded, written, old, reference_logp)

            between.phase("update", number)
            updates = []
            for _, rows in between.passes(split, number):
                shares = practice.weights(rows, trained, group.reduction)
                batch = practice.batch_of(rows, written.mask, arrays | shares)
                state, values = step_function(state, place(batch))
                updates.append(practice.floats(values))

            flight.iteration(
                number, written, found, rewarded, kl, entropy, old, updates,
                extra={"adv/frac_zero_std": flat},
            )  # fmt: skip
            between.after(number, [state])
        between.end(opened)
    return boundary.summarise(run_dir, "jinstr grpo", own, devices, config, started)


def _scores(
    config: practice.PracticeConfig,
    group: GroupConfig,
    rollout: rollout_lib.RolloutConfig,
    total: np.ndarray,
    written: practice.Written,
) -> np.ndarray:
    """Scores f32 [E] with what length and a missing end cost; NaN = left out."""
    scores = practice.assembled(config, total, written)
    if group.overlong_buffer:
        penalty = advantages_lib.overlong_penalty(
            written.mask.sum(1), max_length=rollout.max_new_tokens, buffer=group.overlong_buffer
        )
        scores = scores + np.asarray(penalty)
    return np.where(written.ended, scores, np.nan) if group.leave_out_cut else scores


def _arrays(
    config: practice.PracticeConfig,
    group: GroupConfig,
    rewarded: np.ndarray,
    written: practice.Written,
    old: np.ndarray,
    reference_logp: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """(per-token arrays [E, N] of the update, tokens that are trained bool [E, N], share of groups that teach nothing).

    Every token of an answer has the answer's advantage.
    """
    advantage, flat = advantages_lib.group_advantages(
        rewarded.reshape(config.prompts, config.answers), group.advantage
    )
    trained = written.mask & np.isfinite(rewarded)[:, None]
    arrays = {
        "old_logp": old,
        "reference_logp": reference_logp,
        "advantages": np.asarray(advantage).reshape(-1, 1) * trained,
    }
    return arrays, trained, float(np.mean(flat))
