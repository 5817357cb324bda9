"""`jinstr quickstart`: the whole chain on the built-in data, in minutes on two CPU cores."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

import jinstr
from jinstr import record
from jinstr.commands import pretrain as pretrain_lib
from jinstr.commands import sft as sft_lib
from jinstr.commands import tokenizer as tokenizer_lib
from jinstr.data import dataset as dataset_lib
from jinstr.data import prepare as prepare_lib
from jinstr.data import sources as sources_lib
from jinstr.models import config as config_lib
from jinstr.parallel import mesh as mesh_lib
from jinstr.samples import build
from jinstr.text import normalise as normalise_lib
from jinstr.text import train_tokenizer
from jinstr.train import checkpoint as checkpoint_lib
from jinstr.train import evaluation, loop, stopping
from jinstr.train import optimizer as optimizer_lib


def quickstart(
    *,
    folder: str,
    corpus_bytes: int,
    vocab_size: int,
    model: config_lib.DecoderConfig,
    pretrain_steps: int,
    sft_steps: int,
    batch_tokens: int,
    seed: int,
) -> dict:
    """Data → tokenizer → pretraining → instruction tuning → answers and a report, all under `folder`.

    The same functions as the commands of these names. Started again it goes on where it stopped. Returns the summary
    of the instruction tuning.
    """
    started = time.time()
    place = pathlib.Path(folder)
    data = place / "data"
    print(f"[1/4] データ / data: a small invented world, written to {data}")
    build.write(data, num_bytes=corpus_bytes, seed=seed)

    print("[2/4] トークナイザー / tokenizer")
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
        print("[3/4] 事前学習 / pretraining")
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

        print("[4/4] 指示チューニング / instruction tuning")
        tasks = ",".join(f"{name}={data}/eval_{name}.jsonl" for name in build.EVALUATIONS)
        summary = _run(
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
    _tell(summary, place, time.time() - started)
    return summary


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


def _tell(summary: dict, place: pathlib.Path, seconds: float) -> None:
    """The end of the quickstart: what was reached and what to do next."""
    names = {
        "facts": "習っていない事実 / facts never asked in training",
        "paraphrases": "習っていない聞き方 / ways of asking never seen",
        "sums": "習っていない足し算 / sums never seen",
    }
    print(f"\n{'正答率 / accuracy':<40} before   after  chance")
    for name, facts in summary["accuracy"].items():
        shares = f"{facts['base']:7.1%} {facts['tuned']:7.1%} {facts['chance']:7.1%}"
        print(f"  {names[name]} ({facts['count']})\n{'':<40}{shares}")
    print(f"\n{seconds / 60:.1f} 分 / minutes. 次に / next:")
    print(f"  {place}/sft/report.html をブラウザで開く / open it in a browser")
    print(f"  jinstr chat RUN_DIR={place}/sft   対話する / talk to the model")
