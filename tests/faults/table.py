"""All rows of the fault table, in order; each part of the product has a module of rows."""

import re

from tests.faults import (
    rows_checkpoint,
    rows_data,
    rows_gin,
    rows_hostile,
    rows_numbers,
    rows_replay,
    rows_rlhf,
    rows_secrets,
    rows_sets,
    rows_signals,
)

MODULES = (
    rows_checkpoint,
    rows_data,
    rows_gin,
    rows_hostile,
    rows_numbers,
    rows_replay,
    rows_rlhf,
    rows_secrets,
    rows_sets,
    rows_signals,
)
ROWS = sorted(
    [row for module in MODULES for row in module.ROWS],
    key=lambda row: (int(re.match(r"\d+", row.number)[0]), row.number),
)
