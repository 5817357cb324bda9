"""`jinstr plan`: memory, traffic and time of a training step on chips that nobody has rented yet."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import tqdm

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder, splash
from jinstr.parallel import chips as chips_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import ahead as practice_lib
from jinstr.rlhf import shapes as shapes_lib
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import ahead, base, costs, estimates, plan_page, storage
from jinstr.train import optimizer as optimizer_lib

GIB = 2**30
NEAREST = 4  # smaller settings that are compiled before giving up


def plan(
    *,
    what: str,
    topology: str,
    search: bool,
    compiles: int,
    tokens: float,
    out: str,
    vocab_size: int,
    tokenizer: str,
    init: str,
    model: config_lib.DecoderConfig,
    execution: config_lib.ExecutionConfig,
    practice: shapes_lib.PracticeShape,
    optimizer: optimizer_lib.OptimizerConfig,
    mesh: mesh_lib.MeshConfig,
    rules: mesh_lib.AxisRules,
    seq_len: int,
    batch_tokens: int,
    num_steps: int,
    microbatches: int,
) -> dict:
    """Compile the training step of a recipe for `topology` and print what it takes; returns the figures. Of ppo and
    grpo (what): all that an iteration runs.

    TPUs by their own compiler, CPUs by theirs (bytes of arguments and collectives are exact, memory is not that of an
    accelerator), GPUs by formula. Errors: ConfigError for a topology, mesh or batch that cannot be, and where nothing
    near the settings fits.
    """
    chips_lib.use_cpu()
    place = chips_lib.parse(topology)
    sizes = mesh_lib.sizes(mesh, place.size)
    model = shape_of(model, vocab_size, tokenizer, init)
    model = dataclasses.replace(model, remat=execution.remat or model.remat)
    if what in shapes_lib.KINDS:
        if search:
            raise errors.ConfigError(
                "JI-PLAN-009",
                f"SEARCH=True looks for settings of a training step, not of WHAT={what}",
            )
        return practised(what, place, model, practice, optimizer, mesh, rules, out)
    shape = costs.Shape(batch_tokens // seq_len, seq_len, microbatches, sizes, place.slices)
    model = computed(model, place, shape)
    check(shape, batch_tokens)
    devices = None if place.kind == "gpu" else chips_lib.devices(place)
    budget = tokens or float(num_steps) * batch_tokens
    job = Job(place, devices, optimizer, rules, budget, mesh.slices)
    print(
        f"{decoder.count_params(model):,} parameters on {place.text} ({place.size} chips), {by(place)}"
    )
    if search:
        found = searched(job, model, shape, compiles)
        result = {"found": found}
    else:
        result = planned(job, model, shape)
        print("\n".join(plan_page.lines(result)))
        found = [result]
        if not result["fits"]:
            found += nearest(job, model, shape, result)
            result = result | {"nearest": found[1] if len(found) > 1 else None}
    if out:
        _write(out, result, found)
    return result


def _write(out: str, result: dict, found: list[dict]) -> None:
    path = pathlib.Path(out)
    storage.write_json(path.with_name(path.name + ".json"), result)
    plan_page.draw(found, path.with_name(path.name + ".png"))
    print(f"{path}.json, {path}.png")


def practised(
    kind: str,
    place: chips_lib.Topology,
    model: config_lib.DecoderConfig,
    shape: shapes_lib.PracticeShape,
    optimizer: optimizer_lib.OptimizerConfig,
    mesh: mesh_lib.MeshConfig,
    rules: mesh_lib.AxisRules,
    out: str,
) -> dict:
    """Compile and print all that an iteration of PPO or GRPO runs; returns the figures."""
    if place.kind == "gpu":
        raise errors.ConfigError(
            "JI-PLAN-009",
            f"WHAT={kind} is compiled, and nothing is compiled for {place.text}; jinstr {kind} --dry_run tells the "
            "memory of these devices by formula",
        )
    devices = mesh_lib.make_mesh(mesh, chips_lib.devices(place))
    models = shapes_lib.models_of(kind, _computed_in(model, place), shape)
    print(
        f"{decoder.count_params(model):,} parameters on {place.text} ({place.size} chips), {by(place)}"
    )
    with tqdm.tqdm(total=0, bar_format="compile: {desc}", leave=False, disable=None) as bar:
        found = practice_lib.planned(
            kind,
            models,
            shape,
            optimizer,
            shapes_lib.Place(devices, rules),
            bar.set_description_str,
        )
    there = chips_lib.CHIPS[place.chip].memory if place.chip else 0.0
    result = {
        "what": kind, "topology": place.text, "by": by(place), "mesh": dict(devices.shape), "remat": model.remat,
        "shape": dataclasses.asdict(shape), "memory_there": there, "most": chips_lib.FITS,
        "fits": not there or found["peak"] <= chips_lib.FITS * there,
    } | found  # fmt: skip
    print("\n".join(plan_page.practice_lines(result)))
    if out:
        _write(out, result, plan_page.practice_bars(result))
    return result


class Job(NamedTuple):
    """What stays the same over all settings of one plan."""

    place: chips_lib.Topology
    devices: list | None
    optimizer: optimizer_lib.OptimizerConfig
    rules: mesh_lib.AxisRules
    budget: float  # tokens of the whole run; 0 = not said
    slices: int  # of MeshConfig

    def abstract(self, model: config_lib.DecoderConfig, mesh) -> tuple[dict, dict]:
        """State and frozen base without values."""
        ema = self.optimizer.ema_decay > 0
        return costs.abstract_state(model, self.optimizer, mesh, self.rules, ema)[:2]


def by(place: chips_lib.Topology) -> str:
    """What the figures come from."""
    return {
        "tpu": f"compiled by {chips_lib.compiler_version()}",
        "cpu": "compiled for CPUs: memory there is not that of an accelerator",
        "gpu": "by formula: nothing is compiled",
    }[place.kind]


def shape_of(
    model: config_lib.DecoderConfig, vocab_size: int, tokenizer: str, init: str
) -> config_lib.DecoderConfig:
    """The model to plan for, with a vocabulary. Errors: ConfigError where its size is not known."""
    if init:
        model = config_lib.executed(base.open_base(init).config, model)
    if not vocab_size and tokenizer:
        vocab_size = -(-tokenizer_lib.load(tokenizer).vocab_size // 64) * 64
    if vocab_size:
        model = dataclasses.replace(model, vocab_size=vocab_size)
    if not model.vocab_size:
        raise errors.ConfigError(
            "JI-PLAN-006",
            "how many rows the embedding has is not known; set VOCAB_SIZE, TOKENIZER or INIT",
        )
    return model


def computed(
    model: config_lib.DecoderConfig, place: chips_lib.Topology, shape: costs.Shape
) -> config_lib.DecoderConfig:
    """The model as it is computed there: what is `auto` goes by the chip and not by this machine."""
    model, attention = _computed_in(model, place), model.attention
    if attention == "auto":
        is_whole = shape.mesh["context"] == 1 and shape.seq_len % splash.BLOCKS[-1] == 0
        can = place.kind == "tpu" and is_whole and not any(model.local_layers)
        attention = "splash" if can else "blocked"
    return dataclasses.replace(model, attention=attention)


def _computed_in(
    model: config_lib.DecoderConfig, place: chips_lib.Topology
) -> config_lib.DecoderConfig:
    """The model with the type that it is computed in there."""
    own = "float32" if place.kind == "cpu" else "bfloat16"
    is_auto = model.compute_dtype == "auto"
    return dataclasses.replace(model, compute_dtype=own) if is_auto else model


def check(shape: costs.Shape, batch_tokens: int) -> None:
    """Errors: ConfigError for a batch that does not divide."""
    share = shape.row_devices * shape.microbatches
    if shape.rows < 1 or shape.rows % share or batch_tokens % shape.seq_len:
        raise errors.ConfigError(
            "JI-PLAN-007",
            f"BATCH_TOKENS={batch_tokens} is {batch_tokens / shape.seq_len:g} rows of SEQ_LEN={shape.seq_len}; rows "
            f"must be a multiple of {share} ({shape.row_devices} devices × MICROBATCHES={shape.microbatches}): "
            f"BATCH_TOKENS={max(1, shape.rows // share) * share * shape.seq_len}",
        )


def planned(job: Job, model: config_lib.DecoderConfig, shape: costs.Shape) -> dict:
    """All figures of one setting. The compiler's out-of-memory is one of them."""
    mesh = None if job.devices is None else mesh_lib.make_mesh(mesh_config(job, shape), job.devices)
    work, wires = work_of(job, model, shape), costs.wires(model, shape)
    capacity = chips_lib.CHIPS[job.place.chip].memory if job.place.chip else 0.0
    result = {
        "topology": job.place.text, "by": by(job.place), "mesh": shape.mesh, "slices": shape.slices,
        "remat": model.remat, "attention": model.attention, "rows": shape.rows, "seq_len": shape.seq_len,
        "microbatches": shape.microbatches, "memory_there": capacity, "most": chips_lib.FITS,
        "work": work._asdict(), "wires_by_formula": wires,
    }  # fmt: skip
    if job.place.kind == "gpu":
        parts = arguments_by_formula(job, model, shape)
        parts |= costs.temporaries(model, shape, parts["parameters"])
        estimate = estimates.by_formula(job.place, wires, work)
        return finished(
            job, result | {"memory": parts, "peak": sum(parts.values())}, shape, estimate
        )
    ema = job.optimizer.ema_decay > 0
    by_formula = costs.arguments(*job.abstract(model, mesh), costs.batch_of(shape, mesh, job.rules))
    result["temporaries_by_formula"] = costs.temporaries(model, shape, by_formula["parameters"])
    try:
        compiled = ahead.compile_step(model, job.optimizer, mesh, job.rules, shape, ema)
    except ahead.TooLarge as error:
        result |= {"memory": by_formula | result["temporaries_by_formula"], "fits": False}
        return result | {"peak": error.wanted, "memory_there": error.there}
    found, given = compiled.found, sum(compiled.parts.values())
    parts = compiled.parts | {"while the step runs": max(0, compiled.peak - given)}
    result |= {
        "memory": parts, "peak": compiled.peak, "arguments": compiled.arguments,
        "arguments_by_formula": given, "compile_seconds": compiled.seconds,
        "collectives": {kind: moved._asdict() for kind, moved in found.kinds.items()},
        "largest_gather": found.largest, "wire": found.wire, "loops_not_counted": found.unknown,
    }  # fmt: skip
    estimate = estimates.of_compiled(job.place, found, work) if job.place.kind == "tpu" else None
    return finished(job, result, shape, estimate)


def work_of(job: Job, model: config_lib.DecoderConfig, shape: costs.Shape) -> costs.Work:
    """With moments that wait on the host, which come and go for every update."""
    work = costs.work(model, shape)
    state, _ = job.abstract(model, mesh_lib.abstract(shape.mesh))
    return work._replace(host=work.host + 2 * costs.tree_bytes(state["opt_state"], host=True))


def mesh_config(job: Job, shape: costs.Shape) -> mesh_lib.MeshConfig:
    return mesh_lib.MeshConfig(**shape.mesh, slices=job.slices)


def arguments_by_formula(
    job: Job, model: config_lib.DecoderConfig, shape: costs.Shape
) -> dict[str, int]:
    """Bytes on each device of what a step is given, on a mesh that only has a shape."""
    mesh = mesh_lib.abstract(shape.mesh)
    return costs.arguments(*job.abstract(model, mesh), costs.batch_of(shape, mesh, job.rules))


def finished(
    job: Job, result: dict, shape: costs.Shape, estimate: estimates.Estimate | None
) -> dict:
    """With time, speed and the length of the run; does it fit?"""
    there = result["memory_there"]
    result["fits"] = not there or result["peak"] <= chips_lib.FITS * there
    if estimate is None:
        return result
    places = shape.rows * shape.seq_len
    times = (estimate.lowest, estimate.highest)
    result |= {
        "time": estimate._asdict(),
        "tokens_per_second": [places / t for t in reversed(times)],
    }
    if job.budget:
        days = [job.budget / places * t / 86400 for t in times]
        result |= {
            "tokens": job.budget,
            "days": days,
            "chip_hours": [d * 24 * job.place.size for d in days],
        }
    return result


def smaller(model: config_lib.DecoderConfig, shape: costs.Shape) -> Iterator:
    """(model, shape) of settings that need less memory, the nearest first; the batch stays."""
    ladder = tuple(config_lib.REMAT)
    rows = shape.rows // shape.microbatches // shape.row_devices
    halves = [n for n in (1, 2, 4, 8, 16, 32, 64) if rows % n == 0]
    wide = {
        "data": shape.slices,
        "fsdp": shape.row_devices // shape.slices,
        "context": shape.mesh["context"],
        "tensor": shape.mesh["tensor"],
    }
    for sizes in [shape.mesh] if shape.mesh == wide else [shape.mesh, wide]:
        for remat in ladder[ladder.index(model.remat) :]:
            for half in halves:
                smaller_shape = shape._replace(mesh=sizes, microbatches=shape.microbatches * half)
                if (sizes, remat, half) != (shape.mesh, model.remat, 1):
                    yield dataclasses.replace(model, remat=remat), smaller_shape


def nearest(
    job: Job, model: config_lib.DecoderConfig, shape: costs.Shape, result: dict
) -> list[dict]:
    """The nearest smaller setting that fits, in a list; tells of it. What is too large by formula is not compiled."""
    there, tried = result["memory_there"], 0
    for less, cut in smaller(model, shape):
        parts = arguments_by_formula(job, less, cut)
        guess = sum(parts.values()) + sum(
            costs.temporaries(less, cut, parts["parameters"]).values()
        )
        if guess > chips_lib.FITS * there * 1.1 or tried == NEAREST:
            continue
        tried += 1
        found = planned(job, less, cut)
        if found["fits"]:
            print(
                f"the nearest that fits, {found['peak'] / GIB:.2f} GiB: {plan_page.settings(found)}"
            )
            return [found]
    print(
        "nothing near it fits, with remat, fewer rows at a time and FSDP over all chips: take more chips, or adapters"
    )
    return []


def searched(
    job: Job, model: config_lib.DecoderConfig, shape: costs.Shape, compiles: int
) -> list[dict]:
    """Settings that fit, best first; those that are best by formula are compiled."""
    guesses = []
    for candidate, cut in settings_of(model, shape, job.place):
        try:
            parts = arguments_by_formula(job, candidate, cut)
        except (errors.ConfigError, ValueError):  # sizes that do not divide over this mesh
            continue
        peak = sum(parts.values()) + sum(
            costs.temporaries(candidate, cut, parts["parameters"]).values()
        )
        if job.place.chip and peak > chips_lib.FITS * chips_lib.CHIPS[job.place.chip].memory:
            continue
        place = job.place if job.place.chip else chips_lib.parse("gpu:h100:1")
        estimate = estimates.by_formula(
            place, costs.wires(candidate, cut), work_of(job, candidate, cut)
        )
        guesses.append((estimate.highest, candidate, cut))
    guesses.sort(key=lambda each: each[0])
    print(f"{len(guesses)} settings fit by formula")
    found = []
    for _, candidate, cut in tqdm.tqdm(
        guesses[:compiles], desc="compile", leave=False, disable=None
    ):
        result = planned(job, candidate, cut)
        found += [result] if result["fits"] else []
    found.sort(key=lambda each: each["time"]["highest"] if "time" in each else each["peak"])
    print(
        "\n".join(plan_page.table(found))
        if found
        else "none of the compiled settings fits; raise COMPILES"
    )
    return found


def settings_of(
    model: config_lib.DecoderConfig, shape: costs.Shape, place: chips_lib.Topology
) -> Iterator:
    """(model, shape) for every mesh × remat × number of microbatches; the batch of the recipe stays."""
    count = place.size // shape.mesh["context"]
    for tensor in (1, 2, 4, 8):
        for data in (1, 2, 4, 8, count // tensor):
            fsdp, rest = divmod(count, tensor * data)
            sizes = {"data": data, "fsdp": fsdp, "context": shape.mesh["context"], "tensor": tensor}
            is_twice = data == count // tensor and data in (1, 2, 4, 8)
            if rest or not fsdp or is_twice or data % shape.slices:
                continue
            for remat in config_lib.REMAT:
                for rows in (1, 2, 4, 8, 16, 32):
                    parts, rest = divmod(shape.rows, rows * data * fsdp)
                    if parts and not rest:
                        cut = shape._replace(microbatches=parts, mesh=sizes)
                        yield dataclasses.replace(model, remat=remat), cut
