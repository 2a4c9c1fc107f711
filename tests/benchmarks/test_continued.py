"""The comparison of adapters in waves of new intents."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.continued import drawn, made_up

CHECKOUT = Path(__file__).parents[2]


def test_a_wave_has_intents_of_its_own(tmp_path: Path) -> None:
    """No intent is in two waves, and held-out rows are of the same intents; the seed draws them."""
    for name in ("train", "test"):
        lines = (f"{name} {n},intent_{n % 7}\n" for n in range(70))
        (tmp_path / f"{name}.csv").write_text("text,category\n" + "".join(lines))
    waves = drawn(tmp_path, 3, 2, 4, 3, 0)
    intents = [{row["output"] for row in wave.train} for wave in waves]
    assert [len(one) for one in intents] == [2, 2, 2]
    assert len(set.union(*intents)) == 6
    assert [{row["output"] for row in wave.held_out} for wave in waves] == intents
    assert [(len(wave.train), len(wave.held_out)) for wave in waves] == [(8, 6)] * 3
    assert waves == drawn(tmp_path, 3, 2, 4, 3, 0) != drawn(tmp_path, 3, 2, 4, 3, 1)
    assert len(made_up()) == 2


@pytest.mark.slow
def test_finished_trainings_are_kept(tiny_base: Path, tmp_path: Path) -> None:
    """All adapters of two waves are trained and compared; the same command again trains none."""
    options = ["--quick", f"--base={tiny_base}", "--epochs=1", f"--output={tmp_path}"]

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.continued", *options],
            cwd=CHECKOUT,
            env={key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run()
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/*.json")}
    assert {file.stem for file in kept} == {"1-fresh", "2-fresh", "2-continued", "2-replayed"}
    assert "| 2 | continued with replay | 14 |" in " ".join(said.split(" "))
    assert run() == said
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
