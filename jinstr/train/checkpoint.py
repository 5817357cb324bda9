"""Checkpoints with a commit record: a step exists if and only if its manifest verifies.

RUN_DIR/checkpoints/<step>/state/<item>/   Orbax arrays, one item for each of params, opt_state, rng, …
                           run.json        step and whatever the command adds
                           manifest.json   size and xxh3-128 of every file, shapes and types of every array; written
                                           aside, fsynced and renamed last
Orbax verifies no array bytes on restore, so the digests are ours.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import sys
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import xxhash

from jinstr import errors
from jinstr.train import storage

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to do with what is there."""

    every_steps: int = 500  # steps between checkpoints; the last step is always saved
    keep: int = 2  # newest verified checkpoints kept, at least 2
    resume: str = "auto"  # auto: continue if possible | must: fail if there is nothing | never: a new directory
    async_save: bool = True  # write in the background while training goes on

    def __post_init__(self):
        if self.resume not in ("auto", "must", "never"):
            raise errors.ConfigError(
                "JI-CKPT-001", f"resume={self.resume!r}; allowed: auto, must, never"
            )
        if self.keep < 2:
            raise errors.ConfigError("JI-CKPT-002", f"keep={self.keep}; at least 2 are kept")


def _leaves(tree) -> dict[str, dict]:
    """Path → shape and dtype of every array."""
    return {
        jax.tree_util.keystr(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _item(tree):
    """Orbax's standard handler takes no bare arrays."""
    return {"value": tree} if jax.tree_util.all_leaves([tree]) else tree


class Checkpointer:
    """Saves and restores the steps of one run directory. One process writes the commit record."""

    def __init__(self, run_dir, config: CheckpointConfig):
        self.folder = pathlib.Path(run_dir).absolute() / "checkpoints"
        self.config = config
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._commit: threading.Thread | None = None
        self._failure: BaseException | None = None

    def is_due(self, step: int) -> bool:
        return step % self.config.every_steps == 0

    def save(self, step: int, arrays: dict, run_json: dict) -> None:
        """Save a dict of pytrees of arrays. Returns when the arrays are copied: they may be donated right after.

        The commit follows in the background (`async_save`). Errors: StorageError, also for the save before this one.
        """
        self.wait()
        target = self.folder / str(step)
        if target.exists():  # a broken or aborted attempt: a verified one is never saved again
            if self._problem(step) is None:
                return
            shutil.rmtree(target)
        target.mkdir(parents=True)
        arguments = {name: ocp.args.StandardSave(_item(tree)) for name, tree in arrays.items()}
        self._orbax.save(target / "state", args=ocp.args.Composite(**arguments))
        shapes = {name: _leaves(tree) for name, tree in arrays.items()}
        self._commit = threading.Thread(
            target=self._finish, args=(step, shapes, run_json), name=f"commit-{step}"
        )
        self._commit.start()
        if not self.config.async_save:
            self.wait()

    def _finish(self, step: int, shapes: dict, run_json: dict) -> None:
        try:
            self._orbax.wait_until_finished()
            target = self.folder / str(step)
            storage.write_json(target / "run.json", {"step": step} | run_json)
            files = {}
            for path in sorted(p for p in target.rglob("*") if p.is_file()):
                storage.sync(path)
                name = path.relative_to(target).as_posix()
                files[name] = {"bytes": path.stat().st_size, "xxh3_128": storage.digest(path)}
            manifest = {"format": FORMAT, "step": step, "files": files, "arrays": shapes}
            storage.write_json(target / "manifest.json", manifest)
            storage.sync(self.folder)
            self._retain()
        except BaseException as error:  # surfaces in `wait`, on the caller's thread
            self._failure = error

    def _retain(self) -> None:
        """Delete all but the newest `keep` steps. Steps without a manifest do not count and stay."""
        committed = [
            step for step in self._steps() if (self.folder / str(step) / "manifest.json").exists()
        ]
        for step in committed[: -self.config.keep]:
            (
                self.folder / str(step) / "manifest.json"
            ).unlink()  # first: a half-deleted step is no step
            shutil.rmtree(self.folder / str(step))

    def wait(self) -> None:
        """Block until the last save is committed. Errors: StorageError when it failed."""
        if self._commit is not None:
            self._commit.join()
            self._commit = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise errors.StorageError(
                "JI-CKPT-003",
                f"saving under {self.folder} failed: {failure!r}; nothing was committed",
            ) from failure

    def close(self) -> None:
        self.wait()
        self._orbax.close()

    def _steps(self) -> list[int]:
        if not self.folder.exists():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def _problem(self, step: int) -> str | None:
        """Why a step cannot be used, or None when it verifies."""
        target = self.folder / str(step)
        if not (target / "manifest.json").exists():
            return "no manifest.json: the save did not finish"
        try:
            manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                return f"format {manifest['format']} is not known to this version"
            for name, facts in manifest["files"].items():
                path = target / name
                if not path.exists():
                    return f"{name} is missing"
                if path.stat().st_size != facts["bytes"]:
                    return f"{name} has {path.stat().st_size} bytes, {facts['bytes']} were written"
                if storage.digest(path) != facts["xxh3_128"]:
                    return f"{name} has another digest than when it was written"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"manifest.json cannot be read: {error!r}"
        return None

    def latest_verified(self) -> int | None:
        """The newest step that verifies; damaged ones on the way are named on stderr and left where they are."""
        for step in reversed(self._steps()):
            problem = self._problem(step)
            if problem is None:
                return step
            print(
                f"jinstr: checkpoint {self.folder / str(step)} is not used: {problem}",
                file=sys.stderr,
            )
        return None

    def start_step(self) -> int:
        """Step to continue from under the `resume` rule; 0 = a fresh run.

        Errors: StorageError when the rule forbids what is there: a used directory is never started afresh.
        """
        used = bool(self._steps())
        if self.config.resume == "never" and used:
            raise errors.StorageError(
                "JI-CKPT-004",
                f"RESUME=never, but {self.folder} holds checkpoints; choose another RUN_DIR",
            )
        latest = self.latest_verified() if used else None
        if latest is None and self._committed_once():
            raise errors.StorageError(
                "JI-CKPT-005",
                f"no checkpoint under {self.folder} verifies; restore a backup or choose another RUN_DIR",
            )
        if latest is None and self.config.resume == "must":
            raise errors.StorageError(
                "JI-CKPT-006", f"RESUME=must, but {self.folder} holds no checkpoint"
            )
        return latest or 0

    def _committed_once(self) -> bool:
        """Was any step here ever committed? (An aborted first save does not count.)"""
        return any((self.folder / str(step) / "manifest.json").exists() for step in self._steps())

    def read_run_json(self, step: int) -> dict:
        return json.loads((self.folder / str(step) / "run.json").read_text(encoding="utf-8"))

    def restore(self, step: int, abstract: dict) -> dict:
        """Restore the named items onto the shardings of `abstract` (ShapeDtypeStruct leaves).

        Errors: StorageError when the step does not verify; ConfigError naming the leaves whose path, shape or type
        differ: nothing is cast, cut or padded.
        """
        if problem := self._problem(step):
            raise errors.StorageError("JI-CKPT-007", f"{self.folder / str(step)}: {problem}")
        manifest = json.loads((self.folder / str(step) / "manifest.json").read_text("utf-8"))
        for item, tree in abstract.items():
            have, want = manifest["arrays"].get(item), _leaves(tree)
            if have != want:
                have = have or {}
                wrong = [
                    name for name in sorted({*have, *want}) if have.get(name) != want.get(name)
                ]
                shown = "; ".join(
                    f"{n}: saved {have.get(n)}, wanted {want.get(n)}" for n in wrong[:4]
                )
                raise errors.ConfigError(
                    "JI-CKPT-008", f"step {step}, {item}: {len(wrong)} arrays differ: {shown}"
                )
        arguments = {name: ocp.args.StandardRestore(_item(tree)) for name, tree in abstract.items()}
        restored = self._orbax.restore(
            self.folder / str(step) / "state", args=ocp.args.Composite(**arguments)
        )
        bare = {name for name, tree in abstract.items() if jax.tree_util.all_leaves([tree])}
        return {
            name: restored[name]["value"] if name in bare else restored[name] for name in abstract
        }


def tree_digest(tree) -> str:
    """One digest over all leaves of a pytree (values, shapes, types), to compare states across processes."""
    state = xxhash.xxh3_128()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = np.asarray(jax.device_get(leaf))
        state.update(f"{jax.tree_util.keystr(path)} {value.shape} {value.dtype}".encode())
        state.update(np.ascontiguousarray(value).tobytes())
    return state.hexdigest()
