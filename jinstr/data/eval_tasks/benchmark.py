"""What a benchmark is: examples, several ways to ask, how an answer is read, what is computed. No TensorFlow here.

A template asks in plain text (for base models) or as a conversation (for tuned ones); both come from one place:

    plain     instruction ⏎⏎ question ⏎ lead answer ⏎⏎ question ⏎ lead
    chat      user: instruction ⏎⏎ question   assistant: answer   user: question
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Metric = Callable[[Sequence[tuple[str, ...]], Sequence[str]], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a benchmark's official file."""

    id: str
    fields: Mapping[str, str]  # what a template's question may name
    targets: tuple[str, ...]  # accepted answers, the first is the official one
    choices: tuple[str, ...] = ()  # texts to choose from; the first target is one of them
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
    labels: tuple[
        str, ...
    ] = ()  # what is answered for the n-th choice; () = the choice's text itself


class Asked(NamedTuple):
    """An example as one template asks it."""

    plain: str
    messages: tuple[dict[str, str], ...]
    candidates: tuple[str, ...]  # an answer for every choice, in their order
    answer: (
        str  # the right one as this template wants it; as a shot it stands in the prompts of others
    )


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
    read_answer: Callable[[str], str] = str.strip  # written text → prediction
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ("\n\n",)
    source: str = ""  # where the file and the definition come from
    licence: str = ""


def fill(template: Template, example: Example) -> tuple[str, tuple[str, ...], str]:
    """(question, candidates, right answer) of an example in a template's words."""
    candidates = template.labels[: len(example.choices)] or example.choices
    listed = template.between.join(
        template.choice.format(label=label, text=text)
        for label, text in zip(candidates, example.choices)
    )
    question = template.question.format(**(dict(example.fields) | {"choices": listed}))
    right = example.targets[0]
    if example.choices:
        right = candidates[example.choices.index(right)]
    return question, candidates, right


def ask(template: Template, example: Example, shots: Sequence[Example] = ()) -> Asked:
    """An example with worked ones before it."""
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
