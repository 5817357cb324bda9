"""An iteration of GRPO and of PPO beside TRL's, on the same tiny Llama, questions and lengths.

    python -m venv peers
    peers/bin/pip install torch==2.13.0 transformers==5.24.0 trl==1.12.0 datasets
    peers/bin/python tests/benchmarks/trl_side_by_side.py --jinstr .venv/bin/python --text aozora.jsonl

TEXT is Japanese prose, 5 MB or more, for a tokenizer of 8,000 pieces and the questions.

TRL 1.12 is the last with PPO. Sides take turns, each in a process of its own, so that a busy machine is as hard on
both; a side's figure is the median of its iterations after the first ones, in which programs are compiled. The model
(256 wide, 6 layers, 8,000 pieces) is random: its answers hardly ever end, so both write and train on the same number
of tokens. Both sides compute in f32 on the CPU, sample from the whole distribution, and train every parameter by AdamW.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

WARMUP, ITERATIONS = 4, 14
PROMPT, ANSWER = 32, 64  # tokens
GRPO_PROMPTS, GROUP, PPO_PROMPTS, PPO_EPOCHS = 8, 4, 32, 4
SIZES = {
    "hidden_size": 256,
    "num_layers": 6,
    "num_heads": 8,
    "num_kv_heads": 8,
    "head_dim": 32,
    "mlp_size": 688,
}
REWARD = """
def rising(prompt, answer, row):
    return sum(map(ord, answer)) % 100 / 100
"""
RUN = "import sys; from jinstr import run; sys.exit(run.console())"


# What both sides start from.


def make(place: pathlib.Path, python: str, prose: pathlib.Path) -> None:
    """A random model as a run and as a Hugging Face folder, a reward model, and questions of exactly PROMPT tokens."""

    def jinstr(*words: object) -> None:
        subprocess.run([python, "-c", RUN, *map(str, words)], check=True, stdout=subprocess.DEVNULL)

    script = f"from jinstr.samples import build; build.write({str(place / 'data')!r}, num_bytes=100_000, seed=0)"
    subprocess.run([python, "-c", script], check=True)
    data = place / "data"
    jinstr(
        "tokenizer",
        f"INPUT={prose}",
        f"OUT={place}/tokenizer",
        "VOCAB_SIZE=8000",
    )
    words = [f"config.DecoderConfig.{name}={value}" for name, value in SIZES.items()]
    jinstr(
        "pretrain",
        "gin_configs/model/tiny.gin",
        f"DATA={prose}",
        "HOLDOUT=0.02",
        f"TOKENIZER={place}/tokenizer.model",
        f"RUN_DIR={place}/base",
        "NUM_STEPS=1",
        "SEQ_LEN=256",
        "BATCH_TOKENS=512",
        "LEARNING_RATE=1e-6",
        "EVAL_EVERY=0",
        "SAMPLES=0",
        "config.DecoderConfig.max_positions=512",
        "config.DecoderConfig.qk_norm=False",
        *words,
    )
    jinstr("convert", f"MODEL={place}/base", f"OUT={place}/hf", "TEMPLATE=chatml")
    jinstr(
        "reward",
        f"INIT={place}/base",
        "TEMPLATE=chatml",
        f"DATA={data}/rankings.jsonl",
        f"RUN_DIR={place}/reward",
        "NUM_STEPS=1",
        "SEQ_LEN=256",
        "BATCH_TOKENS=1024",
        "LEARNING_RATE=1e-6",
        "EVAL_EVERY=0",
    )
    (place / "rising_reward.py").write_text(REWARD, "utf-8")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "hf")
    rows = [json.loads(line) for line in prose.read_text("utf-8").splitlines()]
    text = "".join(row["text"] for row in rows[:50]).replace("\n", "")
    questions, start = [], 0
    while len(questions) < max(GRPO_PROMPTS, PPO_PROMPTS) * 2:
        for length in range(8, 120):
            asked = [{"role": "user", "content": text[start : start + length].strip()}]
            if len(tokens(tokenizer, asked)) == PROMPT:
                questions.append({"id": str(len(questions)), "messages": asked})
                break
        start += 200
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in questions]
    (place / "questions.jsonl").write_text("".join(lines), "utf-8")


def tokens(tokenizer, messages: list[dict]) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def questions_of(place: pathlib.Path) -> list[dict]:
    return [
        json.loads(line) for line in (place / "questions.jsonl").read_text("utf-8").splitlines()
    ]


# The side of jinstr: the command, and what it wrote down.


def jinstr_side(place: pathlib.Path, algorithm: str, python: str) -> dict:
    out = place / f"jinstr_{algorithm}"
    shutil.rmtree(out, ignore_errors=True)
    own = {
        "grpo": [
            f"PROMPTS_PER_ITERATION={GRPO_PROMPTS}",
            f"ANSWERS={GROUP}",
            "REWARD=rising_reward:rising",
            "REWARD_WORKERS=1",
        ],
        "ppo": [
            f"PROMPTS_PER_ITERATION={PPO_PROMPTS}",
            f"EPOCHS={PPO_EPOCHS}",
            "MINIBATCHES=1",
            f"CRITIC={place}/reward",
            f"REWARD={place}/reward",
            "MISSING_END_VALUE=0",
        ],
    }[algorithm]
    words = [
        algorithm,
        f"INIT={place}/base",
        "TEMPLATE=chatml",
        f"PROMPTS={place}/questions.jsonl",
        "HOLDOUT=0",
        f"PROMPT_LENGTH={PROMPT}",
        f"RUN_DIR={out}",
        f"ITERATIONS={ITERATIONS}",
        f"MAX_NEW_TOKENS={ANSWER}",
        "ROLLOUT_ROWS=32",
        "LEARNING_RATE=1e-6",
        "SCHEDULE=constant",
        "SAVE_EVERY=1000",
        "EVAL_EVERY=0",
        "EVAL_PROMPTS=0",
        "TENSORBOARD=False",
        "SCAN_LAYERS=False",
        *own,
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    }
    started = time.time()
    subprocess.run(
        [python, "-c", RUN, *words], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    whole = time.time() - started
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    lines = [line for line in lines if "rl/time/rollout" in line]
    phases = [
        {k.removeprefix("rl/time/"): v for k, v in line.items() if k.startswith("rl/time/")}
        for line in lines
    ]
    length = statistics.mean(line["rl/gen/length_mean"] for line in lines)
    return {"phases": phases, "answer_tokens": length, "whole": whole}


# The side of TRL: its trainer, with a clock around what it calls.


class Clock:
    """Seconds by phase of every iteration; what no phase holds is "other"."""

    def __init__(self):
        self.phases: list[dict] = []
        self.now: dict[str, float] = {}
        self.since = time.perf_counter()

    def around(self, name: str, function):
        def timed(*words, **named):
            before = time.perf_counter()
            try:
                return function(*words, **named)
            finally:
                self.now[name] = self.now.get(name, 0.0) + time.perf_counter() - before

        return timed

    def ends(self) -> None:
        now = time.perf_counter()
        self.now["other"] = now - self.since - sum(self.now.values())
        self.phases.append(self.now)
        self.now, self.since = {}, now


def watcher(clock: Clock):
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, *_, **__):
            clock.since = time.perf_counter()

        def on_step_end(self, *_, **__):
            clock.ends()

    return Watcher()


def trl_grpo(place: pathlib.Path, clock: Clock) -> float:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    lengths = []

    def rising(completions, completion_ids, **_):
        lengths.extend(map(len, completion_ids))
        return [sum(map(ord, answer[0]["content"])) % 100 / 100 for answer in completions]

    settings = GRPOConfig(
        output_dir=str(place / "trl_grpo"),
        per_device_train_batch_size=GRPO_PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=ANSWER,
        num_iterations=1,
        beta=0.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_steps=ITERATIONS,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        disable_tqdm=True,
    )
    asked = Dataset.from_list([{"prompt": row["messages"]} for row in questions_of(place)])
    model = AutoModelForCausalLM.from_pretrained(place / "hf", dtype="float32")
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rising,
        args=settings,
        train_dataset=asked,
        processing_class=AutoTokenizer.from_pretrained(place / "hf"),
        callbacks=[watcher(clock)],
    )
    trainer.model.generate = clock.around("generate", trainer.model.generate)
    trainer.train()
    return statistics.mean(lengths)


def trl_ppo(place: pathlib.Path, clock: Clock) -> float:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental import ppo as ppo_lib
    from trl.experimental.ppo import ppo_trainer

    settings = ppo_lib.PPOConfig(
        output_dir=str(place / "trl_ppo"),
        per_device_train_batch_size=PPO_PROMPTS,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=PPO_EPOCHS,
        total_episodes=PPO_PROMPTS * ITERATIONS,
        response_length=ANSWER,
        local_rollout_forward_batch_size=PPO_PROMPTS,
        stop_token="eos",
        temperature=1.0,
        num_sample_generations=0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(place / "hf", padding_side="left")
    asked = Dataset.from_list(
        [{"input_ids": tokens(tokenizer, row["messages"])} for row in questions_of(place)]
    )

    def scorer():
        model = AutoModelForSequenceClassification.from_pretrained(
            place / "hf", num_labels=1, dtype="float32"
        )
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    def policy():
        return AutoModelForCausalLM.from_pretrained(place / "hf", dtype="float32")

    trainer = ppo_lib.PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=policy(),
        ref_model=policy(),
        reward_model=scorer(),
        value_model=scorer(),
        train_dataset=asked,
        eval_dataset=asked,
        callbacks=[watcher(clock)],
    )
    for name in ("batch_generation", "get_reward"):
        setattr(ppo_trainer, name, clock.around(name, getattr(ppo_trainer, name)))
    trainer.train()
    return float(ANSWER)  # it writes on behind an end token


def trl_side(place: pathlib.Path, algorithm: str) -> dict:
    """Runs in a process of its own (`--side`)."""
    started, clock = time.time(), Clock()
    length = {"grpo": trl_grpo, "ppo": trl_ppo}[algorithm](place, clock)
    return {"phases": clock.phases, "answer_tokens": length, "whole": time.time() - started}


# Both.


def seconds_of(found: dict) -> float:
    return statistics.median(sum(phases.values()) for phases in found["phases"][WARMUP:])


def told(name: str, found: dict) -> str:
    steady = found["phases"][WARMUP:]
    shares = {phase: statistics.median(p.get(phase, 0.0) for p in steady) for phase in steady[-1]}
    parts = "  ".join(f"{phase} {value:.2f}" for phase, value in shares.items())
    first = sum(found["phases"][0].values())
    return (
        f"  {name:<7}{seconds_of(found):7.2f} s an iteration ({parts}); {found['answer_tokens']:.1f} tokens; "
        f"first iteration {first:.1f} s, process {found['whole']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jinstr", default=sys.executable, help="a Python that has jinstr")
    parser.add_argument("--text", type=pathlib.Path, help="JSON Lines with the field text")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/trl_side_by_side"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=("grpo", "ppo"), help="one of the two")
    parser.add_argument("--side", choices=("grpo", "ppo"), help=argparse.SUPPRESS)
    told_to = parser.parse_args()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    if told_to.side:
        found = trl_side(told_to.work, told_to.side)
        (told_to.work / f"trl_{told_to.side}.json").write_text(json.dumps(found), "utf-8")
        return
    if not (told_to.work / "questions.jsonl").is_file():
        told_to.work.mkdir(parents=True, exist_ok=True)
        make(told_to.work, told_to.jinstr, told_to.text)
    for algorithm in (told_to.only,) if told_to.only else ("grpo", "ppo"):
        ratios = []
        for number in range(told_to.rounds):
            words = [sys.executable, __file__, "--side", algorithm, "--work", str(told_to.work)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            theirs = json.loads((told_to.work / f"trl_{algorithm}.json").read_text("utf-8"))
            ours = jinstr_side(told_to.work, algorithm, told_to.jinstr)
            ratios.append(seconds_of(ours) / seconds_of(theirs))
            print(f"{algorithm}, round {number + 1}: jinstr / TRL = {ratios[-1]:.3f}")
            print(told("TRL", theirs))
            print(told("jinstr", ours), flush=True)
        print(f"{algorithm}: jinstr / TRL = {statistics.median(ratios):.3f} (limit 0.5, goal 0.33)")


if __name__ == "__main__":
    main()
