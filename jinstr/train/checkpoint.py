"""Checkpoints with a commit record: a step exists if and only if its manifest verifies.

RUN_DIR/checkpoints/<step>/state/<item>/   Orbax arrays, one item for each of params, opt_state, rng, …
                           run.json        step and whatever the command adds
                           manifest.json   size and xxh3-128 of every file, shapes and types of every array, and whether
                                           all parameters were finite; written last
                    <step>.saving/         a save in flight; renamed to <step> as the last act, so that a kill at any
                                           moment leaves the step whole or not there
                    <step>.deleting/       a step that retention removes: out of the way first, then deleted
                    <step>.corrupt/        a step that did not verify when a run went on from an older one
Orbax verifies no array bytes on restore, so the digests are ours.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import xxhash

from jinstr import errors, failures
from jinstr.parallel import together
from jinstr.testing import faults
from jinstr.train import arrays as arrays_lib
from jinstr.train import manifests, storage

SLOW_SECONDS = 1.0  # that a save may wait for the one before it without a word


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to do with what is there."""

    every_steps: int = 500  # steps between checkpoints; the last step is always saved
    keep: int = 2  # newest verified checkpoints kept, at least 2
    resume: str = "auto"  # auto: continue if possible | must: fail if there is nothing | never: a new directory
    async_save: bool = True  # write in the background while training goes on
    on_save_error: str = (
        "stop"  # stop | continue: train on, and try again when the next save is due
    )
    allow_rollback: bool = False  # go on from an older step although the newest two are damaged
    grace_seconds: float = (
        0.0  # time between SIGTERM and the kill; a save that takes longer is left out; 0 = enough
    )

    def __post_init__(self):
        if self.resume not in ("auto", "must", "never"):
            raise errors.ConfigError(
                "JI-CKPT-001", f"resume={self.resume!r}; allowed: auto, must, never"
            )
        if self.keep < 2:
            raise errors.ConfigError("JI-CKPT-002", f"keep={self.keep}; at least 2 are kept")
        if self.on_save_error not in ("stop", "continue"):
            raise errors.ConfigError(
                "JI-CKPT-009", f"on_save_error={self.on_save_error!r}; allowed: stop, continue"
            )


class Checkpointer:
    """Saves and restores the steps of one run directory.

    Of several processes each writes its arrays and digests its part of the files; the first one commits, and decides
    what is there. All call this alike."""

    def __init__(self, run_dir, config: CheckpointConfig):
        if together.count() > 1 and config.on_save_error == "continue":
            raise errors.ConfigError(
                "JI-CKPT-012",
                "on_save_error=continue holds in one process only: of several, one that cannot save ends the run",
            )
        self.run_dir = pathlib.Path(run_dir).absolute()
        self.folder = self.run_dir / "checkpoints"
        self.config = config
        self.save_seconds = 0.0  # of the last save, from its call to its commit
        self._orbax = arrays_lib.writer()
        self._commit: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._failed_step: int | None = None
        self._told_slow = False

    def is_due(self, step: int) -> bool:
        return step % self.config.every_steps == 0

    def save(self, step: int, arrays: dict, run_json: dict) -> None:
        """Save a dict of pytrees of arrays. Returns when the arrays are copied: they may be donated right after.

        The commit follows in the background (`async_save`). Errors: StorageError, also for the save before this one.
        """
        self._wait_for_the_last(step)
        before = time.monotonic()
        finite = arrays_lib.all_finite(arrays["params"]) if "params" in arrays else True
        try:
            if not together.first_decides("save", lambda: self._make_room(step)):
                return
            aside = self._aside(step)
            arguments = {
                name: ocp.args.StandardSave(arrays_lib.item(tree)) for name, tree in arrays.items()
            }
            self._orbax.save(aside / "state", args=ocp.args.Composite(**arguments))
            faults.point("save_copied", step)
        except OSError as error:
            self._failure, self._failed_step = error, step
            self.check()
            return
        facts = {"arrays": {name: arrays_lib.leaves(tree) for name, tree in arrays.items()}}
        facts["finite"] = bool(finite)
        self._commit = threading.Thread(
            target=self._finish, args=(step, facts, run_json, before), name=f"commit-{step}"
        )
        self._commit.start()
        if not self.config.async_save:
            self.wait()

    def _make_room(self, step: int) -> bool:
        """An empty folder for a save; False where the step is there already."""
        target, aside = self.folder / str(step), self._aside(step)
        if target.exists():
            if self._problem(step) is None:
                return False
            self._set_aside(step)
        faults.point("save_start", step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        return True

    def _wait_for_the_last(self, step: int) -> None:
        """One save at a time; storage that holds up the training is told of, once."""
        before = time.monotonic()
        self.wait()
        waited = time.monotonic() - before
        if waited > SLOW_SECONDS and not self._told_slow:
            self._told_slow = True
            storage.incident(
                self.run_dir,
                step,
                "slow storage",
                f"training waited {waited:.1f} s for the save before this one to be written; save less often "
                f"(SAVE_EVERY, now {self.config.every_steps}) or to a faster disk",
            )

    def _aside(self, step: int) -> pathlib.Path:
        return self.folder / f"{step}.saving"

    def _finish(self, step: int, facts: dict, run_json: dict, began: float) -> None:
        try:
            self._orbax.wait_until_finished()
            faults.point("save_written", step)
            aside = self._aside(step)
            if not together.index():
                storage.write_json(aside / "run.json", {"step": step} | run_json)
            parts = together.gathered("digests", self._digests(aside, step))
            if not together.index():
                files = {name: found for part in parts for name, found in part.items()}
                self._commit_step(step, {"files": files} | facts)
            together.barrier("committed")
            self.save_seconds = time.monotonic() - began
        except BaseException as error:  # surfaces in `check` and `wait`, on the caller's thread
            self._failure, self._failed_step = error, step

    def _digests(self, aside: pathlib.Path, step: int) -> dict[str, dict]:
        """Size and digest of every file of a save; of several processes, of this one's part of them."""
        files = {}
        for number, path in enumerate(sorted(p for p in aside.rglob("*") if p.is_file())):
            name = path.relative_to(aside).as_posix()
            if arrays_lib.owner(name) != together.index():
                continue
            faults.point(f"save_file_{number}", step)
            storage.sync(path)
            files[name] = {"bytes": path.stat().st_size, "xxh3_128": storage.digest(path)}
        return files

    def _commit_step(self, step: int, facts: dict) -> None:
        """The manifest, then the step's own name: from here on it is there."""
        aside = self._aside(step)
        for path in aside.rglob("*"):
            if path.is_dir():
                storage.sync(path)
        manifest = {"format": manifests.FORMAT, "step": step} | facts
        manifest["digest"] = manifests.own_digest(manifest)
        faults.point("save_manifest", step)
        storage.write_json(aside / "manifest.json", manifest)
        faults.point("save_rename", step)
        storage.check_lease(self.run_dir)  # somebody may have taken the directory meanwhile
        os.rename(aside, self.folder / str(step))
        storage.sync(self.folder)
        faults.point("save_committed", step)
        self._retain()

    def _retain(self) -> None:
        """Delete all but the newest `keep` sound steps; what is damaged or not finite does not count, and stays."""
        sound = [step for step in self._steps() if self._manifest(step).get("finite", True)]
        for step in sound[: -self.config.keep]:
            gone = self.folder / f"{step}.deleting"
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(self.folder / str(step), gone)  # a half-deleted step is no step
            faults.point("retain_renamed", step)
            shutil.rmtree(gone)

    def check(self) -> None:
        """Look, without waiting, whether a save failed. Errors: StorageError, unless on_save_error is "continue"."""
        if self._commit is not None and self._commit.is_alive() or self._failure is None:
            return
        failure, self._failure = self._failure, None
        if together.count() == 1:  # else another process may write there still
            shutil.rmtree(self._aside(self._failed_step), ignore_errors=True)  # room for the next
        if isinstance(failure, errors.JinstrError):
            raise failure
        known = failures.of_machine(failure)  # no room, no file handles: with the way out
        message = (
            f"saving step {self._failed_step} under {self.folder} failed: {known.message if known else repr(failure)}; "
            f"the newest sound step there is {self._newest()}"
        )
        if self.config.on_save_error == "stop":
            kind = type(known) if known else errors.StorageError
            raise kind("JI-CKPT-003", message) from failure
        storage.incident(self.run_dir, self._failed_step, "save failed", message)

    def _newest(self) -> int | None:
        return next((step for step in reversed(self._steps()) if not self._problem(step)), None)

    def wait(self) -> None:
        """Block until the last save is committed. Errors: StorageError when it failed."""
        if self._commit is not None:
            self._commit.join()
            self._commit = None
        self.check()

    def close(self) -> None:
        self.wait()
        self._orbax.close()

    def _steps(self) -> list[int]:
        return manifests.steps(self.folder)

    def _manifest(self, step: int) -> dict:
        try:
            return json.loads((self.folder / str(step) / "manifest.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {"finite": False}

    def _problem(self, step: int) -> str | None:
        return manifests.problem(self.folder, step)

    def latest_verified(self, up_to: int | None = None) -> int | None:
        """The newest step (at most `up_to`) that verifies; damaged ones on the way are named on stderr, and stay."""
        for step in reversed(self._steps()):
            if up_to is not None and step > up_to:
                continue
            problem = self._problem(step)
            if problem is None:
                return step
            print(
                f"jinstr: checkpoint {self.folder / str(step)} is not used: {problem}",
                file=sys.stderr,
            )
        return None

    def _set_aside(self, step: int) -> None:
        """Rename a damaged step, which is evidence, to <step>.corrupt."""
        place = self.folder / f"{step}.corrupt"
        for number in itertools.count(2):
            if not place.exists():
                break
            place = self.folder / f"{step}.corrupt{number}"
        os.rename(self.folder / str(step), place)

    def start_step(self) -> int:
        """Step to continue from under the `resume` rule, as the first process finds it; 0 = a fresh run.

        Newer steps that do not verify are renamed <step>.corrupt and noted; what a killed process left half written or
        half deleted is removed. Errors: StorageError when the rule forbids what is there: a used directory is never
        started afresh, and it stays untouched then.
        """
        return together.first_decides("start_step", self._start_step)

    def _start_step(self) -> int:
        steps = self._steps()
        if self.config.resume == "never" and steps:
            raise errors.StorageError(
                "JI-CKPT-004",
                f"RESUME=never, but {self.folder} holds checkpoints; choose another RUN_DIR",
            )
        if not steps and self.config.resume == "must":
            raise errors.StorageError(
                "JI-CKPT-006", f"RESUME=must, but {self.folder} holds no checkpoint"
            )
        damaged = []
        for step in reversed(steps):
            if (problem := self._problem(step)) is None:
                break
            damaged.append((step, problem))
        shown = "; ".join(f"step {step}: {problem}" for step, problem in damaged)
        if steps and len(damaged) == len(steps):
            raise errors.StorageError(
                "JI-CKPT-005",
                f"no checkpoint under {self.folder} verifies ({shown}); restore a backup or choose another RUN_DIR",
            )
        if len(damaged) > 1 and not self.config.allow_rollback:
            raise errors.StorageError(
                "JI-CKPT-011",
                f"the newest {len(damaged)} checkpoints under {self.folder} do not verify ({shown}): look at the disk; "
                f"to go on from step {steps[-1 - len(damaged)]}, ALLOW_ROLLBACK=True",
            )
        for step, problem in damaged:
            self._set_aside(step)
            storage.incident(
                self.run_dir, step, "damaged checkpoint", f"{self.folder / str(step)}: {problem}"
            )
        if self.folder.exists():
            for left in [*self.folder.glob("*.saving"), *self.folder.glob("*.deleting")]:
                shutil.rmtree(left)
        return steps[-1 - len(damaged)] if steps else 0

    def read_run_json(self, step: int) -> dict:
        return json.loads((self.folder / str(step) / "run.json").read_text(encoding="utf-8"))

    def restore(self, step: int, abstract: dict) -> dict:
        """Restore the named items onto the shardings of `abstract` (ShapeDtypeStruct leaves).

        Errors: StorageError when the step does not verify; ConfigError naming the leaves whose path, shape or type
        differ: nothing is cast, cut or padded.
        """
        # Every byte is read by one process: the others would read the same.
        if problem := together.first_decides("problem", lambda: self._problem(step)):
            raise errors.StorageError("JI-CKPT-007", f"{self.folder / str(step)}: {problem}")
        if together.index() and (problem := manifests.problem(self.folder, step, every_byte=False)):
            raise errors.StorageError(
                "JI-CKPT-013",
                f"process {together.index()} does not see step {step}, which the first one goes on from, under "
                f"{self.folder}: {problem}; RUN_DIR must be on a file system that all processes share",
            )
        manifest = json.loads((self.folder / str(step) / "manifest.json").read_text("utf-8"))
        for item, tree in abstract.items():
            have, want = manifest["arrays"].get(item), arrays_lib.leaves(tree)
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
        arguments = {
            name: ocp.args.StandardRestore(arrays_lib.item(tree)) for name, tree in abstract.items()
        }
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
