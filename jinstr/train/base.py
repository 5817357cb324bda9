"""The model that a run starts from: INIT is a run directory, RUN_DIR[@step], or a Hugging Face checkpoint.

hf:/path/to/folder            safetensors in a folder
hf:org/name[@revision]        a model of the Hugging Face cache; what is not there is downloaded, if that is allowed
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder, hf_read, lora, vocabulary
from jinstr.parallel import together
from jinstr.text import extend, templates
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import adapters, hub, model_files, storage
from jinstr.train import checkpoint as checkpoint_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A model to start from, not read yet."""

    init: str  # as it was asked for
    folder: pathlib.Path
    config: config_lib.DecoderConfig
    tokenizer_path: str
    template: str  # a name, the path of a .jinja file, or ""
    # load(abstract parameters with their shardings) → parameters
    load: Callable[[dict], dict]

    @property
    def step(self) -> int:
        """The step that was asked for; 0 = the newest."""
        step = self.init.partition("@")[2] if self.is_run else ""
        return int(step) if step else 0

    @property
    def is_run(self) -> bool:
        """Is it a run directory of jinstr?"""
        return not self.init.startswith("hf:")


def open_base(init: str, weights: str = "params") -> Base:
    """The model that INIT names. weights: "params", or "ema" of a run that kept an average.

    Errors: StorageError or ConfigError, saying what is not there or does not fit.
    """
    if init.startswith("hf:"):
        return _hugging_face(init)
    return _run(init, weights)


def pinned(base: Base, weights: str = "params") -> Base:
    """The base at the step that it stands at now: what a later checkpoint holds does not matter any more."""
    if not base.is_run or base.step:
        return base
    with _checkpoint(base.init) as (_, step):
        return open_base(f"{base.folder}@{step}", weights)


def template_of(init: str) -> str:
    """The chat template of a model: a built-in name, the path of a .jinja file, or ""."""
    folder = hub.folder_of(init)
    return (
        templates.of_folder(folder) if init.startswith("hf:") else model_files.template_of(folder)
    )


def _run(init: str, weights: str) -> Base:
    folder = hub.folder_of(init)
    step = init.partition("@")[2]
    if step and not step.isdecimal():
        raise errors.ConfigError(
            "JI-INIT-008",
            f"INIT={init}: {step!r} is no step; give RUN_DIR@NUMBER, or RUN_DIR for the newest",
        )
    path = folder / "model.json"
    if not path.is_file():
        raise errors.StorageError(
            "JI-INIT-002",
            f"INIT={init}: no model.json there; give the RUN_DIR of a training command, or hf:FOLDER for a "
            "Hugging Face checkpoint",
        )
    config = config_lib.DecoderConfig.from_json(path.read_bytes(), str(path))

    def load(abstract: dict) -> dict:
        with _checkpoint(init) as (checkpointer, chosen):
            if (record := adapters.read(folder)) is None:
                own = _in_type(abstract, config.param_dtype)
                found = checkpointer.restore(chosen, {weights: own})[weights]
            else:
                model = dataclasses.replace(config, lora=record.lora)
                types = jax.numpy.dtype(config.param_dtype), jax.tree.leaves(abstract)[0].dtype
                narrower = min(types, key=lambda dtype: dtype.itemsize)
                below = with_heads(recorded(record, folder), config.heads)
                plain = {name: tree for name, tree in abstract.items() if name != lora.SCORE}
                below = below.load(_in_type(plain, narrower))
                place = adapters.everywhere(jax.tree.leaves(abstract)[0].sharding)
                found = adapters.restore(checkpointer, chosen, weights, model, place)
                found = lora.merge_into(model, found, below)
            return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), found, abstract)

    return Base(
        init=init,
        folder=folder,
        config=config,
        tokenizer_path=model_files.tokenizer_path(folder),
        template=template_of(init),
        load=load,
    )


@contextlib.contextmanager
def _checkpoint(init: str) -> Iterator[tuple[checkpoint_lib.Checkpointer, int]]:
    """The checkpoints of the run that INIT names, and the step: its own or the newest that verifies.

    Errors: StorageError when there is none.
    """
    place, _, step = init.partition("@")
    checkpointer = checkpoint_lib.Checkpointer(place, checkpoint_lib.CheckpointConfig())
    try:
        chosen = together.first_decides(
            "init", lambda: int(step) if step else checkpointer.latest_verified()
        )
        if chosen is None:
            raise errors.StorageError("JI-INIT-001", f"INIT={init}: no checkpoint that verifies")
        yield checkpointer, chosen
    finally:
        checkpointer.close()


def _in_type(abstract: dict, dtype) -> dict:
    """Abstract parameters in another type: a checkpoint is restored in the one that it was saved in."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, jax.numpy.dtype(dtype), sharding=leaf.sharding
        ),
        abstract,
    )


def _hugging_face(init: str) -> Base:
    folder = hub.folder_of(init)
    if not folder.is_dir():
        raise errors.StorageError("JI-INIT-003", f"INIT={init}: {folder} is not a folder")
    checkpoint = hf_read.open_checkpoint(folder)
    tokenizer_path = model_files.tokenizer_path(folder)
    pieces = tokenizer_lib.load(tokenizer_path).vocab_size
    rows = checkpoint.config.vocab_size
    if (
        pieces > rows
    ):  # a padding token added to the tokenizer alone: its id would be read beyond the table
        print(
            f"jinstr: {folder}: {pieces:,} pieces, but {rows:,} rows of the embedding; rows are added"
        )

    def load(abstract: dict) -> dict:
        if pieces <= rows:
            return hf_read.load_params(checkpoint, abstract)
        found = hf_read.load_params(checkpoint, vocabulary.narrowed(abstract, rows))
        return vocabulary.widened(found, abstract, {}, rows)

    return Base(
        init=init,
        folder=folder,
        config=_with_rows(checkpoint.config, pieces),
        tokenizer_path=tokenizer_path,
        template=template_of(init),
        load=load,
    )


def _with_rows(config: config_lib.DecoderConfig, pieces: int) -> config_lib.DecoderConfig:
    """The config with a row for every piece: its own where they suffice, else a multiple of 64."""
    if config.vocab_size >= pieces:
        return config
    return dataclasses.replace(config, vocab_size=config_lib.rows_for(pieces))


def for_tokenizer(base: Base, tokenizer) -> Base:
    """The base for a tokenizer that is its own, or its own with more pieces behind (`jinstr tokenizer BASE=…`).

    A new piece starts as the mean of the rows of the pieces that its text was before.
    Errors: ConfigError for any other tokenizer: its ids would mean other rows.
    """
    own = tokenizer_lib.load(base.tokenizer_path)
    if own.fingerprint == tokenizer.fingerprint:
        return base
    common = min(own.vocab_size, tokenizer.vocab_size)
    other = [i for i in range(common) if own.piece(i) != tokenizer.piece(i)]
    if other or common < own.vocab_size:
        at = other[0] if other else common
        theirs = repr(tokenizer.piece(at)) if at < tokenizer.vocab_size else "missing"
        raise errors.ConfigError(
            "JI-INIT-006",
            f"{tokenizer.path} is not the tokenizer of INIT={base.init} ({base.tokenizer_path}), nor one that extends "
            f"it: piece {at} is {theirs} and not {own.piece(at)!r}; leave TOKENIZER out, or extend that one "
            "(jinstr tokenizer BASE=…)",
        )
    config = _with_rows(base.config, tokenizer.vocab_size)
    pieces = extend.old_pieces(own, tokenizer)

    def load(abstract: dict) -> dict:
        before = vocabulary.narrowed(abstract, base.config.vocab_size)
        return vocabulary.widened(base.load(before), abstract, pieces, own.vocab_size)

    return dataclasses.replace(base, config=config, load=load)


def with_heads(base: Base, heads: str) -> Base:
    """The base as a model with these heads: a language head that is not wanted is left out, a score head that it lacks
    begins as zeros.

    Errors: ConfigError for a language head that it does not have.
    """
    if heads == base.config.heads:
        return base
    if base.config.heads == "score":
        raise errors.ConfigError(
            "JI-INIT-009",
            f"{base.init} is a reward model: it gives scores and has no head to write with; give the model that it "
            "was made from, or score answers with it (jinstr score)",
        )

    def load(abstract: dict) -> dict:
        own = decoder.abstract_params(base.config)
        like = abstract["embed"]["embedding"]
        beside = _placed(own, like.dtype, adapters.everywhere(like.sharding))
        found = base.load({name: abstract.get(name, beside[name]) for name in own})
        found = {name: tree for name, tree in found.items() if name in abstract}
        if lora.SCORE in abstract and lora.SCORE not in found:
            zeros = {
                name: np.zeros(leaf.shape, leaf.dtype)
                for name, leaf in abstract[lora.SCORE].items()
            }
            places = {name: leaf.sharding for name, leaf in abstract[lora.SCORE].items()}
            found[lora.SCORE] = together.put(zeros, places)
        return found

    return dataclasses.replace(
        base, config=dataclasses.replace(base.config, heads=heads), load=load
    )


def _placed(abstract: dict, dtype, place: jax.sharding.Sharding) -> dict:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place), abstract
    )


def check_shape(given: config_lib.DecoderConfig, base: Base) -> None:
    """A shape that was asked for beside INIT must be that of INIT. Errors: ConfigError naming what differs."""
    plain = config_lib.DecoderConfig()
    for field in dataclasses.fields(config_lib.DecoderConfig):
        asked, own = getattr(given, field.name), getattr(base.config, field.name)
        if field.name in (*config_lib.EXECUTION, "param_dtype", "vocab_size"):
            continue
        if asked not in (own, getattr(plain, field.name)):
            raise errors.ConfigError(
                "JI-INIT-005",
                f"DecoderConfig.{field.name} = {asked!r}, but INIT={base.init} has {own!r}; the shape of a model comes "
                "from INIT, so leave the model file out",
            )


def record_of(base: Base, lora: config_lib.LoraConfig, run_dir: pathlib.Path) -> adapters.Record:
    """What lora.json of `run_dir` is to say of adapters on this base: the same weights, named from anywhere and later.

    Without a step in INIT, a run that has begun stays with the step that it began with.
    """
    place, _, step = base.init.partition("@")
    if not base.is_run:
        place = base.init.removeprefix("hf:")
        is_folder = place.startswith(("/", ".", "~")) or pathlib.Path(place).is_dir()
        init = f"hf:{base.folder.resolve()}" if is_folder else base.init
        if not is_folder and not step and base.folder.parent.name == "snapshots":
            init = f"{base.init}@{base.folder.name}"  # the commit: a branch moves
    else:
        before = adapters.read(run_dir)
        place = str(base.folder.resolve())
        if not step and before is not None and before.init.partition("@")[0] == place:
            init = before.init
        else:
            with _checkpoint(base.init) as (_, chosen):
                init = f"{place}@{chosen}"
    try:
        return adapters.Record(init=init, digest=digest_of(init), lora=lora)
    except FileNotFoundError as error:
        raise errors.StorageError(
            "JI-LORA-004", f"the base of the adapters, {init}, is not there: {error.filename}"
        ) from None


def digest_of(init: str) -> str:
    """Digest of the weights that INIT names, wherever they lie: of every file of a Hugging Face checkpoint; of a run's
    manifest of the step (which holds those of its files), with the base below it if it is a run of adapters itself."""
    folder = hub.folder_of(init)
    if init.startswith("hf:"):
        files = {folder / "config.json", *hf_read.open_checkpoint(folder).files.values()}
    else:
        files = {folder / "checkpoints" / init.partition("@")[2] / "manifest.json"}
    lines = sorted(f"{path.name} {storage.digest(path)}" for path in files)
    if not init.startswith("hf:") and (below := adapters.read(folder)):
        lines.append(f"{below.digest} {below.lora}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def recorded(record: adapters.Record, run_dir: pathlib.Path) -> Base:
    """The base that lora.json of `run_dir` names. Errors: StorageError when it is gone, or is another one by now."""
    where = f"{run_dir / adapters.FILE}: the base of these adapters, {record.init},"
    try:
        base, digest = open_base(record.init), digest_of(record.init)
    except (errors.StorageError, FileNotFoundError) as error:
        raise errors.StorageError(
            "JI-LORA-004",
            f"{where} is not there ({error}); put it back, or name the place where it is now in that file",
        ) from None
    if digest != record.digest:
        raise errors.StorageError(
            "JI-LORA-005",
            f"{where} has other weights than when the adapters were trained (digest {digest}, then {record.digest}); "
            "put the old ones back",
        )
    return base


def open_adapters(
    init: str, weights: str = "params"
) -> tuple[adapters.Record, config_lib.DecoderConfig, dict]:
    """Adapters of a run apart from their base: (its lora.json, the model with them, the adapters on the first device).

    Errors: StorageError for a run that trained everything.
    """
    folder = hub.folder_of(init)
    base, record = _run(init, weights), adapters.read(folder)
    if record is None:
        raise errors.StorageError(
            "JI-LORA-009", f"{folder}: no {adapters.FILE}; this run trained all parameters"
        )
    model = dataclasses.replace(base.config, lora=record.lora)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _checkpoint(init) as (checkpointer, chosen):
        return record, model, adapters.restore(checkpointer, chosen, weights, model, place)
