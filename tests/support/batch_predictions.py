"""The task of batch inference on tiny models, for tests: its settings, its files and their rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.config import AdapterSettings, BaseModelSettings, PredictBatchConfig
from tasks.inference import predict_batch as task
from tasks.records import PredictionRecord

PROMPTS = [f"What is {'very ' * (number % 5)}question {number}?" for number in range(9)]


def base_settings(base: Path) -> BaseModelSettings:
    """Return the settings of a base in float32."""
    return BaseModelSettings.model_validate({"source": str(base), "dtype": "float32"})


class Predicting:
    """The task on tiny models, in a folder of the test's own."""

    def __init__(self, base: Path, adapters: dict[str, Path], folder: Path) -> None:
        self.base, self.adapters, self.folder = base, adapters, folder

    def __call__(self, source: Path, **changes: Any) -> PredictionRecord:  # noqa: ANN401
        """Answer a file's rows, in chunks of four."""
        given: dict[str, Any] = {
            "adapters": [AdapterSettings(name=n, source=str(f)) for n, f in self.adapters.items()],
            "base_model": base_settings(self.base),
            "input": str(source),
            "output": str(self.folder / f"answers{source.suffix}"),
            "max_new_tokens": 6,
            "batch_size": 3,
            "chunk_rows": 4,
        }
        return task.predict_batch.fn(PredictBatchConfig.model_validate(given | changes))


def jsonl(folder: Path, rows: Sequence[object]) -> Path:
    """Write rows; a text stands for itself."""
    file = folder / "rows.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_bytes("".join(line + "\n" for line in lines).encode(errors="surrogateescape"))
    return file


def routed() -> list[dict[str, object]]:
    """Return rows that go to the two adapters in turn."""
    return [{"n": n, "prompt": p, "adapter": "ab"[n % 2]} for n, p in enumerate(PROMPTS)]


def read(file: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]
