"""Which steps of a run are there, and whether their bytes are those that were written. No JAX."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import xxhash

from jinstr import errors
from jinstr.train import storage

FORMAT = 2  # 1 had no digest of the manifest itself; it is read


def own_digest(manifest: dict) -> str:
    """Digest of a manifest without the digest in it."""
    text = json.dumps({k: v for k, v in manifest.items() if k != "digest"}, sort_keys=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def steps(folder: pathlib.Path) -> list[int]:
    """The steps in RUN_DIR/checkpoints that are there under their own name, ascending."""
    if not folder.exists():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def size(folder: pathlib.Path, step: int) -> int:
    """Bytes that the manifest of a step names; 0 where it cannot be read."""
    try:
        manifest = json.loads((folder / str(step) / "manifest.json").read_text(encoding="utf-8"))
        return sum(facts["bytes"] for facts in manifest["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def problem(
    folder: pathlib.Path,
    step: int,
    every_byte: bool = True,
    done: Callable[[int], object] = lambda count: None,
) -> str | None:
    """Why a step in RUN_DIR/checkpoints cannot be used, or None when it verifies.

    every_byte: compare digests, not sizes alone. done: called with the bytes of each file that was read.
    Errors: StorageError when a newer version of jinstr wrote it.
    """
    target = folder / str(step)
    try:
        manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != 1 and manifest["digest"] != own_digest(manifest):
            return "manifest.json does not have the digest that it names"
        if manifest["format"] > FORMAT:
            raise errors.StorageError(
                "JI-CKPT-010",
                f"{target} has format {manifest['format']}, this jinstr knows up to {FORMAT}; install a newer one",
            )
        if manifest["step"] != step:
            return f"manifest.json is that of step {manifest['step']}"
        for name, facts in manifest["files"].items():
            path = target / name
            if not path.exists():
                return f"{name} is missing"
            if path.stat().st_size != facts["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, {facts['bytes']} were written"
            if every_byte and storage.digest(path) != facts["xxh3_128"]:
                return f"{name} has another digest than when it was written"
            done(facts["bytes"])
        if not manifest["files"] or not manifest["arrays"]:
            return "manifest.json names no files"
        if not manifest.get("finite", True):
            return "its parameters are not all finite"
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read: {error!r}"
    return None
