"""Rows about settings: slips that gin lets pass, and gin files and records of a stranger."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import time
from collections.abc import Callable

from jinstr import record
from tests.faults import rig as rig_lib

HEAD = """from __gin__ import dynamic_registration
from jinstr.commands import pretrain
from jinstr.train import loop
from jinstr.train import optimizer
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slip:
    """A mistake in a gin file (below HEAD) or on the command line, and what the user must be told."""

    title: str
    text: str = ""
    words: tuple[str, ...] = ()
    tells: tuple[str, ...]
    status: int = 78


# {file} = the gin file with the slip.
SLIPS = (
    Slip(
        title="unknown parameter",
        text="loop.LoopConfig.num_stepz = 3\n",
        tells=("{file}:5:", "num_stepz; did you mean num_steps?"),
    ),
    Slip(
        title="unknown function",
        text="pretrain.pretrian.seed = 3\n",
        tells=("{file}:5:", "did you mean pretrain?"),
    ),
    Slip(
        title="binding of a function that is never called",
        text="from jinstr.commands import sft\nsft.sft.seed = 3\n",
        tells=("{file}:6:", "sft.sft.seed is set but nothing uses it; did you mean", "?"),
    ),
    Slip(
        title="misspelt scope",
        text="evall/optimizer.OptimizerConfig.beta1 = 0.8\n",
        tells=("{file}:5:", "evall/", "did you mean jinstr.train.optimizer.OptimizerConfig.beta1?"),
    ),
    Slip(  # a value that code passes wins over gin's: here nothing but gin passes any, and the rest is unused
        title="binding beside the value that counts",
        text="loop.LoopConfig.log_every = 3\n",
        tells=("{file}:5:", "write LOG_EVERY = 3 instead"),
    ),
    Slip(
        title="misspelt keyword of a **kwargs function",
        text="import open_keywords\npretrain.pretrain.model = @open_keywords.make()\n"
        "open_keywords.make.hidden_syze = 64\n",
        words=("--allow_import=open_keywords",),
        tells=("{file}:6:", "only dataclasses can be built"),
    ),
    Slip(
        title="unused macro",
        text="NUM_STEPZ = 3\n",
        tells=("{file}:5:", "did you mean NUM_STEPS?"),
    ),
    Slip(
        title="text for a whole number",
        text='KEEP = "3"\n',
        tells=("{file}:5:", "KEEP = '3' (str), but CheckpointConfig.keep is int"),
    ),
    Slip(
        title="1e3 for a whole number",
        text="KEEP = 1e3\n",
        tells=("{file}:5:", "1000.0 (float), but CheckpointConfig.keep is int; write 1000"),
    ),
    Slip(
        title="undefined macro",
        text="SEED = %SEEED\n",
        tells=("{file}:5:", "%SEEED is not defined; did you mean SEED?"),
    ),
    Slip(
        title="include below a binding",
        text='SEED = 3\ninclude "later.gin"\n',
        tells=("{file}:6:", "{file}:5: SEED = 3", "later.gin:1: SEED = 4", "move includes"),
    ),
    Slip(
        title="binding overridden by a later file",
        text="SEED = 3\n",
        words=("later.gin",),
        tells=("{file}:5: SEED = 3 is overridden by ", "later.gin:1: SEED = 4"),
        status=0,
    ),
    Slip(
        title="import of a module",
        text="import canary_module\n",
        tells=("{file}:5:", "may not import canary_module", "--allow_import=canary_module"),
    ),
    Slip(
        title="a function of the system as a value",
        text="import os\nRUN_DIR = @os.getcwd()\n",
        tells=("{file}:5:", "may not import os"),
    ),
)
# Wrong types and later files are one kind of slip each, tried in two ways.
KINDS = 12


def _slips(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    (rig.place / "open_keywords.py").write_text("def make(**keywords):\n    return keywords\n")
    (rig.place / "canary_module.py").write_text("open('canary', 'w').close()\n")
    (rig.place / "later.gin").write_text("SEED = 4\n")
    sound = Slip(title="no slip", text="SEED = 3\n", tells=(), status=0)  # negative control
    missed = []
    for first in range(0, len(SLIPS) + 1, 4):  # four processes at a time
        running = []
        for number, slip in list(enumerate([*SLIPS, sound]))[first : first + 4]:
            file = rig.place / f"slip_{number}.gin"
            file.write_text(HEAD + slip.text, "utf-8")
            words = [*rig.words("slips"), "--dry_run", file.name, *slip.words]
            running.append((slip, file, rig.start(words)))
        for slip, file, process in running:
            text, _ = process.communicate()
            told = all(part.format(file=file) in text for part in slip.tells)
            quiet = slip is not sound or "jinstr:" not in text
            if process.returncode != slip.status or not told or not quiet:
                missed.append(f"{slip.title} (exit {process.returncode}: {text.strip()[-300:]})")
    ran = (rig.place / "canary").exists() or (rig.place / "slips").exists()
    seen = f"{len(SLIPS) + 1 - len(missed)}/{len(SLIPS) + 1} ways and the sound file as promised"
    if not missed:
        seen += f"; {KINDS}/{KINDS} kinds"
    return f"{seen}; code run: {ran}" + "".join(
        f"; missed: {m}" for m in missed
    ), not missed and not ran


CALLS = """from __gin__ import dynamic_registration
from jinstr.data import readers
from jinstr.samples import build
"""
# Each would write the file canary if it were obeyed.
HOSTILE_GIN = (
    "import canary_module\n",
    "from os import path\nSEED = 1\n",
    "import subprocess\nSEED = @subprocess.call()\nsubprocess.call.popenargs = ('touch', 'canary')\n",
    CALLS + "SEED = @readers.os.system()\nreaders.os.system.command = 'touch canary'\n",
    CALLS
    + "SEED = @readers.io.open()\nreaders.io.open.file = 'canary'\nreaders.io.open.mode = 'w'\n",
    CALLS + "X = @readers.pathlib.os.system()\nreaders.pathlib.os.system.command = 'touch canary'\n"
    "SAMPLE_PROMPTS = ({'a': [%X]},)\n",
    CALLS + "SEED = @build.write()\nbuild.write.folder = 'canary'\n",
    CALLS + "SEED = @s/gin.singleton()\ns/gin.singleton.constructor = @readers.os.getcwd\n",
)


def _as_record(change) -> Callable[[str], str]:
    """config.json of a run, changed by one who knows how its digest is made."""

    def changed(text: str) -> str:
        found = json.loads(text)
        change(found, found["settings"])
        return json.dumps(found | {"digest": record.digest(found["settings"])})

    return changed


HOSTILE_RECORDS = (
    _as_record(lambda found, settings: settings["data"].update(module="canary_module")),
    _as_record(lambda found, settings: settings.update(model="canary_module.make")),
    _as_record(lambda found, settings: settings["model"].update(_target_="os.system")),
    _as_record(lambda found, settings: settings["loop_config"].update(wandb=["os.system"])),
    _as_record(lambda found, settings: found.update(command="../../canary_module")),
    lambda text: text.replace('"seed": 0', '"seed": 1'),
    lambda text: "[" * 10**6,
    lambda text: pickle.dumps(Canary(), protocol=0).decode(),
)


class Canary:
    """Unpickled, it writes a file."""

    def __reduce__(self):
        return os.system, ("touch canary",)


def _exits(rig: rig_lib.Rig, commands: list[list[str]]) -> list[rig_lib.Ended]:
    """Each command line in a process of its own, three at a time."""
    ended = []
    for first in range(0, len(commands), 3):
        running = [rig.start(words) for words in commands[first : first + 3]]
        for process in running:
            text, _ = process.communicate()
            ended.append(rig_lib.Ended(process.returncode, text, rig.place))
    return ended


def _strangers(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    canary, run = rig.place / "canary", rig.train("strange", "NUM_STEPS=5")
    assert run.status == 0, run.text[-2000:]
    (rig.place / "canary_module.py").write_text("open('canary', 'w').close()\n")
    # Named by the user, a gin file is read, and refused.
    commands = []
    for number, text in enumerate(HOSTILE_GIN):
        (rig.place / f"hostile_{number}.gin").write_text(text)
        commands.append([*rig.words("named"), f"hostile_{number}.gin"])
    refused = sum(ended.status == 78 for ended in _exits(rig, commands))
    # Found in a run directory or checkpoint, no gin file is read.
    for folder in (run.folder, *(run.folder / "checkpoints").glob("*")):
        for name in ("config.gin", "operative_config.gin"):
            (folder / name).write_text("".join(HOSTILE_GIN))
        (folder / "canary_module.py").write_text("open('canary', 'w').close()\n")
    (rig.place / "prompts.jsonl").write_text('{"prompt": "春"}\n', "utf-8")
    again = rig.words("strange", "NUM_STEPS=5")
    users = [
        ["resume", f"RUN_DIR={run.folder}"],
        [
            "generate",
            f"MODELS=a={run.folder}",
            "INPUT=prompts.jsonl",
            "OUTPUT=o.jsonl",
            "TEMPLATE=chatml",
        ],
        rig.words("warm", "NUM_STEPS=1", f"INIT={run.folder}"),
        again,
    ]
    # One after the other: two of them hold the directory.
    unread = sum(_exits(rig, [words])[0].status == 0 for words in users)
    # A record that was tampered with is refused.
    commands, sound = [], (run.folder / "config.json").read_text("utf-8")
    for number, change in enumerate(HOSTILE_RECORDS):
        folder = rig.place / f"record_{number}"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(change(sound), "utf-8")
        commands.append(["resume", f"RUN_DIR={folder}"])
    tampered = sum(ended.status == 78 for ended in _exits(rig, commands))
    ran = canary.exists()
    # Negative control: the same module, named by the user, is run.
    _exits(
        rig, [[*rig.words("named"), "hostile_0.gin", "--allow_import=canary_module", "--dry_run"]]
    )
    works = canary.exists()
    canary.unlink(missing_ok=True)
    seen = (
        f"named: exit 78 in {refused}/{len(HOSTILE_GIN)}; lying about: exit 0 in {unread}/{len(users)}; "
        f"records: exit 78 in {tampered}/{len(HOSTILE_RECORDS)}; code run: {ran} (with the user's word: {works})"
    )
    counts = refused, unread, tampered
    wanted = len(HOSTILE_GIN), len(users), len(HOSTILE_RECORDS)
    return seen, counts == wanted and works and not ran


def _resumed(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    process = rig.start(rig.words("recorded", "RESUME=never"))
    while not rig_lib.steps_of(rig.place / "recorded") and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    steps = rig_lib.steps_of(rig.place / "recorded")
    (ended,) = _exits(rig, [["resume", f"RUN_DIR={rig.place}/recorded"]])
    same = rig.is_reference(rig.place / "recorded")
    return f"killed at step {steps}; exit {ended.status}; equal: {same}", ended.status == 0 and same


ROWS = [
    rig_lib.Row(
        number="40",
        injected="the 12 slips that gin lets pass, in 14 gin files, and one file without a slip",
        promised="exit 78 with file:line and a way out; what a later file overrides is listed with both places",
        measure=_slips,
        in_ci=True,
    ),
    rig_lib.Row(
        number="41",
        injected="gin files, run directories and config.json made by a stranger, which would write a file",
        promised="exit 78 where a file is read at all; nothing in it is run",
        measure=_strangers,
    ),
    rig_lib.Row(
        number="41b",
        injected="kill -9, then `jinstr resume` with config.json alone",
        promised="the bits of the undisturbed run",
        measure=_resumed,
    ),
]
