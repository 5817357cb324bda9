"""Official files of benchmarks to examples. A row that is not what its benchmark promises is named and refused.

A path is a file, a folder, a glob, or several joined by "+" (data/readers.py).
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
import xml.etree.ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping

from jinstr import errors
from jinstr.data import bad_rows, readers
from jinstr.data.eval_tasks import benchmark, reading

NLI = ("entailment", "contradiction", "neutral")
LETTERS = "ABCDEFGHIJ"


def bad(where: str, why: str) -> errors.DataError:
    return errors.DataError("JI-EVAL-012", f"{where}: {why}; correct the row or take it out")


def text_of(row: Mapping, name: str, where: str) -> str:
    """A field that must hold text."""
    if name not in row:
        raise bad(where, f"no field {name} (fields: {', '.join(map(str, row)) or 'none'})")
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise bad(where, f"{name} is {value!r}, not text")
    return value


def id_of(row: Mapping, name: str, where: str) -> str:
    """A field that must hold a name or a number of the row."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise bad(where, f"{name} is {value!r}, not a name or whole number")
    return str(value)


def number_of(row: Mapping, name: str, where: str, count: int) -> int:
    """A field that must hold a whole number from 0 to count - 1; true and 1.0 are none."""
    if name not in row:
        raise bad(where, f"no field {name}: test sets without answers cannot be scored")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise bad(where, f"{name} is {value!r}, not a whole number from 0 to {count - 1}")
    return value


def rows(path: str) -> Iterator[tuple[str, dict]]:
    """(where, row) of all files behind a path. Errors: DataError for what is no row."""
    for file in readers.files_of(path):
        for where, row in readers.rows(file):
            if isinstance(row, bad_rows.BadRow):
                raise bad(where, str(row))
            yield where, row


def collect(path: str, found: Iterable[tuple[str, benchmark.Example]]) -> tuple:
    """The examples. Errors: DataError where there are none, or two of one id."""
    places: dict[str, str] = {}
    examples = []
    for where, example in found:
        if example.id in places:
            raise bad(where, f"the id {example.id} stands at {places[example.id]} too")
        places[example.id] = where
        examples.append(example)
    if not examples:
        raise errors.DataError("JI-EVAL-013", f"{path}: no examples in it")
    return tuple(examples)


def by_rows(one: Callable[[str, dict], benchmark.Example]) -> Callable[[str], tuple]:
    """A reader of files of which every row is an example."""

    def read(path: str) -> tuple[benchmark.Example, ...]:
        return collect(path, ((where, one(where, row)) for where, row in rows(path)))

    return read


def jcommonsenseqa(where: str, row: dict) -> benchmark.Example:
    """JGLUE: q_id, question, choice0 … choice4, label (number of the right choice)."""
    choices = tuple(text_of(row, f"choice{n}", where) for n in range(5))
    right = number_of(row, "label", where, 5)
    return benchmark.Example(
        id=id_of(row, "q_id", where),
        fields={"question": text_of(row, "question", where)},
        targets=(choices[right],),
        choices=choices,
        right=right,
    )


def jnli(where: str, row: dict) -> benchmark.Example:
    """JGLUE: sentence_pair_id, sentence1, sentence2, label (entailment, contradiction, neutral)."""
    label = row.get("label")
    if label not in NLI:
        raise bad(where, f"label is {label!r}, not one of {', '.join(NLI)}")
    return benchmark.Example(
        id=id_of(row, "sentence_pair_id", where),
        fields={
            "premise": text_of(row, "sentence1", where),
            "hypothesis": text_of(row, "sentence2", where),
        },
        targets=(label,),
        choices=NLI,
        right=NLI.index(label),
    )


def _squad_answers(qa: Mapping, where: str) -> tuple[str, ...]:
    answers = qa.get("answers")
    if not isinstance(answers, list) or not answers:
        raise bad(where, "no answers" if answers in (None, []) else f"answers is {answers!r}")
    texts = []
    for number, answer in enumerate(answers):
        if not isinstance(answer, dict):
            raise bad(f"{where}.answers[{number}]", f"{answer!r} has no fields")
        texts.append(text_of(answer, "text", f"{where}.answers[{number}]"))
    return tuple(dict.fromkeys(texts))


def _items(value, name: str, where: str) -> list[tuple[str, dict]]:
    """(where, item) of a list of objects in a field."""
    found = value.get(name)
    if not isinstance(found, list):
        raise bad(where, f"{name} is {type(found).__name__}, not a list")
    for number, item in enumerate(found):
        if not isinstance(item, dict):
            raise bad(f"{where}.{name}[{number}]", f"{item!r} has no fields")
    return [(f"{where}.{name}[{number}]", item) for number, item in enumerate(found)]


def _squad(file: pathlib.Path) -> Iterator[tuple[str, benchmark.Example]]:
    try:
        whole = json.loads(readers.decode(file.read_bytes(), file))
    except (ValueError, RecursionError) as error:
        raise errors.DataError("JI-EVAL-014", f"{file}: not JSON ({error})") from None
    if not isinstance(whole, dict):
        raise bad(f"{file}: $", f"a {type(whole).__name__}, not an object with data")
    for at_article, article in _items(whole, "data", f"{file}: $"):
        title = text_of(article, "title", at_article)
        for at_paragraph, paragraph in _items(article, "paragraphs", at_article):
            context = text_of(paragraph, "context", at_paragraph)
            for where, qa in _items(paragraph, "qas", at_paragraph):
                fields = {
                    "title": title,
                    "context": context,
                    "passage": context.split("[SEP]")[-1].strip(),
                    "question": text_of(qa, "question", where),
                }
                id = id_of(qa, "id", where)
                targets = _squad_answers(qa, where)
                yield where, benchmark.Example(id=id, fields=fields, targets=targets)


def squad(path: str) -> tuple[benchmark.Example, ...]:
    """SQuAD's layout, of JSQuAD and JaQuAD: data[].paragraphs[].qas[], answers[].text.

    `context` is the official text (JSQuAD's begins with the title and [SEP]), `passage` what follows [SEP].
    """
    found = (pair for file in readers.files_of(path) for pair in _squad(file))
    return collect(path, found)


def _cells(path: str, delimiter: str, quoting: int, count: int):
    """(file, line, cells) of files without a line of names; empty lines are passed over."""
    for file in readers.files_of(path):
        text = readers.decode(file.read_bytes(), file)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
        try:
            for cells in lines:
                if not any(cell.strip() for cell in cells):
                    continue
                where = f"{file}:{lines.line_num}"
                if len(cells) != count:
                    raise bad(where, f"{len(cells)} cells, not {count}")
                yield file, lines.line_num, where, [cell.strip() for cell in cells]
        except csv.Error as error:
            raise bad(f"{file}:{lines.line_num}", str(error)) from None


def jmmlu(path: str) -> tuple[benchmark.Example, ...]:
    """JMMLU: question, four choices, letter of the right one; a file for every subject, which is its name."""

    def found():
        for file, line, where, cells in _cells(path, ",", csv.QUOTE_MINIMAL, 6):
            question, *choices, letter = cells
            if not question or "" in choices:
                raise bad(where, "a question or choice is empty")
            if letter not in tuple(LETTERS[:4]):
                raise bad(where, f"the answer is {letter!r}, not A, B, C or D")
            subject = file.stem.removeprefix("jmmlu_")
            right = LETTERS.index(letter)
            yield (
                where,
                benchmark.Example(
                    id=f"{subject}:{line}",
                    fields={"question": question, "subject": subject},
                    targets=(choices[right],),
                    choices=tuple(choices),
                    right=right,
                    group=subject,
                ),
            )

    return collect(path, found())


def mgsm(path: str) -> tuple[benchmark.Example, ...]:
    """MGSM: question and number, parted by a tab; the number's commas (2,125) fall away."""

    def found():
        for _, line, where, (question, answer) in _cells(path, "\t", csv.QUOTE_NONE, 2):
            number = reading.last_number_harness(answer)
            if not question or number == reading.NO_NUMBER:
                raise bad(
                    where, f"the answer {answer!r} is no whole number" if question else "empty"
                )
            yield (
                where,
                benchmark.Example(id=str(line), fields={"question": question}, targets=(number,)),
            )

    return collect(path, found())


def jsts(where: str, row: dict) -> benchmark.Example:
    """JGLUE: sentence_pair_id, sentence1, sentence2, label (similarity from 0 to 5)."""
    value = row.get("label")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 5:
        raise bad(where, f"label is {value!r}, not a number from 0 to 5")
    return benchmark.Example(
        id=id_of(row, "sentence_pair_id", where),
        fields={
            "sentence1": text_of(row, "sentence1", where),
            "sentence2": text_of(row, "sentence2", where),
        },
        targets=(str(float(value)),),
    )


def jemhopqa(where: str, row: dict) -> benchmark.Example:
    """JEMHopQA: qid, type (comparison, compositional), question, answer (YES and NO where that is the question)."""
    return benchmark.Example(
        id=id_of(row, "qid", where),
        fields={"question": text_of(row, "question", where)},
        targets=(text_of(row, "answer", where),),
        group=text_of(row, "type", where),
    )


def _xml(file: pathlib.Path) -> xml.etree.ElementTree.Element:
    text = readers.decode(file.read_bytes(), file)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise errors.DataError("JI-EVAL-016", f"{file}: XML that defines entities is not read")
    try:
        # ElementTree refuses text that names an encoding.
        return xml.etree.ElementTree.fromstring(text.encode("utf-8"))
    except (xml.etree.ElementTree.ParseError, ValueError, LookupError) as error:
        raise errors.DataError("JI-EVAL-017", f"{file}: not XML ({error})") from None


def niilc(path: str) -> tuple[benchmark.Example, ...]:
    """NIILC-QA: <question id> with <text> and <answers><answer>.

    As in llm-jp-eval the target is all answers joined by ",". Where people found none the official answer is "-".
    """

    def found():
        for file in readers.files_of(path):
            for number, node in enumerate(_xml(file).iter("question"), 1):
                where = f"{file}: question {number} ({node.get('id', 'no id')})"
                answers = [(found.text or "").strip() for found in node.findall("answers/answer")]
                if not answers or "" in answers:
                    raise bad(where, "an answer is empty" if answers else "no answers")
                question = (node.findtext("text") or "").strip()
                if not question:
                    raise bad(where, "no text")
                id = id_of(node.attrib, "id", where)
                targets = (",".join(answers),)
                yield (
                    where,
                    benchmark.Example(id=id, fields={"question": question}, targets=targets),
                )

    return collect(path, found())
