"""`jinstr quickstart`: the whole chain on the built-in data, in minutes on two CPU cores."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

import jinstr
from jinstr import record
from jinstr.commands import ppo as ppo_lib
from jinstr.commands import pretrain as pretrain_lib
from jinstr.commands import reward as reward_lib
from jinstr.commands import sft as sft_lib
from jinstr.commands import tokenizer as tokenizer_lib
from jinstr.data import dataset as dataset_lib
from jinstr.data import prepare as prepare_lib
from jinstr.data import sources as sources_lib
from jinstr.data.eval_tasks import questions as questions_lib
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.rlhf import objectives, practice, recorder, rewards
from jinstr.rlhf import prompts as prompts_lib
from jinstr.rlhf import rollout as rollout_lib
from jinstr.samples import build
from jinstr.text import normalise as normalise_lib
from jinstr.text import train_tokenizer
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import comparing, evaluation, loop, serving, stopping
from jinstr.train import optimizer as optimizer_lib


def quickstart(
    *,
    folder: str,
    corpus_bytes: int,
    vocab_size: int,
    model: config_lib.DecoderConfig,
    pretrain_steps: int,
    sft_steps: int,
    reward_epochs: float,
    ppo_iterations: int,
    batch_tokens: int,
    seed: int,
) -> dict:
    """Data → tokenizer → pretraining → instruction tuning → reward model → PPO, with reports, all under `folder`.

    The same functions as the commands of these names. Started again it goes on where it stopped. reward_epochs = 0 or
    ppo_iterations = 0 ends with the instruction tuning. Returns the accuracies that are told at the end.
    """
    started = time.time()
    place = pathlib.Path(folder)
    data = place / "data"
    print(f"[1/6] データ / data: a small invented world, written to {data}")
    build.write(data, num_bytes=corpus_bytes, seed=seed)

    print("[2/6] トークナイザー / tokenizer")
    if not (place / "tokenizer.report.json").is_file():
        tokenizer_lib.tokenizer(
            input=f"{data}/corpus.jsonl,{data}/instructions.jsonl",
            holdout=0.0,
            holdout_rule="hash",
            group_by="",
            module="",
            tfds_dir="",
            out=str(place / "tokenizer"),
            compare="",
            base="",
            config=train_tokenizer.TokenizerTrainingConfig(vocab_size=vocab_size, seed=seed),
            normalise=normalise_lib.NormaliseConfig(),
        )

    common = dict(
        mesh=mesh_lib.MeshConfig(),
        rules=mesh_lib.AxisRules(),
        prepare=prepare_lib.PrepareConfig(cache_dir=str(place / "prepared"), audit="stop"),
        seed=seed,
    )
    with stopping.running(place, writes=True):
        print("[3/6] 事前学習 / pretraining")
        _run(
            pretrain_lib.pretrain,
            data=dataset_lib.DataConfig(
                data=_built_in(f"{data}/corpus.jsonl", holdout=0.02),
                seq_len=256,
                batch_tokens=batch_tokens,
            ),
            tokenizer=str(place / "tokenizer.model"),
            model=model,
            optimizer=optimizer_lib.OptimizerConfig(
                name="muon",
                learning_rate=5e-3,
                muon_learning_rate=0.02,
                schedule="wsd",
                warmup_steps=30,
                decay_share=0.4,
                final_share=0.02,
            ),
            loop_config=loop.LoopConfig(num_steps=pretrain_steps, log_every=20, eval_every=200),
            evaluation_config=evaluation.EvaluationConfig(
                samples=3,
                sample_prompts=("灯ヶ浦は", "渚木サヨは", "春になると、"),
                max_new_tokens=64,
            ),
            checkpoint=checkpoint_lib.CheckpointConfig(every_steps=200),
            run_dir=str(place / "base"),
            init="",
            **common,
        )

        print("[4/6] 指示チューニング / instruction tuning")
        tasks = ",".join(f"{name}={data}/eval_{name}.jsonl" for name in build.EVALUATIONS)
        _run(
            sft_lib.sft,
            init=str(place / "base"),
            template="chatml",
            data=dataset_lib.DataConfig(
                # A tenth of the text again: facts that no question asks about would fade.
                data=_built_in(
                    f"{data}/instructions.jsonl,{data}/conversations.jsonl,{data}/corpus.jsonl*0.1",
                    holdout=0.05,
                ),
                seq_len=512,
                batch_tokens=batch_tokens,
            ),
            execution=config_lib.ExecutionConfig(scan_layers=model.scan_layers),
            optimizer=optimizer_lib.OptimizerConfig(
                name="muon",
                learning_rate=2e-3,
                muon_learning_rate=0.005,
                warmup_steps=20,
                weight_decay=0.0,
            ),
            loop_config=loop.LoopConfig(num_steps=sft_steps, log_every=20, eval_every=0),
            evaluation_config=evaluation.EvaluationConfig(
                tasks=tasks, samples=8, max_new_tokens=48, batch_rows=32
            ),
            checkpoint=checkpoint_lib.CheckpointConfig(every_steps=200),
            run_dir=str(place / "sft"),
            **common,
        )
        if reward_epochs and ppo_iterations:
            _practise(place, data, model, reward_epochs, ppo_iterations, batch_tokens, common)
    accuracy = _accuracies(place, tasks)
    _tell(accuracy, place, time.time() - started)
    return accuracy


def _practise(
    place: pathlib.Path,
    data: pathlib.Path,
    model: config_lib.DecoderConfig,
    reward_epochs: float,
    ppo_iterations: int,
    batch_tokens: int,
    common: dict,
) -> None:
    """The last two stages, as in InstructGPT: a model of what people prefer, and practice under its eyes."""
    execution = config_lib.ExecutionConfig(scan_layers=model.scan_layers)
    print("[5/6] 報酬モデル / reward model")
    _run(
        reward_lib.reward,
        init=str(place / "sft"),
        template="",
        data=dataset_lib.DataConfig(
            data=_built_in(f"{data}/rankings.jsonl", holdout=0.1),
            seq_len=256,
            batch_tokens=batch_tokens // 2,
        ),
        demonstrations="",
        ranking=comparing.RankingConfig(),
        execution=execution,
        optimizer=optimizer_lib.OptimizerConfig(
            learning_rate=5e-4, warmup_steps=5, weight_decay=0.0
        ),
        loop_config=loop.LoopConfig(epochs=reward_epochs, log_every=10, eval_every=0),
        checkpoint=checkpoint_lib.CheckpointConfig(every_steps=200),
        run_dir=str(place / "reward"),
        **common,
    )

    print("[6/6] 報酬による調整 / tuning by the reward (PPO)")
    _run(
        ppo_lib.ppo,
        init=str(place / "sft"),
        template="",
        questions=prompts_lib.PromptConfig(prompts=f"{data}/practice.jsonl", holdout=0.05),
        # A little text beside every update, or what nobody asks about would fade.
        text=dataset_lib.DataConfig(
            data=_built_in(f"{data}/corpus.jsonl", holdout=0.02),
            seq_len=256,
            batch_tokens=batch_tokens // 4,
        ),
        reward=rewards.RewardConfig(reward=str(place / "reward")),
        rollout=rollout_lib.RolloutConfig(max_new_tokens=32),
        algorithm=ppo_lib.PpoConfig(text_coefficient=0.2),
        loss=objectives.PolicyLossConfig(),
        value_loss=objectives.ValueLossConfig(),
        config=practice.PracticeConfig(
            iterations=ppo_iterations,
            prompts=128,
            epochs=2,
            minibatches=2,
            kl_reward=0.1,
            missing_end_value=1.0,
            score_limit=10.0,
            eval_every=0,
            eval_prompts=54,
        ),
        limits=recorder.LimitConfig(samples=8),
        optimizer=optimizer_lib.OptimizerConfig(
            learning_rate=5e-5, schedule="cosine", warmup_steps=5, weight_decay=0.0
        ),
        critic_optimizer=optimizer_lib.OptimizerConfig(),
        execution=execution,
        checkpoint=checkpoint_lib.CheckpointConfig(every_steps=20),
        run_dir=str(place / "ppo"),
        module="",
        tensorboard=True,
        wandb="",
        **common,
    )


def _accuracies(place: pathlib.Path, words: str) -> dict[str, dict]:
    """What each stage answers to questions whose answers are known, greedily: count, chance, and a share by stage."""
    tasks = questions_lib.parse(words, "", 0)
    found = {
        task.name: {"count": len(task.questions), "chance": task.chance, "right": {}}
        for task in tasks
    }
    for stage in ("base", "sft", "ppo"):
        if not (place / stage / "summary.json").is_file():
            continue
        run = serving.load_run(place / stage, template="chatml")
        config = evaluation.EvaluationConfig(max_new_tokens=48, batch_rows=32)
        answers = evaluation.Answers(run.config, run.tokenizer, run.template, config)
        for task in tasks:
            score = answers.score(run.params, task)
            found[task.name]["right"][stage] = score["accuracy"]
    return found


def _run(entry: Callable[..., dict], **settings) -> dict:
    """Call the entry function of a command, with its settings on record for `jinstr resume` and `jinstr replay`."""
    told = "# made by jinstr quickstart; every setting stands in config.json\n"
    facts = record.of(entry.__name__, jinstr.__version__, settings)
    record.write(pathlib.Path(settings["run_dir"]), facts, told, told)
    return entry(**settings)


def _built_in(data: str, holdout: float) -> tuple[sources_lib.SourceConfig, ...]:
    """Sources of the built-in data, with what the report says of their origin."""
    return sources_lib.parse(
        data,
        holdout=holdout,
        licence="Apache-2.0",
        provenance="jinstr",
        commercial=True,
        redistributable=True,
    )


def _tell(accuracy: dict[str, dict], place: pathlib.Path, seconds: float) -> None:
    """The end of the quickstart: what was reached and what to do next."""
    names = {
        "facts": "習っていない事実 / facts never asked in training",
        "paraphrases": "習っていない聞き方 / ways of asking never seen",
        "sums": "習っていない足し算 / sums never seen",
    }
    stages = list(next(iter(accuracy.values()))["right"])
    print(f"\n{'正答率 / accuracy':<40}" + "".join(f"{name:>8}" for name in (*stages, "chance")))
    for name, facts in accuracy.items():
        shares = [*facts["right"].values(), facts["chance"]]
        told = "".join(f"{share:8.1%}" for share in shares)
        print(f"  {names[name]} ({facts['count']})\n{'':<45}{told}")
    print(f"\n{seconds / 60:.1f} 分 / minutes. 次に / next:")
    for stage in stages[1:]:
        print(f"  {place}/{stage}/report.html をブラウザで開く / open it in a browser")
    print(f"  jinstr chat RUN_DIR={place}/{stages[-1]}   対話する / talk to the model")
