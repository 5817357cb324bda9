"""Where a model that INIT names lies on this machine; one of the Hugging Face hub is fetched.

RUN_DIR[@step], hf:FOLDER, or hf:org/name[@revision]
"""

from __future__ import annotations

import pathlib

from jinstr import errors
from jinstr.models import hf_read
from jinstr.text import tokenizer as tokenizer_lib

# What a model needs; never .bin, .pt or .py.
FILES = (
    "*.json", "*.safetensors", "tokenizer.model", "spiece.model", "merges.txt", "*.jinja", "README.md", "LICENSE*",
    "NOTICE*", "USE_POLICY*",
)  # fmt: skip


def folder_of(init: str) -> pathlib.Path:
    """The folder that INIT names; a model of the hub is fetched where the cache does not have all of it."""
    if not init.startswith("hf:"):
        return pathlib.Path(init.partition("@")[0])
    if (folder := _local(init)) is not None:
        return folder
    name, _, revision = init.removeprefix("hf:").partition("@")
    print(f"jinstr: hf:{name} is not whole in the Hugging Face cache; downloading it", flush=True)
    return pathlib.Path(_downloaded(name, revision or None))


def is_here(init: str) -> bool:
    """Can INIT be opened without a download?"""
    return not init.startswith("hf:") or _local(init) is not None


def _local(init: str) -> pathlib.Path | None:
    """The folder that "hf:…" names on this machine; None for a model of the hub that is not in its cache."""
    import huggingface_hub  # only where it is needed: it is slow to import
    from huggingface_hub import errors as hub_errors

    place = init.removeprefix("hf:")
    if place.startswith(("/", ".", "~")) or pathlib.Path(place).is_dir():
        return pathlib.Path(place).expanduser()
    name, _, revision = place.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            name, revision=revision or None, local_files_only=True
        )
        return pathlib.Path(found) if is_whole(pathlib.Path(found)) else None
    except hub_errors.LocalEntryNotFoundError:
        return None
    except ValueError as error:
        raise errors.ConfigError(
            "JI-INIT-004", f"INIT={init}: neither a folder nor a name on the hub ({error})"
        ) from None


def is_whole(folder: pathlib.Path) -> bool:
    """Has a folder of the cache all files of a model? It may hold a tokenizer only, or half a download."""
    if not (folder / "config.json").is_file() or tokenizer_lib.find(folder) is None:
        return False
    try:
        hf_read.shards(folder)
    except errors.StorageError:
        return False
    return True


def _downloaded(name: str, revision: str | None) -> str:
    """The folder of a model of the hub, fetched. Errors: StorageError with the reason when it cannot be had."""
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FILES)
    except (OSError, ValueError) as error:
        raise errors.StorageError(
            "JI-INIT-004",
            f"INIT=hf:{name}: not in the cache (HF_HOME) and not to be had: {str(error).splitlines()[0]}",
        ) from None
