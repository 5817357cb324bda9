"""The first steps that every training command takes: compile cache, starting parameters, where a run stands."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform

import jax
import numpy as np

from jinstr import errors
from jinstr.data import fingerprints
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora, peft_format
from jinstr.parallel import together
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import adapters
from jinstr.train import base as base_lib
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import state as state_lib


def use_compile_cache() -> None:
    """Keep compiled programs between starts, in JAX_COMPILATION_CACHE_DIR or ~/.cache/jinstr/compiled."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # XLA warns about machine features when a CPU program comes from another machine: one folder for each.
        folder = pathlib.Path("~/.cache/jinstr/compiled").expanduser() / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def base_for(run_dir: pathlib.Path, init: str, heads: str = "language") -> base_lib.Base:
    """The model that INIT names, with these heads; of the hub without a revision, it is that which adapters in
    `run_dir` began on.

    Errors: those of open_base and with_heads.
    """
    before = adapters.begun(run_dir)
    if before is not None and init.startswith("hf:") and before.init.startswith(f"{init}@"):
        init = before.init
    return base_lib.with_heads(base_lib.open_base(init), heads)


def model_for(
    run_dir: pathlib.Path, given: config_lib.DecoderConfig, tokenizer: str, init: str
) -> tuple[config_lib.DecoderConfig, str, base_lib.Base | None]:
    """(model, tokenizer, base) of a pretraining run.

    Without INIT the model is the given one, with the tokenizer's vocabulary; with it, the base's, computed as given.
    Errors: ConfigError without a tokenizer, or for one or for a shape that are not the base's.
    """
    base = base_for(run_dir, init) if init else None
    tokenizer = tokenizer or (base.tokenizer_path if base else "")
    if not tokenizer:
        raise errors.ConfigError(
            "JI-INIT-007",
            "TOKENIZER is not set; give a .model or tokenizer.json (jinstr tokenizer), or INIT",
        )
    pieces = tokenizer_lib.load(tokenizer)
    adapted = given.lora.rank or given.lora.start
    if adapted and (base is None or base_lib.for_tokenizer(base, pieces) is not base):
        raise errors.ConfigError(
            "JI-LORA-007",
            "adapters (LORA_RANK, LORA_INIT) need INIT, with its own tokenizer: they stand on a trained model, and "
            "new pieces would stay as they begin",
        )
    if base is None:
        return config_lib.with_vocabulary(given, pieces.vocab_size), tokenizer, None
    base_lib.check_shape(given, base)
    base = base_lib.for_tokenizer(base, pieces)
    return with_adapters(run_dir, config_lib.executed(base.config, given)), tokenizer, base


def with_adapters(
    run_dir: pathlib.Path, model: config_lib.DecoderConfig
) -> config_lib.DecoderConfig:
    """The model with rank, alpha and targets of the PEFT adapter that its adapters begin as, where one is named.

    A run that goes on has them in lora.json and its checkpoints; the adapter may be gone then.

    Errors: ConfigError when they were given too; those of peft_format.read_adapter.
    """
    if not (start := model.lora.start):
        return model
    if model.lora != config_lib.LoraConfig(start=start):
        raise errors.ConfigError(
            "JI-LORA-008",
            f"rank, alpha and targets come from LORA_INIT={start}; leave LORA_RANK, LORA_ALPHA and LORA_TARGETS out",
        )
    if before := adapters.begun(run_dir):
        found = before.lora
    else:
        found, _ = peft_format.read_adapter(start, model)
    return dataclasses.replace(model, lora=dataclasses.replace(found, start=start))


def first_state(
    model: config_lib.DecoderConfig,
    transform,
    abstract: dict,
    seed: int,
    base: base_lib.Base | None,
) -> dict:
    """The state before the first step: fresh, with the parameters of a base, or with fresh or read adapters."""
    if model.lora.start:
        _, params = peft_format.read_adapter(model.lora.start, model)
        if head := abstract["params"].get(lora.SCORE):  # which PEFT's files have not
            params[lora.SCORE] = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), head)
    elif base is None or model.lora.rank:
        return state_lib.init_state(model, transform, abstract, seed)
    else:
        params = base.load(abstract["params"])
    return state_lib.state_with(params, transform, abstract, seed)


def restore_or_init(
    *,
    checkpointer: checkpoint_lib.Checkpointer,
    model: config_lib.DecoderConfig,
    transform,
    abstract: dict,
    seed: int,
    base: base_lib.Base | None,
    data_identity: dict,
) -> tuple[dict, int, dict[str, float]]:
    """(state, steps done, totals of the meter): from the newest sound checkpoint, from a base, or afresh.

    The base of adapters comes from `frozen_base`.
    Errors: ConfigError when the data or the batches are not those that the checkpoint was trained on.
    """
    step = checkpointer.start_step()
    if not step:
        return first_state(model, transform, abstract, seed, base), 0, {}
    about = checkpointer.read_run_json(step)
    fingerprints.check(about["data"], data_identity, f"{checkpointer.folder}: step {step}")
    wanted = {name: abstract[name] for name in abstract if name != "step"}
    state = checkpointer.restore(step, wanted)
    place = abstract["step"].sharding
    state["step"] = together.put(np.int32(step), place)
    print(f"jinstr: going on from step {step} in {checkpointer.folder}")
    return state, step, about["meter"]


def frozen_base(
    run_dir: pathlib.Path, model: config_lib.DecoderConfig, base: base_lib.Base | None, mesh, rules
) -> tuple[dict, adapters.Record | None]:
    """(base, what lora.json is to say of it) of a run of adapters; ({}, None) of one that trains everything.

    Errors: ConfigError when the run was begun with other adapters or another base; StorageError when that is gone.
    """
    record = base_lib.record_of(base, model.lora, run_dir) if model.lora.rank else None
    adapters.check_same(run_dir, record)
    if record is None:
        return {}, None
    abstract = state_lib.abstract_frozen(model, mesh, rules)
    # Its digest was just taken: `recorded` would read every byte once more.
    below = base_lib.with_heads(base_lib.open_base(record.init), model.heads)
    return below.load(abstract), record


def reference(model: config_lib.DecoderConfig, base: base_lib.Base, abstract: dict) -> dict:
    """A frozen copy of the model at the start, in its narrower type; {} under LoRA, where the base itself is there.

    abstract: the state's."""
    if model.lora.rank:
        return {}
    dtype = state_lib.frozen_dtype(model)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
        abstract["params"],
    )
    return base.load(like)


def place_of(model: config_lib.DecoderConfig, mesh) -> dict:
    """What the bits of a run depend on besides its settings: two runs at equal places compute the same."""
    device = mesh.devices.flat[0]
    return {
        "mesh": dict(mesh.shape),
        "devices": f"{mesh.size} × {device.device_kind}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "compute_dtype": decoder.compute_dtype(model).name,
        "jax": jax.__version__,
        "processes": jax.process_count(),
    }


def describe(model: config_lib.DecoderConfig, mesh) -> dict:
    """Facts for the summary: size of the model and what it runs on."""
    device = jax.devices()[0]
    adapted = {"trained_parameters": lora.count(model)} if model.lora.rank else {}
    return {
        "parameters": decoder.count_params(lora.plain(model)),
        **adapted,
        "machine": f"{len(jax.devices())} × {device.device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
    }
