"""`jinstr prepare`: render and tokenise data ahead of training, and tell what was read and dropped."""

from __future__ import annotations

import dataclasses
import pathlib

from jinstr.data import dataset as dataset_lib
from jinstr.data import prepare as prepare_lib
from jinstr.data import prepared as prepared_lib
from jinstr.data import selection
from jinstr.data import sources as sources_lib


def prepare(
    *,
    data: dataset_lib.DataConfig,
    tokenizer: str,
    template: str,
    prepare_config: prepare_lib.PrepareConfig,
    heldout_list: str,
    seed: int,
) -> dict:
    """Make the prepared sets that training with the same settings reads, and pack them for its SEQ_LEN.

    heldout_list: file to write the held-out prompts (or other groups) to, one a line; EXCLUDE takes such a file. Where
    sets hold preferences or rankings they are prepared and not packed. Returns the manifests by source name.
    """
    sources = prepare_lib.expanded(dataset_lib.training_sources(data), prepare_config)
    held_out = prepare_lib.expanded(dataset_lib.held_out_sources(data), prepare_config)
    settings = dict(tokenizer_path=tokenizer, template=template, config=prepare_config)
    sets = prepare_lib.ensure_prepared(sources, **settings)
    held_out, held_out_sets = prepare_lib.ensure_held_out(held_out, **settings)
    manifests = {}
    for source, place in zip((*sources, *held_out), (*sets, *held_out_sets)):
        opened = prepared_lib.PreparedSet(place.path)
        name = f"{source.name} ({source.part})" if source.holdout else source.name
        manifests[name] = opened.manifest
        counts = opened.manifest["counts"]
        print(
            f"{name}: {opened.kind}, {counts['examples']:,} examples of {counts['read']:,} read, "
            f"{counts['targets']:,} tokens, {counts['utf8_bytes']:,} bytes"
        )
        for what in ("drops", "audit"):
            for reason, count in opened.manifest[what].items():
                print(f"    {what}: {reason}: {count:,}")
        for line in opened.manifest["bad_rows"]:
            print(f"    {line}")
        if counts["straddles"]:
            print(f"    pieces split where the answer begins: {counts['straddles']:,}")
        print(f"    {place.path}")
    if all(manifest["kind"] in ("lm", "chat") for manifest in manifests.values()):
        loaded = dataset_lib.load(
            data,
            tokenizer_path=tokenizer,
            template=template,
            prepare_config=prepare_config,
            seed=seed,
        )
        rows = dataset_lib.table(loaded)
        print(f"packed for SEQ_LEN={data.seq_len}:")
        for row in rows:
            print(f"    {row['name']}: {row['rows']:,} rows, fill {row['fill']:.4f}")
        steps = loaded.train.steps_per_epoch
        print(f"    one epoch is {steps:,.1f} steps of {data.batch_tokens:,} tokens")
    if heldout_list:
        groups = _held_out_groups(sources)
        pathlib.Path(heldout_list).write_text("".join(map(selection.list_line, groups)), "utf-8")
        print(f"{heldout_list}: {len(groups):,} held-out groups")
    return manifests


def _held_out_groups(sources: tuple[sources_lib.SourceConfig, ...]) -> list[str]:
    found = {}
    for source in sources:
        if source.holdout:
            whole = dataclasses.replace(source, part="all")
            found |= dict.fromkeys(sources_lib.heldout_groups(whole))
    return list(found)
