"""What a run trains on and what is kept aside: `DATA=…` to a loader of batches and loaders of held-out sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from jinstr import errors
from jinstr.data import left_out, mixtures, packing, prepare, prepared
from jinstr.data import loader as loader_lib
from jinstr.data import sources as sources_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources, how they are split, and how rows become batches.

    The settings from `holdout` to `tfds_dir` hold for sources given as text; a SourceConfig in a .gin file says them
    for itself.
    """

    data: (
        str | tuple[sources_lib.SourceConfig, ...]
    )  # "[format:]path[*rate],task,tfds:name[:split],…"
    eval_data: str | tuple[sources_lib.SourceConfig, ...] = ""  # sets for evaluation only
    holdout: float = (
        0.0  # share of the prompts (or other groups) of every source kept for evaluation
    )
    holdout_rule: str = "hash"  # hash | greedy (few, unequal groups: exact in bytes)
    group_by: str = ""  # field that the split goes by, such as author; "" = prompt, or id of a text
    format: str = ""  # shape of the rows; "" = told by their keys
    fields: str = ""  # columns under other names: "instruction=質問,output=回答"
    on_bad: str = ""  # stop | skip; "" = skip for text, stop for people's data
    most_bad: float = 0.001  # share of the rows that may be bad and left out; more of them stop
    answers: str = "all"  # several to one question: all (weight 1/n) | rotate | first
    exclude: str = ""  # file of ids or prompts, one a line, that are left out everywhere
    module: str = ""  # your own module: it registers tasks
    tfds_dir: str = ""  # folder of TFDS sets; "" = ~/tensorflow_datasets
    seq_len: int = 512  # places in a row T
    batch_tokens: int = 4096  # places in a batch, over all devices: rows = batch_tokens / seq_len
    rate_unit: str = "passes"  # what *rate counts: passes over the source | tokens | examples
    eval_rows: int = 0  # rows of each held-out set that are evaluated; 0 = all


class Dataset(NamedTuple):
    """Loaders of one run."""

    train: loader_lib.Loader
    held_out: dict[str, loader_lib.Loader]  # by the name of the set
    sources: tuple[sources_lib.SourceConfig, ...]
    sets: tuple[prepared.PreparedSource, ...]  # of the sources, in order


def batch_rows(config: DataConfig) -> int:
    """Rows of a batch. Errors: ConfigError when batch_tokens is not a multiple of seq_len."""
    rows, rest = divmod(config.batch_tokens, config.seq_len)
    if rest or not rows:
        raise errors.ConfigError(
            "JI-DATA-001",
            f"BATCH_TOKENS={config.batch_tokens} is not a multiple of SEQ_LEN={config.seq_len}; "
            f"take {max(1, rows) * config.seq_len}",
        )
    return rows


def training_sources(config: DataConfig) -> tuple[sources_lib.SourceConfig, ...]:
    """The sources that are trained on, without their held-out parts."""
    return sources_lib.parse(config.data, **_common(config))


def held_out_sources(config: DataConfig) -> tuple[sources_lib.SourceConfig, ...]:
    """The held-out parts of the training sources, and the sources for evaluation only."""
    parts = [
        dataclasses.replace(source, part="heldout", rate=1.0)
        for source in training_sources(config)
        if source.holdout
    ]
    if config.eval_data:
        whole = _common(config) | {"holdout": 0.0}
        parts += sources_lib.parse(config.eval_data, **whole)
    return tuple(parts)


def _common(config: DataConfig) -> dict:
    names = (
        "holdout",
        "holdout_rule",
        "group_by",
        "format",
        "fields",
        "on_bad",
        "most_bad",
        "answers",
        "exclude",
    )
    return {name: getattr(config, name) for name in (*names, "module", "tfds_dir")}


class Sets(NamedTuple):
    """Prepared sets of one run, before they are packed."""

    sources: tuple[sources_lib.SourceConfig, ...]
    sets: tuple[prepared.PreparedSource, ...]  # of the sources, in order
    held_out_sources: tuple[sources_lib.SourceConfig, ...]
    held_out_sets: tuple[prepared.PreparedSource, ...]


def prepare_sets(
    config: DataConfig,
    *,
    tokenizer_path: str,
    template: str,
    prepare_config: prepare.PrepareConfig,
    may_prepare: bool = True,
    maker: prepare.Maker | None = None,
) -> Sets:
    """Prepare what is missing. maker: see prepare.ensure_prepared. Errors: those of preparing."""
    settings = dict(
        tokenizer_path=tokenizer_path,
        template=template,
        config=prepare_config,
        may_prepare=may_prepare,
        maker=maker,
    )
    sources = prepare.expanded(training_sources(config), prepare_config)
    sets = prepare.ensure_prepared(sources, **settings)
    held_out = prepare.expanded(held_out_sources(config), prepare_config)
    return Sets(sources, sets, *prepare.ensure_held_out(held_out, **settings))


def pack(
    config: DataConfig, found: Sets, seed: int, kinds: Sequence[str] = loader_lib.TEXT
) -> Dataset:
    """Open prepared sets, of these kinds, as loaders. Errors: ConfigError for a batch that does not divide."""
    loader_config = loader_lib.LoaderConfig(
        seq_len=config.seq_len, batch_rows=batch_rows(config), seed=seed, rate_unit=config.rate_unit
    )
    sets = mixtures.with_rates(found.sources, found.sets, loader_config, kinds)
    train = loader_lib.Loader(sets, loader_config, kinds)
    loaders = {}
    for source, place in zip(found.held_out_sources, found.held_out_sets):
        name = place.name
        while name in loaders:
            name += "+"
        try:
            loaders[name] = loader_lib.Loader((place,), loader_config, kinds)
        except errors.DataError as error:
            if source.part != "heldout" or error.code != loader_lib.NO_ROWS:
                raise
            print(
                f"{name}: its held-out part is not evaluated, for no example of it fits a row ({error.message}). "
                "Training goes on; to evaluate, raise SEQ_LEN or HOLDOUT"
            )
    return Dataset(train, loaders, found.sources, sets)


def load(
    config: DataConfig,
    *,
    seed: int,
    may_prepare: bool = True,
    kinds: Sequence[str] = loader_lib.TEXT,
    **settings,
) -> Dataset:
    """Prepare what is missing, tell what was left out, and open it.

    kinds: of records, those of text or those of comparisons. settings: tokenizer_path, template, prepare_config.
    Errors: those of preparing; ConfigError for a batch that does not divide.
    """
    batch_rows(config)
    found = prepare_sets(config, may_prepare=may_prepare, **settings)
    data = pack(config, found, seed, kinds)
    for line in what_was_left_out(found, config.seq_len):
        print(line)
    return data


def what_was_left_out(found: Sets, seq_len: int) -> list[str]:
    """One line for each set of which something was left out or looks odd, counted by rule."""
    lines = []
    for place in (*found.sets, *found.held_out_sets):
        opened = prepared.PreparedSet(place.path)
        index = packing.load(opened.path, seq_len)
        line = left_out.line(place.name, opened.manifest, index.dropped if index else 0)
        lines += [line] if line else []
    return lines


def share_metrics(loader: loader_lib.Loader, step: int) -> dict[str, float]:
    """Asked and realised share of every source of a mixture in the first `step` steps, and the passes over it."""
    shares = loader.shares(step)
    if len(shares) < 2:
        return {}
    return {
        f"data/{name}/{key}": value
        for name, facts in shares.items()
        for key, value in facts.items()
    }


def table(data: Dataset) -> list[dict]:
    """One row for each source, for reports and model cards: what was read, dropped and packed, and its licence."""
    rows = []
    for source, place in zip(data.sources, data.sets):
        opened = prepared.PreparedSet(place.path)
        manifest, index = opened.manifest, packing.load(opened.path, data.train.config.seq_len)
        long = {left_out.LONG_ROW: index.dropped} if index.dropped else {}
        if source.path and prepared.is_prepared(source.path):  # given so: it knows its origin
            source = sources_lib.with_terms(source, manifest.get("source", {}))
        rows.append(
            {
                "name": source.name,
                "kind": opened.kind,
                "examples": manifest["counts"]["examples"],
                "tokens": manifest["counts"]["targets"],
                "utf8_bytes": manifest["counts"]["utf8_bytes"],
                "straddles": manifest["counts"]["straddles"],
                "rows": index.num_rows,
                "fill": index.fill,
                "rate": place.rate,
                "drops": manifest["drops"] | long,
                "audit": manifest["audit"],
            }
            | {name: getattr(source, name) for name in sources_lib.TERMS}
        )
    return rows
