"""Rows about secrets: what the environment or a command line holds must not be written anywhere."""

from __future__ import annotations

from tests.faults import rig as rig_lib

ENVIRONMENT = {
    "HF_TOKEN": "canary+hf/0Zq81x",
    "WANDB_API_KEY": "canaryWandb0Zq82x",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+0Zq83x=",
    "DB_PASSWORD": "canary'pw\"\\0Zq84x",
    "DATABASE_URL": "postgres://me:canaryUrl0Zq85x@host/db",
}
ADDRESS = "https://me:canaryArgv0Zq86x@host/sets?X-Amz-Signature=canarySig0Zq87x"
GIVEN = "canaryGiven0Zq88x"
CANARY = b"0Zq8"  # part of every secret, whatever quotes or signs are around it
PLAIN = "plain-canary-7Yw"  # negative control: no secret, so it does appear
# Stands for the client of the tracker: keeps what it is given and what it can read of the command line.
TRACKER = """
import json, os, sys
class Run:
    def __init__(self, **given): self.seen = [repr(given), sys.argv]
    def __getattr__(self, name): return lambda *args, **kwargs: self.seen.append(repr((name, args, kwargs)))
    def finish(self): json.dump(self.seen, open(os.environ["TRACKED"], "w"))
    class config: update = staticmethod(lambda *a, **k: None)
def init(**given): return Run(**given)
"""
LEAKY = """
import os
raise ValueError("cannot log in with " + os.environ["HF_TOKEN"] + " " + os.environ["DB_PASSWORD"])
"""


def _holds(rig: rig_lib.Rig, texts: list[str], names: list[str], wanted: bytes) -> list[str]:
    """Where the bytes stand: outputs by number, files of the run directories by path."""
    places = [f"output {number}" for number, text in enumerate(texts) if wanted in text.encode()]
    for name in names:
        files = [rig.place / name, *(rig.place / name).rglob("*")]
        found = [file for file in files if file.is_file() and wanted in file.read_bytes()]
        places += [str(file.relative_to(rig.place)) for file in found]
    return places


def _secrets(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    (rig.place / "wandb.py").write_text(TRACKER)
    (rig.place / "leaky.py").write_text(LEAKY)
    (rig.place / "leaky.gin").write_text("import leaky\n")
    odd_name = f"cache-{ENVIRONMENT['WANDB_API_KEY']}"
    environment = ENVIRONMENT | {"TRACKED": str(rig.place / "tracked.json"), "NOTE": PLAIN}
    runs = [  # (words, may they end well?)
        (["NUM_STEPS=5", f"WANDB={PLAIN}", f"TFDS_DIR={ADDRESS}", f"CACHE_DIR={odd_name}"], 0),
        (["NUM_STEPS=6", f"WANDB={PLAIN}", f"TFDS_DIR={ADDRESS}2", f"CACHE_DIR={odd_name}"], 0),
        ([f"DATA={ADDRESS}"], None),
        ([f"WANDB_TOKEN={GIVEN}"], 78),
        ([f"KEEP={ENVIRONMENT['HF_TOKEN']}"], 78),
        (["MODULE=leaky", "DATA=some_task"], None),
        (["leaky.gin", "--allow_import=leaky"], None),
        ([f"TFDS_DIR={ADDRESS}", "--dry_run"], 0),
    ]
    texts, statuses, as_promised = [], [], True
    for words, status in runs:
        options = [word for word in words if word.startswith("--")]
        words = [word for word in words if not word.startswith("--")]
        process = rig.start([*rig.words("secret", *words), *options], **environment)
        text, _ = process.communicate()
        texts.append(text)
        statuses.append(process.returncode)
        as_promised &= (
            process.returncode == status if status is not None else process.returncode > 0
        )
    names = ["secret", "tracked.json"]
    leaks = _holds(rig, texts, names, CANARY)
    seen = _holds(rig, texts, names, PLAIN.encode())
    # Records of earlier starts are kept under numbers.
    kinds = {place.partition(".")[0] + place[-5:] for place in seen}
    controlled = {"secret/config.json", "secret/config.1.gin", "tracked.json"} <= {*kinds, *seen}
    controlled &= "cannot log in with" in texts[5] + texts[6]
    count = sum(file.is_file() for file in (rig.place / "secret").rglob("*"))
    told = (
        f"secrets in {len(leaks)} of {count} files and {len(texts)} outputs {leaks or ''}".strip()
    )
    told += f"; exits {statuses}; the text that is no secret stands in {len(seen)} places"
    return told, not leaks and as_promised and controlled


ROWS = [
    rig_lib.Row(
        number="43",
        injected="secrets in the environment, in settings, in addresses and in the text of exceptions",
        promised="none in any file of the run, on any output, or with the tracker; what is no secret is there",
        measure=_secrets,
    )
]
