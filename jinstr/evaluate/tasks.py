"""What is to be scored: benchmarks with their files, every template, worked examples before the question, and the ids
that a model reads.

    TASKS=jcommonsenseqa=valid.json,jnli=jnli.json SHOTS=0,3 SHOTS_FROM=jnli=train.json

Worked examples are the first ones of SHOTS_FROM, or else of the task's own file; those of its own file are left out of
the score.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jinstr import errors, settings
from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.data.eval_tasks import benchmarks
from jinstr.decode import requests
from jinstr.evaluate import choices
from jinstr.text import render

FORMATS = ("auto", "plain", "chat")
WAYS = ("likelihood", "writing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark and its examples."""

    benchmark: benchmark_lib.Benchmark
    file: str  # name of the file or folder, without those above it
    examples: tuple[benchmark_lib.Example, ...]
    worked: tuple[benchmark_lib.Example, ...] | None  # of SHOTS_FROM; None = its own first ones


class Job(NamedTuple):
    """One figure to find: a task as one template asks it, with so many worked examples."""

    task: Task
    template: benchmark_lib.Template
    worked: tuple[benchmark_lib.Example, ...]
    examples: tuple[benchmark_lib.Example, ...]

    @property
    def shots(self) -> int:
        return len(self.worked)


def _pairs(words: str, setting: str) -> list[tuple[str, str]]:
    """ "name=path,name=path" as pairs."""
    pairs = []
    for word in filter(None, (word.strip() for word in words.split(","))):
        name, equals, path = word.partition("=")
        if not equals or not path:
            raise errors.ConfigError(
                "JI-EVALUATE-001",
                f"{setting}: {word!r} is no benchmark=path; known: {', '.join(benchmarks.BENCHMARKS)}",
            )
        pairs.append((name, path))
    return pairs


def parse(tasks: str, shots_from: str) -> list[Task]:
    """The tasks of TASKS with the worked examples of SHOTS_FROM.

    Errors: ConfigError for a name that is unknown or not among the tasks; DataError for a file.
    """
    asked = _pairs(tasks, "TASKS")
    if not asked:
        raise errors.ConfigError("JI-EVALUATE-001", "TASKS is empty; give benchmark=path")
    names = [name for name, _ in asked]
    worked: dict[str, tuple] = {}
    for name, path in _pairs(shots_from, "SHOTS_FROM"):
        if name not in names:
            raise errors.ConfigError(
                "JI-EVALUATE-002",
                f"SHOTS_FROM names {name}, which is none of TASKS{settings.did_you_mean(name, names)}",
            )
        worked[name] = benchmarks.find(name).read(path)
    found = []
    for name, path in asked:
        benchmark, examples = benchmarks.load(name, path)
        file = "+".join(pathlib.Path(part).name for part in path.split("+"))
        found.append(
            Task(benchmark=benchmark, file=file, examples=examples, worked=worked.get(name))
        )
    digests = [data_digest(task.examples) for task in found]
    if len(set(zip(names, digests))) < len(found):
        raise errors.ConfigError("JI-EVALUATE-003", f"TASKS={tasks}: the same examples twice")
    return found


def parse_shots(shots: str | int | Sequence[int]) -> list[int]:
    """ "0,3", 3 or (0, 3) → [0, 3]."""
    many = shots if isinstance(shots, tuple | list) else str(shots).split(",")
    try:
        counts = [int(str(count)) for count in many]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0 or len(set(counts)) < len(counts):
        raise errors.ConfigError(
            "JI-EVALUATE-004",
            f"SHOTS={shots!r}: different whole numbers from 0 on, comma separated",
        )
    return counts


def jobs(task: Task, shots: Sequence[int], templates: str, limit: int) -> Iterator[Job]:
    """Every template with every number of worked examples.

    templates: names, comma separated; "" = all. limit: examples that are scored, the first ones; 0 = all.
    Errors: ConfigError for more worked examples than there are, or a template that the task has not.
    """
    own = {template.name: template for template in task.benchmark.templates}
    wanted = [name.strip() for name in templates.split(",") if name.strip()] or list(own)
    for name in wanted:
        if name not in own:
            raise errors.ConfigError(
                "JI-EVALUATE-005",
                f"TASK_TEMPLATES names {name}, but {task.benchmark.name} has {', '.join(own)}"
                f"{settings.did_you_mean(name, own)}",
            )
    for count in shots:
        source = task.examples if task.worked is None else task.worked
        rest = task.examples[count:] if task.worked is None else task.examples
        if count > len(source) or not rest:
            raise errors.ConfigError(
                "JI-EVALUATE-006",
                f"SHOTS={count}: {task.benchmark.name} has {len(source)} examples to show"
                + ("" if task.worked is not None else " and to score together")
                + "; give fewer, or SHOTS_FROM",
            )
        for name in wanted:
            yield Job(task, own[name], source[:count], rest[: limit or None])


def data_digest(examples: Sequence[benchmark_lib.Example]) -> str:
    """16 hex digits of all that examples say."""
    return requests.digest([dataclasses.asdict(example) for example in examples])


def identity(job: Job) -> dict:
    """What the figure depends on besides the model, as the key of a result has it."""
    return {
        "task": job.task.benchmark.name,
        "version": job.task.benchmark.version,
        "data": data_digest(job.examples),
        "template": job.template.name,
        "wording": requests.digest(dataclasses.asdict(job.template)),
        "shots": job.shots,
        "shots_data": data_digest(job.worked),
    }


def plain_prompt(text: str, tokenizer) -> list[int]:
    """Ids of a text that a model is to go on with, after the begin-of-text token where there is one."""
    begin = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    return [*begin, *tokenizer.encode(text)]


def prompt_ids(asked: benchmark_lib.Asked, template, tokenizer) -> list[int]:
    """Ids up to where the answer begins. template: a chat template, or None for plain text."""
    if template is None:
        return plain_prompt(asked.plain, tokenizer)
    return render.render_prompt(asked.messages, template, tokenizer)


def question(asked: benchmark_lib.Asked, template, tokenizer) -> choices.Question:
    """Ids of the prompt and of every candidate.

    In plain text a candidate is its text alone, as in the evaluation harness; in a conversation it is the whole answer
    with its end, as in training.
    """
    prompt = prompt_ids(asked, template, tokenizer)
    if template is None:
        found = [tokenizer.encode_continuation(text) for text in asked.candidates]
        return choices.Question(prompt, found)
    found = []
    for text in asked.candidates:
        answer = {"role": "assistant", "content": text}
        rendered = render.render([*asked.messages, answer], template, tokenizer)
        end = max(n for n, trained in enumerate(rendered.loss_mask) if trained) + 1
        found.append(rendered.tokens[len(prompt) : end])
    return choices.Question(prompt, found)


def chance(examples: Sequence[benchmark_lib.Example]) -> dict[str, float]:
    """Accuracy without reading: of a choice by lot, and of the one place among the choices that is right most often."""
    places = [
        example.right if example.right >= 0 else example.choices.index(example.targets[0])
        for example in examples
    ]
    return {
        "by_lot": sum(1 / len(example.choices) for example in examples) / len(examples),
        "one_place": max(map(places.count, set(places))) / len(examples),
    }
