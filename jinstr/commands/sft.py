"""`jinstr sft`: instruction tuning of a pretrained model on questions and answers."""

from __future__ import annotations

import pathlib
import time

from jinstr.data import audit
from jinstr.data import dataset as dataset_lib
from jinstr.data import prepare as prepare_lib
from jinstr.data.eval_tasks import questions as questions_lib
from jinstr.models import config as config_lib
from jinstr.models import lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import processes
from jinstr.text import templates
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


def sft(
    *,
    init: str,
    template: str,
    data: dataset_lib.DataConfig,
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
    """Train on the answers (and their end tokens) of conversations; text sources are trained on as a whole.

    init: the model to tune, RUN_DIR[@step] or hf:FOLDER or hf:org/name[@revision]; its shape and tokenizer are kept.
    template: how conversations are written ("" = as `init` was trained, else chatml). Returns the summary that is
    written to RUN_DIR/summary.json, with the accuracy on every task before and after.
    """
    started = time.time()
    startup.use_compile_cache()
    run_dir = pathlib.Path(run_dir)
    base = startup.base_for(run_dir, init)
    model = startup.with_adapters(run_dir, config_lib.executed(base.config, execution))
    tokenizer_path = base.tokenizer_path
    tokenizer = tokenizer_lib.load(tokenizer_path)
    template = template or base.template or "chatml"
    chat_template = templates.load(template, tokenizer)
    data_set = dataset_lib.load(
        data,
        tokenizer_path=tokenizer_path,
        template=template,
        prepare_config=prepare,
        seed=seed,
        may_prepare=processes.count() == 1,
    )
    tasks = questions_lib.parse(evaluation_config.tasks, data.module, evaluation_config.questions)
    num_steps = loop.planned_steps(loop_config, data_set.train.steps_per_epoch)

    audit.check_batch(
        data_set.train.read(0),
        tokenizer,
        stop_ids=chat_template.stop_ids,
        names=data_set.train.example_ids(0),
    )

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
    model_files.write(run_dir, model, tokenizer_path, template)
    adapters.write(run_dir, record)
    step_function = state_lib.make_step(
        model, optimizer, transform, devices, rules, abstract, loop_config.microbatches, frozen
    )
    outputs = {"tensorboard": loop_config.tensorboard, "wandb": loop_config.wandb}
    writer = metrics_lib.MetricsWriter(run_dir, **outputs, start_step=start_step)
    meter = flops.Meter(model, before)
    evaluator = state_lib.make_evaluator(model, devices, rules)
    answers = evaluation.Answers(model, tokenizer, chat_template, evaluation_config)
    rate = optimizer_lib.make_schedule(optimizer, num_steps, optimizer.learning_rate)

    def evaluate(state: dict, step: int) -> dict[str, float]:
        results, whole = {}, lora.join(state["params"], frozen)
        # Only for those who ask: with several devices it is one more copy.
        params = serving.on_one_device(whole) if tasks or evaluation_config.samples else None
        for name, loader in data_set.held_out.items():
            found = evaluation.loss_on(evaluator, whole, loader, devices, rules, data.eval_rows)
            if loader.is_chat and evaluation_config.samples:
                prompts = evaluation.chat_prompts(loader, evaluation_config.samples)
                written = answers.write(params, prompts)
                found["ended"] = metrics_lib.write_samples(
                    writer, step, name, tokenizer, prompts, written
                )
            results |= {f"eval/{name}/{key}": value for key, value in found.items()}
        for task in tasks:
            if task.chooses:
                found = evaluation.choose(
                    model, params, tokenizer, chat_template, task, evaluation_config.batch_rows
                )
            else:
                found = answers.score(params, task)
            results |= {f"eval/{task.name}/{key}": value for key, value in found.items()}
        return results

    if start_step == 0:
        print("jinstr: evaluating the model before tuning, to compare with", flush=True)
        writer.write(0, evaluate(state, 0))
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
        title="jinstr sft",
        facts=startup.describe(model, devices)
        | {
            "steps": num_steps,
            **meter.totals(),
            "wall_seconds": time.time() - started,
            "accuracy": summary.before_and_after(run_dir, tasks),
        },
        data=dataset_lib.table(data_set),
        previous=[base.folder] if base.is_run else [],
    )
