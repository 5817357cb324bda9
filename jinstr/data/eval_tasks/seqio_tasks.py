"""Benchmarks as seqio Tasks, so that seqio.Evaluator runs them. TensorFlow only inside functions.

    task = seqio_tasks.add("jnli", benchmark, examples, template, tokenizer_path)
    evaluator = seqio.Evaluator("jnli", seqio.EncDecFeatureConverter(pack=False), eval_split="validation")
    metrics, _ = evaluator.evaluate(compute_metrics=True, score_fn=…)  # predict_fn=… where answers are written

Where the benchmark chooses, every candidate is a row of its own (`inputs`, `targets`), score_fn gives its
log-likelihood (over its length, if that is wanted), and the likeliest counts. Elsewhere every example is a row, and
predict_fn gives ids of what was written, with the end of text and then anything: rows of one length. The metrics and
the reading of answers are the benchmark's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jinstr.data import vocabularies
from jinstr.data.eval_tasks import benchmark as benchmark_lib

SPLIT = "validation"


def rows(asked: Sequence[benchmark_lib.Asked], chooses: bool) -> Iterator[dict]:
    """`inputs`, `targets`, and the numbers of `example` and `candidate`, of each row."""
    for number, one in enumerate(asked):
        for candidate, text in enumerate(one.candidates if chooses else (one.answer,)):
            yield {"inputs": one.plain, "targets": text, "example": number, "candidate": candidate}


def _choose(benchmark, examples: Sequence[benchmark_lib.Example]) -> Callable:
    def metric(targets, scores) -> dict[str, float]:
        best: dict[int, tuple[float, int]] = {}
        for (number, candidate), score in zip(targets, scores, strict=True):
            best[number] = max(best.get(number, (-float("inf"), 0)), (float(score), -candidate))
        numbers = sorted(best)
        texts = [benchmark_lib.chosen(examples[n], -best[n][1]) for n in numbers]
        return benchmark_lib.figures(benchmark, [examples[n] for n in numbers], texts)

    return metric


def _write(benchmark, examples, asked: Sequence[benchmark_lib.Asked]) -> Callable:
    def metric(targets, predictions) -> dict[str, float]:
        chosen = [examples[number] for number, _ in targets]
        texts = [
            benchmark_lib.predicted(benchmark, examples[number], asked[number], text)
            for (number, _), text in zip(targets, predictions, strict=True)
        ]
        return benchmark_lib.figures(benchmark, chosen, texts)

    return metric


def _postprocess(text, example=None, is_target=False):
    """Of a target the numbers of its row; of what was written the text."""
    return (int(example["example"]), int(example["candidate"])) if is_target else text


def add(
    name: str,
    benchmark: benchmark_lib.Benchmark,
    examples: Sequence[benchmark_lib.Example],
    template: benchmark_lib.Template,
    tokenizer_path: str,
    shots: Sequence[benchmark_lib.Example] = (),
):
    """Register and return a seqio Task with the split "validation", whose metrics are the benchmark's.

    Prompts are plain text (`Asked.plain`); `inputs` and `targets` are ids of the tokenizer at the path, without begin
    or end of text. Errors: those of `benchmark.fill` and `text.tokenizer.load`.
    """
    import seqio
    import tensorflow as tf

    asked = [benchmark_lib.ask(template, example, shots) for example in examples]
    types = {"inputs": tf.string, "targets": tf.string, "example": tf.int32, "candidate": tf.int32}

    def dataset(split: str, shuffle_files: bool, seed: int | None = None):
        del split, shuffle_files, seed
        return tf.data.Dataset.from_generator(
            lambda: rows(asked, benchmark.chooses),
            output_signature={key: tf.TensorSpec([], type) for key, type in types.items()},
        )

    feature = seqio.Feature(vocabularies.vocabulary(tokenizer_path), add_eos=False)
    metric = (
        _choose(benchmark, examples) if benchmark.chooses else _write(benchmark, examples, asked)
    )
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=(SPLIT,)),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=_postprocess,
        metric_fns=[metric],
    )
