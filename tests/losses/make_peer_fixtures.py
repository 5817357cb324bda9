"""Writes what other libraries compute on fixed inputs into peers.npz, for test_peers.py. Not run by the tests.

The libraries exclude each other, so each goes into an environment of its own; the script is run once in each, finds out
which one it is in, and replaces that library's part of the file:

  A  pip install torch==2.13.0 trl==1.9.0 transformers requests rich      (transformers 5.24.0 was taken)
  B  pip install torch==2.13.0 trl==0.25.1 "transformers<5"               (4.57.6): losses that are plain callables
  C  pip install torch==2.13.0 trl==0.11.4 "transformers<4.47" rich       (4.46.3): the first PPO trainer
  D  pip install rlax==0.1.9                                              (jax 0.10.2)

  TRL_EXPERIMENTAL_SILENCE=1 python tests/losses/make_peer_fixtures.py

Methods of trainers are called unbound on a stand-in for `self` that has just the attributes they read. Gradients are
those of torch.autograd. Keys are "peer/case/name"; inputs are under "in/". All arrays are f32, i32 or bool.
"""

import collections
import importlib.metadata
import importlib.util
import pathlib
import types

import numpy as np

OUT = pathlib.Path(__file__).with_name("peers.npz")
Stub = types.SimpleNamespace
B, T, V, P, G = 8, 7, 9, 6, 5
LENGTHS = [1, T, 0, 4, 2, 6, 3, 5]  # the end at once, no end, a row left out, ...


def make_inputs():
    """The same in every environment."""
    rng = np.random.default_rng(20)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    mask = np.arange(T) < np.array(LENGTHS)[:, None]
    old = -np.abs(normal(B, T))
    scores = normal(P, G)
    scores[0], scores[1], scores[2, 1:], scores[3, :2] = 0.25, np.nan, np.nan, np.nan
    arrays = {
        # sums of log-probabilities: chosen, rejected, and the reference's
        "sums": -12 * np.abs(normal(4, B)) - 0.1,
        "tokens": rng.integers(1, 12, (2, B)).astype(np.int32),
        "other_sums": -np.abs(normal(2, B))
        - np.float32([[1], [3]]),  # of mismatched answers: policy, reference
        "desirable": np.arange(B) % 3 != 0,
        "rewards": normal(2, B),
        "margin": np.abs(normal(B)),
        # [chosen; rejected] as a language model sees them
        "logits": 2 * normal(2 * B, T + 1, V),
        "ids": rng.integers(0, V, (2 * B, T + 1)).astype(np.int32),
        "completion_mask": np.concatenate(
            [
                np.zeros((2 * B, 1), bool),
                np.concatenate([mask, mask[::-1]]),
            ],
            axis=1,
        ),
        "mask": mask,
        "old": old,
        "logp": old + 0.35 * normal(B, T),
        "reference": old + 0.5 * normal(B, T),
        "advantage": normal(B),
        "advantages": normal(B, T),
        "weights": np.abs(normal(B, T)),
        "values": normal(B, T),
        "old_values": normal(B, T),
        "returns": normal(B, T),
        "score": normal(B),
        "group_scores": scores,
        "lengths": np.array([0, 70, 80, 81, 95, 100, 130], np.int32),
    }
    return arrays


def gradient(function, *arrays):
    """(value as numpy, gradients of its sum by each array)"""
    import torch

    leaves = [torch.tensor(x, requires_grad=True) for x in arrays]
    value = function(*leaves)
    value.sum().backward()
    return value.detach().numpy(), [leaf.grad.numpy() for leaf in leaves]


def trainer(**more):
    """What every trainer has."""

    def same(x, *_, **__):
        return x

    accelerator = Stub(
        device="cpu",
        gather=same,
        gather_for_metrics=same,
        reduce=same,
        num_processes=1,
        sync_gradients=True,
    )
    return Stub(
        accelerator=accelerator,
        model=Stub(training=True),
        _metrics={"train": collections.defaultdict(list)},
        _total_train_tokens=0,
        aux_loss_enabled=False,
        **more,
    )


def pairs_of_trl(x, out):
    import torch
    from trl import DPOTrainer, RewardTrainer

    ids, completion_mask = torch.tensor(x["ids"]).long(), torch.tensor(x["completion_mask"])
    for name, margin, centering in (
        ("plain", 0, None),
        ("margin", 1, None),
        ("centering", 1, 0.05),
    ):

        def reward_loss(rewards, margin=margin, centering=centering):
            batch = dict(attention_mask=torch.ones(1))
            if margin:
                batch["margin"] = torch.tensor(x["margin"])
            stub = trainer(args=Stub(center_rewards_coefficient=centering))
            logits = rewards.reshape(-1, 1)
            return RewardTrainer.compute_loss(stub, lambda **_: Stub(logits=logits), batch)

        out[f"pair_{name}/loss"], (out[f"pair_{name}/grad"],) = gradient(reward_loss, x["rewards"])
    for kind, smoothing in (("sigmoid", 0.0), ("robust", 0.1), ("hinge", 0.0), ("ipo", 0.0)):
        stub = trainer(
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[kind],
            loss_weights=[1.0],
            beta=0.1,
            label_smoothing=smoothing,
            use_weighting=False,
            args=Stub(discopop_tau=0.05),
        )

        def dpo_loss(logits, stub=stub):
            batch = dict(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                completion_mask=completion_mask,
                ref_chosen_logps=torch.tensor(x["sums"][2]),
                ref_rejected_logps=torch.tensor(x["sums"][3]),
            )
            return DPOTrainer._compute_loss(stub, lambda **_: Stub(logits=logits), batch, False)

        out[f"dpo_{kind}/loss"], (out[f"dpo_{kind}/grad"],) = gradient(dpo_loss, x["logits"])


def means_of_trl(x, out):
    import torch
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    tokens = torch.tensor(x["tokens"])

    def orpo(sums):
        means = sums / tokens
        return -ORPOTrainer.odds_ratio_loss(trainer(beta=0.3), means[0], means[1])[0]

    def simpo(sums):
        stub = trainer(alpha=0.0, loss_type="simpo", simpo_gamma=0.5, beta=2.0, label_smoothing=0.0)
        means = sums / tokens
        return CPOTrainer.cpo_loss(stub, means[0], means[1])[0]

    for name, function in (("orpo", orpo), ("simpo", simpo)):
        out[f"{name}/loss"], (out[f"{name}/grad"],) = gradient(function, x["sums"][:2])


# name: (loss_type, level, beta, with weights for tokens that another program drew)
GRPO = {
    "grpo": ("grpo", "token", 0.04, False),
    "bnpo": ("bnpo", "token", 0.0, False),
    "dr_grpo": ("dr_grpo", "token", 0.0, False),
    "dapo": ("dapo", "token", 0.0, False),
    "dapo_weights": ("dapo", "token", 0.04, True),
    "gspo": ("grpo", "sequence", 0.0, False),
    "cispo": ("cispo", "token", 0.0, False),
}


def groups_of_trl(x, out):
    import torch
    from trl import GRPOTrainer
    from trl.rewards import get_soft_overlong_punishment
    from trl.trainer.utils import nanstd

    for name, (loss_type, level, beta, weighted) in GRPO.items():
        stub = trainer(
            beta=beta,
            args=Stub(use_bias_correction_kl=False, delta=None),
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            importance_sampling_level=level,
            loss_type=loss_type,
            epsilon_low=0.2 if level == "token" else 0.05,
            epsilon_high={"cispo": 1.3}.get(loss_type, 0.28 if level == "token" else 0.06),
            use_vllm=weighted,
            vllm_importance_sampling_correction=weighted,
            current_gradient_accumulation_steps=1,
            max_completion_length=10,
            _entropy_bonus_enabled=False,
        )

        def loss(logp, stub=stub):
            stub._get_per_token_logps_and_entropies = lambda *_, **__: (logp, -logp.detach(), None)
            mask, none = torch.tensor(x["mask"]).int(), torch.zeros(B, 0, dtype=torch.int)
            batch = dict(
                prompt_ids=none,
                prompt_mask=none,
                completion_ids=mask,
                completion_mask=mask,
                advantages=torch.tensor(x["advantage"]),
                old_per_token_logps=torch.tensor(x["old"]),
                ref_per_token_logps=torch.tensor(x["reference"]),
                importance_sampling_ratio=torch.tensor(x["weights"]),
                num_items_in_batch=mask.sum(),
            )
            return GRPOTrainer._compute_loss(stub, None, batch)

        out[f"{name}/loss"], (out[f"{name}/grad"],) = gradient(loss, x["logp"])
        metrics = stub._metrics["train"]
        if loss_type != "cispo" and level == "token":
            clipped = [metrics[f"clip_ratio/{side}_mean"][0] for side in ("low", "high")]
            out[f"{name}/clipped"] = np.float32(clipped)
    scores = torch.tensor(x["group_scores"])
    centred = scores - torch.nanmean(scores, dim=1, keepdim=True)
    scaled = centred / (nanstd(scores, dim=1, keepdim=True) + 1e-4)
    out["group/advantages"] = torch.nan_to_num(scaled, nan=0.0).numpy()
    punish = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    out["overlong/penalty"] = np.float32(punish([[0] * n for n in x["lengths"]]))


def whitening_of_trl(x, out):
    import torch
    from trl.experimental.ppo import ppo_trainer

    for name, shift in (("shifted", True), ("unshifted", False)):
        white = ppo_trainer.masked_whiten(
            torch.tensor(x["advantages"]), torch.tensor(x["mask"]).float(), shift_mean=shift
        )
        out[f"whiten/{name}"] = white.numpy()


def callables_of_trl(x, out):
    """0.25.1"""
    import torch
    from trl import DPOTrainer, KTOTrainer

    reference, tokens = torch.tensor(x["sums"][2:]), torch.tensor(x["tokens"])
    for name, kind, smoothing, by_mean in (
        ("sigmoid", "sigmoid", 0.0, False),
        ("conservative", "sigmoid", 0.2, False),
        ("robust", "robust", 0.2, False),
        ("hinge", "hinge", 0.0, False),
        ("ipo_sums", "ipo", 0.0, False),
        ("ipo_means", "ipo", 0.0, True),
    ):
        stub = trainer(
            reference_free=False,
            f_divergence_type=None,
            beta=0.1,
            label_smoothing=smoothing,
        )

        def loss(sums, stub=stub, kind=kind, by_mean=by_mean):
            four = [*sums, *reference]
            if by_mean:
                four = [v / n for v, n in zip(four, [*tokens, *tokens])]
            return DPOTrainer.dpo_loss(stub, *four, kind)[0]

        out[f"dpo_{name}/loss"], (out[f"dpo_{name}/grad"],) = gradient(loss, x["sums"][:2])
    good = torch.tensor(x["desirable"])
    stub = trainer(
        calculate_KL=True,
        loss_type="kto",
        beta=0.2,
        desirable_weight=1.5,
        undesirable_weight=0.7,
    )
    other = torch.tensor(x["other_sums"])

    def kto(policy):
        losses = KTOTrainer.kto_loss(
            stub, policy[good], policy[~good], other[0], reference[0][good], reference[0][~good], other[1]
        )  # fmt: skip
        out["kto/baseline"] = losses[3].numpy()
        return losses[0]

    loss, (out["kto/grad"],) = gradient(kto, x["sums"][0])
    out["kto/loss"] = np.empty(B, np.float32)
    out["kto/loss"][x["desirable"]] = loss[: x["desirable"].sum()]
    out["kto/loss"][~x["desirable"]] = loss[x["desirable"].sum() :]


def ppo_of_trl(x, out):
    """0.11.4. Its rewards need a token in every row."""
    import torch
    from trl import PPOTrainer

    rows = x["mask"].any(1)
    mask = torch.tensor(x["mask"][rows]).long()
    logp, old, reference, values, old_values, score = (
        torch.tensor(x[name][rows])
        for name in ("logp", "old", "reference", "values", "old_values", "score")
    )
    stub = Stub(
        kl_ctl=Stub(value=0.1),
        config=Stub(
            kl_penalty="kl",
            whiten_rewards=False,
            gamma=0.98,
            lam=0.95,
            cliprange=0.2,
            cliprange_value=0.2,
            vf_coef=0.1,
            ratio_threshold=10.0,
        ),
    )
    stub._kl_penalty = types.MethodType(PPOTrainer._kl_penalty, stub)
    rewards = PPOTrainer.compute_rewards(stub, score, old, reference, mask)[0]
    _, advantages, returns = PPOTrainer.compute_advantages(stub, old_values, rewards, mask)
    for name, value in (("rewards", rewards), ("advantages", advantages), ("returns", returns)):
        out[f"ppo/{name}"] = (value * mask).numpy()
    logits = torch.zeros(*mask.shape, 3)
    captured = {}

    def loss(logp, values):
        policy, value, stats = PPOTrainer.loss(
            stub, old, old_values, logits, values, logp, mask, advantages, returns
        )
        captured.update(stats)
        captured["losses"] = policy.item(), value.item()
        return policy + value

    _, (out["ppo/grad_logp"], out["ppo/grad_values"]) = gradient(loss, logp.numpy(), values.numpy())
    out["ppo/losses"] = np.float32(captured["losses"])  # the second is multiplied by vf_coef
    names = ("policy/approxkl", "policy/clipfrac", "val/clipfrac")
    out["ppo/approxkl_clipfracs"] = np.float32([float(captured[name]) for name in names])


def of_rlax(x, out):
    import rlax

    rows = [b for b in range(B) if x["mask"][b].any()]
    gae, losses = np.zeros((B, T), np.float32), np.zeros(B, np.float32)
    for b in rows:
        n = int(x["mask"][b].sum())
        values = np.append(x["old_values"][b, :n], np.float32(0))
        gae[b, :n] = rlax.truncated_generalized_advantage_estimation(
            x["returns"][b, :n], np.full(n, 0.98, np.float32), 0.95, values
        )
        ratio = np.exp(x["logp"][b, :n] - x["old"][b, :n])
        losses[b] = rlax.clipped_surrogate_pg_loss(ratio, x["advantages"][b, :n], 0.2)
    out["gae/advantages"], out["clipped/row_means"] = gae, losses


def main():
    known = {
        "1.9.0": (pairs_of_trl, means_of_trl, groups_of_trl, whitening_of_trl),
        "0.25.1": (callables_of_trl,),
        "0.11.4": (ppo_of_trl,),
    }
    if importlib.util.find_spec("trl"):
        version = importlib.metadata.version("trl")
        peer, parts = f"trl-{version}", known[version]
    else:
        peer, parts = f"rlax-{importlib.metadata.version('rlax')}", (of_rlax,)
    inputs, out = make_inputs(), {}
    for part in parts:
        part(inputs, out)
    kept = dict(np.load(OUT)) if OUT.exists() else {}
    for (
        key,
        value,
    ) in inputs.items():  # an environment's generator must not make other inputs for all
        np.testing.assert_array_equal(kept.get(f"in/{key}", value), value, err_msg=key)
    kept = {k: v for k, v in kept.items() if not k.startswith(f"{peer}/")}
    kept |= {f"in/{k}": v for k, v in inputs.items()} | {f"{peer}/{k}": v for k, v in out.items()}
    np.savez_compressed(OUT, **{key: kept[key] for key in sorted(kept)})
    print(f"{peer}: {len(out)} arrays; {OUT.name} has {len(kept)}, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
