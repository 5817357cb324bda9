"""Official files of JGLUE (JCommonsenseQA, JNLI, JSTS, JSQuAD), and JaQuAD, which has the layout of JSQuAD."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping

from jinstr import errors
from jinstr.data import readers
from jinstr.data.eval_tasks import benchmark, file_checks

NLI = ("entailment", "contradiction", "neutral")


def jcommonsenseqa(where: str, row: dict) -> benchmark.Example:
    """JGLUE: q_id, question, choice0 … choice4, label (number of the right choice)."""
    choices = tuple(file_checks.text_of(row, f"choice{n}", where) for n in range(5))
    right = file_checks.number_of(row, "label", where, 5)
    return benchmark.Example(
        id=file_checks.id_of(row, "q_id", where),
        fields={"question": file_checks.text_of(row, "question", where)},
        targets=(choices[right],),
        choices=choices,
        right=right,
    )


def jnli(where: str, row: dict) -> benchmark.Example:
    """JGLUE: sentence_pair_id, sentence1, sentence2, label (entailment, contradiction, neutral)."""
    label = row.get("label")
    if label not in NLI:
        raise file_checks.bad(where, f"label is {label!r}, not one of {', '.join(NLI)}")
    return benchmark.Example(
        id=file_checks.id_of(row, "sentence_pair_id", where),
        fields={
            "premise": file_checks.text_of(row, "sentence1", where),
            "hypothesis": file_checks.text_of(row, "sentence2", where),
        },
        targets=(label,),
        choices=NLI,
        right=NLI.index(label),
    )


def jsts(where: str, row: dict) -> benchmark.Example:
    """JGLUE: sentence_pair_id, sentence1, sentence2, label (similarity from 0 to 5)."""
    value = row.get("label")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 5:
        raise file_checks.bad(where, f"label is {value!r}, not a number from 0 to 5")
    return benchmark.Example(
        id=file_checks.id_of(row, "sentence_pair_id", where),
        fields={
            "sentence1": file_checks.text_of(row, "sentence1", where),
            "sentence2": file_checks.text_of(row, "sentence2", where),
        },
        targets=(str(float(value)),),
    )


def _squad_answers(qa: Mapping, where: str) -> tuple[str, ...]:
    answers = qa.get("answers")
    if not isinstance(answers, list) or not answers:
        raise file_checks.bad(
            where, "no answers" if answers in (None, []) else f"answers is {answers!r}"
        )
    texts = []
    for number, answer in enumerate(answers):
        if not isinstance(answer, dict):
            raise file_checks.bad(f"{where}.answers[{number}]", f"{answer!r} has no fields")
        texts.append(file_checks.text_of(answer, "text", f"{where}.answers[{number}]"))
    return tuple(dict.fromkeys(texts))


def _items(value, name: str, where: str) -> list[tuple[str, dict]]:
    """(where, item) of a list of objects in a field."""
    found = value.get(name)
    if not isinstance(found, list):
        raise file_checks.bad(where, f"{name} is {type(found).__name__}, not a list")
    for number, item in enumerate(found):
        if not isinstance(item, dict):
            raise file_checks.bad(f"{where}.{name}[{number}]", f"{item!r} has no fields")
    return [(f"{where}.{name}[{number}]", item) for number, item in enumerate(found)]


def _squad(file: pathlib.Path) -> Iterator[tuple[str, benchmark.Example]]:
    try:
        whole = json.loads(readers.decode(file.read_bytes(), file))
    except (ValueError, RecursionError) as error:
        raise errors.DataError("JI-EVAL-014", f"{file}: not JSON ({error})") from None
    if not isinstance(whole, dict):
        raise file_checks.bad(f"{file}: $", f"a {type(whole).__name__}, not an object with data")
    for at_article, article in _items(whole, "data", f"{file}: $"):
        title = file_checks.text_of(article, "title", at_article)
        for at_paragraph, paragraph in _items(article, "paragraphs", at_article):
            context = file_checks.text_of(paragraph, "context", at_paragraph)
            for where, qa in _items(paragraph, "qas", at_paragraph):
                fields = {
                    "title": title,
                    "context": context,
                    "passage": context.split("[SEP]")[-1].strip(),
                    "question": file_checks.text_of(qa, "question", where),
                }
                id = file_checks.id_of(qa, "id", where)
                targets = _squad_answers(qa, where)
                yield where, benchmark.Example(id=id, fields=fields, targets=targets)


def squad(path: str) -> tuple[benchmark.Example, ...]:
    """SQuAD's layout, of JSQuAD and JaQuAD: data[].paragraphs[].qas[], answers[].text.

    `context` is the official text (JSQuAD's begins with the title and [SEP]), `passage` what follows [SEP].
    """
    found = (pair for file in readers.files_of(path) for pair in _squad(file))
    return file_checks.collect(path, found)
