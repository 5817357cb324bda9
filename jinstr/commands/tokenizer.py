"""`jinstr tokenizer`: a SentencePiece model from text, and how it compares."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import tqdm

from jinstr.data import bad_rows
from jinstr.data import sources as sources_lib
from jinstr.text import normalise as normalise_lib
from jinstr.text import train_tokenizer


def tokenizer(
    *,
    input: str | tuple[sources_lib.SourceConfig, ...],
    holdout: float,
    holdout_rule: str,
    group_by: str,
    module: str,
    tfds_dir: str,
    out: str,
    compare: str,
    base: str,
    config: train_tokenizer.TokenizerTrainingConfig,
    normalise: normalise_lib.NormaliseConfig,
) -> dict:
    """Train OUT.model on all text of the input (questions and answers too), and print what it does.

    holdout, holdout_rule, group_by: what pretraining keeps aside stays unseen here too. compare: other tokenizers,
    comma separated. base: a SentencePiece model that gets more Japanese pieces, up to the vocabulary's size, in place
    of a new one. Returns the report that is written to OUT.report.json.
    """
    sources = sources_lib.parse(
        input,
        holdout=holdout,
        holdout_rule=holdout_rule,
        group_by=group_by,
        module=module,
        tfds_dir=tfds_dir,
    )
    reports = {source.name: bad_rows.Report() for source in sources}
    texts = {source.name: _texts(source, reports[source.name]) for source in sources}
    others = [word.strip() for word in compare.split(",") if word.strip()]
    report = train_tokenizer.train(texts, out, config, normalise, others, base)
    for source, facts in report["sources"].items():
        print(f"{source}: " + ", ".join(f"{value:,} {name}" for name, value in facts.items()))
        for bad in reports[source].bad:
            print(f"    left out: {bad}")
    print(f"{'characters/token':>17} {'bytes':>7} {'failures':>9} {'vocabulary':>11}")
    for name, facts in report["tokenizers"].items():
        failures = facts["round_trip_failures"] + facts["round_trip_failures_random_unicode"]
        print(
            f"{facts['characters_per_token']:17.3f} {facts['byte_share']:7.2%} {failures:9} "
            f"{facts['vocab_size']:11,}  {name}"
        )
    if base:
        _print_gain(report, base)
    return report


def _print_gain(report: dict, base: str) -> None:
    """Characters per token of every source, before and after."""
    after, before = next(iter(report["tokenizers"].values())), report["tokenizers"][base]
    added = after["vocab_size"] - before["vocab_size"]
    print(
        f"{added:,} pieces added to {base}; the first {before['vocab_size']:,} ids are as they were"
    )
    asked = report["config"]["vocab_size"]
    if after["vocab_size"] < asked:
        print(f"jinstr: the text gave fewer pieces than VOCAB_SIZE={asked:,}; give more text")
    for source, facts in after["sources"].items():
        old, new = before["sources"][source]["characters_per_token"], facts["characters_per_token"]
        print(f"{source}: {old:.3f} → {new:.3f} characters/token ({new / old - 1:+.1%})")


def _texts(source: sources_lib.SourceConfig, read: bad_rows.Report) -> Iterator[str]:
    """Every text of a source, with a progress bar."""
    bar = tqdm.tqdm(desc=f"read {source.name}", unit="B", unit_scale=True, disable=None)
    with bar:
        for example in sources_lib.read(source, read):
            bar.update(sources_lib.size(example))
            if "text" in example:
                yield example["text"]
                continue
            beside = [example[name] for name in ("chosen", "rejected") if name in example]
            yield from itertools.chain(example["contents"], beside, example.get("responses", ()))
