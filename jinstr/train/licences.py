"""Licences of what a model was made from: what is known of its base, and the one word that its card may say.

The rule (`decide`), which invents nothing: terms are those of every source of every stage, of what influenced the
training (a reward model), and of the base. All known and the same: that licence. All known and different: `other`,
named mixed. Some not known: `other`, named as not fully known. None known: `unknown`. It is no legal judgement.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping

import yaml

from jinstr import redact

# Identifiers that the Hugging Face Hub knows; others are published as `other` with their name.
HUB_IDS = frozenset(
    """afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause
    bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m
    ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0
    llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++
    osl-3.0 pddl postgresql unlicense wtfpl zlib""".split()
)
_PARTLY = "not-fully-known-see-card"  # what a base that was trained here may be under, too
_LONGEST_CARD = 1 << 16  # bytes of a README.md or LICENSE that are looked at
_TEXTS = re.compile(r"(licen[cs]e|notice|use[_-]policy|acceptable[_-]use)", re.IGNORECASE)
_BEGINNINGS = (  # how the texts of licences that need no name of their own begin
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"mit license", "mit"),
    (r"llama 2 community license", "llama2"),
    (r"meta llama 3 community license", "llama3"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.3 community license", "llama3.3"),
)


def identifier(licence: str) -> str:
    """A licence as the Hub spells it: "CC BY-SA 4.0" → cc-by-sa-4.0."""
    plain = re.sub(r"[\s_]+", "-", licence.strip().lower())
    return re.sub(r"[^\w.+-]+", "-", plain).strip("-")


def decide(licences: Iterable[str]) -> dict[str, str]:
    """{"license", and where that is `other` "license_name"} of a model made from material under `licences`; "" = not
    known. See the rule above."""
    found = ["" if (name := identifier(word)) == _PARTLY else name for word in licences]
    known = sorted({licence for licence in found if licence})
    if not known:
        return {"license": "unknown"}
    if "" in found:
        return {"license": "other", "license_name": _PARTLY}
    if len(known) > 1:
        return {"license": "other", "license_name": "mixed-see-card"}
    if known[0] in HUB_IDS:
        return {"license": known[0]}
    return {"license": "other", "license_name": known[0]}


def all_of(flags: Iterable[bool | None]) -> bool | None:
    """May all be used so? False as soon as one may not; None while one is not known, or there is none."""
    found = list(flags)
    if False in found:
        return False
    return True if found and None not in found else None


def is_hub_name(word: str) -> bool:
    """Has it the form org/name?"""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", word))


def folder_of(init: str) -> pathlib.Path | None:
    """The folder of "hf:/folder" or "hf:org/name[@revision]" on this machine; None where it is not there."""
    word = init.removeprefix("hf:")
    folder = pathlib.Path(word).expanduser()
    if folder.is_dir():
        return folder
    name, _, revision = word.partition("@")
    return cached(name, revision or "main") if is_hub_name(name) else None


def of_base(init: str) -> dict:
    """What is known of the base that "hf:/folder" or "hf:org/name[@revision]" names, without asking anyone.

    {"name": folder or org/name, "id": org/name or "", "revision", "licence", "licence_from", "datasets"}; "" and [] =
    not known. Only files that are on this machine are read: the folder, or the Hugging Face cache.
    """
    word = init.removeprefix("hf:")
    folder = pathlib.Path(word).expanduser()
    name, _, revision = word.partition("@")
    if folder.is_dir() or not is_hub_name(name):
        return of_folder(folder)
    found = {"name": name, "id": name, "revision": revision}
    return found | _terms(folder_of(init))


def of_folder(folder: pathlib.Path) -> dict:
    """The same of weights in a folder. Of a folder that is gone, its own name only is known."""
    if not folder.is_dir():
        return {"name": folder.name, "id": "", "revision": ""} | _terms(None)
    found = {"name": folder.resolve().name, "id": "", "revision": ""}
    in_cache = re.search(r"models--([^/]+)--([^/]+)/snapshots/([^/]+)", str(folder.absolute()))
    if in_cache:
        name = f"{in_cache[1]}/{in_cache[2]}"
        found |= {"name": name, "id": name, "revision": in_cache[3]}
    return found | _terms(folder)


def cached(name: str, revision: str) -> pathlib.Path | None:
    """The folder of a repository in the Hugging Face cache; None where it is not there."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    hub = pathlib.Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    place = hub / f"models--{name.replace('/', '--')}"
    if re.search(r"[/\\]|\.\.", revision):
        return None
    ref = place / "refs" / revision
    commit = ref.read_text("utf-8").strip() if ref.is_file() else revision
    folder = place / "snapshots" / pathlib.Path(commit).name
    return folder if folder.is_dir() else None


def copy_texts(folders: Iterable[pathlib.Path], target: pathlib.Path) -> list[str]:
    """Copy the licences, notices and rules of use that lie in `folders`; returns their names in `target`.

    Another text under a name that is taken gets the name of its folder: LICENSE.folder.txt.
    """
    names = []
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if not _TEXTS.match(path.name) or not path.is_file():
                continue
            copy = target / path.name
            if copy.exists() and copy.read_bytes() != path.read_bytes():
                copy = target / f"{path.stem}.{folder.resolve().name}{path.suffix}"
            shutil.copyfile(path, copy)
            names.append(copy.name)
    return list(dict.fromkeys(names))


def _terms(folder: pathlib.Path | None) -> dict:
    """Licence and data that a folder's card names, else the licence whose text lies there."""
    found = {"licence": "", "licence_from": "", "datasets": []}
    if folder is None:
        return found
    said = front_matter(_beginning(folder / "README.md"))
    licence = said.get("license_name") if said.get("license") == "other" else said.get("license")
    if isinstance(said.get("datasets"), list):
        found["datasets"] = [
            redact.text(name) for name in said["datasets"] if isinstance(name, str)
        ]
    if isinstance(licence, str) and licence.strip() and licence != "unknown":
        return found | {"licence": redact.text(licence.strip()), "licence_from": "README.md"}
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        text = _beginning(folder / name)[:2000]
        first = next((line.strip(" #*") for line in text.splitlines() if line.strip(" #*")), "")
        if first:
            told = [id for begins, id in _BEGINNINGS if re.match(rf"\W*{begins}", text.lower())]
            licence = told[0] if told else redact.text(first[:80])
            return found | {"licence": licence, "licence_from": name}
    return found


def _beginning(path: pathlib.Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(_LONGEST_CARD).decode("utf-8", "replace")


def front_matter(text: str) -> Mapping:
    """The YAML between the lines --- at the head of a card; {} where there is none that can be read."""
    found = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---(?:\r?\n|$)", text, re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else {}
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
