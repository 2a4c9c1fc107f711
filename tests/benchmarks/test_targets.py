"""The comparison of targets: arms of equal size, and a table that a cut run continues."""

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks import starts
from benchmarks.harness.arms import Arm, as_table
from benchmarks.targets import EQUAL_PARAMETERS, equal_rank, main


def test_an_arm_of_equal_size_has_the_nearest_rank() -> None:
    """LoRA's parameters are proportional to its rank."""
    assert equal_rank(num_at_rank=1600, wanted=320, rank=16) == 3
    assert equal_rank(num_at_rank=1600, wanted=1, rank=16) == 1


def test_a_finished_training_is_not_repeated(tiny_base: Path, tmp_path: Path) -> None:
    """All arms are trained on one seed; a second call prints the same figures from their files."""
    given = ["--base", str(tiny_base), "--workload", "demo", "--rows", "8", "--held-out", "4"]
    command = [*given, "--seeds", "1", "--rank", "4", "--folder", str(tmp_path)]
    first = CliRunner().invoke(main, command, catch_exceptions=False)
    second = CliRunner().invoke(main, command, catch_exceptions=False)
    assert second.stdout == first.stdout
    assert EQUAL_PARAMETERS in first.stdout
    files = [json.loads(file.read_text()) for file in (tmp_path / "demo").glob("*.json")]
    assert len({one["num_trainable_parameters"] for one in files}) > 1


def test_the_table_has_mean_and_deviation() -> None:
    """Seeds are summarized by their mean and standard deviation."""
    one = Arm(
        workload="demo",
        arm="all linear",
        seed=0,
        r=16,
        num_trainable_parameters=1000,
        eval_loss=1.0,
        exact_match=0.5,
        seconds_training=10,
    )
    lines = list(as_table([one, one.model_copy(update={"seed": 1, "eval_loss": 3.0})]))
    assert "| 2.0000 ± 1.4142 | 50.0 ± 0.0 |" in lines[2]


def test_every_start_and_optimizer_is_an_arm(tiny_base: Path, tmp_path: Path) -> None:
    """Each is trained with the same rows, and is a line of the table."""
    given = ["--base", str(tiny_base), "--workload", "demo", "--rows", "8", "--held-out", "4"]
    command = [*given, "--seeds", "1", "--rank", "4", "--folder", str(tmp_path)]
    done = CliRunner().invoke(starts.main, command, catch_exceptions=False)
    assert [name for name in starts.ARMS if f"| demo, {name} |" not in done.stdout] == []
