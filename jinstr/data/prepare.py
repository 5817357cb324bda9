"""Sources to prepared sets, made once and found again by what went into them.

A set lives in CACHE_DIR/<source name>-<key>. The key covers the bytes of the files (or code and version of a task), the
source's settings, tokenizer, template, and the code of jinstr.text and jinstr.data; digests of files are remembered by
size and time of change. The work is done in a child process (prepare_worker.py): TensorFlow, which tasks need, never
enters the process that trains.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from jinstr import errors
from jinstr.data import prepared, readers
from jinstr.data import sources as sources_lib

SHARD_BYTES = 1 << 28  # text in one shard
# Fields of a source that do not change what a prepared set holds.
_BESIDE = ("rate", "licence", "provenance", "commercial", "redistributable", "path", "tfds_dir")


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


@functools.cache
def code_digest() -> str:
    """One digest over the source of jinstr.text and jinstr.data: other code may write other bytes."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).resolve().parents[1]
    for folder in ("text", "data"):
        for path in sorted((package / folder).rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _file_digests(
    paths: Sequence[pathlib.Path], cache_dir: pathlib.Path, verify: bool
) -> list[str]:
    """xxh3 of each file; files of known size and time of change are not read again."""
    memo_path = cache_dir / "digests.json"
    try:
        memo = json.loads(memo_path.read_text("utf-8"))
    except (OSError, ValueError):
        memo = {}
    found, new = [], {}
    for path in paths:
        facts = path.stat()
        name, state = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
        known = memo.get(name)
        if verify or not known or known[:2] != state:
            known = new[name] = [*state, prepared.file_digest(path)]
        found.append(known[2])
    if new:
        aside = memo_path.with_name(f"digests.{os.getpid()}.tmp")
        aside.write_text(json.dumps(memo | new), "utf-8")
        os.replace(aside, memo_path)
    return found


def _source_state(source: sources_lib.SourceConfig, cache_dir: pathlib.Path, verify: bool):
    """(JSON value that changes when the source's content may have changed, bytes of its files)."""
    facts = {k: v for k, v in dataclasses.asdict(source).items() if k not in _BESIDE}
    size = 0
    if source.path:
        paths = readers.files_of(source.path)
        size = sum(path.stat().st_size for path in paths)
        short = [f"{path.parent.name}/{path.name}" for path in paths]
        facts["files"] = list(zip(short, _file_digests(paths, cache_dir, verify)))
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
    return facts, size


def _template_state(template: str) -> str:
    if template.endswith(".jinja"):
        path = pathlib.Path(template)
        if not path.is_file():
            raise errors.ConfigError("JI-PREPARE-003", f"TEMPLATE={template}: no such file")
        return path.read_text("utf-8")
    return template


def expanded(
    sources: Sequence[sources_lib.SourceConfig], config: PrepareConfig
) -> tuple[sources_lib.SourceConfig, ...]:
    """The sources with each seqio Mixture replaced by its tasks, their rates multiplied by its own.

    What a task name stands for is asked of a child process, once for each state of the module.
    """
    cache_dir = pathlib.Path(config.cache_dir).expanduser()
    memo_path = cache_dir / "mixtures.json"
    memo = json.loads(memo_path.read_text("utf-8")) if memo_path.is_file() else {}
    found = []
    for source in sources:
        if not source.task:
            found.append(source)
            continue
        state = json.dumps([_source_state(source, cache_dir, False)[0], code_digest()], default=str)
        key = hashlib.sha256(state.encode()).hexdigest()
        if key not in memo:
            request = json.dumps(dataclasses.asdict(source))
            command = [sys.executable, "-m", "jinstr.data.tasks"]
            done = subprocess.run(
                command,
                input=request,
                capture_output=True,
                text=True,
                env=_environment(),
                check=False,
            )
            if done.returncode:
                raise errors.ConfigError(
                    "JI-PREPARE-009", f"reading the task {source.task} failed: {done.stderr[-800:]}"
                )
            answer = json.loads(done.stdout.splitlines()[-1])
            if problem := answer.get("error"):
                raise getattr(errors, problem["type"])(problem["code"], problem["message"])
            memo[key] = answer["parts"]
            cache_dir.mkdir(parents=True, exist_ok=True)
            memo_path.write_text(json.dumps(memo), "utf-8")
        total = sum(rate for _, rate in memo[key])
        for task, rate in memo[key]:
            name = source.name if len(memo[key]) == 1 else f"{source.name}.{task}"
            share = source.rate if len(memo[key]) == 1 else source.rate * rate / total
            found.append(dataclasses.replace(source, task=task, name=name, rate=share))
    return tuple(found)


def _environment() -> dict[str, str]:
    """What child processes see: this package, the user's folder, and no accelerator, for they only read text."""
    package = str(pathlib.Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}


def ensure_prepared(
    sources: Sequence[sources_lib.SourceConfig],
    *,
    tokenizer_path: str,
    template: str,
    config: PrepareConfig,
    may_prepare: bool = True,
) -> tuple[prepared.PreparedSource, ...]:
    """The prepared set of each source, made now where it is missing.

    may_prepare: False where several processes train, which would all do the same work.
    Errors: ConfigError naming the command to run when a set is missing and may not be made; those of reading,
    tokenising and the audit.
    """
    cache_dir = pathlib.Path(config.cache_dir).expanduser()
    cache_dir.mkdir(parents=True, exist_ok=True)
    found = []
    for source in sources:
        if source.path and prepared.is_prepared(source.path):
            found.append(
                prepared.PreparedSource(path=source.path, name=source.name, rate=source.rate)
            )
            continue
        folder = _folder(source, tokenizer_path, template, config, cache_dir)
        if not prepared.is_prepared(folder):
            if not may_prepare:
                raise errors.ConfigError(
                    "JI-PREPARE-004",
                    f"{source.name} is not prepared, and several processes are running; run first, in one process: "
                    f"jinstr prepare DATA={source.path or source.task or source.tfds} TOKENIZER={tokenizer_path} "
                    f"TEMPLATE={template}",
                )
            _make(source, folder, tokenizer_path, template, config)
        if config.verify_data:
            prepared.PreparedSet(folder, verify=True)
        found.append(prepared.PreparedSource(path=str(folder), name=source.name, rate=source.rate))
    return tuple(found)


def _folder(source, tokenizer_path, template, config, cache_dir) -> pathlib.Path:
    """Where the set of a source lives: its name and the digest of all that its bytes depend on."""
    tokenizer = pathlib.Path(tokenizer_path)
    if not tokenizer.is_file():
        raise errors.ConfigError(
            "JI-PREPARE-005",
            f"TOKENIZER={tokenizer_path}: no such file; make one: jinstr tokenizer",
        )
    profile = tokenizer.with_suffix(".json")
    state = {
        "source": _source_state(source, cache_dir, config.verify_data)[0],
        "tokenizer": prepared.file_digest(tokenizer),
        "profile": profile.read_text("utf-8") if profile.is_file() else "",
        "template": _template_state(template),
        "shards": config.shards,
        "audit": config.audit,
        "code": code_digest(),
    }
    key = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in source.name)[:80]
    return cache_dir / f"{name}-{key[:16]}"


def _make(source, folder: pathlib.Path, tokenizer_path: str, template: str, config: PrepareConfig):
    """Let a child process build the set beside its place, then move it there."""
    _, size = _source_state(source, folder.parent, False)
    request = {
        "source": dataclasses.asdict(source),
        "tokenizer_path": str(pathlib.Path(tokenizer_path).resolve()),
        "template": str(pathlib.Path(template).resolve())
        if template.endswith(".jinja")
        else template,
        "shards": config.shards or max(1, math.ceil(size / SHARD_BYTES)),
        "audit": config.audit,
        "workers": config.workers or os.cpu_count() or 1,
    }
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (aside / "request.json").write_text(json.dumps(request, ensure_ascii=False), "utf-8")
        command = [sys.executable, "-m", "jinstr.data.prepare_worker", str(aside / "request.json")]
        status = subprocess.run(command, env=_environment(), check=False).returncode
        problem = aside / "error.json"
        if problem.is_file():
            facts = json.loads(problem.read_text("utf-8"))
            raise getattr(errors, facts["type"])(facts["code"], facts["message"])
        if status:
            raise errors.DataError(
                "JI-PREPARE-006",
                f"preparing {source.name} ended with status {status}; what went wrong stands above",
            )
        (aside / "request.json").unlink()
        try:
            os.rename(aside, folder)
        except OSError:
            if not prepared.is_prepared(folder):  # else another process made the same set meanwhile
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
