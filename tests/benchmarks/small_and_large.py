"""A small model after tuning against an untuned one of eight times its size, by the known truth of the built-in world.

    bash launch/quickstart.sh
    python tests/benchmarks/small_and_large.py runs/quickstart

The large one is pretrained here (FOLDER/large, about half an hour on two cores) on the same text, with the same
tokenizer, tokens, optimizer and schedule. It is asked in two ways: with three worked examples in plain text (the first
line that it writes is its answer), and with help that no user can give: it goes on with the true answer, cut before the
value that is asked for. An answer is right when it names that value and no other; a right answer is preferred to
a wrong one, anything else is a tie.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

from jinstr.data.eval_tasks import questions as questions_lib
from jinstr.decode import sampler, text
from jinstr.human import rates
from jinstr.models import decoder
from jinstr.text import render
from jinstr.train import serving

LARGE = {"hidden_size": 320, "num_layers": 8, "num_heads": 10, "num_kv_heads": 10, "mlp_size": 864}
SHOTS = 3
TASKS = ("paraphrases", "facts", "sums")


def pretrain_large(folder: pathlib.Path) -> None:
    """As the quickstart pretrains its small one, only larger."""
    small = json.loads((folder / "base" / "config.json").read_text("utf-8"))["settings"]
    words = [f"config.DecoderConfig.{name}={value}" for name, value in LARGE.items()]
    words += ["config.DecoderConfig.head_dim=32", "config.DecoderConfig.max_positions=2048"]
    words += ["config.DecoderConfig.qk_norm=True", "config.DecoderConfig.tie_embeddings=True"]
    optimizer = small["optimizer"]
    for name in ("muon_learning_rate", "decay_share", "final_share"):
        words.append(f"optimizer.OptimizerConfig.{name}={optimizer[name]}")
    command = [
        sys.executable, "-c", "import sys; from jinstr import run; sys.exit(run.console())", "pretrain",
        "gin_configs/model/tiny.gin", f"DATA={folder}/data/corpus.jsonl", "HOLDOUT=0.02",
        f"TOKENIZER={folder}/tokenizer.model", f"RUN_DIR={folder}/large", "SEQ_LEN=256",
        f"BATCH_TOKENS={small['data']['batch_tokens']}", f"NUM_STEPS={small['loop_config']['num_steps']}",
        f"OPTIMIZER={optimizer['name']}", f"LEARNING_RATE={optimizer['learning_rate']}",
        f"SCHEDULE={optimizer['schedule']}", f"WARMUP_STEPS={optimizer['warmup_steps']}",
        "config.DecoderConfig.scan_layers=False", "EVAL_EVERY=0", "SAMPLES=0", *words,
    ]  # fmt: skip
    subprocess.run(command, check=True)


def tuned_answers(run: serving.Run, task: questions_lib.EvalTask) -> list[str]:
    """Greedy answers in the model's own template."""
    setting = sampler.SamplingConfig(temperature=0.0, max_new_tokens=48)
    writer = text.TextSampler(run.config, run.params, run.tokenizer, run.template, setting)
    prompts = [
        render.render_prompt(q.messages, run.template, run.tokenizer) for q in task.questions
    ]
    return in_order(writer, prompts)


def untuned_answers(run: serving.Run, task: questions_lib.EvalTask, shots: list[dict]) -> list[str]:
    """Greedy continuations of worked examples, up to the end of the line."""
    setting = sampler.SamplingConfig(temperature=0.0, max_new_tokens=48, stop_strings=("\n",))
    writer = text.TextSampler(run.config, run.params, run.tokenizer, None, setting)
    head = "".join(f"質問：{row['text']}\n答え：{row['output']}\n\n" for row in shots)
    prompts = [
        writer.prompt_ids([{"role": "user", "content": f"{head}質問：{question_of(q)}\n答え："}])
        for q in task.questions
    ]
    return in_order(writer, prompts)


def helped_answers(run: serving.Run, rows: list[dict]) -> list[str]:
    """Greedy continuations of the true answers, which end before the value, up to the end of the sentence."""
    setting = sampler.SamplingConfig(temperature=0.0, max_new_tokens=24, stop_strings=("。", "\n"))
    writer = text.TextSampler(run.config, run.params, run.tokenizer, None, setting)
    openings = [row["output"].partition(row["answer"])[0] for row in rows]
    prompts = [writer.prompt_ids([{"role": "user", "content": opening}]) for opening in openings]
    return in_order(writer, prompts)


def rows_of(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def question_of(question: questions_lib.Question) -> str:
    return question.messages[-1]["content"]


def in_order(writer: text.TextSampler, prompts: list[list[int]]) -> list[str]:
    found = dict(writer.answer_all(prompts, range(len(prompts)), 32))
    return [found[number].text for number in range(len(prompts))]


def right(task: questions_lib.EvalTask, answers: list[str]) -> list[bool]:
    return [
        questions_lib.names(answer, question.values) == {question.answer}
        for question, answer in zip(task.questions, answers, strict=True)
    ]


def told(hits: int, count: int) -> str:
    low, high = rates.wilson(hits, count)
    return f"{hits:4d} of {count} {hits / count:6.1%} ({low:.1%}–{high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="of the quickstart")
    folder = parser.parse_args().folder
    if not (folder / "large" / "summary.json").is_file():
        pretrain_large(folder)
    large = serving.load_run(folder / "large")
    size_large = decoder.count_params(large.config)
    data = folder / "data"
    words = ",".join(f"{name}={data}/eval_{name}.jsonl" for name in TASKS)
    tasks = questions_lib.parse(words, "", 0)
    taught = rows_of(data / "instructions.jsonl")
    shots = {
        "sums": [row for row in taught if row["ID"].startswith("sum-")][::20][:SHOTS],
        "": [row for row in taught if row["ID"].startswith("world-")][::400][:SHOTS],
    }
    untuned = {"by worked examples": [], "helped": []}
    for task in tasks:
        asked = untuned_answers(large, task, shots.get(task.name, shots[""]))
        untuned["by worked examples"] += right(task, asked)
        helped = helped_answers(large, rows_of(data / f"eval_{task.name}.jsonl"))
        untuned["helped"] += right(task, helped)
    for stage in ("sft", "ppo"):
        small = serving.load_run(folder / stage)
        size = decoder.count_params(small.config)
        tuned = [hit for task in tasks for hit in right(task, tuned_answers(small, task))]
        print(
            f"{stage}: {size / 1e6:.2f} M parameters, untuned {size_large / 1e6:.2f} M ({size_large / size:.1f} x)"
        )
        print(f"  right, small and tuned    {told(sum(tuned), len(tuned))}")
        for way, hits in untuned.items():
            wins = sum(a and not b for a, b in zip(tuned, hits))
            losses = sum(b and not a for a, b in zip(tuned, hits))
            print(f"  right, large and untuned  {told(sum(hits), len(hits))}, {way}")
            print(f"    small preferred         {told(wins, len(tuned))}")
            chance = rates.sign_test(wins, losses)
            print(
                f"    large preferred         {told(losses, len(tuned))}; sign test p = {chance:.2g}"
            )


if __name__ == "__main__":
    main()
