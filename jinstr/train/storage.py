"""Files that are whole or not there: digests, fsync, atomic replacement."""

from __future__ import annotations

import json
import os
import pathlib

import xxhash


def digest(path: pathlib.Path) -> str:
    """xxh3-128 of a file's bytes, hex; reads 4 MiB at a time."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(4 * 2**20):
            state.update(block)
    return state.hexdigest()


def sync(path: pathlib.Path) -> None:
    """fsync a file or a directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: pathlib.Path, value) -> None:
    """Write JSON aside, fsync, rename into place, fsync the folder: readers see the old file or the whole new one."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)
