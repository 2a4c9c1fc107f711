"""Kill the processes of a training outright, at any moment, and see that nothing is lost or left.

    make chaos-ranks

A training in two processes is killed by SIGKILL in turn in its first process, its second, and in
the process that started both, at moments drawn by the seed, and resumed each time. After three
kills it is let go to its end: its adapter has to be the undisturbed one's to the byte. After each
kill no process may be left, and the death of one of the two has to be told within 10 seconds.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from tasks.launching.work import Work
    from tasks.records import TrainedRecord

_VICTIMS = ("first process", "second process", "their parent")
_PARENT = _VICTIMS[2]
_SECONDS_TO_TELL = 10
_SPARE_RUNS = 10
"""More than the kills need, as some come too late."""
_PROGRAM = """
import sys
from pathlib import Path
from tasks.config import LaunchSettings
from tasks.launching import train_in_processes
from tasks.launching.work import Work

two = LaunchSettings(num_processes=2)

work = Work.model_validate_json(Path(sys.argv[1]).read_text())
def on_progress(now):
    print(now.step, flush=True)
train_in_processes(work.injected, work.data, work.settings, work.checkpoints, two, on_progress)
"""


@dataclass
class Tally:
    """What became of the kills of one process."""

    kills: int = 0
    resumed: int = 0
    identical: int = 0


def main() -> int:
    """Print a table; the exit status tells whether all went as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    from tiny_models import tiny_llama

    with tempfile.TemporaryDirectory() as folder:
        base = tiny_llama(Path(folder) / "base")
        result = RankChaos(base, Path(folder), options.seed).run(options.kills)
    print(table(result))  # noqa: T201
    return 1 if result["failures"] else 0


def table(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    steps = {name: tuple(tally.values()) for name, tally in result["victims"].items()}
    rows = [*steps.items(), ("all", [sum(column) for column in zip(*steps.values(), strict=True)])]
    return "\n".join(
        [
            "| killed | kills | resumed | adapter equal to the byte |",
            "|---|---|---|---|",
            *(f"| {name} | {' | '.join(map(str, numbers))} |" for name, numbers in rows),
            *result["failures"],
        ]
    )


class RankChaos:
    """Trainings of one configuration in two processes, killed and resumed."""

    def __init__(self, base: Path, folder: Path, seed: int) -> None:
        from engine_steps import injected, prepared, training

        from tasks.config import LoraSettings
        from tasks.launching.work import Work

        _, record = injected(base, folder, LoraSettings(r=4, lora_dropout=0.1))
        self._folder = folder
        self._work = Work(
            injected=record,
            data=prepared(record.lora.base, folder).record,
            # Each step ends in a checkpoint, so that kills fall into their writing, too.
            settings=training(max_steps=30, eval_steps=5, checkpoint_minutes=0),
            checkpoints=folder / "whole" / "checkpoints",
            max_eval_rows=None,
            size=2,
        )
        self._draw = random.Random(seed)  # noqa: S311 - moments, no secret
        self._tallies = {name: Tally() for name in _VICTIMS}
        self._failures: list[str] = []

    def run(self, kills: int) -> dict[str, Any]:
        """Kill so many times, each process equally often, and compare what came of it.

        A kill that came after the training's end does not count, and is tried again.
        """
        started = time.monotonic()
        whole = train(self._work)
        seconds = time.monotonic() - started
        each = -(-kills // len(_VICTIMS))
        for number in range(2 * each + _SPARE_RUNS):
            missing = [name for name in _VICTIMS if self._tallies[name].kills < each]
            if not missing:
                break
            checkpoints = self._folder / f"run-{number}" / "checkpoints"
            work = self._work.model_copy(update={"checkpoints": checkpoints})
            killed = [name for name in missing if self._killed(work, name, seconds)]
            last = train(work)
            is_same = last.weights.sha256 == whole.weights.sha256
            is_same &= last.loss_curve == whole.loss_curve
            if not is_same:
                self._failures.append(f"run {number}: another adapter or curve")
            for name in killed:
                self._tallies[name].kills += 1
                self._tallies[name].resumed += 1
                self._tallies[name].identical += is_same
        if any(tally.kills < each for tally in self._tallies.values()):
            self._failures.append("too few kills came in time")
        victims = {name: asdict(tally) for name, tally in self._tallies.items()}
        return {"victims": victims, "failures": self._failures}

    def _killed(self, work: "Work", victim: str, seconds: float) -> bool:
        """Work on a training, and kill a process of it; return whether that came in time."""
        delay = self._draw.uniform(0, seconds)
        kill = self._kill_parent if victim == _PARENT else self._kill_rank
        is_killed = kill(work, _VICTIMS.index(victim), delay)
        if left := psutil.wait_procs(ranks_in(work.checkpoints.parent), timeout=_SECONDS_TO_TELL)[
            1
        ]:
            self._failures.append(f"{victim} killed after {delay:.1f} s: {left} are left")
        return is_killed

    def _kill_rank(self, work: "Work", rank: int, delay: float) -> bool:
        from tasks.launching.launcher import DeadProcessError

        killed_at: list[float] = []

        def kill() -> None:
            time.sleep(delay)
            for one in ranks_in(work.checkpoints.parent):
                if one.cmdline()[-1] == str(rank):
                    killed_at.append(time.monotonic())
                    one.kill()

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            train(work)
        except DeadProcessError as error:
            seconds = time.monotonic() - killed_at[0]
            if f"rank {rank} of 2" not in str(error) or "SIGKILL" not in str(error):
                self._failures.append(f"rank {rank} was killed, but: {error}")
            if seconds > _SECONDS_TO_TELL:
                self._failures.append(f"the death of rank {rank} was told after {seconds:.0f} s")
            return True
        finally:
            thread.join()
        return False

    def _kill_parent(self, work: "Work", _: int, delay: float) -> bool:
        file = self._folder / "work.json"
        file.write_text(work.model_dump_json())
        parent = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(file)], stdout=subprocess.PIPE
        )
        assert parent.stdout
        parent.stdout.readline()  # from a first step on, as what it imports takes long
        time.sleep(min(delay, 1.0))
        parent.kill()
        return parent.wait() == -signal.SIGKILL


def train(work: "Work") -> "TrainedRecord":
    """Train in two processes, started by this one."""
    from tasks.config import LaunchSettings
    from tasks.launching import train_in_processes

    two = LaunchSettings(num_processes=2)
    return train_in_processes(
        work.injected, work.data, work.settings, work.checkpoints, two, lambda _: None
    ).trained


def ranks_in(folder: Path) -> list[psutil.Process]:
    """Return the processes of a group, whoever is their parent now, by the folder of their work."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        words = one.info["cmdline"] or []
        if "tasks.launching.rank" in words and str(folder) in " ".join(words):
            found.append(one)
    return found


if __name__ == "__main__":
    sys.exit(main())
