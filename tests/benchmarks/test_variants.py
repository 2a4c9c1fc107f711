"""The measurement of variants on a warm worker runs to its table and picture."""

from pathlib import Path

import pytest
from command_line_runs import run_program

from benchmarks.variants import main


@pytest.mark.slow
def test_variants_are_measured_by_their_parts(
    prefect_server: None, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each tenant's adapter is trained, and the steps and the memory are told."""
    options = [f"--base={tiny_base}", "--variants=3", "--rows=10", f"--output={tmp_path}"]
    out, _ = run_program(capsys, main, *options)
    assert "| train_adapter |" in out
    assert "3 variants. Beside its training a variant takes" in out
    assert (tmp_path / "variants.png").stat().st_size > 0
