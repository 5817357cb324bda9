"""`jinstr convert`: a model as a Hugging Face folder, for transformers, vLLM, llama.cpp and others."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import jax

from jinstr import errors
from jinstr.models import decoder, hf_read, hf_write, peft_format
from jinstr.rlhf import reward_model
from jinstr.text import publish, templates
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import adapters, card, endings, licences, lineage
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
    base_name: str,
    shard_gigabytes: float,
    max_new_tokens: int,
) -> dict:
    """Write safetensors, config.json, generation_config.json, tokenizer files and README.md (the model card) to `out`.

    model: RUN_DIR[@step], hf:FOLDER or hf:org/name[@revision]. dtype: of the weights. template: in place of the
    model's own. adapter: write only what a run with LORA_RANK trained, for PEFT, which finds their base as `base_name`
    (org/name[@revision] or a folder; "" = the base's own name on the hub). max_new_tokens: 0 = as the base has it, or
    512. A reward model becomes the ForSequenceClassification of its family with one label; what is taken off its scores
    stands in config.json as reward_shift. Nothing stands under `out` until all of it is written. Returns what was
    written.
    Errors: ConfigError for a model that no Hugging Face architecture expresses; StorageError where `out` is in use.
    """
    if dtype not in DTYPES:
        raise errors.ConfigError("JI-CONVERT-001", f"DTYPE={dtype!r}; allowed: {', '.join(DTYPES)}")
    target = pathlib.Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise errors.StorageError("JI-CONVERT-002", f"OUT={out} is there already and not empty")
    base = base_lib.open_base(model, weights)
    if adapter or base.config.heads != "score":
        base = base_lib.with_heads(base, "language")
    tokenizer = tokenizer_lib.load(base.tokenizer_path)
    if adapter:
        named = name_of_base(base, base_name)
        with made(target) as unfinished:
            write_adapter(unfinished, base, named, dtype, weights)
            write_rest(unfinished, base, tokenizer, template or base.template, named)
    else:
        with made(target) as unfinished:
            write_model(
                unfinished, base, tokenizer, template, dtype, shard_gigabytes, max_new_tokens
            )
            write_rest(unfinished, base, tokenizer, template or base.template)
            if base.config.heads != "score":
                hf_read.open_checkpoint(unfinished)  # what was written can be read
    files = sorted(path.name for path in target.iterdir())
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"jinstr: {target}: {len(files)} files, {size / 1e6:,.1f} MB\n  " + "\n  ".join(files))
    return {"out": str(target), "files": files, "bytes": size}


@contextlib.contextmanager
def made(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into, which becomes `target` at the end, or is removed with what is in it."""
    place = pathlib.Path(os.path.abspath(target))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise errors.StorageError("JI-CONVERT-005", f"OUT={target}: {error}") from None
    try:
        unfinished = aside / place.name
        unfinished.mkdir()
        yield unfinished
        if place.exists():
            place.rmdir()
        os.replace(unfinished, place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_model(
    folder: pathlib.Path,
    base: base_lib.Base,
    tokenizer,
    template: str,
    dtype: str,
    shard_gigabytes: float,
    max_new_tokens: int,
) -> None:
    """Weights, config.json and generation_config.json. template: the one that was asked for, or ""."""
    config = base.config
    hf_write.config_json(config)  # a model that cannot be written is refused before it is read
    stops = stop_ids(base, template, tokenizer)
    own = endings.of_folder(lineage.origin(base.folder) if base.is_run else base.folder)
    ends = list(dict.fromkeys([*stops, tokenizer.eos_id, *own]))
    ends = [id for id in ends if 0 <= id < config.vocab_size]
    ids, generation = endings.special_ids(tokenizer, ends), {}
    if not base.is_run:
        generation = endings.read(base.folder / endings.GENERATION)
        ids = ids if template else endings.kept(base.folder, ids)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jax.numpy.dtype(dtype), sharding=place),
        decoder.abstract_params(config),
    )
    params = base.load(abstract)
    shard_bytes = int(shard_gigabytes * 1e9)
    if config.heads == "score":
        ids["reward_shift"] = reward_model.shift_of(base.folder)
        hf_write.save(folder, config, params, dtype=dtype, shard_bytes=shard_bytes, **ids)
        return  # it writes nothing, so there is no generation_config.json
    hf_write.save(folder, config, params, dtype=dtype, shard_bytes=shard_bytes, **ids)
    generation = endings.generation_config(ids, ends, max_new_tokens, generation)
    (folder / endings.GENERATION).write_text(json.dumps(generation, indent=2) + "\n", "utf-8")


def stop_ids(base: base_lib.Base, template: str, tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer as the template writes it; () without one, or with one that only others can use.

    Errors: ConfigError for a template that was asked for, or that a run was trained with.
    """
    name = template or base.template
    try:
        return templates.load(name, tokenizer).stop_ids if name else ()
    except errors.JinstrError as error:
        if template or base.is_run:
            raise
        # A template that no answers can be cut out of still writes prompts.
        print(f"jinstr: its chat template is passed on as it is, but sft would refuse it: {error}")
        return ()


def write_rest(
    folder: pathlib.Path,
    base: base_lib.Base,
    tokenizer,
    template: str,
    named: tuple[str, str] | None = None,
) -> None:
    """Tokenizer files with the chat template, the card, and the licences of everything that the model was made from.

    named: (name, revision) of the base of adapters.
    """
    publish.write_tokenizer_files(folder, tokenizer, template)
    if base.is_run:
        card.write_card(folder, card.facts_of(base.folder, step=base.step), named)
        licences.copy_texts(lineage.folders(base.folder), folder)
        return
    if (readme := base.folder / card.FILE).is_file():
        shutil.copyfile(readme, folder / card.FILE)
    licences.copy_texts([base.folder], folder)


def name_of_base(base: base_lib.Base, asked: str) -> tuple[str, str]:
    """(name, revision or "") under which others find the base of a run's adapters.

    Errors: ConfigError for a run that trained everything, and where the base has no name that others know.
    """
    record = adapters.read(base.folder) if base.is_run else None
    if record is None:
        raise errors.ConfigError(
            "JI-CONVERT-003",
            f"ADAPTER=True, but {base.init} trained no adapters (LORA_RANK); leave ADAPTER out",
        )
    if asked:
        name, _, revision = asked.partition("@")
        return (name, revision) if licences.is_hub_name(name) else (asked, "")
    word = record.init.removeprefix(lineage.HUB)
    if record.init.startswith(lineage.HUB):
        if not pathlib.Path(word).is_absolute():
            name, _, revision = word.partition("@")
            return name, revision
        found = licences.of_base(record.init)  # a folder of the Hugging Face cache has a name
        if found["id"]:
            return found["id"], found["revision"]
    raise errors.ConfigError(
        "JI-CONVERT-004",
        f"the base of these adapters is {record.init}, which others cannot open by that name; give BASE_NAME=org/name "
        "(or the folder where they find it), after an export of the base if it is a run, or leave ADAPTER out",
    )


def write_adapter(
    folder: pathlib.Path, base: base_lib.Base, named: tuple[str, str], dtype: str, weights: str
) -> None:
    """adapter_model.safetensors and adapter_config.json of a run that trained adapters."""
    record, model, found = base_lib.open_adapters(base.init, weights)
    name, revision = named
    peft_format.write_adapter(folder, record.lora, found, model, name, dtype, revision)
