"""`jinstr dpo`: tune a model on rankings, pairs or labels directly, without a reward model (DPO and its relatives)."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

import jax

from jinstr import errors
from jinstr.data import audit, comparisons
from jinstr.data import dataset as dataset_lib
from jinstr.data import prepare as prepare_lib
from jinstr.models import config as config_lib
from jinstr.models import lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import processes
from jinstr.text import templates
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import (
    adapters,
    comparing,
    evaluation,
    flops,
    judged,
    loop,
    model_files,
    replicas,
    serving,
    startup,
    summary,
)
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import metrics as metrics_lib
from jinstr.train import optimizer as optimizer_lib
from jinstr.train import state as state_lib

ROUNDING = 1e-3  # share by which the first loss may differ from the value that it must have


def dpo(
    *,
    init: str,
    template: str,
    data: dataset_lib.DataConfig,
    preference: comparing.PreferenceConfig,
    execution: config_lib.ExecutionConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    loop_config: loop.LoopConfig,
    evaluation_config: evaluation.EvaluationConfig,
    checkpoint: checkpoint_lib.CheckpointConfig,
    prepare: prepare_lib.PrepareConfig,
    mesh: mesh_lib.MeshConfig,
    rules: mesh_lib.AxisRules,
    run_dir: str,
    seed: int,
) -> dict:
    """Train so that better answers become likelier than worse ones, compared with the model at the start.

    init: the model to tune, usually of `jinstr sft`; it is the reference too, as a frozen copy, or under LoRA by
    turning the adapters off. Returns the summary that is written to RUN_DIR/summary.json.
    """
    started = time.time()
    startup.use_compile_cache()
    run_dir = pathlib.Path(run_dir)
    base = startup.base_for(run_dir, init)
    model = startup.with_adapters(run_dir, config_lib.executed(base.config, execution))
    tokenizer = tokenizer_lib.load(base.tokenizer_path)
    template = template or base.template or "chatml"
    chat_template = templates.load(template, tokenizer)
    data_set = dataset_lib.load(
        data,
        tokenizer_path=base.tokenizer_path,
        template=template,
        prepare_config=prepare,
        seed=seed,
        may_prepare=processes.count() == 1,
        kinds=comparisons.LABELLED if preference.needs_labels else comparisons.KINDS,
    )
    num_steps = loop.planned_steps(loop_config, data_set.train.steps_per_epoch)
    audit.check_batch(data_set.train.read(0), tokenizer, stop_ids=chat_template.stop_ids)

    devices = mesh_lib.make_mesh(mesh)
    rows = data_set.train.config.batch_rows
    here = state_lib.places_here(devices, rules, rows)
    transform = optimizer_lib.make_optimizer(optimizer, num_steps)
    abstract = state_lib.abstract_state(
        model, transform, devices, rules, ema=optimizer.ema_decay > 0, moments=optimizer.moments
    )
    checkpointer = checkpoint_lib.Checkpointer(run_dir, checkpoint)
    below, record = startup.frozen_base(run_dir, model, base, devices, rules)
    frozen = {"base": below}
    if preference.needs_reference and (copy := startup.reference(model, base, abstract)):
        frozen["reference"] = copy
    state, start_step, before = startup.restore_or_init(
        checkpointer=checkpointer,
        model=model,
        transform=transform,
        abstract=abstract,
        seed=seed,
        base=base,
        data_identity=data_set.train.identity,
    )
    # Only now: a start that is refused above must not touch the files of the model that is there.
    model_files.write(run_dir, model, base.tokenizer_path, template)
    adapters.write(run_dir, record)
    labelled = preference.needs_labels
    objective = comparing.labelled_objective if labelled else comparing.preference_objective
    step_function = state_lib.make_step(
        model, optimizer, transform, devices, rules, abstract, loop_config.microbatches, frozen,
        objective(model, preference, rules),
    )  # fmt: skip
    outputs = {"tensorboard": loop_config.tensorboard, "wandb": loop_config.wandb}
    writer = metrics_lib.MetricsWriter(run_dir, **outputs, start_step=start_step)
    meter = flops.Meter(model, before)
    rate = optimizer_lib.make_schedule(optimizer, num_steps, optimizer.learning_rate)
    answers = evaluation.Answers(model, tokenizer, chat_template, evaluation_config)

    @jax.jit
    def rewards(params, batch, frozen):
        return comparing.rewards(model, preference, params, batch, frozen, rules)[0]

    def place(batch: dict) -> dict:
        whole = comparisons.with_others(batch, tokenizer.pad_id) if labelled else batch
        return state_lib.place_rows(whole, devices, rules, rows)

    measure = judged.by_label if labelled else judged.accuracy

    def evaluate(state: dict, step: int) -> dict[str, float]:
        results = {}
        for name, loader in data_set.held_out.items():
            found = judged.judge(
                lambda params, batch: rewards(params, batch, frozen),
                state["params"], loader, devices, rules,
            )  # fmt: skip
            results |= {f"eval/{name}/{key}": v for key, v in measure(found).items()}
            if count := evaluation_config.samples:
                whole = serving.on_one_device(lora.join(state["params"], below))
                prompts = _prompts(loader, count)
                written = answers.write(whole, prompts)
                ended = metrics_lib.write_samples(writer, step, name, tokenizer, prompts, written)
                results[f"eval/{name}/ended"] = ended
        return results

    state = loop.fit(
        run_dir=run_dir,
        config=loop_config,
        state=state,
        step_function=_checked(step_function, comparing.first_loss(preference), start_step),
        batches=metrics_lib.examples_logged(
            data_set.train, start_step, run_dir, loop_config.log_examples, here
        ),
        place=place,
        start_step=start_step,
        num_steps=num_steps,
        evaluate=evaluate,
        check_replicas=replicas.make_check(abstract["params"], devices),
        checkpointer=checkpointer,
        writer=writer,
        run_json=lambda step: {
            "data": data_set.train.identity | {"step": step},
            "meter": meter.totals(),
            "place": startup.place_of(model, devices),
        },
        meter=meter,
        examples=data_set.train.example_ids,
        extra=lambda step: {"train/learning_rate": float(rate(step - 1))},
    )
    checkpointer.close()
    writer.close()
    return summary.write(
        run_dir,
        title="jinstr dpo",
        facts=startup.describe(model, devices)
        | {"steps": num_steps, **meter.totals(), "wall_seconds": time.time() - started},
        data=dataset_lib.table(data_set),
        previous=[base.folder] if base.is_run else [],
    )


def _checked(step_function: Callable, expected: float | None, start_step: int) -> Callable:
    """The step function; the first step of a run must have the loss of a policy that equals its reference.

    Anything else means that the two are not the same model, or that one of them is read with another mask.
    """
    waiting = expected is not None and start_step == 0

    def step(state, batch):
        nonlocal waiting
        state, values = step_function(state, batch)
        if waiting and float(values["weight"]) > 0:
            waiting = False
            loss = float(values["loss"])
            if abs(loss - expected) > ROUNDING * expected:
                raise errors.ConfigError(
                    "JI-DPO-002",
                    f"the loss of the first step is {loss:.6f}, but a policy that equals its reference has "
                    f"{expected:.6f}: policy and reference differ before any training",
                )
        return state, values

    return step


def _prompts(loader, count: int) -> list[list[int]]:
    """Token ids of the first prompts of a prepared set."""
    return [
        record.answers[0][: record.prompt_length].tolist() for record in loader.first_records(count)
    ]
