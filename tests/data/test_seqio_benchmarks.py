"""Benchmarks under seqio.Evaluator: the same figures as without it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("seqio")

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys, zlib
import numpy as np
import seqio
from jinstr.data.eval_tasks import benchmark as benchmark_lib, benchmarks, seqio_tasks
from jinstr.text import tokenizer as tokenizer_lib

folder, path = sys.argv[1:]
tokenizer = tokenizer_lib.load(path)
found = {}


def noise(*words):
    return zlib.crc32(repr(words).encode()) % 1000


def own(benchmark, examples, texts):
    targets = [example.targets for example in examples]
    return {k: v for metric in benchmark.metrics for k, v in metric(targets, texts).items()}


def text(row, name):
    return tokenizer.decode(np.trim_zeros(row[name], "b").tolist())  # padding is 0


def evaluate(name, **functions):
    evaluator = seqio.Evaluator(
        name, seqio.EncDecFeatureConverter(pack=False), eval_split="validation", async_compute_metrics=False
    )
    metrics, _ = evaluator.evaluate(compute_metrics=True, **functions)
    return {key: float(value) for key, value in metrics.result()[name].items()}


for name, file, count in (("jnli", "jnli_valid.json", 60), ("jcommonsenseqa", "jcommonsenseqa_valid.json", 60)):
    benchmark, examples = benchmarks.load(name, f"{folder}/eval/{file}")
    shots, examples = examples[:2], examples[2 : 2 + count]
    for template in benchmark.templates[:2]:
        task = f"{name}_{template.name}"
        seqio_tasks.add(task, benchmark, examples, template, path, shots)
        asked = [benchmark_lib.ask(template, example, shots) for example in examples]

        # A score of one's own for prompt and candidate, sometimes with the right one ahead, and given back in disorder.
        def score(inputs, targets):
            return noise(inputs, targets) / 1000

        def score_fn(dataset, model_feature_shapes=None):
            rows = [
                (int(i), score(text(row, "encoder_input_tokens"), text(row, "decoder_target_tokens")))
                for i, row in dataset.as_numpy_iterator()
            ]
            return rows[::-1]

        picked = [
            benchmark_lib.chosen(e, int(np.argmax([score(a.plain, c) for c in a.candidates])))
            for e, a in zip(examples, asked)
        ]
        found[task] = [own(benchmark, examples, picked), evaluate(task, score_fn=score_fn)]

for name, file in (("jsquad", "jsquad_valid.json"), ("mgsm_ja", "mgsm_ja.tsv"), ("jsts", "jsts_valid.json")):
    benchmark, examples = benchmarks.load(name, f"{folder}/eval/{file}")
    examples = examples[:40]
    template = benchmark.templates[0]
    seqio_tasks.add(name, benchmark, examples, template, path)
    asked = [benchmark_lib.ask(template, example) for example in examples]
    written = {}
    for n, (example, one) in enumerate(zip(examples, asked)):
        other = asked[n - 1].answer
        forms = [one.answer, f"{one.answer}です。\\n\\n質問：", other, f"答えは{other}"]
        written[one.plain] = forms[noise(one.plain) % 4]

    def predict_fn(dataset, model_feature_shapes=None):
        rows = [
            (int(i), tokenizer.encode(written[text(row, "encoder_input_tokens")]) + [tokenizer.eos_id])
            for i, row in dataset.as_numpy_iterator()
        ]
        longest = max(len(ids) for _, ids in rows)
        return [(i, ids + [0] * (longest - len(ids))) for i, ids in rows][::-1]

    texts = [
        benchmark_lib.predicted(benchmark, example, one, written[one.plain])
        for example, one in zip(examples, asked)
    ]
    found[name] = [own(benchmark, examples, texts), evaluate(name, predict_fn=predict_fn)]
print(json.dumps(found))
"""


@pytest.mark.slow  # TensorFlow alone takes 10 seconds
def test_seqio_evaluator_has_the_same_figures(shared_data, tokenizer_path, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT, "utf-8")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(path), str(shared_data), tokenizer_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 7
    for name, (own, theirs) in found.items():
        assert own == theirs, name
        assert 0.0 < own[next(iter(own))] < 1.0, name  # neither nothing nor everything
    # Negative control: templates and benchmarks differ, so equal figures are no accident.
    assert len({json.dumps(own) for own, _ in found.values()}) == 7
