"""Rows about looking back: documents that spoil a run are found again, and a log that was changed is seen."""

from __future__ import annotations

import base64
import functools
import json
import pathlib
import random
import re
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp

from jinstr.samples import prose
from jinstr.train import checkpoint
from tests.faults import rig as rig_lib

EIGHT = "--xla_force_host_platform_device_count=8"
OF_EACH_KIND = 5
STEPS = 300
MARKUP = (
    '<div class="nav-item active"><a href="/index.php?id=%d" onclick="return false;">Home</a></div>',
    "<script>window.dataLayer = window.dataLayer || []; gtag('config', 'UA-%d');</script>",
    "Cookies help us deliver our services. By using them you agree (%d). Click here to accept.",
)


def poisons(texts: list[str]) -> dict[str, str]:
    """Id → text of 20 documents as crawls bring them: read in a wrong encoding, files that are no text, pages that are
    markup in another language, and scans whose characters lost their order."""
    chance = random.Random(0)
    found = {}
    for number in range(OF_EACH_KIND):
        text = chance.choice(texts)
        wrong = text[:40].encode("utf-8").decode("cp932", "replace")
        found[f"poison-mojibake-{number}"] = wrong
        found[f"poison-binary-{number}"] = base64.b64encode(chance.randbytes(60)).decode()
        markup = "\n".join(line % chance.randrange(10**6) for line in MARKUP[number % 2 :])
        found[f"poison-markup-{number}"] = markup[:110]
        letters = list(text[:110])
        chance.shuffle(letters)
        found[f"poison-scan-{number}"] = "".join(letters)
    return found


@functools.cache
def _poisoned_run(rig: rig_lib.Rig) -> pathlib.Path:
    """A run on eight devices over a corpus of generated prose with the 20 documents; every checkpoint is kept.

    Long enough for a model that knows the corpus somewhat: to one that knows nothing all documents are alike. Without
    the hand-written passages that the built-in corpus ends with: among generated prose they are as strange as poison.
    """
    texts = enumerate(prose.documents(600_000, seed=0))
    rows = [{"id": f"prose-{number:05d}", "text": text} for number, text in texts]
    planted = poisons([row["text"] for row in rows if len(row["text"]) > 150])
    rows += [{"id": id, "text": text} for id, text in planted.items()]
    random.Random(1).shuffle(rows)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (rig.place / "poisoned.jsonl").write_text(text, "utf-8")
    settings = [f"NUM_STEPS={STEPS}", "SAVE_EVERY=10", "BATCH_TOKENS=1024", "LEARNING_RATE=3e-3"]
    settings += ["KEEP=99", f"DATA={rig.place}/poisoned.jsonl"]
    ended = rig.train("poisoned", *settings, XLA_FLAGS=EIGHT)
    assert ended.status == 0, ended.text[-3000:]
    return ended.folder


def _replay(rig: rig_lib.Rig, *words: str, **environment: str) -> rig_lib.Ended:
    process = rig.start(["replay", *words], **environment)
    text, _ = process.communicate()
    return rig_lib.Ended(process.returncode, text, rig.place)


@functools.cache
def _replays(rig: rig_lib.Rig, count: int) -> list[tuple[str, dict]]:
    """(planted id, replay of the last step that saw it, on one device) of `count` documents."""
    folder = _poisoned_run(rig)
    seen: dict[str, int] = {}
    for line in rig_lib.lines(folder / "examples.jsonl"):
        seen |= {id: line["step"] for _, id, _ in line["examples"] if "poison-" in id}
    assert len(seen) == 4 * OF_EACH_KIND, seen
    found, by_step = [], {}
    for id, step in sorted(seen.items())[:: 4 * OF_EACH_KIND // count]:
        if step not in by_step:
            ended = _replay(rig, str(folder), f"STEP={step}")
            assert ended.status == 0, ended.text[-3000:]
            report = folder / "replay" / str(step) / "replay.json"
            by_step[step] = json.loads(report.read_text("utf-8"))
        found.append((id, by_step[step]))
    return found


def _named_first(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    named, missed, by_gradient = 0, [], 0
    replays = _replays(rig, 20 if full else 2)
    for id, found in replays:
        ids = [example["id"] for example in found["examples"]]
        # Several planted documents of one batch share the first places.
        planted = sum("poison-" in id for id in ids)
        ranks = [
            [ids[number] for number in found[order]].index(id) + 1
            for order in ("by_loss", "by_grad_norm")
        ]
        named += ranks[0] <= planted
        by_gradient += ranks[1] <= planted
        if ranks[0] > planted:
            missed.append(f"{id} is {ranks[0]} of {len(ids)} at step {found['step']}")
    examples = sum(len(found["examples"]) for _, found in replays) / len(replays)
    seen = f"{named}/{len(replays)} by loss, {by_gradient}/{len(replays)} by gradient norm, of {examples:.0f} examples"
    return "; ".join([seen, *missed]), named == len(replays)


def _sums(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    largest, control = 0.0, 1.0
    for _, found in _replays(rig, 20 if full else 2):
        logged = found["values"]["loss"]["logged"]
        shares = [example["share"] for example in found["examples"]]
        largest = max(largest, abs(sum(shares) / logged - 1))
        control = min(control, abs((sum(shares) - min(shares)) / logged - 1))
    text = f"largest relative difference {largest:.1e}; with the smallest example left out at least {control:.1e}"
    return text, largest < 1e-5 < control


def _audits(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    folder = _poisoned_run(rig)
    words = [str(folder), "AUDIT=True", "WINDOWS=8", "WINDOW_STEPS=10"]
    metrics = folder / "metrics.jsonl"
    honest = metrics.read_text("utf-8")
    same, other = _replay(rig, *words, XLA_FLAGS=EIGHT), _replay(rig, *words)
    report = json.loads((folder / "replay" / "audit" / "audit.json").read_text("utf-8"))
    largest = max(row["largest"] for row in report["windows"])
    steps = sum(row["steps"] for row in report["windows"])
    lines = [json.loads(line) for line in honest.splitlines()]
    again = {n for row in report["windows"] for n in range(row["base"] + 1, row["last"] + 1)}
    trained = [line for line in lines if "train/loss" in line and line["step"] in again]
    changed = random.Random(2).sample(trained, 3 if full else 1)
    caught = 0
    for line in changed:
        loss = line["train/loss"]
        line["train/loss"] = loss * (1 + 1e-6)
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        line["train/loss"] = loss
        ended = _replay(rig, *words, XLA_FLAGS=EIGHT)
        caught += ended.status == 1 and f"step {line['step']}: loss" in ended.text
    metrics.write_text(honest, "utf-8")
    text = (
        f"honest: exit {same.status} on the same mesh, every bit; exit {other.status} on one device, {steps} steps, "
        f"largest relative difference {largest:.1e}; one loss changed by 1e-6: named {caught}/{len(changed)}"
    )
    return text, same.status == other.status == 0 and caught == len(changed) and largest < 1e-5


def _spoil(source: pathlib.Path, step: int, target: pathlib.Path) -> None:
    """A checkpoint like that of `source`, but for one norm of the second layer: finite, and what it gives is not."""
    saved = ocp.StandardCheckpointer().restore(source / "checkpoints" / str(step) / "state/params")
    params = jax.tree.map(np.array, saved)
    params["blocks"]["norm_mlp"]["scale"][1] = 3e38
    keeper = checkpoint.Checkpointer(target, checkpoint.CheckpointConfig(async_save=False))
    keeper.save(1, {"params": params}, {})
    keeper.close()


def _debug(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    short = ["NUM_STEPS=2", "BATCH_TOKENS=128", "LEARNING_RATE=1e-3"]
    sound = rig.train("sound_compiled", *short)
    watched = rig.train("sound_watched", *short, JINSTR_DEBUG="1")
    losses = [
        [line["train/loss"] for line in rig_lib.lines(e.folder / "metrics.jsonl") if len(line) > 1]
        for e in (sound, watched)
    ]
    apart = max(abs(a / b - 1) for a, b in zip(*losses))
    _spoil(sound.folder, 2, rig.place / "spoilt")
    for path in sound.folder.iterdir():  # what INIT needs beside the checkpoints
        if path.name == "model.json" or path.name.startswith("tokenizer."):
            shutil.copy(path, rig.place / "spoilt")
    init = f"INIT={rig.place}/spoilt@1"
    blind = rig.train("spoilt_compiled", *short, init)
    ended = rig.train("spoilt_watched", *short, init, JINSTR_DEBUG="1")
    place = re.search(r'jinstr/(models/layers\.py)", line (\d+), in (\w+)', ended.text)
    told = ended.status == 1 and "FloatingPointError: invalid value (nan)" in ended.text and place
    named = f"{place[1]}:{place[2]} in {place[3]}" if place else ended.text[-300:]
    silent = "models/layers.py" not in blind.text and "non-finite at step 1" in blind.text
    text = (
        f"sound: exit {watched.status}, losses {apart:.1e} from the compiled ones; NaN: exit {ended.status}, traceback "
        f"names {named}; without JINSTR_DEBUG only 'non-finite at step 1': {silent}"
    )
    return text, bool(told and silent and watched.status == 0 and apart < 1e-5)


ROWS = [
    rig_lib.Row(
        number="51a",
        injected="20 documents planted in a run on 8 devices: mojibake, binary files, markup, scrambled scans",
        promised="replay on one device names each first by what it adds to the loss",
        measure=_named_first,
    ),
    rig_lib.Row(
        number="51b",
        injected="the same replays",
        promised="losses of single examples sum to the logged loss, to 1e-5",
        measure=_sums,
    ),
    rig_lib.Row(
        number="51c",
        injected="an honest log, and one loss of it changed by 1e-6",
        promised="replay --audit passes the first (every bit on the same mesh, 1e-5 on one device), names the second",
        measure=_audits,
    ),
    rig_lib.Row(
        number="52",
        injected="NaN that arises in one layer, with JINSTR_DEBUG=1",
        promised="a traceback with file and line of the model; a sound run has the losses of the compiled one",
        measure=_debug,
    ),
]
