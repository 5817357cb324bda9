"""A trained model read back, as `generate`, `chat` and evaluation use it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import together
from jinstr.text import templates as templates_lib
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import adapters
from jinstr.train import base as base_lib


class Run(NamedTuple):
    """A model with all that writing answers takes."""

    config: config_lib.DecoderConfig
    params: dict
    tokenizer: Any  # text.tokenizer.Tokenizer
    template: (
        Any  # text.templates.Template, or None for a model that was trained on plain text only
    )
    step: int  # the checkpoint it came from; 0 for a Hugging Face checkpoint


def on_one_device(params: dict) -> dict:
    """Parameters as sampling and scoring take them: whole, on the first device (of each process)."""
    return together.own_copy(params)


def load_run(
    model,
    step: int | None = None,
    *,
    weights: str = "params",
    template: str = "",
    heads: str = "language",
    mesh=None,
    rules: mesh_lib.AxisRules = mesh_lib.AxisRules(),  # noqa: B008 (frozen)
) -> Run:
    """Read a model onto the first device, or in parts onto a mesh: a RUN_DIR, hf:FOLDER or hf:org/name[@revision].

    step: None takes the newest checkpoint that verifies. weights: "params", or "ema" when the run kept an average.
    template: a name or .jinja path in place of the model's own. heads: "score" for a reward model. Only the weights are
    read, not the optimizer; adapters are added to the base that they were trained on. That sum, a Hugging Face
    checkpoint and what lies on a mesh are kept in the type that they are computed in, if it is the narrower one.
    Errors: StorageError when there is no model or no sound checkpoint.
    """
    if step is not None and str(model).startswith("hf:"):
        raise errors.ConfigError("JI-SERVE-003", f"STEP={step}: {model} has no steps; leave it out")
    init = str(model) if step is None else f"{model}@{step}"
    base = base_lib.pinned(base_lib.open_base(init, weights), weights)
    if heads == "score" and base.config.heads == "language":
        raise errors.ConfigError(
            "JI-SERVE-005",
            f"{model} writes text and gives no scores; give the RUN_DIR of `jinstr reward`",
        )
    base = base_lib.with_heads(base, heads)
    tokenizer = tokenizer_lib.load(base.tokenizer_path)
    name = template or base.template
    chat_template = templates_lib.load(name, tokenizer) if name else None
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    dtype, own = decoder.compute_dtype(base.config), jax.numpy.dtype(base.config.param_dtype)
    is_whole = mesh is None and adapters.read(base.folder) is None
    if base.is_run and (is_whole or dtype.itemsize > own.itemsize):
        dtype = own
    shapes = decoder.abstract_params(base.config)
    places = jax.tree.map(lambda _: place, shapes)
    if mesh is not None:
        places = decoder.param_shardings(base.config, mesh, rules)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place), shapes, places
    )
    return Run(base.config, base.load(abstract), tokenizer, chat_template, base.step)
