"""Official files of JMMLU (csv), MGSM (tsv), JEMHopQA (JSON) and NIILC (XML)."""

from __future__ import annotations

import csv
import io
import pathlib
import xml.etree.ElementTree

from jinstr import errors
from jinstr.data import readers
from jinstr.data.eval_tasks import benchmark, file_checks, reading

LETTERS = "ABCD"


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
                    raise file_checks.bad(where, f"{len(cells)} cells, not {count}")
                yield file, lines.line_num, where, [cell.strip() for cell in cells]
        except csv.Error as error:
            raise file_checks.bad(f"{file}:{lines.line_num}", str(error)) from None


def jmmlu(path: str) -> tuple[benchmark.Example, ...]:
    """JMMLU: question, four choices, letter of the right one; a file for every subject, which is its name."""

    def found():
        for file, line, where, cells in _cells(path, ",", csv.QUOTE_MINIMAL, 6):
            question, *choices, letter = cells
            if not question or "" in choices:
                raise file_checks.bad(where, "a question or choice is empty")
            if letter not in tuple(LETTERS):
                raise file_checks.bad(where, f"the answer is {letter!r}, not A, B, C or D")
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

    return file_checks.collect(path, found())


def mgsm(path: str) -> tuple[benchmark.Example, ...]:
    """MGSM: question and number, parted by a tab; the number's commas (2,125) fall away."""

    def found():
        for _, line, where, (question, answer) in _cells(path, "\t", csv.QUOTE_NONE, 2):
            number = reading.last_number_harness(answer)
            if not question or number == reading.NO_NUMBER:
                raise file_checks.bad(
                    where, f"the answer {answer!r} is no whole number" if question else "empty"
                )
            yield (
                where,
                benchmark.Example(id=str(line), fields={"question": question}, targets=(number,)),
            )

    return file_checks.collect(path, found())


def jemhopqa(where: str, row: dict) -> benchmark.Example:
    """JEMHopQA: qid, type (comparison, compositional), question, answer (YES and NO where that is the question)."""
    return benchmark.Example(
        id=file_checks.id_of(row, "qid", where),
        fields={"question": file_checks.text_of(row, "question", where)},
        targets=(file_checks.text_of(row, "answer", where),),
        group=file_checks.text_of(row, "type", where),
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
                    raise file_checks.bad(where, "an answer is empty" if answers else "no answers")
                question = (node.findtext("text") or "").strip()
                if not question:
                    raise file_checks.bad(where, "no text")
                id = file_checks.id_of(node.attrib, "id", where)
                targets = (",".join(answers),)
                yield (
                    where,
                    benchmark.Example(id=id, fields={"question": question}, targets=targets),
                )

    return file_checks.collect(path, found())
