"""All rows of the fault table, in order; each part of the product has a module of rows."""

from tests.faults import rows_data, rows_gin

ROWS = sorted(
    [*rows_data.ROWS, *rows_gin.ROWS], key=lambda row: (int(row.number.rstrip("abc")), row.number)
)
