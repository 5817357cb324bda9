"""What a run reads: files, seqio tasks and TFDS sets, as examples of text (see formats.py), each with its licence.

Reading is a pure function of the source: the same examples in the same order, held-out parts told apart by name. Files
need no TensorFlow; tasks and TFDS sets import it in tasks.py, and only there.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from jinstr import errors
from jinstr.data import bad_rows, file_examples, formats, readers, selection, splits


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of a mixture. Exactly one of path, task, tfds is set."""

    name: str = ""  # in logs and manifests; "" = from path, task or tfds
    path: str = ""  # file, folder or glob*; several joined by "+"
    task: str = ""  # name of a seqio Task or Mixture
    tfds: str = ""  # name of a TFDS set, such as wiki40b/ja
    tfds_dir: str = ""  # folder of TFDS sets; "" = ~/tensorflow_datasets
    module: str = ""  # module to import first: it registers the task
    format: str = ""  # shape of the rows; "" = told by their keys
    fields: str = ""  # columns under other names: "instruction=質問,output=回答"
    split: str = "train"  # of a task or TFDS set (c4/multilingual has one for each language)
    rate: float = 1.0  # share in the mixture, in the loader's rate_unit
    mixture: str = ""  # seqio Mixture that a task came from; the rate is then a share of examples
    on_bad: str = ""  # stop | skip; "" = skip for text, stop for people's data
    most_bad: float = 0.001  # share of the rows that may be bad and left out; more of them stop
    answers: str = (
        "all"  # several to one question: all (weight 1/n) | rotate (one, by hash) | first
    )
    group_by: str = ""  # field that splits go by, such as author; "" = prompt, or id of a text
    holdout: float = 0.0  # share of the groups that is held out
    holdout_rule: str = "hash"  # hash | greedy (few, unequal groups: exact in bytes)
    part: str = "train"  # train | heldout | all
    exclude: str = ""  # file of ids or prompts, one a line, that are left out everywhere
    limit: int = 0  # first so many examples; 0 = all
    licence: str = ""
    provenance: str = ""  # where it comes from
    commercial: bool | None = (
        None  # may models trained on it be used commercially? None = not known
    )
    redistributable: bool | None = None
    version: str = ""  # changes when a task's data change without a change of its code

    def __post_init__(self):
        choices = {
            "on_bad": ("", "stop", "skip"),
            "answers": ("all", "rotate", "first"),
            "holdout_rule": ("hash", "greedy"),
            "part": ("train", "heldout", "all"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise errors.ConfigError(
                    "JI-SOURCE-001",
                    f"SourceConfig.{field} = {getattr(self, field)!r}; allowed: {allowed}",
                )
        if not 0 <= self.most_bad <= 1:
            raise errors.ConfigError(
                "JI-SOURCE-014", f"SourceConfig.most_bad = {self.most_bad}; it is a share, 0 to 1"
            )
        if sum(map(bool, (self.path, self.task, self.tfds))) != 1:
            raise errors.ConfigError(
                "JI-SOURCE-002",
                f"set exactly one of path, task and tfds (path={self.path!r}, task={self.task!r}, tfds={self.tfds!r})",
            )
        if self.format and self.format not in formats.FORMATS:
            raise errors.ConfigError(
                "JI-SOURCE-003",
                f"format {self.format!r} is not one of {', '.join(formats.FORMATS)}",
            )
        if not self.name:
            parts = [self.tfds, *([self.split] if self.split != "train" else [])]
            name = self.task or re.sub(r"[^\w.-]+", "_", "_".join(parts)).strip("_")
            if self.path:
                places = [pathlib.Path(part) for part in self.path.split("+")]
                words = [(p.stem if p.suffix else p.name).replace("*", "") for p in places]
                name = "+".join(word or p.parent.name for word, p in zip(words, places))
            object.__setattr__(self, "name", name)


TERMS = ("licence", "provenance", "commercial", "redistributable")  # of a source, for cards


def with_terms(source: SourceConfig, origin: Mapping) -> SourceConfig:
    """The source with the terms of what it was made from, each where it says none itself."""
    said = {name: origin.get(name) for name in TERMS if getattr(source, name) in ("", None)}
    return dataclasses.replace(source, **{k: v for k, v in said.items() if v not in ("", None)})


# What stands before the split: a name, perhaps with a version, as TFDS writes it (wiki40b/ja:1.3.0).
_TFDS_NAME = re.compile(r"([^:]+(?::[0-9]+\.[0-9.*]+)?)(?::(.+))?")


def _tfds(word: str, facts: dict) -> SourceConfig:
    """The source of "name[:version][:split]". Errors: ConfigError."""
    found = _TFDS_NAME.fullmatch(word)
    if not found:
        raise errors.ConfigError(
            "JI-SOURCE-013",
            f"tfds:{word}: not name[:split], such as tfds:wiki40b/ja or tfds:c4/multilingual:ja",
        )
    return SourceConfig(tfds=found[1], **facts, **({"split": found[2]} if found[2] else {}))


def parse(data: str | SourceConfig | Iterable[SourceConfig], **common) -> tuple[SourceConfig, ...]:
    """Sources from `DATA=`: "[format:]path[*rate],task,tfds:name[:split],…", or configs of a .gin file as they are.

    `common` fields are set on every source that comes from a string. Errors: ConfigError.
    """
    if isinstance(data, SourceConfig):
        return (data,)
    if not isinstance(data, str):
        return tuple(data)
    found = []
    for word in filter(None, (word.strip() for word in data.split(","))):
        facts = dict(common)
        place, star, rate = word.rpartition("*")
        try:
            facts["rate"] = float(rate) if star else 1.0
        except ValueError:
            place, star = word, ""  # a glob
        word = place if star else word
        head, colon, rest = word.partition(":")
        if colon and head == "tfds":
            found.append(_tfds(rest, facts))
            continue
        if colon and head in formats.FORMATS:
            facts["format"], word = head, rest
        is_file = all(glob.glob(str(pathlib.Path(p).expanduser())) for p in word.split("+"))
        if is_file or "/" in word or "." in word:
            found.append(SourceConfig(path=word, **facts))
        else:
            found.append(SourceConfig(task=word, **facts))
    if not found:
        raise errors.ConfigError("JI-SOURCE-004", "DATA names no source")
    names = [source.name for source in found]
    for number, name in enumerate(names):
        if name in names[:number]:
            found[number] = dataclasses.replace(found[number], name=f"{name}-{number + 1}")
    return tuple(found)


def kind(source: SourceConfig) -> str:
    """lm | chat | preference | prompts. Reads the first row of a file."""
    if not source.path:
        from jinstr.data import tasks

        return tasks.kind(source)
    if source.format:
        return formats.FORMATS[source.format].kind
    for path in readers.files_of(source.path):
        for where, row in readers.rows(path):
            if not isinstance(row, bad_rows.BadRow):
                row = file_examples.renamed(source, row)
                return formats.FORMATS[file_examples.format_of(source, where, row)].kind
    raise errors.DataError("JI-SOURCE-005", f"{source.path}: no rows")


def size(example: dict) -> int:
    """UTF-8 bytes of all text in an example."""
    return sum(len(text.encode("utf-8")) for text in formats.texts(example))


def _held_out(source: SourceConfig, again: Callable[[], Iterator[dict]]) -> Callable[[str], bool]:
    """Whether a group is held out, by the source's rule; the greedy one reads the source once more."""
    if not source.holdout:
        return lambda group: False
    if source.holdout_rule == "hash":
        return lambda group: splits.by_hash(group, source.holdout)
    sizes: collections.Counter = collections.Counter()
    for example in again():
        sizes[example["group"]] += size(example)
    return splits.greedy(sizes, source.holdout).__contains__


def read(
    source: SourceConfig,
    report: bad_rows.Report | None = None,
    pieces: Sequence[readers.Piece] | None = None,
) -> Iterator[dict]:
    """The examples of a source. `report` collects what was left out.

    pieces: what of its files is read; None = all. What looks at all examples then sees only theirs (part_worker.py).
    Errors: DataError with file, line, fields found and the way out.
    """
    report = bad_rows.Report() if report is None else report

    def examples(into: bad_rows.Report) -> Iterator[dict]:
        if source.path:
            raw = file_examples.examples(source, into, pieces)
        else:
            from jinstr.data import tasks

            raw = (
                file_examples.finish(source, example, example, "")
                for example in tasks.examples(source, into)
            )
        return selection.distinct(raw, into.dropped)

    def again() -> Iterator[dict]:
        return examples(bad_rows.Report())

    is_held_out = _held_out(source, again)
    left_out = selection.read_list(source.exclude)
    weight = None
    count = 0
    for example in examples(report):
        group = example["group"]
        if report.in_parts:
            report.ids.append(selection.id_key(example))
            example["number"] = len(report.ids) - 1
        if left_out and (
            formats.group_of(example["id"]) in left_out or formats.group_of(group) in left_out
        ):
            report.leave_out("excluded")
            continue
        if (
            source.holdout
            and source.part != "all"
            and is_held_out(group) != (source.part == "heldout")
        ):
            report.leave_out("held out" if source.part == "train" else "not held out")
            continue
        if "roles" in example and not {"chosen", "responses"} & set(example):
            if weight is None:
                weight = selection.weigher(source.answers, again)
            share = weight(example)
            if not share:
                report.leave_out(f"answers={source.answers}")
                continue
            example["weight"] = share * example.get("weight", 1.0)
        yield example
        count += 1
        if count == source.limit:
            break
    if not report.in_parts:
        bad_rows.check_share(source, report)


def heldout_groups(source: SourceConfig) -> list[str]:
    """The groups that the source's rule holds out, in order: what is kept out of every stage."""
    whole = dataclasses.replace(source, part="heldout")
    return list(dict.fromkeys(example["group"] for example in read(whole)))
