"""What the adapters in a run's checkpoints belong to.

RUN_DIR/lora.json   {"format", "init": the base, "digest": of its weights, "lora": rank, alpha, targets and rslora}

A run of adapters keeps neither a copy of its base nor the sum with it; train/base.py puts them together.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jinstr import errors, settings
from jinstr.models import config as config_lib
from jinstr.models import decoder, lora
from jinstr.parallel import processes
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import storage

FILE = "lora.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """Adapters and the base that they were trained on."""

    init: str  # RUN_DIR@step, hf:FOLDER or hf:org/name[@revision]; folders from the root
    digest: str  # of the base's weights, wherever they lie
    lora: config_lib.LoraConfig


def write(run_dir: pathlib.Path, record: Record | None) -> None:
    """Write lora.json, or none for a run that trains everything."""
    if record is not None and not processes.index():
        storage.write_json(run_dir / FILE, {"format": FORMAT} | dataclasses.asdict(record))


def read(run_dir: pathlib.Path) -> Record | None:
    """What lora.json says; None for a run that trained everything. Errors: StorageError for a file of another form."""
    path = pathlib.Path(run_dir) / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}, this jinstr knows {FORMAT}")
        own = config_lib.LoraConfig(**values["lora"])
        wanted = settings.types_of(config_lib.LoraConfig)
        if not all(settings.matches(getattr(own, name), kind) for name, kind in wanted.items()):
            raise ValueError("a field of lora is of another type")
        return Record(init=str(values["init"]), digest=str(values["digest"]), lora=own)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise errors.StorageError("JI-LORA-003", f"{path} cannot be used: {error!r}") from None


def has_steps(run_dir: pathlib.Path) -> bool:
    """Does a run there go on from checkpoints?"""
    return any(path.name.isdigit() for path in pathlib.Path(run_dir).glob("checkpoints/*"))


def begun(run_dir: pathlib.Path) -> Record | None:
    """What lora.json says of a run that goes on; None of a new one, and of one that trains everything."""
    return read(run_dir) if has_steps(run_dir) else None


def check_same(run_dir: pathlib.Path, record: Record | None) -> None:
    """A run that has checkpoints goes on with the adapters and the base that it began with. Errors: ConfigError."""
    if not has_steps(run_dir):
        return
    before = read(run_dir)
    if _essence(before) == _essence(record):
        return
    told = [told_of(found) for found in (before, record)]
    raise errors.ConfigError(
        "JI-LORA-006",
        f"{run_dir} was begun with {told[0]}, and is asked to go on with {told[1]}; choose another RUN_DIR",
    )


def _essence(record: Record | None) -> tuple | None:
    """What may not change within a run. The base may move to another place, and what the adapters began as too."""
    return record and (record.digest, dataclasses.replace(record.lora, start=""))


def told_of(record: Record | None) -> str:
    """Adapters in a few words."""
    if record is None:
        return "all parameters trained (LORA_RANK=0)"
    own = record.lora
    scaled = ", rslora" if own.rslora else ""
    return (
        f"LORA_RANK={own.rank} LORA_ALPHA={own.alpha:g} LORA_TARGETS={own.targets}{scaled} on {record.init} "
        f"(digest {record.digest})"
    )


def _wanted(config: config_lib.DecoderConfig, place) -> dict:
    """The abstract adapters of a model."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        lora.trained(config, decoder.abstract_params(config)),
    )


def restore(
    checkpointer: checkpoint_lib.Checkpointer,
    step: int,
    weights: str,
    config: config_lib.DecoderConfig,
    place: jax.sharding.Sharding,
) -> dict:
    """The adapters of a checkpoint, each whole at `place`. weights: "params" or "ema". config: with the adapters.

    Errors: those of Checkpointer.restore.
    """
    return checkpointer.restore(step, {weights: _wanted(config, place)})[weights]


def everywhere(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Whole on all the devices of a sharding: adapters are small."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding
