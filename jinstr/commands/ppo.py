"""`jinstr ppo`: tune a model by scores of its own answers, with a critic, as InstructGPT did."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time

import jax
import numpy as np

from jinstr import errors
from jinstr.data import dataset as dataset_lib
from jinstr.data import prepare as prepare_lib
from jinstr.losses import advantages as advantages_lib
from jinstr.losses import masked, policy
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import boundary, critics, objectives, practice, recorder, rewards, rewards_shared
from jinstr.rlhf import prompts as prompts_lib
from jinstr.rlhf import rollout as rollout_lib
from jinstr.train import adapters, model_files, replicas, startup
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoConfig:
    """What PPO has and GRPO has not."""

    critic: str = "shared"  # shared (a head on the policy) | policy (a copy of INIT) | RUN_DIR of a reward model
    value_coefficient: float = 0.1  # weight of a shared critic's loss
    critic_warmup: int = 0  # first iterations in which only a critic of its own is trained
    discount: float = 1.0
    trace: float = 0.95  # lambda of GAE (arXiv 1506.02438); 1 = no bias by the critic
    whiten_rewards: bool = False  # to variance 1, without moving their mean
    kl_target: float = (
        0.0  # nats of an answer that KL_REWARD is steered to; 0 = it stays (arXiv 1909.08593)
    )
    kl_horizon: float = 10_000.0  # answers after which it has moved by e^±0.2 at most
    text_coefficient: float = (
        0.0  # weight of the likelihood of text beside each update (PPO-ptx); 27.8 in InstructGPT
    )

    def __post_init__(self):
        if self.critic == "shared" and self.critic_warmup:
            raise errors.ConfigError(
                "JI-PPO-003",
                f"CRITIC_WARMUP={self.critic_warmup} needs a critic of its own (CRITIC=policy or RUN_DIR): a shared "
                "one moves the policy",
            )


def ppo(
    *,
    init: str,
    template: str,
    questions: prompts_lib.PromptConfig,
    text: dataset_lib.DataConfig,
    reward: rewards.RewardConfig,
    rollout: rollout_lib.RolloutConfig,
    algorithm: PpoConfig,
    loss: objectives.PolicyLossConfig,
    value_loss: objectives.ValueLossConfig,
    config: practice.PracticeConfig,
    limits: recorder.LimitConfig,
    execution: config_lib.ExecutionConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    critic_optimizer: optimizer_lib.OptimizerConfig,
    checkpoint: checkpoint_lib.CheckpointConfig,
    prepare: prepare_lib.PrepareConfig,
    mesh: mesh_lib.MeshConfig,
    rules: mesh_lib.AxisRules,
    run_dir: str,
    module: str,
    tensorboard: bool,
    wandb: str,
    seed: int,
) -> dict:
    """Write answers, score them, and make likelier what was better than the critic expected.

    init: the policy to begin from, usually of `jinstr sft`; it is the reference of the KL penalty too (under LoRA by
    turning the adapters off). text: what the likelihood of text is kept on, with `algorithm.text_coefficient`.
    Returns the summary that is written to RUN_DIR/summary.json.
    """
    started = time.time()
    startup.use_compile_cache()
    run_dir = pathlib.Path(run_dir)
    shared = algorithm.critic == "shared"
    own = boundary.open_policy(run_dir, init, "both" if shared else "language", template, execution)
    model, base = own.model, own.base
    prompts = boundary.open_prompts(questions, own, seed)
    devices = mesh_lib.make_mesh(mesh)
    opened = rewards_shared.open_rewards(reward, module, devices, rules)
    count = mesh_lib.devices_along(devices, rules.batch)
    texts = critics.text_loader(
        algorithm.text_coefficient, text, base, own.template, prepare, seed, multiple=count * config.microbatches
    )  # fmt: skip
    moving = max(1, config.iterations - algorithm.critic_warmup)  # iterations that move the policy
    transform = optimizer_lib.make_optimizer(optimizer, moving * config.updates)
    abstract = state_lib.abstract_state(
        model, transform, devices, rules, ema=optimizer.ema_decay > 0, moments=optimizer.moments
    )
    checkpointer = checkpoint_lib.Checkpointer(run_dir, checkpoint)
    frozen, record = startup.frozen_base(run_dir, model, base, devices, rules)
    reference = startup.reference(model, base, abstract)
    critic = None
    if not shared:
        critic = critics.make(
            algorithm.critic, init, own.tokenizer, execution, critic_optimizer, value_loss, devices, rules,
            updates=config.iterations * config.updates, microbatches=config.microbatches, seed=seed,
        )  # fmt: skip
    wanted = abstract | (critics.prefixed(critic.abstract) if critic else {})
    identity = {"prompts": prompts.identity, "config": boundary.identity(config, rollout)}
    state, done, rl = boundary.restore(checkpointer, wanted, identity)
    state, critic_state = critics.taken_apart(state)
    if state is None:
        state = startup.first_state(model, transform, abstract, seed, base)
        critic_state = critic.first() if critic else None
    recorder.check_separate(reference, frozen, state["params"])
    kl_weight = rl.get("kl_weight", config.kl_reward) if algorithm.kl_target else config.kl_reward
    # Only now: a start that is refused above must not touch the files of the model that is there.
    model_files.write(run_dir, model, base.tokenizer_path, own.template)
    adapters.write(run_dir, record)

    weights = (algorithm.value_coefficient, algorithm.text_coefficient)
    objective = objectives.ppo_objective(model, loss, value_loss, *weights, rollout.temperature, rules)  # fmt: skip
    step_function = state_lib.make_step(
        model, optimizer, transform, devices, rules, abstract, config.microbatches, frozen, objective
    )  # fmt: skip
    logps = practice.make_logps(model, rollout.temperature, rules, devices)
    values = critics.make_values(model if shared else critic.model, rules, devices)
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
            scores = practice.assembled(config, found.total, written)

            # What the trainer's own forward says of the answers, in the rows of the first pass.
            between.phase("forward", number)
            split = practice.splitter(
                written, scores, config, (seed, number - 1),
                longest_prompt=questions.longest, pad_id=own.tokenizer.pad_id, devices=count,
            )  # fmt: skip
            forward = functools.partial(
                practice.forward, parts=split(0), mask=written.mask, place=place
            )
            old, entropy = forward(functools.partial(logps, params), count=2)
            below = reference or frozen
            reference_logp, _ = forward(lambda batch, p=below: logps(p, batch, True), count=2)
            valuing = functools.partial(values, params if shared else critic_state["params"])
            (old_values,) = forward(valuing, count=1)
            kl = ((old - reference_logp) * written.mask).sum(1)
            arrays, trained, extra = _arrays(
                algorithm, scores, written, old, reference_logp, old_values, kl_weight
            )

            between.phase("update", number)
            updates, critic_updates = [], []
            for update, rows in between.passes(split, number):
                shares = practice.weights(rows, trained, "dapo")
                batch = practice.batch_of(rows, written.mask, arrays | shares)
                if critic:
                    critic_state, told = critic.step(critic_state, place(batch))
                    critic_updates.append(practice.floats(told))
                if number > algorithm.critic_warmup:
                    beside = critics.text_batch(texts, (number - 1) * config.updates + update)
                    state, told = step_function(state, place(batch | beside))
                    updates.append(practice.floats(told))

            extra |= {"kl_weight": kl_weight} | critics.means("value", critic_updates)
            rewarded = scores - kl_weight * kl
            flight.iteration(number, written, found, rewarded, kl, entropy, old, updates, extra)
            if algorithm.kl_target and updates:  # else, while only the critic learns, the KL is 0
                kl_weight = _steered(algorithm, kl_weight, kl[np.isfinite(scores)])
            also = [critics.prefixed(critic_state)] if critic else []
            between.after(number, [state, *also], kl_weight=kl_weight)
        between.end(opened)
    return boundary.summarise(run_dir, "jinstr ppo", own, devices, config, started)


def _arrays(
    algorithm: PpoConfig,
    scores: np.ndarray,
    written: practice.Written,
    old: np.ndarray,
    reference_logp: np.ndarray,
    old_values: np.ndarray,
    kl_weight: float,
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, float]]:
    """(per-token arrays [E, N] of the update, tokens that are trained bool [E, N], what is logged of the critic)."""
    token_rewards, trained, _ = advantages_lib.token_rewards(
        scores, old, reference_logp, written.mask, kl_weight
    )
    if algorithm.whiten_rewards:
        token_rewards = masked.whiten(token_rewards, trained, shift_mean=False)
    advantage, returns = advantages_lib.gae(
        token_rewards, old_values, trained, discount=algorithm.discount, trace=algorithm.trace
    )
    arrays = {
        "old_logp": old,
        "reference_logp": reference_logp,
        "advantages": np.asarray(masked.whiten(advantage, trained)),
        "old_values": old_values,
        "returns": np.asarray(returns),
    }
    told = {
        "value/explained_variance": float(policy.explained_variance(old_values, returns, trained)),
        "value/mean": float(masked.mean(old_values, trained)),
    }
    return arrays, np.asarray(trained), told


def _steered(algorithm: PpoConfig, kl_weight: float, kl: np.ndarray) -> float:
    """The KL weight of the next iteration."""
    target, horizon = algorithm.kl_target, algorithm.kl_horizon
    return float(policy.adaptive_kl(kl_weight, kl.mean(), target, horizon, len(kl)))
