"""JCommonsenseQA by likelihood, jinstr beside transformers: one model, one file, the same candidates of ids.

    jinstr convert runs/base OUT=export/base
    peers/bin/python tests/benchmarks/choices_speed.py export/base valid-v1.3.json

transformers computes a row for each question and candidate, sorted by length, in padded batches of the size that is
fastest of three on a part; head and log-softmax only where candidates stand. Sides take turns in one process, each on
all questions; compiling is left out (a first round). Prints seconds of each round, their ratio, the share of useful
places in all that were computed, and how far log-likelihoods lie apart. (pip install torch transformers)
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.evaluate import choices, tasks
from jinstr.train import serving

BATCH_TOKENS = (2048, 4096, 8192)


def theirs(model, questions, batch_tokens: int) -> list[np.ndarray]:
    """Sums of log-probabilities of every candidate."""
    import torch

    rows = [
        (len(q.prompt) + len(c) - 1, n, m)
        for n, q in enumerate(questions)
        for m, c in enumerate(q.candidates)
    ]
    rows.sort(reverse=True)
    found = [np.zeros(len(q.candidates)) for q in questions]
    at = 0
    while at < len(rows):
        width = rows[at][0]
        part = rows[at : at + max(1, batch_tokens // width)]
        at += len(part)
        ids = torch.zeros((len(part), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        asked = [(questions[n].prompt, questions[n].candidates[m]) for _, n, m in part]
        for row, (prompt, candidate) in enumerate(asked):
            whole = [*prompt, *candidate][:-1]
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
        with torch.inference_mode():
            hidden = model.model(ids, attention_mask=mask).last_hidden_state
            lines = [r for r, (_, c) in enumerate(asked) for _ in c]
            places = [len(p) - 1 + k for p, c in asked for k in range(len(c))]
            targets = torch.tensor([token for _, c in asked for token in c])
            logp = model.lm_head(hidden[lines, places]).log_softmax(-1)
            logp = logp[torch.arange(len(targets)), targets].double().numpy()
        for value, line in zip(logp, lines):
            _, n, m = part[line]
            found[n][m] += value
    return found


def main() -> None:
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="an exported model")
    parser.add_argument("file", help="of JCommonsenseQA")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    run = serving.load_run(f"hf:{asked.folder}")
    (task,) = tasks.parse(f"jcommonsenseqa={asked.file}", "")
    model = transformers.AutoModelForCausalLM.from_pretrained(asked.folder, dtype=torch.float32)
    model.eval()
    for template in task.benchmark.templates:
        every = [benchmark_lib.ask(template, example, ()) for example in task.examples]
        questions = [tasks.question(one, None, run.tokenizer) for one in every]
        part = questions[::10]
        times = {}
        for size in BATCH_TOKENS:
            begun = time.perf_counter()
            theirs(model, part, size)
            times[size] = time.perf_counter() - begun
        best = min(times, key=times.get)
        own = choices.score(run.config, run.params, questions, 8192)
        seconds: dict[str, list[float]] = {"jinstr": [], "transformers": []}
        for _ in range(asked.rounds):
            begun = time.perf_counter()
            own = choices.score(run.config, run.params, questions, 8192)
            seconds["jinstr"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            other = theirs(model, questions, best)
            seconds["transformers"].append(time.perf_counter() - begun)
        apart = max(np.abs(a - b).max() for a, b in zip(own.logp, other))
        alike = sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(own.logp, other))
        ratio = statistics.median(seconds["transformers"]) / statistics.median(seconds["jinstr"])
        told = {name: [round(value, 2) for value in values] for name, values in seconds.items()}
        print(
            f"{template.name}: {len(questions)} questions, {told} s, transformers / jinstr = {ratio:.2f} "
            f"(batches of {best} tokens); useful / computed = {own.share:.3f}; log-likelihoods within {apart:.1e}, "
            f"{alike} of {len(questions)} choices alike"
        )


if __name__ == "__main__":
    main()
