"""Loops of transformers that take minutes, shown as ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_gguf import gguf_base
from transformers import AutoModelForCausalLM, GgufConfig

from tasks.engine.base.upstream_progress import shown_as
from tasks.runtime.progress import Progress


class Seen(Progress):
    """Progress that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__("weight")
        self.total = 0

    def _show(self, total: int, note: str) -> None:  # noqa: ARG002 - the base class's
        self.total = total


def test_reading_a_gguf_file_is_counted_weight_by_weight(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both loops, the conversion's and the loading's, end at all of their weights; no bar is left.

    Reading without a display afterwards draws transformers' own again.
    """
    file = gguf_base(tiny_base, tmp_path / "base.gguf", "llama")
    opened: list[Seen] = []

    @contextmanager
    def show(_: str) -> Iterator[Progress]:
        opened.append(Seen())
        yield opened[-1]

    capfd.readouterr()
    given = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    with shown_as("weight", show):
        AutoModelForCausalLM.from_pretrained(tmp_path, **given)
    assert len(opened) == 2
    assert all(one.done == one.total > 5 for one in opened)
    assert "it/s" not in capfd.readouterr().err
    AutoModelForCausalLM.from_pretrained(tmp_path, **given)
    assert len(opened) == 2
