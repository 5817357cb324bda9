"""What `--dry_run` tells of a training command before anything is read or computed: size, memory, data, length."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator

import jax

from jinstr import errors
from jinstr.data import dataset as dataset_lib
from jinstr.data import readers
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import costs, hub, startup
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib


def lines(settings: dict) -> Iterator[str]:
    """The lines of the plan, from the arguments of a training command.

    Errors: those of the settings (a mesh that does not fit the devices, a batch that does not divide).
    """
    model = _model(settings)
    if model is None:
        yield "model: known once INIT and TOKENIZER are there"
    else:
        yield from _memory(model, settings)
    if "questions" in settings:
        yield from _practice(settings)
    else:
        yield from _data(settings["data"], settings["loop_config"])


def _model(settings: dict) -> config_lib.DecoderConfig | None:
    if not hub.is_here(settings["init"]):  # a plan downloads nothing
        return None
    run_dir = pathlib.Path(settings["run_dir"])
    if "model" not in settings:
        try:
            base = startup.base_for(run_dir, settings["init"])
        except errors.StorageError:
            return None
        return startup.with_adapters(
            run_dir, config_lib.executed(base.config, settings["execution"])
        )
    model, tokenizer, init = settings["model"], settings["tokenizer"], settings["init"]
    if init or pathlib.Path(tokenizer).exists():
        try:
            return startup.model_for(run_dir, model, tokenizer, init)[0]
        except errors.StorageError:
            return None
    return model if model.vocab_size else None


def _memory(model: config_lib.DecoderConfig, settings: dict) -> Iterator[str]:
    """Parameters, and bytes of the state on the fullest device."""
    optimizer = settings["optimizer"]
    mesh = mesh_lib.make_mesh(settings["mesh"])
    abstract = state_lib.abstract_state(
        model,
        optimizer_lib.make_optimizer(optimizer, 1000),
        mesh,
        settings["rules"],
        ema=optimizer.ema_decay > 0,
        moments=optimizer.moments,
    )
    frozen = state_lib.abstract_frozen(model, mesh, settings["rules"])
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract["params"]))
    if frozen:
        total = count + sum(leaf.size for leaf in jax.tree.leaves(frozen))
        yield f"parameters: {count:,} in adapters are trained ({count / total:.2%} of {total:,})"
    else:
        yield f"parameters: {count:,}"
    yield f"memory on each of {mesh.size} devices ({jax.devices()[0].device_kind}), without activations:"
    parts = {"base, not trained": frozen} if frozen else {}
    parts |= {
        "parameters": abstract["params"],
        "gradients": abstract["params"],
        "optimizer": abstract["opt_state"],
    }
    if "ema" in abstract:
        parts["average of the parameters"] = abstract["ema"]
    if not frozen and _keeps_reference(settings):
        dtype = state_lib.frozen_dtype(model)
        parts["reference"] = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding),
            abstract["params"],
        )
    sizes = {name: costs.tree_bytes(tree) for name, tree in parts.items()}
    if "questions" in settings:
        sizes |= _writing(model, settings, abstract["params"], mesh)
    total = 0
    for name, size in sizes.items():
        total += size
        yield f"    {name:<26} {size / 1e6:12,.1f} MB"
    yield f"    {'together':<26} {total / 1e6:12,.1f} MB"
    if waiting := costs.tree_bytes(abstract["opt_state"], host=True):
        yield f"    {'and for it on its host':<26} {waiting / 1e6:12,.1f} MB"


def _writing(model: config_lib.DecoderConfig, settings: dict, params: dict, mesh) -> dict[str, int]:
    """Bytes on a device while answers are written: the copy that writes them, and the longest cache."""
    rollout = settings["rollout"]
    slots = settings["questions"].longest + rollout.max_new_tokens + rollout.slack
    rows = -(-rollout.rows // mesh_lib.devices_along(mesh, settings["rules"].batch))
    cache = jax.eval_shape(lambda: decoder.init_cache(model, rows, slots))
    held = math.prod(cache["k"].shape) * cache["k"].dtype.itemsize * 2
    width = decoder.compute_dtype(model).itemsize
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return {"copy that writes": count * width, f"cache of {rows} × {slots} places": held}


def _keeps_reference(settings: dict) -> bool:
    """Of `ppo` always, of `grpo` with a penalty."""
    if "questions" not in settings:
        return False
    penalty = settings["config"].kl_reward or settings["loss"].kl_loss
    return bool("algorithm" in settings or penalty)


def _practice(settings: dict) -> Iterator[str]:
    config, algorithm = settings["config"], settings.get("algorithm")
    if algorithm and algorithm.critic != "shared":
        yield f"    on top of it the critic ({algorithm.critic}), with gradients and optimizer of its own"
    yield (
        f"length: {config.iterations:,} iterations of {config.prompts:,} questions × {config.answers:,} answers of up "
        f"to {settings['rollout'].max_new_tokens:,} tokens, {config.updates:,} updates each"
    )
    yield f"    questions of {settings['questions'].prompts}"


def _data(data: dataset_lib.DataConfig, loop_config) -> Iterator[str]:
    rows = dataset_lib.batch_rows(data)
    yield f"batches: {rows} rows of {data.seq_len} = {data.batch_tokens:,} places"
    if loop_config.num_steps:
        places = loop_config.num_steps * data.batch_tokens
        yield f"length: {loop_config.num_steps:,} steps, {places:,} places"
    else:
        yield f"length: {loop_config.epochs:g} epochs; steps follow when the data are packed"
    for source in dataset_lib.training_sources(data):
        kept = f", {source.holdout:.1%} held out" if source.holdout else ""
        if not source.path:
            yield f"    {source.name}: {source.task or f'tfds:{source.tfds}'}, rate {source.rate:g}{kept}"
            continue
        try:
            files = readers.files_of(source.path)
        except errors.DataError as error:  # a plan may be made before the data are there
            yield f"    {source.name}: {error.message}"
            continue
        size = sum(path.stat().st_size for path in files)
        yield (
            f"    {source.name}: {len(files)} files, {size / 1e6:,.1f} MB, rate {source.rate:g}{kept}"
        )
