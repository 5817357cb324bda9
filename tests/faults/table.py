"""All rows of the fault table, in order; each part of the product has a module of rows."""

import re

from tests.faults import (
    rows_checkpoint,
    rows_data,
    rows_gin,
    rows_numbers,
    rows_secrets,
    rows_sets,
    rows_signals,
)

ROWS = sorted(
    [
        *rows_checkpoint.ROWS,
        *rows_data.ROWS,
        *rows_gin.ROWS,
        *rows_numbers.ROWS,
        *rows_secrets.ROWS,
        *rows_sets.ROWS,
        *rows_signals.ROWS,
    ],
    key=lambda row: (int(re.match(r"\d+", row.number)[0]), row.number),
)
