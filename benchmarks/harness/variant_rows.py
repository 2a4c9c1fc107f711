"""Rows of many tenants, for the measurements of sets of variants."""

import json
from pathlib import Path


def tenant_rows(file: Path, num_tenants: int, rows_each: int = 40) -> Path:
    """Write rows that the tenants have in turns, and return the file."""
    rows = (
        {
            "tenant": tenant(number % num_tenants),
            "prompt": f"What is {number} plus {number}?",
            "completion": str(2 * number),
        }
        for number in range(num_tenants * rows_each)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def tenant(number: int) -> str:
    """Return a tenant's name, which a folder can't have as it is."""
    return f"tenant {number}"
