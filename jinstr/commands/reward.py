"""`jinstr reward`: a model that scores answers, trained on rankings or pairs that people made."""

from __future__ import annotations

import itertools
import pathlib
import time

import jax
import numpy as np

from jinstr import errors
from jinstr.data import audit, comparisons, encoding
from jinstr.data import dataset as dataset_lib
from jinstr.data import prepare as prepare_lib
from jinstr.data import sources as sources_lib
from jinstr.models import config as config_lib
from jinstr.models import lora
from jinstr.parallel import mesh as mesh_lib
from jinstr.parallel import processes, together
from jinstr.rlhf import reward_model
from jinstr.text import templates
from jinstr.text import tokenizer as tokenizer_lib
from jinstr.train import (
    adapters,
    comparing,
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

MOST_DEMONSTRATIONS = 1000  # whose mean score becomes 0


def reward(
    *,
    init: str,
    template: str,
    data: dataset_lib.DataConfig,
    demonstrations: str,
    ranking: comparing.RankingConfig,
    execution: config_lib.ExecutionConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    loop_config: loop.LoopConfig,
    checkpoint: checkpoint_lib.CheckpointConfig,
    prepare: prepare_lib.PrepareConfig,
    mesh: mesh_lib.MeshConfig,
    rules: mesh_lib.AxisRules,
    run_dir: str,
    seed: int,
) -> dict:
    """Train a score head (and the model below it) so that better answers score higher.

    init: the model to begin from, RUN_DIR[@step] or hf:…, usually of `jinstr sft`; its head is replaced by one that
    gives a number. demonstrations: answers by people, in any chat format, that score 0 on average in the end; "" takes
    the best answers of the training rankings. Returns the summary that is written to RUN_DIR/summary.json.
    """
    started = time.time()
    startup.use_compile_cache()
    run_dir = pathlib.Path(run_dir)
    base = startup.base_for(run_dir, init, "score")
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
        kinds=comparisons.KINDS,
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
    model_files.write(run_dir, model, base.tokenizer_path, template)
    adapters.write(run_dir, record)
    step_function = state_lib.make_step(
        model, optimizer, transform, devices, rules, abstract, loop_config.microbatches, frozen,
        comparing.ranking_objective(model, ranking, rules),
    )  # fmt: skip
    outputs = {"tensorboard": loop_config.tensorboard, "wandb": loop_config.wandb}
    writer = metrics_lib.MetricsWriter(run_dir, **outputs, start_step=start_step)
    meter = flops.Meter(model, before)
    rate = optimizer_lib.make_schedule(optimizer, num_steps, optimizer.learning_rate)
    score = jax.jit(lambda params, batch: comparing.scores(model, params, batch, rules))

    def evaluate(state: dict, step: int) -> dict[str, float]:
        params = lora.join(state["params"], frozen)
        return {
            f"eval/{name}/{key}": value
            for name, loader in data_set.held_out.items()
            for key, value in judged.accuracy(
                judged.judge(score, params, loader, devices, rules)
            ).items()
        }

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
        extra=lambda step: {"train/learning_rate": float(rate(step - 1))},
    )
    params = serving.on_one_device(lora.merge(model, lora.join(state["params"], frozen)))
    shown, ids = _demonstrations(demonstrations, data_set, data, tokenizer, chat_template)
    scores = reward_model.score_ids(lora.plain(model), params, ids, progress=True)
    shift = together.first_decides(
        "shift", lambda: reward_model.write_shift(run_dir, scores, shown)
    )
    print(
        f"jinstr: {shift['count']} demonstrations ({shown}) scored {shift['shift']:.3f} on average, now 0"
    )
    checkpointer.close()
    writer.close()
    return summary.write(
        run_dir,
        title="jinstr reward",
        facts=startup.describe(model, devices)
        | {
            "steps": num_steps,
            **meter.totals(),
            "wall_seconds": time.time() - started,
            "shift": shift["shift"],
            "spread": shift["spread"],
        },
        data=dataset_lib.table(data_set),
        previous=[base.folder] if base.is_run else [],
    )


def _demonstrations(
    given: str, data_set: dataset_lib.Dataset, data: dataset_lib.DataConfig, tokenizer, template
) -> tuple[str, list[np.ndarray]]:
    """(where they come from, token ids of each): the first ones of a source, or the best answers of the rankings."""
    found: list = []
    if given:
        for source in sources_lib.parse(given, module=data.module, tfds_dir=data.tfds_dir):
            if (kind := sources_lib.kind(source)) != "chat":
                raise errors.ConfigError(
                    "JI-REWARD-003",
                    f"DEMONSTRATIONS={given}: {source.name} holds {kind} records; give conversations",
                )
            for example in itertools.islice(sources_lib.read(source), MOST_DEMONSTRATIONS):
                encoded = encoding.encode_chat(source.name, example, tokenizer, template)
                found += [record.tokens for record in encoded.records]
        return given, found[:MOST_DEMONSTRATIONS]
    for row in range(data_set.train.num_rows):
        for record in data_set.train.read_records([row])[0]:
            found.append(record.answers[int(np.argmin(record.ranks))])
        if len(found) >= MOST_DEMONSTRATIONS:
            break
    return "the best answers of the rankings", found[:MOST_DEMONSTRATIONS]
