"""All rows of the fault table, in order; each part of the product has a module of rows."""

from tests.faults import rows_gin, rows_replay

ROWS = sorted(
    [*rows_gin.ROWS, *rows_replay.ROWS], key=lambda row: (int(row.number.rstrip("abc")), row.number)
)
