"""What a run directory needs so that others can use its model, and reading it back.

RUN_DIR/model.json        the DecoderConfig
RUN_DIR/tokenizer.model   the SentencePiece model, beside tokenizer.normalise.json (its normalisation profile); or
RUN_DIR/tokenizer.json    a Hugging Face tokenizer, beside tokenizer_config.json (its special tokens)
RUN_DIR/template.txt      the name of a built-in chat template; or template.jinja, a template of one's own; or neither
"""

from __future__ import annotations

import pathlib
import shutil
from typing import Any, NamedTuple

import jax

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.text import templates as templates_lib
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import adapters
from jinstr.train import checkpoint as checkpoint_lib


class Run(NamedTuple):
    """A trained model as `generate`, `chat`, evaluation and warm starts use it."""

    config: config_lib.DecoderConfig
    params: dict
    tokenizer: Any  # text.tokenizer.Tokenizer
    template: (
        Any  # text.templates.Template, or None for a model that was trained on plain text only
    )
    step: int  # the checkpoint it came from


def write_model_files(
    run_dir, config: config_lib.DecoderConfig, tokenizer_path: str, template: str
) -> None:
    """Put model.json, the tokenizer and the template (a name, a .jinja path or "") into the run directory."""
    run_dir = pathlib.Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "model.json").write_text(config.to_json() + "\n", encoding="utf-8")
    tokenizer_lib.copy(tokenizer_path, run_dir)
    if template.endswith(".jinja"):
        target = run_dir / "template.jinja"
        if pathlib.Path(template).resolve() != target.resolve():
            shutil.copyfile(template, target)
        (run_dir / "template.txt").unlink(missing_ok=True)
    elif template:
        (run_dir / "template.txt").write_text(template + "\n", encoding="utf-8")
        (run_dir / "template.jinja").unlink(missing_ok=True)


def tokenizer_path(run_dir) -> str:
    """The tokenizer file of a run. Errors: StorageError when there is none."""
    found = tokenizer_lib.find(run_dir)
    if found is None:
        raise errors.StorageError(
            "JI-SERVE-001",
            f"{run_dir} has no tokenizer.model or tokenizer.json; give a RUN_DIR that `jinstr pretrain` or `sft` wrote",
        )
    return str(found)


def template_of(run_dir) -> str:
    """The template a run was trained with: a name, the path of its template.jinja, or ""."""
    run_dir = pathlib.Path(run_dir)
    if (run_dir / "template.jinja").exists():
        return str(run_dir / "template.jinja")
    name = run_dir / "template.txt"
    return name.read_text(encoding="utf-8").strip() if name.exists() else ""


def on_one_device(params: dict) -> dict:
    """Parameters as sampling and scoring take them: whole, on the first device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.device_put(params, place)


def load_run(
    run_dir, step: int | None = None, *, weights: str = "params", template: str = ""
) -> Run:
    """Read a trained model onto the first device.

    step: None takes the newest checkpoint that verifies. weights: "params", or "ema" when the run kept an average.
    template: a name or .jinja path in place of the run's own. Only the weights are read, not the optimizer; adapters
    are added to the base that they were trained on.
    Errors: StorageError when the directory holds no model or no sound checkpoint.
    """
    run_dir = pathlib.Path(run_dir)
    path = run_dir / "model.json"
    if not path.exists():
        raise errors.StorageError(
            "JI-SERVE-001",
            f"{run_dir} has no model.json; give a RUN_DIR that `jinstr pretrain` or `sft` wrote",
        )
    config = config_lib.DecoderConfig.from_json(path.read_bytes(), str(path))
    tokenizer = tokenizer_lib.load(tokenizer_path(run_dir))
    name = template or template_of(run_dir)
    chat_template = templates_lib.load(name, tokenizer) if name else None
    checkpointer = checkpoint_lib.Checkpointer(run_dir, checkpoint_lib.CheckpointConfig())
    try:
        chosen = checkpointer.latest_verified() if step is None else step
        if chosen is None:
            raise errors.StorageError(
                "JI-SERVE-002", f"{run_dir}/checkpoints holds no checkpoint that verifies"
            )
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            decoder.abstract_params(config),
        )
        if adapters.read(run_dir) is None:
            params = checkpointer.restore(chosen, {weights: abstract})[weights]
        else:
            from jinstr.train import base  # which needs this module

            params = base.open_base(f"{run_dir}@{chosen}", weights).load(abstract)
    finally:
        checkpointer.close()
    return Run(config, params, tokenizer, chat_template, chosen)
