"""Sources to prepared sets, made once and found again by what went into them.

A set lives in CACHE_DIR/<source name>-<key>. The key covers the bytes of the files (or code and version of a task), the
source's settings, tokenizer, template, and the code of jinstr.text and jinstr.data (state.py). The work is done in a
child process (prepare_worker.py): TensorFlow, which tasks need, never enters the process that trains. A held-out part
that holds nothing is remembered by a file <source name>-<key>.empty that says why.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence

from jinstr import errors
from jinstr.data import building, marks, prepared, state
from jinstr.data import sources as sources_lib
from jinstr.testing import faults
from jinstr.text import tokenizer as tokenizer_lib

WORKER = "jinstr.data.prepare_worker"
SHARD_BYTES = 1 << 28  # text in one shard
TEMPLATE_FILE = "template.jinja"  # in a set: the template, where it was a file
Maker = Callable[..., None]  # with the arguments of `make`
NOTHING_LEFT = "JI-PREPARE-008"  # code of the error of a source that gives no record
# Fields of a source that act when it is prepared, so that they cannot change a prepared set.
_OF_PREPARING = {
    "holdout": 0.0,
    "exclude": "",
    "format": "",
    "fields": "",
    "answers": "all",
    "limit": 0,
}  # and what they are when nothing is asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How text becomes prepared sets."""

    cache_dir: str = "~/.cache/jinstr/prepared"  # where the sets are kept
    workers: int = 0  # encoding processes; 0 = one for each core
    shards: int = 0  # files of a set; 0 = one for every 256 MB of text
    audit: str = "stop"  # what a finding of the token-and-mask audit does: stop | drop (counted)
    verify_data: bool = False  # rehash every file instead of comparing sizes and times of change

    def __post_init__(self):
        if self.audit not in ("stop", "drop"):
            raise errors.ConfigError(
                "JI-PREPARE-001", f"PrepareConfig.audit = {self.audit!r}; allowed: stop, drop"
            )


def expanded(
    sources: Sequence[sources_lib.SourceConfig], config: PrepareConfig
) -> tuple[sources_lib.SourceConfig, ...]:
    """The sources with each seqio Mixture replaced by its tasks, whose rates share out its examples (mixtures.py).

    Licence and origin of a task are those of the source that it was made of (tasks.add), where the run says none.
    """
    cache_dir = pathlib.Path(config.cache_dir).expanduser()
    found = []
    for source in sources:
        answer = state.described(source, cache_dir) if source.task else {"parts": [], "behind": {}}
        parts = answer["parts"]
        of_task = {
            task: sources_lib.with_terms(source, answer["behind"][task]["source"] or {})
            for task, _ in parts
        }
        if len(parts) < 2:
            found += [dataclasses.replace(of_task[task], task=task) for task, _ in parts] or [
                source
            ]
            continue
        total = sum(rate for _, rate in parts)
        found += [
            dataclasses.replace(
                of_task[task],
                task=task,
                name=f"{source.name}.{task}",
                rate=source.rate * rate / total,
                mixture=source.name,
            )
            for task, rate in parts
        ]
    return tuple(found)


def ensure_prepared(
    sources: Sequence[sources_lib.SourceConfig],
    *,
    tokenizer_path: str,
    template: str,
    config: PrepareConfig,
    may_prepare: bool = True,
    maker: Maker | None = None,
) -> tuple[prepared.PreparedSource, ...]:
    """The prepared set of each source, made now where it is missing.

    may_prepare: False where several processes train, which would all do the same work. maker: does it in place of
    `make`; one that makes a part of a set (prepare_parts.py) leaves nothing in the place that is returned.
    Errors: ConfigError naming the command to run when a set is missing and may not be made; those of reading,
    tokenising and the audit.
    """
    cache_dir = pathlib.Path(config.cache_dir).expanduser()
    cache_dir.mkdir(parents=True, exist_ok=True)
    found = []
    for source in sources:
        if source.path and prepared.is_prepared(source.path):
            found.append(_given(source, tokenizer_path, template, config))
            continue
        if source.path and prepared.has_lost_manifest(source.path):
            raise errors.StorageError(
                "JI-PREPARE-015",
                f"{source.path}: a prepared set without its {prepared.MANIFEST}; prepare its source again",
            )
        folder, made_from = _folder(source, tokenizer_path, template, config, cache_dir)
        problem = _problem(folder, config.verify_data) if folder.exists() else "not prepared yet"
        if problem:
            if not may_prepare:
                raise errors.ConfigError(
                    "JI-PREPARE-004",
                    f"{source.name}: {problem}, and several processes are running; run first, in one process: "
                    f"jinstr prepare DATA={_word(source)} TOKENIZER={tokenizer_path} TEMPLATE={template}",
                )
            if folder.exists():
                print(f"jinstr: {source.name}: {problem}; it is made again")
                building.remove(folder)
            (maker or make)(source, folder, tokenizer_path, template, config, made_from)
        found.append(prepared.PreparedSource(path=str(folder), name=source.name, rate=source.rate))
    return tuple(found)


def ensure_held_out(
    sources: Sequence[sources_lib.SourceConfig], *, config: PrepareConfig, **settings
) -> tuple[tuple[sources_lib.SourceConfig, ...], tuple[prepared.PreparedSource, ...]]:
    """(sources, their sets) as ensure_prepared makes them, without held-out parts that hold nothing, which it prints.

    A hash may hold out none of few groups, such as one text file; the source is then trained on as a whole.
    """
    kept, sets = [], []
    for source in sources:
        empty = None
        if source.part == "heldout" and not (source.path and prepared.is_prepared(source.path)):
            cache_dir = pathlib.Path(config.cache_dir).expanduser()
            folder, _ = _folder(
                source, settings["tokenizer_path"], settings["template"], config, cache_dir
            )
            empty = folder.with_name(f"{folder.name}.empty")
        if empty is None or not empty.is_file():
            try:
                sets += ensure_prepared((source,), config=config, **settings)
                kept.append(source)
                continue
            except errors.DataError as error:
                if empty is None or error.code != NOTHING_LEFT:
                    raise
                empty.write_text(error.message, "utf-8")
        print(
            f"{source.name}: nothing of it is held out: of its groups (prompts, files, or GROUP_BY) HOLDOUT="
            f"{source.holdout:g} chose none with an example to use ({empty.read_text('utf-8')}). Training goes on; to "
            "evaluate, raise HOLDOUT or name another file: EVAL_DATA="
        )
    return tuple(kept), tuple(sets)


def _word(source: sources_lib.SourceConfig) -> str:
    """The source as DATA= names it."""
    return source.path or source.task or f"tfds:{source.tfds}:{source.split}"


def _problem(folder: pathlib.Path, verify: bool) -> str:
    """What is wrong with a set of the cache, "" when nothing is."""
    try:
        prepared.PreparedSet(folder, verify)
    except errors.StorageError as error:
        return error.message
    return ""


def _given(source, tokenizer_path: str, template: str, config) -> prepared.PreparedSource:
    """A prepared folder given as a source. Errors: ConfigError where the run's settings are not those of the set."""
    asked = [name for name, usual in _OF_PREPARING.items() if getattr(source, name) != usual]
    if asked:
        word = f"{asked[0].upper()}={getattr(source, asked[0])}"
        raise errors.ConfigError(
            "JI-PREPARE-010",
            f"{source.path} is prepared already, and {word} acts when a source is prepared; "
            f"run jinstr prepare on its source with {word}, or give the source itself as DATA",
        )
    manifest = prepared.PreparedSet(source.path, config.verify_data).manifest
    _tokenizer_file(tokenizer_path)
    fingerprint = tokenizer_lib.load(tokenizer_path).fingerprint
    if manifest["tokens"]["tokenizer"] != fingerprint:
        raise errors.ConfigError(
            "JI-PREPARE-011",
            f"{source.path} was prepared with another tokenizer ({manifest['tokens']['tokenizer']}) than "
            f"{tokenizer_path} ({fingerprint}); prepare its source with TOKENIZER={tokenizer_path}, "
            "or give the source as DATA",
        )
    kept = pathlib.Path(source.path) / TEMPLATE_FILE
    made_with = kept.read_text("utf-8") if kept.is_file() else manifest["template"]
    # A command without templates (pretrain) takes conversations as they were written.
    if template and manifest["kind"] != "lm" and made_with != state.template_text(template):
        raise errors.ConfigError(
            "JI-PREPARE-012",
            f"{source.path} was prepared with TEMPLATE={manifest['template']}, and the run has TEMPLATE={template}; "
            "prepare its source with that, or give the source as DATA",
        )
    return prepared.PreparedSource(path=source.path, name=source.name, rate=source.rate)


def _tokenizer_file(tokenizer_path: str) -> pathlib.Path:
    found = tokenizer_lib.find(tokenizer_path)
    if found is None:
        raise errors.ConfigError(
            "JI-PREPARE-005",
            f"TOKENIZER={tokenizer_path}: no such file, or a folder without tokenizer.json and tokenizer.model; "
            "make one: jinstr tokenizer",
        )
    return found


def _folder(source, tokenizer_path, template, config, cache_dir) -> tuple[pathlib.Path, dict]:
    """Where the set of a source lives (its name and a digest), and all that its bytes depend on."""
    tokenizer = _tokenizer_file(tokenizer_path)
    facts = {
        "source": state.source_state(source, cache_dir, config.verify_data)[0],
        "tokenizer": prepared.file_digest(tokenizer),
        "profile": tokenizer_lib.beside(tokenizer),
        "template": state.template_text(template),
        "shards": config.shards,
        "audit": config.audit,
        "code": state.code_digest(),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in source.name)[:80]
    return cache_dir / f"{name}-{key[:16]}", facts


def request_of(
    source: sources_lib.SourceConfig,
    folder: pathlib.Path,
    tokenizer_path: str,
    template: str,
    config: PrepareConfig,
    made_from: dict,
) -> dict:
    """What a child process is asked for, as JSON. made_from: all that the bytes of the set depend on."""
    _, size = state.source_state(source, folder.parent, False)
    is_file = template.endswith(".jinja")
    return {
        "source": dataclasses.asdict(source),
        "tokenizer_path": str(pathlib.Path(tokenizer_path).resolve()),
        "template": str(pathlib.Path(template).resolve()) if is_file else template,
        "shards": config.shards or max(1, math.ceil(size / SHARD_BYTES)),
        "audit": config.audit,
        "workers": config.workers or os.cpu_count() or 1,
        "made_from": made_from,
        "faults": faults.armed(),
        "asked_by": os.getpid(),
        "quarantine": f"{folder}.{prepared.QUARANTINE}",
    }


def make(source, folder, tokenizer_path, template, config, made_from) -> None:
    """Make the set of a source on this machine. The arguments are those of request_of."""
    request = request_of(source, folder, tokenizer_path, template, config, made_from)
    build(folder, request)


def build(place: pathlib.Path, request: dict, worker: str = WORKER, put=building.put) -> None:
    """Let a child process build what is asked for beside its place, then move it there.

    worker: module whose process does it. put: moves the finished folder. Errors: those of the child process.
    """
    for path in building.remove_left_over(place.parent):
        print(f"jinstr: removed {path}, left over from a preparation that was killed")
    name = request["source"]["name"]
    with building.folder_for(place) as (aside, lock):
        if request["template"].endswith(".jinja"):
            (aside / TEMPLATE_FILE).write_text(state.template_text(request["template"]), "utf-8")
        work = aside / building.WORK
        (work / "request.json").write_text(json.dumps(request, ensure_ascii=False), "utf-8")
        command = [sys.executable, "-m", worker, str(work / "request.json")]
        done = subprocess.run(command, env=state.environment(), check=False, pass_fds=[lock])
        if (work / prepared.QUARANTINE).is_file():
            os.replace(work / prepared.QUARANTINE, request["quarantine"])
        problem = work / "error.json"
        if problem.is_file():
            facts = json.loads(problem.read_text("utf-8"))
            raise getattr(errors, facts["type"])(facts["code"], facts["message"])
        if done.returncode < 0:
            raise marks.killed(name, done.returncode, marks.left(work))
        if done.returncode:
            raise errors.DataError(
                "JI-PREPARE-006",
                f"preparing {name} ended with status {done.returncode}; what went wrong stands above",
            )
        faults.point("before_move")
        put(aside, place)
