"""The first steps that every training command takes: compile cache, starting parameters, where a run stands."""

from __future__ import annotations

import os
import pathlib
import platform

import jax

from jinstr import errors
from jinstr.data import fingerprints
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import state as state_lib


def use_compile_cache() -> None:
    """Keep compiled programs between starts, in JAX_COMPILATION_CACHE_DIR or ~/.cache/jinstr/compiled."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # XLA warns about machine features when a CPU program comes from another machine: one folder for each.
        folder = pathlib.Path("~/.cache/jinstr/compiled").expanduser() / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def starting_params(init: str, model: config_lib.DecoderConfig, abstract_params: dict) -> dict:
    """The parameters of a run to start from, "RUN_DIR" or "RUN_DIR@step", on the shardings of `abstract_params`.

    Errors: ConfigError when its model has another shape; StorageError when it holds no sound checkpoint.
    """
    run_dir, _, step = init.partition("@")
    checkpointer = checkpoint_lib.Checkpointer(run_dir, checkpoint_lib.CheckpointConfig())
    try:
        chosen = int(step) if step else checkpointer.latest_verified()
        if chosen is None:
            raise errors.StorageError("JI-INIT-001", f"INIT={init}: no checkpoint that verifies")
        return checkpointer.restore(chosen, {"params": abstract_params})["params"]
    finally:
        checkpointer.close()


def model_of(init: str) -> config_lib.DecoderConfig:
    """The model.json of a run. Errors: StorageError when there is none."""
    path = pathlib.Path(init.partition("@")[0]) / "model.json"
    if not path.is_file():
        raise errors.StorageError(
            "JI-INIT-002",
            f"INIT={init}: no model.json there; give the RUN_DIR of a training command",
        )
    return config_lib.DecoderConfig.from_json(path.read_text("utf-8"))


def tokenizer_of(init: str) -> str:
    return str(pathlib.Path(init.partition("@")[0]) / "tokenizer.model")


def restore_or_init(
    *,
    checkpointer: checkpoint_lib.Checkpointer,
    model: config_lib.DecoderConfig,
    transform,
    abstract: dict,
    seed: int,
    init: str,
    data_identity: dict,
) -> tuple[dict, int, dict[str, float]]:
    """(state, steps done, totals of the meter): from the newest sound checkpoint, from another run (`init`), or afresh.

    Errors: ConfigError when the data or the batches are not those that the checkpoint was trained on.
    """
    step = checkpointer.start_step()
    if not step:
        state = state_lib.init_state(model, transform, abstract, seed)
        if init:
            params = starting_params(init, model, abstract["params"])
            state = state_lib.adopt_params(state, params, transform)
        return state, 0, {}
    about = checkpointer.read_run_json(step)
    fingerprints.check(about["data"], data_identity, f"{checkpointer.folder}: step {step}")
    wanted = {name: abstract[name] for name in abstract if name != "step"}
    state = checkpointer.restore(step, wanted)
    place = abstract["step"].sharding
    state["step"] = jax.device_put(jax.numpy.int32(step), place)
    print(f"jinstr: going on from step {step} in {checkpointer.folder}")
    return state, step, about["meter"]


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
    return {
        "parameters": decoder.count_params(model),
        "machine": f"{len(jax.devices())} × {device.device_kind}, {os.cpu_count()} cores, {platform.machine()}",
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
    }
