"""Compiling a training step ahead, for devices that may not be there: memory, collectives, the compiler's estimates."""

from __future__ import annotations

import pathlib
import re
import tempfile
import time
from typing import NamedTuple

import jax

from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.train import collectives, costs
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Compiled(NamedTuple):
    """What the compiler says of a program; bytes on one device."""

    parts: dict[str, int]  # of the arguments, by formula
    arguments: int
    temporary: int
    peak: int
    found: collectives.Found
    seconds: float  # of compiling


class TooLarge(Exception):
    """The compiler's own out-of-memory: bytes on one device that the program wants, and that there are."""

    def __init__(self, wanted: float, there: float):
        super().__init__(wanted, there)
        self.wanted, self.there = wanted, there


def compile_step(
    model: config_lib.DecoderConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    mesh,
    rules: mesh_lib.AxisRules,
    shape: costs.Shape,
    ema: bool,
) -> Compiled:
    """The very step of training, lowered and compiled for the devices of `mesh`. Raises TooLarge."""
    abstract, frozen, transform = costs.abstract_state(model, optimizer, mesh, rules, ema)
    batch = costs.batch_of(shape, mesh, rules)
    options = {}
    if mesh.devices.flat[0].platform == "cpu":
        options = state_lib.compiler_options()
    step = state_lib.make_step(
        model,
        optimizer,
        transform,
        mesh,
        rules,
        abstract,
        shape.microbatches,
        frozen=frozen,
        options=options,
    )
    with jax.set_mesh(mesh):
        lowered = step.jitted.lower(abstract, batch, frozen)
    return compile_lowered(lowered, mesh, costs.arguments(abstract, frozen, batch))


def compile_lowered(lowered, mesh, parts: dict[str, int]) -> Compiled:
    """Compile what was lowered for the devices of `mesh`. Raises TooLarge."""
    is_tpu = mesh.devices.flat[0].platform == "tpu"
    before = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # Programs of several TPUs cannot always be printed; what the compiler itself writes is whole, and has cycles.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if is_tpu else None
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if too_large := _too_large(str(error)):
                raise too_large from None
            raise
        if is_tpu:
            (path,) = pathlib.Path(folder).glob("*after_codegen.txt")
            text = path.read_text("utf-8", "replace")
        else:
            text = compiled.as_text()
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    if is_tpu:
        peak = memory.peak_memory_in_bytes
    return Compiled(
        parts,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        peak,
        collectives.read(text),
        time.perf_counter() - before,
    )


def _too_large(message: str) -> TooLarge | None:
    amount = r"\(?([\d.]+)([KMGT]?)\)?"
    for pattern in (rf"{amount} exceeds available HBM {amount}", rf"Used {amount} of {amount} hbm"):
        if found := re.search(pattern, message):
            return TooLarge(float(found[1]) * UNITS[found[2]], float(found[3]) * UNITS[found[4]])
    if "RESOURCE_EXHAUSTED" not in message or "vmem" in message.lower():
        return None  # another failure, or one of a kernel's own memory: no setting of a recipe helps there
    return TooLarge(float("nan"), float("nan"))
