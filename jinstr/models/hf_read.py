"""Reading Hugging Face safetensors into the parameter tree, slice by slice.

Nothing but headers is read until every name, shape and type was found right; then each device gets its own slices, so
that the host never holds a second copy of the model.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
from tqdm import tqdm

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import hf_config, hf_layout

INDEX = "model.safetensors.index.json"
TYPES = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
# Bounds of what is parsed: real headers hold some 100 bytes a tensor.
_MOST_JSON, _MOST_HEADER = 1 << 24, 1 << 23
# Written by old versions, computed from config.json by everyone.
_IGNORED = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder whose files were found sound; its arrays are not read yet."""

    folder: pathlib.Path
    config: config_lib.DecoderConfig
    values: dict[str, Any]  # config.json
    files: dict[str, pathlib.Path]  # of every tensor


def open_checkpoint(folder: str | pathlib.Path) -> Checkpoint:
    """Read config.json and all headers, and hold them against each other.

    Errors: ConfigError for a model that jinstr cannot compute; StorageError naming the file and the tensor for what is
    missing, damaged, of another shape, or not safetensors.
    """
    folder = pathlib.Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise errors.StorageError(
            "JI-HF-010", f"{folder}: no config.json; give the folder of a model"
        )
    values = read_json(path)
    config = hf_config.from_hf(values, str(path))
    shapes, files = {}, {}
    for file in shards(folder):
        for name, (kind, shape) in read_header(file).items():
            if name in shapes:
                raise errors.StorageError("JI-HF-011", f"{file}: {name} is also in {files[name]}")
            if kind not in TYPES and not name.endswith(_IGNORED):
                known = ", ".join(TYPES)
                raise errors.StorageError(
                    "JI-HF-012", f"{file}: {name} is of type {kind}; supported: {known}"
                )
            shapes[name], files[name] = tuple(shape), file
    _check_shapes(folder, config, shapes)
    return Checkpoint(folder=folder, config=config, values=values, files=files)


def read_json(path: pathlib.Path) -> dict:
    if path.stat().st_size > _MOST_JSON:
        raise errors.StorageError(
            "JI-HF-013", f"{path}: {path.stat().st_size:,} bytes are too many"
        )
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise errors.StorageError("JI-HF-013", f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise errors.StorageError("JI-HF-013", f"{path}: not a JSON object")
    return values


def shards(folder: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a folder, by its index where there is one."""
    index, single = folder / INDEX, folder / "model.safetensors"
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise errors.StorageError("JI-HF-014", f"{index}: no weight_map of file names")
        for name in names.values():
            if pathlib.PurePosixPath(name).name != name or "\\" in name or name in ("", ".."):
                raise errors.StorageError(
                    "JI-HF-014", f"{index}: {name!r} is not the name of a file in this folder"
                )
        files = [folder / name for name in sorted(set(names.values()))]
    elif single.is_file():
        files = [single]
    else:
        pickled = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        if pickled:
            raise errors.StorageError(
                "JI-HF-015",
                f"{folder}: {sorted(pickled)[0]} is a pickle, which can run code and is never opened; convert it where "
                'you trust it: python -c "from transformers import AutoModelForCausalLM as M; '
                "M.from_pretrained('OLD', torch_dtype='auto').save_pretrained('NEW')\"",
            )
        raise errors.StorageError("JI-HF-010", f"{folder}: no model.safetensors and no {INDEX}")
    for file in files:
        if not file.is_file():
            raise errors.StorageError("JI-HF-010", f"{file} is missing; download the model again")
    return files


def read_header(file: pathlib.Path) -> dict[str, tuple[str, list[int]]]:
    """Name → (type, shape) of every tensor of a file, after its header and its length were checked."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    if size < 8 or length > size - 8:
        raise errors.StorageError(
            "JI-HF-016", f"{file}: not safetensors, or cut short; download the file again"
        )
    if length > _MOST_HEADER:
        raise errors.StorageError("JI-HF-016", f"{file}: a header of {length:,} bytes is refused")
    try:
        with safetensors.safe_open(file, "numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            return {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise errors.StorageError(
            "JI-HF-016", f"{file}: damaged or cut short ({error}); download the file again"
        ) from None


def _check_shapes(folder: pathlib.Path, config, shapes: dict[str, tuple[int, ...]]) -> None:
    """Every tensor of the model is there, in its shape, and nothing else is."""
    # Before the model's tree is built: a config.json may claim anything.
    layers = 1 + max(
        [int(p) for n in shapes for p in n.split(".")[:3] if re.fullmatch(r"[0-9]{1,6}", p)],
        default=-1,
    )
    if layers != config.num_layers:
        raise errors.StorageError(
            "JI-HF-017",
            f"{folder}: config.json says {config.num_layers} layers, the files hold {layers}",
        )
    wanted = hf_layout.shapes_there(config)
    if config.tie_embeddings:  # some save the head twice
        wanted |= {
            name: shapes[name] for name in ("lm_head.weight", "embed_out.weight") if name in shapes
        }
    for name, shape in wanted.items():
        if name not in shapes:
            raise errors.StorageError("JI-HF-017", f"{folder}: no tensor {name} in any file")
        if shapes[name] != shape:
            raise errors.StorageError(
                "JI-HF-017",
                f"{folder}: {name} is {list(shapes[name])}, but config.json makes it {list(shape)}",
            )
    more = sorted(n for n in shapes if n not in wanted and not n.endswith(_IGNORED))
    if more:
        raise errors.StorageError(
            "JI-HF-018",
            f"{folder}: {len(more)} tensors that this architecture does not have: {', '.join(more[:4])}",
        )


class _Reader:
    """Open files and slices of their tensors."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self._open: dict[pathlib.Path, Any] = {}

    def slice(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        file = self.checkpoint.files[name]
        if file not in self._open:
            self._open[file] = safetensors.safe_open(file, "numpy")
        return self._open[file].get_slice(name)[index]

    def read(self, place: hf_layout.Place, layer: int, index: tuple[slice, ...]) -> np.ndarray:
        """What stands at `index` of one layer of a leaf."""
        name = place.name.format(layer)
        there = index[::-1] if place.transposed else index
        if place.part < 0:
            found = self.slice(name, there)
        else:
            config = self.checkpoint.config
            start, stop, _ = there[0].indices(config.num_heads * config.head_dim)
            first, last = start // config.head_dim, -(-stop // config.head_dim)
            size = 3 * config.head_dim
            whole = self.slice(name, (slice(first * size, last * size), *there[1:]))
            heads = whole.reshape(last - first, 3, config.head_dim, *whole.shape[1:])
            rows = heads[:, place.part].reshape(-1, *whole.shape[1:])
            found = rows[start - first * config.head_dim : stop - first * config.head_dim]
        return found.T if place.transposed else found

    def leaf(self, place: hf_layout.Place, like: jax.ShapeDtypeStruct, index: tuple) -> np.ndarray:
        """What stands at `index` of a leaf, all layers."""
        if "{}" not in place.name:
            return np.ascontiguousarray(self.read(place, 0, index).astype(like.dtype))
        out = np.empty([len(range(*i.indices(n))) for i, n in zip(index, like.shape)], like.dtype)
        for row, layer in enumerate(range(*index[0].indices(like.shape[0]))):
            out[row] = self.read(place, layer, index[1:])
        return out


def load_params(checkpoint: Checkpoint, abstract: dict, progress: bool = True) -> dict:
    """Parameters on the shardings and in the types of `abstract` (a tree of ShapeDtypeStruct with sharding).

    Host memory beyond the arrays: one leaf's slices of the devices of this process.
    """
    reader = _Reader(checkpoint)
    _check_tied(reader)
    found = {}
    all_places = hf_layout.places(checkpoint.config)
    total = sum(hf_layout.leaf_of(abstract, path).size for path in all_places)
    with tqdm(total=total, desc=f"read {checkpoint.folder.name}", unit=" weights", unit_scale=True,
              disable=None if progress else True) as bar:  # fmt: skip
        for path, place in all_places.items():
            leaf = hf_layout.leaf_of(abstract, path)
            read: dict = {}  # devices that hold the same slices share them

            def slices(index, leaf=leaf, place=place, read=read):
                key = str(index)
                if key not in read:
                    read[key] = reader.leaf(place, leaf, tuple(index))
                return read[key]

            found[path] = jax.make_array_from_callback(leaf.shape, leaf.sharding, slices)
            bar.update(leaf.size)
    return hf_layout.tree_of(found)


def _check_tied(reader: _Reader) -> None:
    """A head that is saved although it is the embedding must equal it."""
    checkpoint = reader.checkpoint
    head = next((n for n in ("lm_head.weight", "embed_out.weight") if n in checkpoint.files), None)
    if not checkpoint.config.tie_embeddings or head is None:
        return
    (table,) = [
        p.name for path, p in hf_layout.places(checkpoint.config).items() if path[0] == "embed"
    ]
    for start in range(0, checkpoint.config.vocab_size, 4096):
        rows = (slice(start, min(start + 4096, checkpoint.config.vocab_size)),)
        if reader.slice(head, rows).tobytes() != reader.slice(table, rows).tobytes():
            raise errors.StorageError(
                "JI-HF-019",
                f"{checkpoint.folder}: config.json ties {head} to {table}, but they differ; set tie_word_embeddings",
            )
