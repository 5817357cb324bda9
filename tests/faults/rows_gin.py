"""Rows about settings: slips that gin lets pass, and gin files and records of a stranger."""

from __future__ import annotations

import dataclasses

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


# In the order of reliability.md, section 4. {file} = the gin file with the slip.
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
# Two rows of the section are two slips here: values of a wrong type, and includes that win.
ROWS_OF_SECTION = 12


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
        seen += f"; {ROWS_OF_SECTION}/{ROWS_OF_SECTION} rows"
    return f"{seen}; code run: {ran}" + "".join(
        f"; missed: {m}" for m in missed
    ), not missed and not ran


ROWS = [
    rig_lib.Row(
        number="40",
        injected="the 12 slips that gin lets pass, in 14 gin files, and one file without a slip",
        promised="exit 78 with file:line and a way out; what a later file overrides is listed with both places",
        measure=_slips,
        in_ci=True,
    ),
]
