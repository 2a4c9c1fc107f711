"""The measurement of variants on a warm worker runs to its table and picture."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.slow
def test_variants_are_measured_by_their_parts(tiny_base: Path, tmp_path: Path) -> None:
    """Each tenant's adapter is trained, and the steps and the memory are told."""
    options = [f"--base={tiny_base}", "--variants=3", "--rows=10", f"--output={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.variants", *options],
        cwd=CHECKOUT,
        env={key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| train_adapter |" in done.stdout
    assert "3 variants. Beside its training a variant takes" in done.stdout
    assert (tmp_path / "variants.png").stat().st_size > 0
