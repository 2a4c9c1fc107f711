"""Prepare the base and the rows that all tools share: `… benchmarks.harness.prepare REQUEST.json`.

It is a process of its own, so that the one that starts the tools stays small.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.answering import answer, read_request
from benchmarks.harness.messages import Prepared, RowsRequest
from benchmarks.harness.rows import IGNORED, tokenized
from benchmarks.harness.workloads import COMPARED
from tasks.config import BaseModelSettings
from tasks.engine.base import find_base, load_tokenizer

if TYPE_CHECKING:
    from benchmarks.harness.workloads import Row


def prepare(request: RowsRequest) -> Prepared:
    """Find the base (a GGUF file is converted once) and write the rows.

    Raises:
        ValueError: the workload has fewer rows than requested.
    """
    settings = BaseModelSettings.model_validate({"source": request.base, "dtype": request.dtype})
    source = find_base(settings)
    tokenizer = load_tokenizer(source.location, source.revision)
    workload = COMPARED[request.workload]
    rows = workload.rows(request.data, "train")[: request.num_rows]
    if len(rows) < request.num_rows:
        raise ValueError(
            f"{request.workload} has {len(rows)} rows; {request.num_rows} are needed: take fewer "
            "steps"
        )
    held_out = workload.rows(request.data, "held-out")[: request.num_held_out]
    items = [tokenized(row, tokenizer, workload.max_length) for row in rows]
    return Prepared(
        base=Path(source.location),
        dtype=source.dtype,
        train=write_rows(rows, request.folder / "train.jsonl"),
        held_out=write_rows(held_out, request.folder / "held_out.jsonl"),
        tokens=[sum(len(one["input_ids"]) for one in row) for row in items],
        trained_tokens=[sum(x != IGNORED for one in row for x in one["labels"]) for row in items],
    )


def write_rows(rows: "list[Row]", file: Path) -> Path:
    """Write rows as JSONL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


if __name__ == "__main__":
    answer([prepare(read_request(RowsRequest))])
