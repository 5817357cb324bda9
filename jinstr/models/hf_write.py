"""Writing the parameter tree as Hugging Face safetensors."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
from tqdm import tqdm

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import hf_config, hf_layout, hf_read

SHARD_BYTES = 1_000_000_000  # of an exported file


def save(
    folder: str | pathlib.Path,
    config: config_lib.DecoderConfig,
    params: dict,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
    **values: Any,
) -> None:
    """Write config.json and safetensors of a model; `values` go into config.json as they are.

    Host memory beyond the parameters: about two files' worth. dtype: bfloat16 | float16 | float32.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    described = config_json(config, torch_dtype=dtype, **values)
    writer = Writer(folder, shard_bytes)
    groups: dict[str, list] = {}  # GPT-NeoX's three kernels of one tensor
    for path, place in hf_layout.places(config).items():
        groups.setdefault(place.name, []).append((hf_layout.leaf_of(params, path), place))
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    with tqdm(total=len(hf_layout.shapes_there(config)), desc=f"write {folder.name}", unit=" tensors",
              disable=None if progress else True) as bar:  # fmt: skip
        for layer in range(config.num_layers):
            for name, parts in groups.items():
                if "{}" in name or layer == 0:
                    writer.add(name.format(layer), _joined(config, parts, layer, kind))
                    bar.update()
    writer.close()
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", "utf-8")


def config_json(config: config_lib.DecoderConfig, **values: Any) -> dict[str, Any]:
    """config.json of a model that writes, or of one that scores: there the ForSequenceClassification of its family with
    one label. Errors: ConfigError for a model that no Hugging Face architecture expresses.
    """
    if config.heads == "language":
        return hf_config.to_hf(config, **values)
    writing = dataclasses.replace(config, heads="language", tie_embeddings=True)
    described = hf_config.to_hf(writing, **values)
    (name,) = described["architectures"]
    if described["model_type"] == "gemma3_text":
        raise errors.ConfigError(
            "JI-HF-020",
            f"{name} has no sequence classification of text alone in transformers; score with jinstr (jinstr score)",
        )
    return described | {
        "architectures": [name.replace("ForCausalLM", "ForSequenceClassification")],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "problem_type": "regression",
    }


def _joined(config, parts: list, layer: int, kind: np.dtype) -> np.ndarray:
    """One tensor of a file from the leaves that it consists of."""
    found = []
    for leaf, place in sorted(parts, key=lambda part: part[1].part):
        array = np.asarray(jax.device_get(leaf[layer] if "{}" in place.name else leaf)).astype(kind)
        found.append(array.T if place.transposed else array)
    if len(found) == 1:
        return np.ascontiguousarray(found[0])
    heads = [a.reshape(config.num_heads, config.head_dim, *a.shape[1:]) for a in found]
    return np.ascontiguousarray(np.stack(heads, 1).reshape(-1, *found[0].shape[1:]))


class Writer:
    """Tensors into files of bounded size, and the index of them."""

    def __init__(self, folder: pathlib.Path, shard_bytes: int):
        self.folder, self.shard_bytes = folder, shard_bytes
        self._tensors: dict[str, np.ndarray] = {}
        self._files: list[list[str]] = []
        self._bytes = self.total = 0

    def add(self, name: str, tensor: np.ndarray) -> None:
        if self._tensors and self._bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._tensors[name] = tensor
        self._bytes += tensor.nbytes
        self.total += tensor.nbytes

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"model-{number:05d}.safetensors.part"

    def _flush(self) -> None:
        self._files.append(list(self._tensors))
        path = self._path(len(self._files))
        safetensors.numpy.save_file(self._tensors, path, metadata={"format": "pt"})
        self._tensors, self._bytes = {}, 0

    def close(self) -> None:
        """Names say how many files there are, so they are given at the end."""
        self._flush()
        count = len(self._files)
        if count == 1:
            self._path(1).replace(self.folder / "model.safetensors")
            return
        names = {}
        for number, tensors in enumerate(self._files, 1):
            name = f"model-{number:05d}-of-{count:05d}.safetensors"
            self._path(number).replace(self.folder / name)
            names |= dict.fromkeys(tensors, name)
        index = {"metadata": {"total_size": self.total}, "weight_map": names}
        (self.folder / hf_read.INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
