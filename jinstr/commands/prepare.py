"""`jinstr prepare`: render and tokenise data ahead of training, and tell what was read and dropped.

On one machine, or beyond it: PART=i/N in the jobs of an array and then MERGE=True, or RUNNER= for Apache Beam. Each way
writes the same bytes (data/prepare_parts.py).
"""

from __future__ import annotations

import dataclasses
import pathlib

from jinstr import errors
from jinstr.data import comparisons, left_out, prepare_parts, selection
from jinstr.data import dataset as dataset_lib
from jinstr.data import loader as loader_lib
from jinstr.data import prepare as prepare_lib
from jinstr.data import prepared as prepared_lib
from jinstr.data import sources as sources_lib


def prepare(
    *,
    data: dataset_lib.DataConfig,
    tokenizer: str,
    template: str,
    prepare_config: prepare_lib.PrepareConfig,
    parts: prepare_parts.PartsConfig,
    heldout_list: str,
    seed: int,
) -> dict:
    """Make the prepared sets that training with the same settings reads, and pack them for its SEQ_LEN.

    heldout_list: file to write the held-out prompts (or other groups) to, one a line; EXCLUDE takes such a file. Where
    some sets are for training on text and others for comparing answers they are prepared and not packed. Returns the
    manifests by source name; {} after a part (PART=i/N), which is all that is made then.
    """
    if parts.part and heldout_list:
        raise errors.ConfigError(
            "JI-PARTS-010", "HELDOUT_LIST is written when parts are merged; leave it out with PART"
        )
    found = dataset_lib.prepare_sets(
        data,
        tokenizer_path=tokenizer,
        template=template,
        prepare_config=prepare_config,
        maker=prepare_parts.maker(parts),
    )
    if parts.part:
        for place in (*found.sets, *found.held_out_sets):
            if prepared_lib.is_prepared(place.path):
                print(f"{place.name}: is prepared already, no part of it is needed: {place.path}")
        return {}
    manifests = {}
    for source, place in zip(
        (*found.sources, *found.held_out_sources), (*found.sets, *found.held_out_sets)
    ):
        opened = prepared_lib.PreparedSet(place.path)
        name = f"{source.name} ({source.part})" if source.holdout else source.name
        manifests[name] = opened.manifest
        counts = opened.manifest["counts"]
        print(
            f"{name}: {opened.kind}, {counts['examples']:,} examples of {counts['read']:,} read, "
            f"{counts['targets']:,} tokens, {counts['utf8_bytes']:,} bytes"
        )
        for what in ("drops", "audit", "notes"):
            for reason, count in opened.manifest.get(what, {}).items():
                print(f"    {what}: {reason}: {count:,}")
        for line in opened.manifest["bad_rows"]:
            print(f"    {line}")
        if quarantine := opened.manifest.get("quarantine"):
            print(f"    all bad rows: {quarantine}")
        if counts["straddles"]:
            print(f"    pieces split where the answer begins: {counts['straddles']:,}")
        print(f"    {place.path}")
    kinds = {manifest["kind"] for manifest in manifests.values()}
    for packed_kinds in (loader_lib.TEXT, comparisons.KINDS, comparisons.LABELLED):
        if not kinds <= {*packed_kinds}:
            continue
        loaded = dataset_lib.pack(data, found, seed, packed_kinds)
        rows = dataset_lib.table(loaded)
        print(f"packed for SEQ_LEN={data.seq_len}:")
        for row in rows:
            long = row["drops"].get(left_out.LONG_ROW, 0)
            without = f", without {long:,} longer examples" if long else ""
            print(f"    {row['name']}: {row['rows']:,} rows, fill {row['fill']:.4f}{without}")
        steps = loaded.train.steps_per_epoch
        print(f"    one epoch is {steps:,.1f} steps of {data.batch_tokens:,} tokens")
    if heldout_list:
        groups = _held_out_groups(found.sources)
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
