"""The ablation: switched off, a technique changes no loss; what is worth little is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ablation import gain, worthless
from benchmarks.harness.measured_steps import Bench
from benchmarks.harness.messages import Ablation, Job, Pair, Trial, Trialed
from benchmarks.harness.techniques import TECHNIQUES
from benchmarks.harness.workloads import WORKLOADS

CHECKOUT = Path(__file__).parents[2]
_TRIAL = Trial(without=None, first_batch=1, num_steps=1)


@pytest.fixture(scope="module")
def bench(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Load the tiny base and some rows of the demo, which begin alike."""
    folder = tmp_path_factory.mktemp("ablation")
    file = folder / "rows.jsonl"
    file.write_text(
        "".join(json.dumps(row) + "\n" for row in WORKLOADS["demo"].rows(None, "train")[:16])
    )
    return Bench(
        Job(
            base=tiny_base,
            dtype="float32",
            train=file,
            held_out=file,
            num_steps=2,
            batch_size=8,
            max_length=2048,
            learning_rate=1e-3,
            folder=folder,
        )
    )


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_without_a_technique_the_loss_is_the_same(technique: str, bench: Bench) -> None:
    """Each technique is in use on the demo's rows, and computes what is computed without it."""
    assert technique in bench.in_use()
    expected = bench.measure(_TRIAL)
    given = bench.measure(_TRIAL.model_copy(update={"without": technique}))
    assert given.losses == pytest.approx(expected.losses, rel=1e-5)
    assert given.peak_memory_mb > 0


def test_a_technique_is_worth_it_by_the_upper_end_of_one_gain() -> None:
    """A technique goes only if neither speed nor memory may gain 3 % anywhere."""

    def pair(seconds: float, peak: float) -> Pair:
        on = Trialed(seconds=1, num_rows=1, peak_memory_mb=100, losses=[])
        return Pair(on=on, off=on.model_copy(update={"seconds": seconds, "peak_memory_mb": peak}))

    found = [
        Ablation(workload="a", without="idle", pairs=[pair(1.01, 101), pair(0.99, 102)]),
        Ablation(workload="a", without="fast", pairs=[pair(1.00, 100), pair(1.04, 100)]),
        Ablation(workload="a", without="small", pairs=[]),
        Ablation(workload="b", without="small", pairs=[pair(0.9, 150)]),
    ]
    assert worthless(found) == ["idle"]


def test_a_gain_is_a_median_within_its_interval() -> None:
    """Equal ratios leave no doubt; others give an interval about their median."""
    assert gain([1.25, 1.25]).high == gain([1.25, 1.25]).low == 0.25
    found = gain([1.0, 1.1, 1.2, 1.3, 1.4])
    assert found.median == pytest.approx(0.2)
    assert 0 <= found.low < found.median < found.high <= 0.4


@pytest.mark.slow
def test_the_ablation_ends_with_a_table(tiny_base: Path, tmp_path: Path) -> None:
    """The program measures a technique in one process, and the kept shapes in two."""
    options = [f"--base={tiny_base}", "--dtype=float32", "--threads=1", f"--output={tmp_path}"]
    options += ["--workload=demo", "--pairs=1", "--steps=1"]
    options += [f"--without={name}" for name in ("chunked-loss", "kept-shapes")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ablation", *options],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    cells = {row[0].removeprefix("| "): row[1] for row in rows[1:]}
    assert set(cells) == {"chunked loss", "limits on kept shapes"}
    assert cells["chunked loss"].count("%") == cells["limits on kept shapes"].count("%") == 3
