"""Kill the processes of a set of variants, and the set itself, and see that nothing is lost.

    make chaos-variants

A set of many tenants on a tiny base is trained by workers of this machine against a real Prefect
server. Workers and the set's own process are killed by SIGKILL at moments drawn by the seed; a set
that was killed is resumed. In the end each tenant has its adapter, no step was completed twice, and
some adapters are compared to the byte with single trainings.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import psutil
from session_server import SessionServer, used_server

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from tasks.config import TrainVariantsConfig

T = TypeVar("T")

_FILES = ("adapter_model.safetensors", "adapter_config.json")
_PAGE = 200
_SECONDS_WITHOUT_PROGRESS = 900


@dataclass
class Result:
    """What became of the set."""

    tenants: int
    seconds: float = 0
    worker_kills: int = 0
    set_kills: int = 0
    adapters: int = 0
    compared: int = 0
    failures: list[str] = field(default_factory=list)


def main() -> int:
    """Print the result; the exit status tells whether all went as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20, help="of workers")
    parser.add_argument("--set-kills", type=int, default=3)
    parser.add_argument("--compared", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", DO_NOT_TRACK="1")
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    with tempfile.TemporaryDirectory(prefix="adapterflow-chaos-") as folder:
        os.environ["ADAPTERFLOW_HOME"] = str(Path(folder) / "home")
        server = SessionServer()
        try:
            with used_server(server.api_url, Path(folder) / "results"):
                result = Chaos(Path(folder), options).run()
        finally:
            server.stop()
    print(json.dumps(asdict(result), indent=2))  # noqa: T201 - the result
    return 1 if result.failures else 0


class Chaos:
    """One set, killed and resumed."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        from tiny_models import tiny_llama
        from variant_sets import set_config, written

        from benchmarks.harness.variant_rows import tenant_rows

        self.folder = folder
        self.draw = random.Random(options.seed)  # noqa: S311 - moments, no secret
        self.options = options
        self.result = Result(options.tenants)
        data = tenant_rows(folder / "rows.jsonl", options.tenants)
        how = {"split_by": "tenant", "num_processes": options.processes}
        self.config: TrainVariantsConfig = set_config(tiny_llama(folder / "base"), data, how)
        self.file = written(self.config, folder / "set.yaml")

    def run(self) -> Result:
        """Train the set under kills, and check what is left."""
        from flows.cli.run_list import unfinished_runs

        started = time.monotonic()
        process = self._started("variants", self.file)
        set_id = _waited_for(lambda: next(map(UUID, unfinished_runs()), None), process)
        for num_done, kills_set in self._moments():
            _waited_for(lambda wanted=num_done: _num_done(set_id) >= wanted, process)  # type: ignore[misc]
            time.sleep(self.draw.uniform(0, 2))
            if kills_set:
                process = self._kill_set(process, set_id)
            else:
                self._kill_worker(process)
        process.wait(_SECONDS_WITHOUT_PROGRESS)
        self.result.seconds = round(time.monotonic() - started)
        if process.returncode:
            self.result.failures.append(f"the set ended with {process.returncode}")
        self._check(set_id)
        return self.result

    def _moments(self) -> list[tuple[int, bool]]:
        """Return after how many variants each kill is, and whether it is of the set itself."""
        of_workers, of_set = self.options.kills, self.options.set_kills
        kinds = [False] * of_workers + [True] * of_set
        self.draw.shuffle(kinds)
        each = self.options.tenants / (len(kinds) + 1)
        return [(round(each * (number + 0.5)), kind) for number, kind in enumerate(kinds)]

    def _kill_worker(self, process: "subprocess.Popen[bytes]") -> None:
        workers = _waited_for(lambda: _workers(process), process)
        self.draw.choice(workers).send_signal(signal.SIGKILL)
        self.result.worker_kills += 1

    def _kill_set(
        self, process: "subprocess.Popen[bytes]", set_id: UUID
    ) -> "subprocess.Popen[bytes]":
        orphans = _workers(process)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(orphans, timeout=60)
        if alive:
            self.result.failures.append(f"{len(alive)} workers outlived their set")
        self.result.set_kills += 1
        return self._started("resume", set_id)

    def _started(self, *arguments: object) -> "subprocess.Popen[bytes]":
        from prefect.settings import get_current_settings

        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        with (self.folder / "set.log").open("ab") as log:
            return subprocess.Popen(
                [Path(sys.executable).with_name("adapterflow"), *map(str, arguments)],
                env={**os.environ, **settings},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def _check(self, set_id: UUID) -> None:
        from tasks.inference.variant_sets import read_set

        record = read_set(
            next((self.folder / "home/outputs").glob(f"*-{str(set_id)[:8]}")),
        )
        self.result.failures += [f"{one.name}: {one.error}" for one in record.failed]
        present = [one for one in record.variants if one.adapter]
        self.result.adapters = sum((record.run.folder / str(o.adapter)).is_dir() for o in present)
        if self.result.adapters != self.options.tenants:
            self.result.failures.append(f"{self.result.adapters} adapters")
        self._check_steps(set_id)
        for one in self.draw.sample(present, min(self.options.compared, len(present))):
            alone = self._trained_alone(one.settings)
            for name in _FILES:
                found = record.run.folder / str(one.adapter) / name
                if found.read_bytes() != (alone / name).read_bytes():
                    self.result.failures.append(f"{one.name}: {name} is not that of a single run")
            self.result.compared += 1

    def _check_steps(self, set_id: UUID) -> None:
        from variant_sets import completed_steps

        runs = list(_runs(set_id))
        if len(runs) != self.options.tenants:
            self.result.failures.append(f"{len(runs)} flow runs")
        for run_id, counts in completed_steps(runs).items():
            wrong = {name: counts[name] for name in ("train_adapter", "publish_report")}
            if set(wrong.values()) != {1}:
                self.result.failures.append(f"{run_id}: completed steps {wrong}")

    def _trained_alone(self, settings: dict[str, object]) -> Path:
        from flows.cli.runs import create_run, execute
        from tasks.config.reading import with_settings

        changes = {**settings, "output.folder": str(self.folder / "alone")}
        config = with_settings(self.config.alone, changes, "alone")
        return execute(create_run(config)).saved.folder


def _below(set_id: UUID) -> dict[str, object]:
    return {"parent_flow_run_id": {"any_": [str(set_id)]}}


def _num_done(set_id: UUID) -> int:
    from prefect.client.orchestration import get_client

    completed = {"state": {"type": {"any_": ["COMPLETED"]}}}
    with get_client(sync_client=True) as client:
        wanted = {"flow_runs": {**_below(set_id), **completed}}
        return int(client.request("POST", "/flow_runs/count", json=wanted).json())


def _runs(set_id: UUID) -> "Iterator[FlowRun]":
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    wanted = FlowRunFilter.model_validate(_below(set_id))
    with get_client(sync_client=True) as client:
        offset = 0
        while found := client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=offset):
            yield from found
            offset += len(found)


def _workers(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    found = psutil.Process(process.pid).children()
    return [one for one in found if "flows.variants.worker" in one.cmdline()]


def _waited_for(condition: "Callable[[], T | None]", process: "subprocess.Popen[bytes]") -> T:
    deadline = time.monotonic() + _SECONDS_WITHOUT_PROGRESS
    while not (found := condition()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the set ended early, or hangs: {process.returncode}")
        time.sleep(0.2)
    return found


if __name__ == "__main__":
    sys.exit(main())
