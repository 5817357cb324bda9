"""The exact frontier of score and KL, and where GRPO and PPO end on it: `python tests/benchmarks/frontier.py [--help]`.

32 tokens, answers of exactly 16, a uniform reference, score = how often token 7 was written. The policy that maximises
score − beta · KL(policy || reference) is known in closed form, and no policy lies above its curve. What is trained is a
transformer (2 layers, 64 wide) by the product's own rollouts, advantages and updates.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from jinstr.losses import advantages as advantages_lib
from jinstr.losses import masked
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import experience, objectives, practice
from jinstr.rlhf import rollout as rollout_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

VOCAB, LENGTH, TOKEN, PROMPT = 32, 16, 7, 0
MODEL = config_lib.DecoderConfig(
    vocab_size=VOCAB, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16, mlp_size=128,
    max_positions=64, tie_embeddings=False, scan_layers=False,
)  # fmt: skip
RULES = mesh_lib.AxisRules()


def optimum(beta: float) -> tuple[float, float]:
    """(score, KL in nats) of the best policy: tokens are independent, p = p0 e^(1/beta) / (1 − p0 + p0 e^(1/beta))."""
    if beta == 0:
        return float(LENGTH), LENGTH * math.log(VOCAB)
    p0 = 1 / VOCAB
    tilt = p0 * math.exp(1 / beta)
    return on_curve(tilt / (1 - p0 + tilt))


def on_curve(p: float) -> tuple[float, float]:
    p0 = 1 / VOCAB
    rest = (1 - p) * math.log((1 - p) / (1 - p0)) if p < 1 else 0.0
    return LENGTH * p, LENGTH * (p * math.log(p / p0) + rest)


def best_at(kl: float) -> float:
    """The largest score that any policy of this KL can have."""
    low, high = 1 / VOCAB, 1 - 1e-12
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if on_curve(middle)[1] < kl else (low, middle)
    return LENGTH * low


def uniform_start(params: dict) -> dict:
    """A policy that begins as the reference: every token alike."""
    return params | {"head": {"kernel": jnp.zeros_like(params["head"]["kernel"])}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    algorithm: str  # grpo | ppo
    beta: float
    updates: int = 600
    batch: int = 256
    group: int = 8
    epochs: int = 2
    learning_rate: float = 3e-3
    trace: float = 1.0
    seed: int = 0


def run(setting: Setting, tell=lambda *_: None) -> dict:
    """Train, then measure (score, KL) on 2,560 answers."""
    model = dataclasses.replace(MODEL, heads="both" if setting.algorithm == "ppo" else "language")
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig())
    config = optimizer_lib.OptimizerConfig(
        learning_rate=setting.learning_rate, schedule="wsd", decay_share=1.0, final_share=0.02,
        warmup_steps=10, weight_decay=0.0, beta2=0.999,
    )  # fmt: skip
    iterations = setting.updates // setting.epochs
    transform = optimizer_lib.make_optimizer(config, iterations * setting.epochs)
    abstract = state_lib.abstract_state(model, transform, mesh, RULES, ema=False)
    state = state_lib.init_state(model, transform, abstract, setting.seed)
    state["params"] = uniform_start(state["params"])
    objective = objectives.policy_objective(model, objectives.PolicyLossConfig(), 1.0, RULES)
    if setting.algorithm == "ppo":
        policy, critic = objectives.PolicyLossConfig(), objectives.ValueLossConfig(clip=0.0)
        objective = objectives.with_values(model, policy, 1.0, critic, 1.0, RULES)
    step = state_lib.make_step(model, config, transform, mesh, RULES, abstract, objective=objective)
    logps = practice.make_logps(model, 1.0, RULES)
    values_of = jax.jit(lambda params, batch: objectives.values(model, params, batch, RULES))
    rollout = rollout_lib.RolloutConfig(
        max_new_tokens=LENGTH, rows=setting.batch, chunk=LENGTH, slack=0
    )
    root = jax.random.key(setting.seed)
    reference = -math.log(VOCAB)

    def write(params, count, key):
        plain = {name: tree for name, tree in params.items() if name != "score"}
        found = rollout_lib.rollout(
            dataclasses.replace(model, heads="language"), plain, [[PROMPT]] * count, range(count), key,
            rollout_config=rollout, stop_ids=(), pad_id=PROMPT,
        )  # fmt: skip
        ids = np.stack([answer.ids for answer in found.answers])
        return ids, np.stack([answer.logp for answer in found.answers])

    def place(batch):
        return state_lib.place_batch(batch, mesh, RULES)

    mask = np.ones((setting.batch, LENGTH), bool)
    first_change = None
    for iteration in range(iterations):
        ids, _ = write(state["params"], setting.batch, jax.random.fold_in(root, iteration))
        score = (ids == TOKEN).sum(1).astype(np.float32)
        episodes = [experience.Episode(np.array([PROMPT]), row) for row in ids]
        rows = experience.pack(episodes, range(setting.batch), seq_len=128, pad_id=PROMPT)
        old, _ = practice.forward(
            lambda batch, p=state["params"]: logps(p, batch), [rows], mask, place, 2
        )
        arrays = {"old_logp": old, "reference_logp": np.full_like(old, reference)}
        if setting.algorithm == "grpo":
            rewarded = score - setting.beta * (old - reference).sum(1)
            advantage, _ = advantages_lib.group_advantages(
                rewarded.reshape(-1, setting.group), "dr_grpo"
            )
            advantage = np.asarray(advantage).reshape(-1, 1)
            arrays["advantages"] = advantage / (np.std(advantage) + 1e-8) * mask
        else:
            (value,) = practice.forward(
                lambda batch, p=state["params"]: (values_of(p, batch),), [rows], mask, place, 1
            )
            reward, kept, _ = advantages_lib.token_rewards(
                score, old, arrays["reference_logp"], mask, setting.beta
            )
            advantage, returns = advantages_lib.gae(
                reward, value, kept, discount=1.0, trace=setting.trace
            )
            arrays["advantages"] = np.asarray(masked.whiten(advantage, kept))
            arrays |= {"old_values": value, "returns": np.asarray(returns)}
        arrays |= practice.weights(rows, mask, "dapo")
        batch = place(practice.batch_of(rows, mask, arrays))
        for _ in range(setting.epochs):
            state, found = step(state, batch)
            first_change = float(found["ratio_change"]) if first_change is None else first_change
        if iteration % 50 == 0:
            tell(
                f"  {iteration:4d}: score {score.mean():.3f} KL {(old - reference).sum(1).mean():.3f}"
            )
    scores, kls = [], []
    for part in range(10):
        ids, logp = write(state["params"], setting.batch, jax.random.fold_in(root, 10**6 + part))
        scores.append((ids == TOKEN).sum(1))
        kls.append((logp - reference).sum(1))
    score, kl = float(np.mean(scores)), float(np.mean(kls))
    best = optimum(setting.beta)
    return {
        "algorithm": setting.algorithm, "beta": setting.beta, "seed": setting.seed,
        "score": score, "kl": kl, "answers": int(np.size(scores)),
        "score_error": score / best[0] - 1, "kl_error": kl / best[1] - 1,
        "of_frontier": score / best_at(kl), "first_ratio_change": first_change,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", default="grpo,ppo")
    parser.add_argument("--betas", default="0.4,0.25,0")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    for algorithm in arguments.algorithms.split(","):
        for beta in map(float, arguments.betas.split(",")):
            for seed in range(arguments.seeds):
                before = time.monotonic()
                setting = Setting(
                    algorithm=algorithm, beta=beta, seed=seed, updates=arguments.updates,
                    learning_rate=arguments.learning_rate, epochs=arguments.epochs,
                )  # fmt: skip
                found = run(setting, lambda text: print(text, flush=True))
                found["seconds"] = round(time.monotonic() - before, 1)
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
