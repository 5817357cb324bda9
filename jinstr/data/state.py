"""What the bytes of a prepared set depend on, as JSON: files, tasks, TFDS sets, the template and the code.

Digests of files are remembered by size and time of change. What a task or TFDS set stands for is asked of a child
process (tasks.py), so that TensorFlow stays out of this one, and remembered until a file that it looked at changes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence

from jinstr import errors
from jinstr.data import prepared, readers
from jinstr.data import sources as sources_lib

# Fields of a source that do not change what a prepared set holds.
_BESIDE = (
    "rate",
    "mixture",
    "licence",
    "provenance",
    "commercial",
    "redistributable",
    "path",
    "tfds_dir",
)


@functools.cache
def code_digest() -> str:
    """One digest over the source of jinstr.text and jinstr.data: other code may write other bytes."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).resolve().parents[1]
    for folder in ("text", "data"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _remembered(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _remember(path: pathlib.Path, new: dict) -> None:
    """Add entries to a file of JSON, aside and renamed: of two processes at once either may win."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.stem}.{platform.node()}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(_remembered(path) | new), "utf-8")
    os.replace(aside, path)


def _file_digests(
    paths: Sequence[pathlib.Path], cache_dir: pathlib.Path, verify: bool
) -> list[str]:
    """xxh3 of each file; files of known size and time of change are not read again."""
    memo_path = cache_dir / "digests.json"
    memo = _remembered(memo_path)
    found, new = [], {}
    for path in paths:
        facts = path.stat()
        name, state = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
        known = memo.get(name)
        if verify or not known or known[:2] != state:
            known = new[name] = [*state, prepared.file_digest(path)]
        found.append(known[2])
    if new:
        _remember(memo_path, new)
    return found


def environment() -> dict[str, str]:
    """What child processes see: this package, the user's folder, and no accelerator, for they only read text."""
    package = str(pathlib.Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}


def _ask(source: sources_lib.SourceConfig) -> dict:
    """What tasks.describe says about a task or TFDS set, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "jinstr.data.tasks"],
        input=json.dumps(dataclasses.asdict(source)),
        stdout=subprocess.PIPE,
        stderr=None if source.tfds else subprocess.PIPE,  # a download shows its progress there
        text=True,
        env=environment(),
        check=False,
    )
    if done.returncode:
        why = (done.stderr or "what went wrong stands above")[-800:]
        raise errors.ConfigError(
            "JI-PREPARE-009", f"reading {source.task or f'tfds:{source.tfds}'} failed: {why}"
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    if problem := answer.get("error"):
        raise getattr(errors, problem["type"])(problem["code"], problem["message"])
    return answer


def _look(place: str):
    """The state of a file (its digest) or folder (names, sizes and times inside); None where nothing is."""
    path = pathlib.Path(place)
    if path.is_dir():
        inside = [(p.name, p.stat()) for p in sorted(path.iterdir())]
        return [[name, facts.st_size, facts.st_mtime_ns] for name, facts in inside]
    return prepared.file_digest(path) if path.is_file() else None


def described(source: sources_lib.SourceConfig, cache_dir: pathlib.Path) -> dict:
    """The answer of tasks.describe, asked again when something that it depends on changed.

    Errors: ConfigError for an unknown task or set, and when TensorFlow is needed and missing.
    """

    def key(task: str) -> str:
        asked = [task, source.tfds, source.tfds_dir, source.split, source.module, os.getcwd()]
        return hashlib.sha256(json.dumps([*asked, code_digest()]).encode()).hexdigest()

    memo_path = cache_dir / "tasks.json"
    known = _remembered(memo_path).get(key(source.task))
    if known and all(
        now is not None and now == known["seen"][place]
        for place, now in ((place, _look(place)) for place in known["seen"])
    ):
        return known
    answer = _ask(source)
    answer["seen"] = {place: _look(place) for place in answer["watch"]}
    parts = {key(task): answer | {"parts": [[task, 1.0]]} for task, _ in answer["parts"]}
    _remember(memo_path, parts | {key(source.task): answer})
    return answer


def _described_state(source: sources_lib.SourceConfig, cache_dir: pathlib.Path, verify: bool):
    """(JSON value, bytes of text) of what a task or TFDS set reads."""
    answer = described(source, cache_dir)
    facts = {"code": sorted(map(str, (answer["seen"][place] for place in answer["code"])))}
    size = 0
    for task, _ in answer["parts"]:
        behind = answer["behind"][task]
        facts[task] = {"set": behind["set"]}
        size += sum(size for _, size in behind["set"].get("shards", ()))
        if behind["source"]:
            inner = sources_lib.SourceConfig(**behind["source"])
            facts[task]["source"], more = source_state(inner, cache_dir, verify)
            size += more
        files = list(map(pathlib.Path, behind["files"]))
        size += sum(path.stat().st_size for path in files)
        digests = _file_digests(files, cache_dir, verify)
        facts[task]["files"] = [[path.name, digest] for path, digest in zip(files, digests)]
    return facts, size


def source_state(source: sources_lib.SourceConfig, cache_dir: pathlib.Path, verify: bool):
    """(JSON value that changes when the source's content may have changed, bytes of its files)."""
    facts = {k: v for k, v in dataclasses.asdict(source).items() if k not in _BESIDE}
    size = 0
    if source.path:
        names, paths = zip(*readers.named_files(source.path))
        sizes = [path.stat().st_size for path in paths]
        size = sum(sizes)
        facts["files"] = list(zip(names, _file_digests(paths, cache_dir, verify), sizes))
    if source.exclude:
        path = pathlib.Path(source.exclude).expanduser()
        facts["exclude"] = prepared.file_digest(path) if path.is_file() else ""
    if source.module:
        spec = importlib.util.find_spec(source.module)
        if spec is None or not spec.origin:
            raise errors.ConfigError(
                "JI-PREPARE-002", f"no module {source.module!r} can be imported"
            )
        facts["module"] = prepared.file_digest(pathlib.Path(spec.origin))
    if not source.path:
        facts["behind"], size = _described_state(source, cache_dir, verify)
    return facts, size


def template_text(template: str) -> str:
    """The name of a built-in template, or the text of a .jinja file."""
    if template.endswith(".jinja"):
        path = pathlib.Path(template)
        if not path.is_file():
            raise errors.ConfigError("JI-PREPARE-003", f"TEMPLATE={template}: no such file")
        return path.read_text("utf-8")
    return template
