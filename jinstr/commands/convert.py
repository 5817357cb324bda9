"""`jinstr convert`: a model as a Hugging Face folder, for transformers, vLLM, llama.cpp and others."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import jax

from jinstr import errors
from jinstr.models import decoder, hf_config, hf_read, hf_write, peft_format
from jinstr.text import publish, templates
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import adapters, card
from jinstr.train import base as base_lib

DTYPES = ("bfloat16", "float16", "float32")


def convert(
    *,
    model: str,
    out: str,
    dtype: str,
    weights: str,
    template: str,
    adapter: bool,
    shard_gigabytes: float,
    max_new_tokens: int,
) -> dict:
    """Write safetensors, config.json, generation_config.json, tokenizer files and README.md (the model card) to `out`.

    model: RUN_DIR[@step], hf:FOLDER or hf:org/name[@revision]. dtype: of the weights. template: in place of the
    model's own. adapter: write only what a run with LORA_RANK trained, for PEFT. Nothing stands under `out` until all
    of it is written. Returns what was written.
    Errors: ConfigError for a model that no Hugging Face architecture expresses; StorageError where `out` is in use.
    """
    if dtype not in DTYPES:
        raise errors.ConfigError("JI-CONVERT-001", f"DTYPE={dtype!r}; allowed: {', '.join(DTYPES)}")
    target = pathlib.Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise errors.StorageError("JI-CONVERT-002", f"OUT={out} is there already and not empty")
    base = base_lib.open_base(model, weights)
    if adapter:
        return export_adapter(base, target, dtype, weights)
    tokenizer = tokenizer_lib.load(base.tokenizer_path)
    name = template or base.template
    stop_ids = templates.load(name, tokenizer).stop_ids if name else (tokenizer.eos_id,)
    ids = special_ids(tokenizer, stop_ids)
    hf_config.to_hf(base.config)  # a model that cannot be written is refused before it is read

    config = base.config
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.numpy.dtype(dtype), sharding=place),
        decoder.abstract_params(config),
    )
    params = base.load(abstract)

    unfinished = target.with_name(target.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    shard_bytes = int(shard_gigabytes * 1e9)
    hf_write.save(unfinished, config, params, dtype=dtype, shard_bytes=shard_bytes, **ids)
    generation = generation_config(ids, stop_ids, max_new_tokens)
    (unfinished / "generation_config.json").write_text(
        json.dumps(generation, indent=2) + "\n", "utf-8"
    )
    publish.write_tokenizer_files(unfinished, tokenizer, name)
    if base.is_run:
        card.write_card(unfinished, card.facts_of(base.folder, step=base.step))
    else:  # the terms of a model stay with it
        for path in [*base.folder.glob("README.md"), *base.folder.glob("LICENSE*")]:
            shutil.copyfile(path, unfinished / path.name)
    hf_read.open_checkpoint(unfinished)  # what was written can be read
    if target.exists():
        target.rmdir()
    os.replace(unfinished, target)
    files = sorted(path.name for path in target.iterdir())
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"jinstr: {target}: {len(files)} files, {size / 1e6:,.1f} MB\n  " + "\n  ".join(files))
    return {"out": str(target), "files": files, "bytes": size}


def export_adapter(base: base_lib.Base, target: pathlib.Path, dtype: str, weights: str) -> dict:
    """adapter_model.safetensors and adapter_config.json of a run that trained adapters.

    Errors: ConfigError for a run that trained everything.
    """
    if not base.is_run or adapters.read(base.folder) is None:
        raise errors.ConfigError(
            "JI-CONVERT-003",
            f"ADAPTER=True, but {base.init} trained no adapters (LORA_RANK); leave ADAPTER out",
        )
    record, model, found = base_lib.open_adapters(base.init, weights)
    unfinished = target.with_name(target.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    name, revision = record.init.removeprefix("hf:"), ""
    if record.init.startswith("hf:") and not pathlib.Path(name).is_absolute():  # of the hub
        name, _, revision = name.partition("@")
    peft_format.write_adapter(unfinished, record.lora, found, model, name, dtype, revision)
    if target.exists():
        target.rmdir()
    os.replace(unfinished, target)
    files = sorted(path.name for path in target.iterdir())
    print(f"jinstr: {target}: {', '.join(files)}, for the base {name}")
    return {"out": str(target), "files": files}


def special_ids(tokenizer, stop_ids: tuple[int, ...]) -> dict[str, int | None]:
    """bos_token_id, eos_token_id and pad_token_id of config.json. A chat model ends with its end of turn."""
    eos = stop_ids[0] if stop_ids else tokenizer.eos_id
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": eos, "pad_token_id": tokenizer.pad_id}
    return {name: id if id >= 0 else None for name, id in ids.items()}


def generation_config(ids: dict, stop_ids: tuple[int, ...], max_new_tokens: int) -> dict:
    """generation_config.json: every id that ends an answer, and greedy decoding."""
    ends = sorted(set(stop_ids) | {ids["eos_token_id"]})
    return ids | {
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
    }
