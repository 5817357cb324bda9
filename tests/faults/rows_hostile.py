"""Rows about files of a stranger: pickles, templates, archives and arrays that would run code or fill the memory."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import pickle
import shutil
import sys
import zipfile
from collections.abc import Iterator

import numpy as np

from tests.faults import rig as rig_lib

MEGABYTES = 200  # above a plain start of the same command
BOMB = 100 * 10**6  # bytes that a small file grows to
# Tells the largest memory of a command and its children; this small process is not counted with theirs.
WATCH = (
    "import resource, subprocess, sys; status = subprocess.call(sys.argv[1:]); "
    "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000); sys.exit(status)"
)


class Canary:
    """Unpickled, it writes a file."""

    def __reduce__(self):
        return os.system, ("touch canary",)


PICKLE = pickle.dumps(Canary())
ESCAPES = (
    "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__init__.__globals__ }}",
    "{% set x = namespace.__init__.__globals__ %}{{ x }}",
    "{{ '%s'|attr('format')|attr('__globals__') }}",
)


def _npy(path: pathlib.Path) -> None:
    """An array of objects: reading it as numpy once did runs what is pickled in it."""
    np.save(path, np.array([Canary()], object), allow_pickle=True)


def _xlsx(sheet: bytes | int) -> bytes:
    """A workbook of one sheet; a number = so many bytes of text in a cell."""
    head = (
        b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
    )
    row = b'<row r="1"><c r="A1" t="inlineStr"><is><t>text</t></is></c></row>'
    if isinstance(sheet, int):
        cell = b'<row r="2"><c r="A2" t="inlineStr"><is><t>%s</t></is></c></row>'
        before, after = (head + row + cell).split(b"%s")
        sheet = [before, *[b"a" * 10**6] * (sheet // 10**6), after + b"</sheetData></worksheet>"]
    names = "http://schemas.openxmlformats.org"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{names}/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Override PartName="/xl/workbook.xml" ContentType='
        '"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
        '<Override PartName="/xl/worksheets/sheet1.xml" ContentType='
        '"application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{names}/package/2006/relationships"><Relationship Id="r1" '
        f'Type="{names}/officeDocument/2006/relationships/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{names}/spreadsheetml/2006/main" '
        f'xmlns:r="{names}/officeDocument/2006/relationships"><sheets>'
        '<sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{names}/package/2006/relationships"><Relationship '
        f'Id="r1" Type="{names}/officeDocument/2006/relationships/worksheet" '
        'Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": sheet,
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, text in parts.items():
            with archive.open(name, "w") as part:
                for piece in text if isinstance(text, list) else [text]:
                    part.write(piece.encode() if isinstance(piece, str) else piece)
    return file.getvalue()


LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha">'
    + b"".join(
        b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10 if n else b"&a;" * 10) for n in range(9)
    )
    + b']><worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData><row r="1">'
    b'<c r="A1" t="inlineStr"><is><t>text&a8;</t></is></c></row></sheetData></worksheet>'
)


def _data_files() -> dict[str, bytes]:
    """Files offered as DATA."""
    return {
        "pickle.jsonl": PICKLE,
        "pickle.pkl": PICKLE,
        "pickle.parquet": b"PAR1" + PICKLE + b"PAR1",
        "nested.jsonl": b'{"text": ' + b"[" * 10**6 + b"\n",
        "nested.json": b"[" * 10**6,
        "cut.xlsx": _xlsx(100)[:900],
        "laughs.xlsx": _xlsx(LAUGHS),
        "bomb.xlsx": _xlsx(BOMB),
        "bomb.parquet": b"PAR1" + b"\xff" * 64 + b"\xff\xff\xff\x7fPAR1",
    }


@dataclasses.dataclass(frozen=True)
class Offer:
    """One file of a stranger, offered by a command line. ends_well: it is passed over, not refused."""

    title: str
    words: list[str]
    ends_well: bool = False


def _data(rig: rig_lib.Rig) -> Iterator[Offer]:
    for name, content in _data_files().items():
        (rig.place / name).write_bytes(content)
        yield Offer(name, _prepare(rig, DATA=name), ends_well=name == "nested.json")
    (rig.place / "pickle.model").write_bytes(PICKLE)
    yield Offer("pickle as tokenizer", _prepare(rig, TOKENIZER="pickle.model"))
    for number, text in enumerate([*ESCAPES, PICKLE.decode("latin-1")]):
        name = f"hostile_{number}.jinja"
        (rig.place / name).write_text(text, "utf-8")
        yield Offer(f"template {number}", _prepare(rig, DATA="instructions.jsonl", TEMPLATE=name))


def _prepare(rig: rig_lib.Rig, **settings: str) -> list[str]:
    usual = dict(DATA="corpus.jsonl", TOKENIZER="t.model", CACHE_DIR="stranger", WORKERS="1")
    return ["prepare", *(f"{name}={value}" for name, value in (usual | settings).items())]


def _runs(rig: rig_lib.Rig, sound: pathlib.Path) -> Iterator[Offer]:
    """Run directories in which one file is a pickle."""
    array = max((sound / "checkpoints/5/state").rglob("*"), key=lambda path: path.stat().st_size)
    for name in ("model.json", "tokenizer.model", "template.jinja"):
        folder = _copy(rig, sound, name)
        yield Offer(f"run with {name}", _generate(folder))
    for name in ("manifest.json", "run.json", str(array.relative_to(sound / "checkpoints/5"))):
        folder = _copy(rig, sound, f"checkpoints/5/{name}")
        yield Offer(f"run with {name}", _warm(rig, folder))
    for name in ("metrics.jsonl", "summary.json", "samples.jsonl"):
        folder = _copy(rig, sound, name)
        yield Offer(f"run with {name}", ["resume", f"RUN_DIR={folder}"], ends_well=True)


def _copy(rig: rig_lib.Rig, sound: pathlib.Path, name: str) -> pathlib.Path:
    """A copy of a run with a pickle in place of one file."""
    folder = rig.place / "runs" / name.replace("/", "_")
    shutil.copytree(sound, folder)
    (folder / name).write_bytes(PICKLE)
    return folder


def _generate(folder: pathlib.Path) -> list[str]:
    return [
        "generate",
        f"MODELS=a={folder}",
        "INPUT=p.jsonl",
        f"OUTPUT={folder.name}.jsonl",
        "MAX_NEW_TOKENS=4",
    ]


def _warm(rig: rig_lib.Rig, folder: pathlib.Path) -> list[str]:
    return rig.words(f"from_{folder.name}", "NUM_STEPS=1", f"INIT={folder}")


def _prepared(rig: rig_lib.Rig) -> Iterator[Offer]:
    """Prepared sets with an array of pickled objects, which the manifest vouches for."""
    (found,) = (rig.place / "stranger").glob("corpus-*/manifest.json")
    for name in ("lengths.npy", "text_bytes.npy", "pack-128/offsets.npy", "pack-128/pieces.npy"):
        folder = rig.place / "sets" / name.replace("/", "_")
        shutil.copytree(found.parent, folder)
        (folder / name).parent.mkdir(exist_ok=True)
        _npy(folder / name)
        if "pack" in name:
            (folder / "pack-128/pack.json").write_text('{"dropped": 0, "digest": ""}')
            other = {"offsets.npy": "pieces.npy", "pieces.npy": "offsets.npy"}[name[9:]]
            np.save(folder / "pack-128" / other, np.zeros(2, np.int64))
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        if name in manifest["files"]:
            manifest["files"][name]["bytes"] = (folder / name).stat().st_size
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        # A packing that does not hold is told of and made again; the rest of a set cannot be.
        words = rig.words(f"on_{folder.name}", "NUM_STEPS=1", f"DATA={folder}")
        yield Offer(f"set with {name}", words, ends_well="pack" in name)


def _watched(rig: rig_lib.Rig, words: list[str]) -> tuple[int, str, int]:
    """(exit status, output, largest memory in MB) of a command."""
    process = rig.start(words, prefix=(sys.executable, "-c", WATCH))
    text, _ = process.communicate()
    text, _, peak = text.rstrip().rpartition("peak ")
    return process.returncode, text, int(peak)


def _hostile(rig: rig_lib.Rig, full: bool) -> tuple[str, bool]:
    sound = rig.train("sound", "NUM_STEPS=5")
    assert sound.status == 0, sound.text[-2000:]
    (rig.place / "p.jsonl").write_text('{"text": "春"}\n', "utf-8")
    plain = {
        words[0]: _watched(rig, words)
        for words in (_prepare(rig), _warm(rig, sound.folder), _generate(sound.folder))
    }
    plain["resume"] = plain["pretrain"]
    wrong = [f"{name} by itself: {end[0]} {end[1][-300:]}" for name, end in plain.items() if end[0]]
    offers = [*_data(rig), *_runs(rig, sound.folder), *_prepared(rig)]
    most = 0
    for offer in offers:
        status, text, peak = _watched(rig, offer.words)
        above = peak - plain[offer.words[0]][2]
        most = max(most, above)
        last = text.strip().rpartition("\n")[2]
        is_clear = last.startswith("jinstr: JI-") and "Traceback" not in text
        refused = status in (65, 74, 78) and is_clear
        if not (status == 0 if offer.ends_well else refused) or above > MEGABYTES:
            wrong.append(f"{offer.title} (exit {status}, +{above} MB: {last[-160:]})")
    ran = (rig.place / "canary").exists()
    seen = f"{len(offers) - len(wrong)}/{len(offers)} as promised; code run: {ran}; memory at most +{most} MB"
    return seen + "".join(f"; {text}" for text in wrong), not wrong and not ran


ROWS = [
    rig_lib.Row(
        number="42",
        injected="pickles in place of every kind of file, templates that reach for the system, sheets that grow",
        promised="refused with one clear line, or passed over; no code run; at most 200 MB above a plain start",
        measure=_hostile,
    )
]
