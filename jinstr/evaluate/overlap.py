"""Questions of benchmarks in the training data of a run: looked for once, written beside the model for its card."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import tqdm

from jinstr.data import contamination, readers
from jinstr.data.eval_tasks import benchmark as benchmark_lib
from jinstr.decode import requests
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import lineage, storage


def look(
    run_dir: pathlib.Path,
    sets: Mapping[str, Sequence[benchmark_lib.Example]],
    tokenizer: tokenizer_lib.Tokenizer,
) -> dict[str, dict[str, int | None]]:
    """benchmark → source → examples with a text of theirs in it; None for a source that cannot be read from here.

    sets: benchmark → all examples of its file. Sources are the files of the run and of all runs before it, whole: what
    was held out of training is looked through too. What was found is written to RUN_DIR/contamination.json, and is not
    looked for again while training files and a benchmark stay what they are; other benchmarks join those there.
    """
    files, gone = lineage.training_files(run_dir)
    if not files:
        return {name: dict.fromkeys(gone) for name in sets}
    path = run_dir / contamination.FILE
    found = lineage.read(path, {})
    state = requests.digest([_state(files), contamination.THRESHOLD])
    known = found["benchmarks"] if found.get("files") == state else {}
    digests = {name: _digest(examples) for name, examples in sets.items()}
    new = {name: sets[name] for name in sets if known.get(name, {}).get("seen") != digests[name]}
    if new:
        with tqdm.tqdm(desc="contamination", unit=" documents", leave=False, disable=None) as bar:
            found = contamination.check(new, files, tokenizer, bar.update)
        looked = {
            name: each | {"seen": digests[name]} for name, each in found["benchmarks"].items()
        }
        known = known | looked
        storage.write_json(path, found | {"benchmarks": known, "files": state, "unread": gone})
    return {name: known[name]["found"] | dict.fromkeys(gone) for name in sets}


def _digest(examples: Sequence[benchmark_lib.Example]) -> str:
    return requests.digest([dataclasses.asdict(example) for example in examples])


def _state(files: Mapping[str, str]) -> list:
    """Name, size and time of every file, which change when it does."""
    found = []
    for name, path in files.items():
        for inside, file in readers.named_files(path):
            stat = file.stat()
            found.append([name, inside, stat.st_size, stat.st_mtime_ns])
    return found
