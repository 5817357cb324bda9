"""seqio Tasks and Mixtures, and TFDS sets, as examples of text. TensorFlow is imported here and nowhere else.

A Task says what the data is: `text`; or `roles` and `contents`; or the prompt with `chosen` and `rejected`, or with
`responses` and `ranks`; or `inputs` and `targets`, as text or as ids of the run's own vocabulary. `add` makes a Task
from any file that jinstr reads, so that a module of one's own needs a few lines; the registered Task yields what
sources.read yields.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jinstr import errors
from jinstr.data import bad_rows, file_examples, formats
from jinstr.data import sources as sources_lib

# Rank of each text feature of an example.
_FEATURES = {
    "lm": {"id": 0, "text": 0, "group": 0},
    "chat": {"id": 0, "roles": 1, "contents": 1, "group": 0, "genre": 0},
    "preference": {"id": 0, "roles": 1, "contents": 1, "chosen": 0, "rejected": 0, "group": 0},
    "prompts": {"id": 0, "roles": 1, "contents": 1, "responses": 1, "ranks": 1, "group": 0},
    "labels": {"id": 0, "roles": 1, "contents": 1, "response": 0, "label": 0, "group": 0},
}
_SPLITS = {"train": "train", "validation": "heldout"}
_sources: dict[str, sources_lib.SourceConfig] = {}  # what `add` made Tasks of, by their names


def _seqio():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import seqio
    except ImportError as error:
        raise errors.ConfigError(
            "JI-TASK-001",
            f"seqio tasks need TensorFlow and seqio ({error}); install them: pip install 'jinstr[data]'",
        ) from None
    return seqio


def _ranks(source: sources_lib.SourceConfig) -> dict[str, int]:
    """Rank of each feature of a Task over files: of its kind, and the choices where its rows have such."""
    ranks = _FEATURES[sources_lib.kind(source)]
    first = dataclasses.replace(source, part="all", holdout=0.0, answers="first", limit=1)
    has_choices = any("candidates" in example for example in sources_lib.read(first))
    return ranks | ({"candidates": 1} if has_choices else {})


def add(name: str, source: sources_lib.SourceConfig, metric_fns: Sequence = ()):
    """Register a seqio Task over files: split `train`, and `validation` with the source's held-out part.

    Its features are the fields of examples (formats.py), as text. metric_fns: functions of (targets, predictions), two
    lists of text, that return a dict of numbers. Returns the Task.
    """
    import tensorflow as tf

    seqio = _seqio()
    ranks = _ranks(source)
    types = {key: tf.int32 if key == "ranks" else tf.string for key in ranks}
    signature = {key: tf.TensorSpec([None] * rank, types[key]) for key, rank in ranks.items()}

    def dataset(split: str, shuffle_files: bool, seed: int | None = None):
        del shuffle_files, seed  # jinstr shuffles the prepared set
        part = _SPLITS[split] if source.holdout else "all"

        def generate():
            for example in sources_lib.read(dataclasses.replace(source, part=part)):
                yield {key: example[key] for key in ranks}

        return tf.data.Dataset.from_generator(generate, output_signature=signature)

    splits = tuple(_SPLITS) if source.holdout else ("train",)
    features = {
        key: seqio.Feature(
            seqio.PassThroughVocabulary(1), dtype=types[key], rank=rank, add_eos=False
        )
        for key, rank in ranks.items()
    }
    _sources[name] = source
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=splits),
        output_features=features,
        metric_fns=list(metric_fns),
    )


def _import(module: str) -> None:
    if not module:
        return
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise errors.ConfigError("JI-TASK-002", f"MODULE={module}: {error}") from None


def _task(source: sources_lib.SourceConfig):
    seqio = _seqio()
    _import(source.module)
    try:
        return seqio.get_mixture_or_task(source.task)
    except ValueError:
        known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        raise errors.ConfigError(
            "JI-TASK-003",
            f"{source.task!r} is neither a file nor a seqio task or mixture (known: {', '.join(known) or 'none'}); say "
            "MODULE= for the module that registers it",
        ) from None


def mixture(source: sources_lib.SourceConfig) -> list[tuple[str, float]]:
    """(task, rate) of each part of a Mixture; one part for a Task."""
    seqio = _seqio()
    found = _task(source)
    if not isinstance(found, seqio.Mixture):
        return [(source.task, 1.0)]
    return [(task.name, float(found.get_rate(task))) for task in found.tasks]


def metrics(source: sources_lib.SourceConfig) -> tuple:
    """The metric functions of a Task."""
    return tuple(_task(source).metric_fns)


def kind(source: sources_lib.SourceConfig) -> str:
    """lm | chat | preference | prompts | labels, by the Task's features or the first row of a TFDS set."""
    if source.tfds:
        for row in _tfds_rows(source):
            return formats.FORMATS[_tfds_format(source, row)].kind
        raise errors.DataError("JI-TASK-004", f"tfds:{source.tfds} has no rows in {source.split}")
    features = set(_task(source).output_features)
    for name, needed in (
        ("lm", {"text"}),
        ("preference", {"chosen", "rejected"}),
        ("prompts", {"responses", "ranks"}),
        ("labels", {"response", "label"}),
        ("chat", {"roles", "contents"}),
        ("chat", {"inputs", "targets"}),
    ):
        if needed <= features:
            return name
    raise errors.DataError(
        "JI-TASK-005",
        f"the task {source.task} yields {', '.join(sorted(features))}; needed are text, or roles and contents, or "
        "inputs and targets, or chosen and rejected, or responses and ranks, or response and label",
    )


def _plain(value):
    """numpy scalars and arrays of bytes as text, numbers and lists of them."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _task_examples(source: sources_lib.SourceConfig) -> Iterator[dict]:
    task = _task(source)
    split = source.split if source.split in task.splits else list(task.splits)[-1]
    dataset = task.get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, use_cached=False
    )
    fingerprint = None
    for number, row in enumerate(dataset.as_numpy_iterator()):
        row = _plain(row)
        example = {"id": f"{source.task}:{number}", "group": ""} | row
        if "inputs" in row and not isinstance(row["inputs"], str):
            fingerprint = fingerprint or _vocabulary_fingerprint(task)
            example |= {"tokenizer": fingerprint, "roles": [], "contents": []}
        elif "inputs" in row:
            example |= {"roles": ["user", "assistant"], "contents": [row["inputs"], row["targets"]]}
        if not example["group"] and "roles" in example:
            example["group"] = formats.prompt_group(example["roles"], example["contents"])
        yield example | {"group": example["group"] or example["id"]}


def _vocabulary_fingerprint(task) -> str:
    """The fingerprint that text.tokenizer gives to a Task's vocabulary: of data.vocabularies, or SentencePiece's."""
    import xxhash

    from jinstr.text import normalise

    vocabulary = task.output_features["targets"].vocabulary
    if hasattr(vocabulary, "fingerprint"):
        return vocabulary.fingerprint
    model = getattr(vocabulary, "sp_model", b"")
    return xxhash.xxh3_64_hexdigest(model + repr(normalise.NormaliseConfig()).encode())


_MARKERS = ("_START_ARTICLE_", "_START_SECTION_", "_START_PARAGRAPH_")


def _wiki40b(text: str) -> str:
    """An article without the markers of its structure; headings stay lines of their own."""
    lines = [line for line in text.split("\n") if line.strip() and line.strip() not in _MARKERS]
    return "\n".join(lines).replace("_NEWLINE_", "\n") + "\n"


def _builder(source: sources_lib.SourceConfig):
    """The builder of a TFDS set, downloaded where it is missing. Errors: ConfigError, also for an unknown split."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise errors.ConfigError(
            "JI-TASK-006",
            f"tfds:{source.tfds} needs tensorflow-datasets ({error}); pip install 'jinstr[data]'",
        ) from None
    _import(source.module)
    try:
        builder = tfds.builder(source.tfds, data_dir=source.tfds_dir or None)
        if not builder.info.splits:
            builder.download_and_prepare()
    except (ValueError, OSError, tfds.core.DatasetNotFoundError) as error:
        raise errors.ConfigError("JI-TASK-007", f"tfds:{source.tfds}: {error}") from None
    # `ja` and the like are splits of c4/multilingual; a wrong name is told with those that there are.
    if source.split.partition("[")[0] not in builder.info.splits:
        raise errors.ConfigError(
            "JI-TASK-008",
            f"tfds:{source.tfds} has the splits {', '.join(builder.info.splits)}, not {source.split!r}; "
            f"say tfds:{source.tfds}:SPLIT",
        )
    return builder


def _tfds_rows(source: sources_lib.SourceConfig) -> Iterator[dict]:
    """Rows of a TFDS set in the order of its files."""
    builder = _builder(source)
    import tensorflow_datasets as tfds

    is_wiki = source.tfds.startswith("wiki40b")
    for row in tfds.as_numpy(builder.as_dataset(split=source.split, shuffle_files=False)):
        row = _plain(row)
        yield row | {"text": _wiki40b(row["text"])} if is_wiki else row


def _tfds_format(source: sources_lib.SourceConfig, row: Mapping) -> str:
    if source.format:
        return source.format
    fitting = formats.fits(row)
    if len(fitting) != 1:
        raise errors.DataError(
            "JI-TASK-009",
            f"tfds:{source.tfds}: rows with the fields {', '.join(row)} fit {' and '.join(fitting) or 'no format'}; "
            "say FORMAT= and, for other names, FIELDS=",
        )
    return fitting[0]


def _tfds_examples(source: sources_lib.SourceConfig, report: bad_rows.Report) -> Iterator[dict]:
    pairs, name = file_examples.fields_of(source), ""
    for number, row in enumerate(_tfds_rows(source)):
        row = {pairs.get(name, name): value for name, value in row.items()}
        report.row(row)
        name = name or _tfds_format(source, row)
        try:
            found = [formats.checked(example) for example in formats.FORMATS[name].examples(row)]
        except bad_rows.WRONG_SHAPES as error:
            facts = (f"tfds:{source.tfds}", f", row {number}", bad_rows.of(error), row)
            bad_rows.handle(source, formats.FORMATS[name].kind, report, *facts)
            continue
        for example in found:
            id = example["id"] or str(row.get("wikidata_id") or number)
            yield dict(row) | example | {"id": id, "group": example["group"] or id}


def examples(source: sources_lib.SourceConfig, report: bad_rows.Report) -> Iterator[dict]:
    """Examples of a Task or a TFDS set, as sources.read yields them for files."""
    yield from _tfds_examples(source, report) if source.tfds else _task_examples(source)


def _set_facts(builder, split: str) -> dict:
    """What tells two states of a TFDS set apart: its place, version, and the shards of a split with their sizes."""
    paths = builder.info.splits[split.partition("[")[0]].filepaths
    return {
        "data_dir": str(builder.data_dir),
        "version": str(builder.version),
        "shards": [[path.name, path.stat().length] for path in paths],
    }


def _behind(name: str) -> dict:
    """What a Task reads: the source that `add` was given, else files or the TFDS set of its seqio source."""
    if name in _sources:
        return {"source": dataclasses.asdict(_sources[name]), "files": [], "set": {}}
    seqio = _seqio()
    task = seqio.get_mixture_or_task(name)
    if isinstance(task.source, seqio.TfdsDataSource):
        builder = task.source.tfds_dataset.builder
        facts = [_set_facts(builder, split) for split in builder.info.splits]
        shards = [shard for of_split in facts for shard in of_split["shards"]]
        return {"source": None, "files": [], "set": facts[0] | {"shards": shards}}
    files = [path for split in task.splits for path in task.source.list_shards(split)]
    return {"source": None, "files": sorted({*filter(os.path.isfile, files)}), "set": {}}


def describe(source: sources_lib.SourceConfig) -> dict:
    """What a task, Mixture or TFDS set stands for, as JSON.

    parts: [task, rate] of each part. behind: what each part reads. code: files of the modules that register it. watch:
    files and folders without whose change the answer stays.
    """
    if source.tfds:
        behind = {
            "": {"source": None, "files": [], "set": _set_facts(_builder(source), source.split)}
        }
        parts, code = [("", 1.0)], []
    else:
        _seqio()
        before = set(sys.modules)
        parts = mixture(source)
        code = _own_files(set(sys.modules) - before)
        behind = {task: _behind(task) for task, _ in parts}
    folders = [pathlib.Path(b["set"]["data_dir"]) for b in behind.values() if b["set"]]
    watch = [*code, *(str(place) for folder in folders for place in (folder, folder.parent))]
    return {"parts": parts, "behind": behind, "code": code, "watch": watch}


def _own_files(modules: Iterable[str]) -> list[str]:
    """Files of those modules that no package manager installed: the user's own."""
    installed = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
    files = [getattr(sys.modules[name], "__file__", None) for name in modules]
    return sorted({f for f in files if f and f.endswith(".py") and not f.startswith(installed)})


def main() -> int:
    """`python -m jinstr.data.tasks`: `describe` as JSON, for a process without TensorFlow."""
    # The user's module imports this one by its name, and registers tasks there.
    from jinstr.data import tasks

    source = sources_lib.SourceConfig(**json.loads(sys.stdin.read()))
    try:
        print(json.dumps(tasks.describe(source)))
    except errors.JinstrError as error:
        facts = {"type": type(error).__name__, "code": error.code, "message": error.message}
        print(json.dumps({"error": facts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
