"""All rows of the fault table, in order; each part of the product has a module of rows."""

from tests.faults import (
    rows_gin,
    rows_hostile,
    rows_secrets,
)

MODULES = (
    rows_gin,
    rows_hostile,
    rows_secrets,
)
ROWS = sorted(
    [row for module in MODULES for row in module.ROWS],
    key=lambda row: (int(row.number.rstrip("abc")), row.number),
)
