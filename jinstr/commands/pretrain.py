"""`jinstr pretrain`: a language model from text."""

from __future__ import annotations

import pathlib
import time

from jinstr.data import audit
from jinstr.data import dataset as dataset_lib
from jinstr.data import prepare as prepare_lib
from jinstr.models import config as config_lib
from jinstr.models import lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import processes
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import (
    adapters,
    evaluation,
    flops,
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


def pretrain(
    *,
    data: dataset_lib.DataConfig,
    tokenizer: str,
    model: config_lib.DecoderConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    loop_config: loop.LoopConfig,
    evaluation_config: evaluation.EvaluationConfig,
    checkpoint: checkpoint_lib.CheckpointConfig,
    prepare: prepare_lib.PrepareConfig,
    mesh: mesh_lib.MeshConfig,
    rules: mesh_lib.AxisRules,
    run_dir: str,
    init: str,
    seed: int,
) -> dict:
    """Train on the next token of every document; the run directory is what DESIGN calls a run.

    init: the model to go on from, RUN_DIR[@step] or hf:FOLDER or hf:org/name[@revision], whose shape is kept; its
    tokenizer too, unless `tokenizer` names one that extends it. Interrupted, the same command continues where the
    newest sound checkpoint stands. Returns the summary that is written to RUN_DIR/summary.json.
    """
    started = time.time()
    startup.use_compile_cache()
    run_dir = pathlib.Path(run_dir)
    model, tokenizer, base = startup.model_for(run_dir, model, tokenizer, init)
    text_tokenizer = tokenizer_lib.load(tokenizer)
    data_set = dataset_lib.load(
        data,
        tokenizer_path=tokenizer,
        template="",
        prepare_config=prepare,
        seed=seed,
        may_prepare=processes.count() == 1,
    )
    num_steps = loop.planned_steps(loop_config, data_set.train.steps_per_epoch)

    first = data_set.train.read(0)
    audit.check_batch(first, text_tokenizer, names=data_set.train.example_ids(0))

    devices = mesh_lib.make_mesh(mesh)
    rows = data_set.train.config.batch_rows
    here = state_lib.places_here(devices, rules, rows)
    transform = optimizer_lib.make_optimizer(optimizer, num_steps)
    abstract = state_lib.abstract_state(
        model, transform, devices, rules, ema=optimizer.ema_decay > 0, moments=optimizer.moments
    )
    checkpointer = checkpoint_lib.Checkpointer(run_dir, checkpoint)
    frozen, record = startup.frozen_base(run_dir, model, base, devices, rules)
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
    model_files.write(run_dir, model, tokenizer, "")
    adapters.write(run_dir, record)
    step_function = state_lib.make_step(
        model, optimizer, transform, devices, rules, abstract, loop_config.microbatches, frozen
    )
    outputs = {"tensorboard": loop_config.tensorboard, "wandb": loop_config.wandb}
    writer = metrics_lib.MetricsWriter(run_dir, **outputs, start_step=start_step)
    meter = flops.Meter(model, before)
    evaluator = state_lib.make_evaluator(model, devices, rules)
    answers = evaluation.Answers(model, text_tokenizer, None, evaluation_config)
    begin = [text_tokenizer.bos_id] if text_tokenizer.bos_id >= 0 else []
    prompts = [
        [*begin, *text_tokenizer.encode(text)]
        for text in evaluation_config.sample_prompts[: evaluation_config.samples]
    ]
    rate = optimizer_lib.make_schedule(optimizer, num_steps, optimizer.learning_rate)

    def evaluate(state: dict, step: int) -> dict[str, float]:
        results, whole = {}, lora.join(state["params"], frozen)
        for name, loader in data_set.held_out.items():
            found = evaluation.loss_on(evaluator, whole, loader, devices, rules, data.eval_rows)
            results |= {f"eval/{name}/{key}": value for key, value in found.items()}
        if prompts:
            params = serving.on_one_device(whole)
            for text, answer in zip(
                evaluation_config.sample_prompts, answers.write(params, prompts)
            ):
                writer.write_sample(step, text, answer.text, answer.finish != "length", "pretrain")
        return results

    state = loop.fit(
        run_dir=run_dir,
        config=loop_config,
        state=state,
        step_function=step_function,
        batches=metrics_lib.examples_logged(
            data_set.train, start_step, run_dir, loop_config.log_examples, here
        ),
        place=lambda batch: state_lib.place_rows(batch, devices, rules, rows),
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
        extra=lambda step: (
            {"train/learning_rate": float(rate(step - 1))}
            | dataset_lib.share_metrics(data_set.train, step)
        ),
    )
    checkpointer.close()
    writer.close()
    return summary.write(
        run_dir,
        title="jinstr pretrain",
        facts=startup.describe(model, devices)
        | {
            "steps": num_steps,
            **meter.totals(),
            "wall_seconds": time.time() - started,
        },
        data=dataset_lib.table(data_set),
    )
