"""What a benchmark is: examples, several ways to ask, how an answer is read, what is computed. No TensorFlow here.

A template asks in plain text (for base models) or as a conversation (for tuned ones); both come from one place:

    plain     instruction ⏎⏎ question ⏎ lead answer ⏎⏎ question ⏎ lead
    chat      user: instruction ⏎⏎ question   assistant: answer   user: question

Labels differ between templates (0, A, 含意), so metrics never see them: a prediction among choices is the text of the
choice (`predicted`, `chosen`), and targets are those of the example.
"""

from __future__ import annotations

import dataclasses
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jinstr import errors

# (targets of every example, predictions) → figures by name; metrics.py
Metric = Callable[[Sequence[tuple[str, ...]], Sequence[str]], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a benchmark's official file.

    Choices of equal text are one answer: whichever of them is chosen, the text is what counts.
    """

    id: str
    fields: Mapping[str, str]  # what a template's question may name
    targets: tuple[str, ...]  # accepted answers, the first is the official one
    choices: tuple[str, ...] = ()  # texts to choose from; the first target is one of them
    right: int = -1  # number of the right choice; -1 = the first choice that is the first target
    group: str = ""  # such as a subject or category, for figures by group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """One way to ask. `question` names fields in braces; "{choices}" is the list of choices, each with its label."""

    name: str
    question: str
    instruction: str = ""
    lead: str = ""  # stands before the answer in plain text, such as 回答：
    choice: str = "{label}.{text}"  # one choice within "{choices}"
    between: str = ","  # between two choices
    labels: tuple[str, ...] = ()  # answers for the choices, in their order; () = the choices' texts


class Asked(NamedTuple):
    """An example as one template asks it."""

    plain: str
    messages: tuple[dict[str, str], ...]
    candidates: tuple[str, ...]  # an answer for every choice, in their order
    answer: str  # the right one in this template's words, as it stands in the prompts of others


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published evaluation set with all that its score depends on."""

    name: str
    version: str  # changes when a figure would change
    read: Callable[[str], tuple[Example, ...]]  # path of the official file → examples
    templates: tuple[Template, ...]
    chooses: bool  # by likelihood among the candidates; else the answer is written
    metrics: tuple[Metric, ...]  # of (targets of every example, predictions)
    main: str  # the metric that tables show first
    # Metrics that need more of the file than its targets, given its path (benchmarks.load puts them first).
    metrics_of: Callable[[str], tuple[Metric, ...]] | None = None
    read_answer: Callable[[str], str] = str.strip  # written text → prediction
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ("\n\n",)
    source: str = ""  # where the file and the definition come from
    licence: str = ""


def _filled(pattern: str, fields: Mapping[str, str], template: Template) -> str:
    try:
        return pattern.format(**fields)
    except (KeyError, IndexError, ValueError):
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
        lacking = [name for name in names if name not in fields]
        raise errors.ConfigError(
            "JI-EVAL-010",
            f"template {template.name}: {pattern!r} names {', '.join(lacking) or 'nothing'}; "
            f"the example has {', '.join(fields)}",
        ) from None


def fill(template: Template, example: Example) -> tuple[str, tuple[str, ...], str]:
    """(question, candidates, right answer) of an example in a template's words.

    Errors: ConfigError where the template has fewer labels than the example has choices, two labels that are the same,
    or names a field that the example has not.
    """
    choices, labels = example.choices, template.labels
    if choices and labels and (len(labels) < len(choices) or len(set(labels)) < len(labels)):
        raise errors.ConfigError(
            "JI-EVAL-011",
            f"template {template.name}: labels {', '.join(labels)} for {len(choices)} choices of example {example.id}; "
            "give every choice a label of its own",
        )
    candidates = labels[: len(choices)] or choices
    listed = template.between.join(
        _filled(template.choice, {"label": label, "text": text}, template)
        for label, text in zip(candidates, choices)
    )
    question = _filled(template.question, dict(example.fields) | {"choices": listed}, template)
    answer = example.targets[0]
    if choices:
        answer = candidates[example.right if example.right >= 0 else choices.index(answer)]
    return question, candidates, answer


def ask(template: Template, example: Example, shots: Sequence[Example] = ()) -> Asked:
    """An example with worked ones before it. Errors: those of `fill`."""
    question, candidates, right = fill(template, example)
    worked = [fill(template, shot) for shot in shots]
    head = [template.instruction] if template.instruction else []
    blocks = [f"{text}\n{template.lead}{answer}" for text, _, answer in worked]
    plain = "\n\n".join([*head, *blocks, f"{question}\n{template.lead}"])
    turns = []
    for text, _, answer in worked:
        turns += [("user", text), ("assistant", answer)]
    turns.append(("user", question))
    turns[0] = ("user", "\n\n".join([*head, turns[0][1]]))
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Asked(plain, messages, candidates, right)


def chosen(example: Example, number: int) -> str:
    """The prediction where the candidate of this number is the likeliest."""
    return example.choices[number]


def predicted(benchmark: Benchmark, example: Example, asked: Asked, text: str) -> str:
    """The prediction behind written text.

    Where there are choices: the choice whose candidate the text is, after NFKC and apart from case and spaces at the
    ends; any other text stays what it is, and so equals no choice by accident.
    """
    answer = benchmark.read_answer(text)
    if not example.choices:
        return answer

    def same(word: str) -> str:
        return unicodedata.normalize("NFKC", word).strip().casefold()

    for candidate, choice in zip(asked.candidates, example.choices):
        if same(candidate) == same(answer):
            return choice
    return "" if answer in example.choices else answer


def figures(benchmark: Benchmark, examples: Sequence[Example], predictions: Sequence[str]) -> dict:
    """All metrics of a benchmark, by name."""
    targets = [example.targets for example in examples]
    found: dict[str, float] = {}
    for metric in benchmark.metrics:
        found |= metric(targets, predictions)
    return found
