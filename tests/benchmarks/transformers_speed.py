"""A training step and greedy decoding on the CPU beside transformers, eager and compiled, from one safetensors file.

    python -m venv peers
    peers/bin/pip install torch==2.13.0 transformers==5.24.0
    .venv/bin/python tests/benchmarks/transformers_speed.py --peers peers/bin/python

The model is that of gin_configs/model/bench_256.gin: 256 wide, 6 layers, 8,000 pieces. Each side is a process of its
own with as many threads as there are cores; they take turns of a few steps, so that a busy machine is as hard on all,
and each uses AdamW with the same rates, decay and clipping. Printed: medians of a step and of what it takes beside the
fastest other side in the same round, the greatest difference of losses, and whether the decoded tokens are the same.
Compiling is left out (it comes in the first turn of each).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROWS, PLACES, PIECES = 16, 256, 8000
ROUNDS, STEPS = 11, 5  # steps of the first round are warm-up
PROMPT, NEW, BATCHES = 64, 128, (1, 8, 32)
TRAIN_SIDES = ("jinstr", "eager", "compiled")
CACHES = ("dynamic", "static", "compiled")  # of transformers' generate
RATE, DECAY, BETAS, EPSILON, CLIP = 1e-3, 0.1, (0.9, 0.95), 1e-8, 1.0


def batch(step: int) -> np.ndarray:
    """[ROWS, PLACES] of a chain in which four pieces may follow each piece: something that can be learnt."""
    followers = np.random.default_rng(0).integers(0, PIECES, (PIECES, 4))
    draw = np.random.default_rng((1, step))
    rows = np.empty((ROWS, PLACES), np.int32)
    rows[:, 0] = draw.integers(0, PIECES, ROWS)
    for place in range(1, PLACES):
        rows[:, place] = followers[rows[:, place - 1], draw.integers(0, 4, ROWS)]
    return rows


def prompts(rows: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, PIECES, (rows, PROMPT)).astype(np.int32)


def rate(step: int) -> float:
    """Learning rate of step 0, 1, …: up to the peak over ten steps."""
    return RATE * min(1.0, (step + 1) / 10)


# jinstr's side.


def own_config():
    from jinstr.models import config as config_lib

    return config_lib.DecoderConfig(
        vocab_size=PIECES, hidden_size=256, num_layers=6, num_heads=4, num_kv_heads=4, head_dim=64, mlp_size=688,
        scan_layers=False,
    )  # fmt: skip


def make(folder: str) -> None:
    """A random model as a Hugging Face folder."""
    import jax

    from jinstr.models import decoder, hf_write

    config = own_config()
    params = jax.jit(lambda key: decoder.init_params(config, key))(jax.random.key(0))
    hf_write.save(folder, config, params, dtype="float32", progress=False)


def own_side(folder: str):
    """(train, decode): functions of a step number and of (batch size, how)."""
    import jax
    import optax

    from jinstr.decode import sampler as sampler_lib
    from jinstr.models import hf_read
    from jinstr.parallel import mesh as mesh_lib
    from jinstr.train import optimizer as optimizer_lib
    from jinstr.train import state as state_lib

    config, rules = own_config(), mesh_lib.AxisRules()
    optimizer = optimizer_lib.OptimizerConfig()
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig())
    transform = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(
            lambda step: RATE * jax.numpy.minimum(1.0, (step + 1) / 10),
            *BETAS, eps=EPSILON, weight_decay=DECAY, mask=optimizer_lib.decay_mask,
        ),
    )  # fmt: skip
    abstract = state_lib.abstract_state(config, transform, mesh, rules, ema=False)
    params = hf_read.load_params(
        hf_read.open_checkpoint(folder), abstract["params"], progress=False
    )
    first = jax.tree.map(jax.numpy.copy, params)  # the training step takes its buffers
    state = state_lib.state_with(params, transform, abstract, 0)
    update = state_lib.make_step(config, optimizer, transform, mesh, rules, abstract)

    def train(step: int) -> float:
        nonlocal state
        tokens = batch(step)
        fields = {
            "tokens": tokens,
            "targets": np.roll(tokens, -1, axis=1),
            "loss_weights": np.ones(tokens.shape, np.float32),
            "positions": np.tile(np.arange(PLACES, dtype=np.int32), (ROWS, 1)),
            "segment_ids": np.ones(tokens.shape, np.int32),
        }
        fields["loss_weights"][:, -1] = 0  # what follows the last place is not known
        state, values = update(state, state_lib.place_batch(fields, mesh, rules))
        return float(values["loss"])

    sampling = sampler_lib.SamplingConfig(temperature=0.0, max_new_tokens=NEW)
    sampler = sampler_lib.Sampler(config, sampling, (), 0)  # no stop ids: all tokens are written
    serving = sampler.serve(first)

    def decode(rows: int, how: str) -> list:
        given = (first, prompts(rows), np.full(rows, PROMPT), np.arange(rows), jax.random.key(0))
        decoding = sampler.start(*given, serving)
        decoding.advance(NEW)
        return np.asarray(decoding.rollout().ids).tolist()

    return train, decode


# The side of transformers.


def their_side(folder: str, how: str):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, dtype=torch.float32, attn_implementation="sdpa")
    decaying = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=RATE, betas=BETAS, eps=EPSILON, fused=True,
    )  # fmt: skip
    called = torch.compile(model) if how == "compiled" else model
    model.train()

    def train(step: int) -> float:
        tokens = torch.from_numpy(batch(step)).long()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = called(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    writer = load(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    compiled = load(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    compiled.forward = torch.compile(compiled.forward)

    def decode(rows: int, cache: str) -> list:
        ids = torch.from_numpy(prompts(rows)).long()
        model, kind = (compiled, "static") if cache == "compiled" else (writer, cache)
        with torch.inference_mode():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW,
                cache_implementation=None if kind == "dynamic" else kind, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
        return found[:, PROMPT:].tolist()

    return train, decode


def serve(side: str, folder: str) -> None:
    """Answer lines of standard input: {"train": [first step, steps]} or {"decode": [rows, how]}."""
    train, decode = own_side(folder) if side == "jinstr" else their_side(folder, side)
    for line in sys.stdin:
        asked = json.loads(line)
        if "train" in asked:
            first, count = asked["train"]
            losses, seconds = [], []
            for step in range(first, first + count):
                batch(step)  # so that making it is in no side's time alone
                begun = time.perf_counter()
                losses.append(train(step))
                seconds.append(time.perf_counter() - begun)
            told = {"losses": losses, "seconds": seconds}
        else:
            begun = time.perf_counter()
            ids = decode(*asked["decode"])
            told = {"ids": ids, "seconds": time.perf_counter() - begun}
        print("ANSWER " + json.dumps(told), flush=True)


class Side:
    """A process that trains or decodes when it is asked to, and waits meanwhile."""

    def __init__(self, python: str, side: str, folder: str):
        self._process = subprocess.Popen(
            [python, __file__, "--serve", side, "--folder", folder, "--rows", str(ROWS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, **asked) -> dict:
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise RuntimeError(f"the other side ended with {self._process.wait()}")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def compare_training(sides: dict[str, Side], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    ratios = []
    for turn in range(rounds):
        for name, side in sides.items():
            told = side.ask(train=[turn * STEPS, STEPS])
            losses[name] += told["losses"]
            seconds[name].append(statistics.median(told["seconds"]))
        ratios.append(min(seconds[n][-1] for n in sides if n != "jinstr") / seconds["jinstr"][-1])
        print(
            f"round {turn}: " + ", ".join(f"{n} {s[-1] * 1e3:.0f} ms" for n, s in seconds.items())
        )
    for name, values in seconds.items():
        middle = statistics.median(values[1:])
        print(
            f"train, {name}: {middle * 1e3:.0f} ms a step, {ROWS * PLACES / middle:,.0f} tokens/s"
        )
    low, middle, high = np.percentile(ratios[1:], (25, 50, 75))
    print(f"train, fastest other side / jinstr: {middle:.3f} (quartiles {low:.3f} to {high:.3f})")
    for name in sides:
        apart = max(abs(a / b - 1) for a, b in zip(losses["jinstr"], losses[name]))
        first, last = losses[name][0], losses[name][-1]
        print(f"losses, {name}: {first:.4f} to {last:.4f}, from jinstr's by at most {apart:.1e}")


def compare_decoding(own: Side, other: Side, rounds: int) -> None:
    for rows in BATCHES:
        ways = {"jinstr": own} | {cache: other for cache in CACHES}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        ids = {}
        for turn in range(rounds + 1):
            for name, side in ways.items():
                told = side.ask(decode=[rows, name])
                ids[name] = told["ids"]
                if turn:
                    seconds[name].append(told["seconds"])
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        turns = zip(*(seconds[name] for name in CACHES), seconds["jinstr"])
        ratio = statistics.median(min(turn[:-1]) / turn[-1] for turn in turns)
        alike = sum(a == b for x, y in zip(ids["jinstr"], ids["dynamic"]) for a, b in zip(x, y))
        rates = ", ".join(f"{name} {rows * NEW / value:,.0f}" for name, value in middle.items())
        print(f"greedy, batch {rows}: tokens/s {rates}; best other / jinstr in seconds: {ratio:.2f}; "
              f"{alike} of {rows * NEW} tokens alike")  # fmt: skip


def main() -> None:
    global ROWS
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--peers", default=sys.executable, help="python with torch and transformers"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a training step")
    parser.add_argument("--only", choices=("train", "decode"), help="one half of it")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    ROWS = asked.rows
    if asked.serve:
        return serve(asked.serve, asked.folder)
    with tempfile.TemporaryDirectory() as folder:
        make(folder)
        pythons = {
            name: sys.executable if name == "jinstr" else asked.peers for name in TRAIN_SIDES
        }
        sides = {name: Side(python, name, folder) for name, python in pythons.items()}
        if asked.only != "decode":
            compare_training(sides, asked.rounds)
        if asked.only != "train":
            compare_decoding(sides["jinstr"], sides["eager"], max(3, asked.rounds // 2))
        for side in sides.values():
            side.close()


if __name__ == "__main__":
    main()
