"""Kill training runs outright, at any moment of any step, and see that nothing is lost.

    make chaos

Each run of the flow, on a tiny base, is killed by SIGKILL once in each step, at a moment drawn by
the seed, resumed each time, and let go to its end. Its adapter has to be the undisturbed run's to
the byte, no completed step may run twice, and MLflow has to show one finished run with the whole
curve. The Prefect server, the MLflow store and the kills are real; a run is a fork of this process,
which has imported everything already and otherwise does nothing.
"""

import argparse
import gc
import importlib
import json
import os
import random
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos_attempt import Attempt, attempt

if TYPE_CHECKING:
    from tasks.config import TrainAdapterConfig


_TRAINING = (
    "load_base_model",
    "configure_lora",
    "inject_adapter",
    "train_adapter",
    "save_adapter",
    "load_adapter",
)
_RETRAINING = (
    "check_retraining",
    *_TRAINING,
    "register_adapter",
    "evaluate_adapter",
    "decide_promotion",
    "promote_adapter",
    "publish_comparison",
)


# Runs in a row with no kill in any of the steps that still need one.
_FRUITLESS_RUNS = 10


@dataclass
class Tally:
    """What became of the kills in one step."""

    kills: int = 0
    resumed: int = 0
    identical: int = 0


def main() -> int:
    """Print a table; the exit status tells whether all went as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retraining", action="store_true", help="retrain, with its own steps")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = Chaos(Path(folder), options.seed, retraining=options.retraining).run(options.kills)
    print(json.dumps(result) if options.json else table(result))  # noqa: T201
    return 1 if result["failures"] else 0


def table(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    steps = {name: tuple(tally.values()) for name, tally in result["steps"].items()}
    total = [sum(column) for column in zip(*steps.values(), strict=True)]
    rows = [*steps.items(), ("all", total)]
    said = (
        f"{result['runs']} runs; completed steps that ran twice: {result['ran_twice']}; "
        f"MLflow runs with the whole record, once: {result['recorded']}"
    )
    return "\n".join(
        [
            "| killed in | kills | resumed | adapter equal to the byte |",
            "|---|---|---|---|",
            *(f"| {name} | {' | '.join(map(str, numbers))} |" for name, numbers in rows),
            "",
            said,
            *result["failures"],
        ]
    )


class Chaos:
    """Runs of one configuration, killed and resumed."""

    def __init__(self, folder: Path, seed: int, *, retraining: bool) -> None:
        os.environ["ADAPTERFLOW_HOME"] = str(folder / "home")
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.pop("PREFECT_API_URL", None)
        from flows.server.servers import use_prefect_server

        server = use_prefect_server()
        assert server
        self.config = _retraining(folder) if retraining else _training(folder)
        server.wait()
        self.draw = random.Random(seed)  # noqa: S311 - moments, no secret
        self.tallies = {name: Tally() for name in (_RETRAINING if retraining else _TRAINING)}
        self.ran_twice = self.recorded = self.runs = 0
        self.failures: list[str] = []

    def run(self, kills: int) -> dict[str, Any]:
        """Kill so many times, in each step equally often."""
        whole = attempt(self._fresh(), "")
        assert whole.result, whole.error
        for name in whole.imported:
            with suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()
        per_step = -(-kills // len(self.tallies))
        fruitless = 0
        while targets := [n for n, tally in self.tallies.items() if tally.kills < per_step]:
            killed = self._run_once(whole, targets)
            fruitless = 0 if killed.intersection(targets) else fruitless + 1
            if fruitless == _FRUITLESS_RUNS:
                self.failures.append(f"no kill fell into {', '.join(targets)}")
                break
        return {
            "steps": {name: asdict(tally) for name, tally in self.tallies.items()},
            "runs": self.runs,
            "ran_twice": self.ran_twice,
            "recorded": self.recorded,
            "failures": self.failures,
        }

    def _run_once(self, whole: Attempt, targets: list[str]) -> set[str]:
        """Kill a run once for each target; give the steps that the kills fell into."""
        self.runs += 1
        config = self._fresh()
        killed: list[str] = []
        completed: set[str] = set()
        flow_run_id = ""
        for target in [*targets, None]:
            delay = self.draw.uniform(0, whole.seconds[target]) if target else 0.0
            this = attempt(config, flow_run_id, target, delay)
            flow_run_id = flow_run_id or this.flow_run_id
            again = sorted(completed & set(this.began))
            self.ran_twice += len(again)
            self.failures += [f"{flow_run_id}: {name} ran again" for name in again]
            completed |= set(this.done)
            if this.error:
                self.failures.append(f"{flow_run_id}: {this.error}")
            if target and this.unfinished != target:
                # The step takes less time than at first: the next kill has to come sooner, too.
                whole.seconds[target] /= 2
            if this.result:
                break
            # A kill may come late, between two steps; then it is in none of them.
            killed += [name for name in self.tallies if name == this.unfinished]
        self._judge(f"{flow_run_id}, killed in {', '.join(killed)}", killed, this, whole)
        return set(killed)

    def _fresh(self) -> "TrainAdapterConfig":
        """Return the configuration; of a retraining, with a model that has no versions yet."""
        from tasks.config import RetrainAdapterConfig

        if not isinstance(self.config, RetrainAdapterConfig):
            return self.config
        name = f"sums-{self.runs}"
        registry = self.config.registry.model_copy(update={"name": name})
        return self.config.model_copy(update={"registry": registry})

    def _judge(self, name: str, killed: list[str], last: Attempt, whole: Attempt) -> None:
        assert whole.result
        result = last.result or {"sha256": None, "record": None}
        identical = result["sha256"] == whole.result["sha256"]
        recorded = result["record"] == whole.result["record"]
        for step in killed:
            self.tallies[step].kills += 1
            self.tallies[step].resumed += last.result is not None
            self.tallies[step].identical += identical
        self.recorded += recorded
        if not identical:
            self.failures.append(f"{name}: another adapter")
        if not recorded:
            self.failures.append(f"{name}: MLflow has {result['record']}")


_DROPOUT: dict[str, object] = {"lora_dropout": 0.1}
# Each step ends in a checkpoint, so that kills fall into their writing, too.
_CHECKPOINTS: dict[str, object] = {"checkpoint_minutes": 0}


def _training(folder: Path) -> "TrainAdapterConfig":
    """Write a tiny base and data, and import all that a run needs, for the forks."""
    from flow_runs import sums, tiny_config
    from tiny_models import tiny_llama

    import flows.cli.runs  # noqa: F401
    from tasks.engine.objectives import generation  # noqa: F401

    base, data = tiny_llama(folder / "base"), sums(folder / "sums.jsonl")
    return tiny_config(base, data, lora=_DROPOUT, training=_CHECKPOINTS)


def _retraining(folder: Path) -> "TrainAdapterConfig":
    """Do the same for a retraining, whose challenger has to beat the base."""
    from retraining_runs import retraining
    from tiny_models import tiny_llama

    import flows.cli.runs  # noqa: F401
    from tasks.engine.scoring import evaluation  # noqa: F401

    base = tiny_llama(folder / "base")
    return retraining(base, folder, "sums", lora=_DROPOUT, training=_CHECKPOINTS)


if __name__ == "__main__":
    sys.exit(main())
