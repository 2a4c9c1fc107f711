"""`python -m benchmarks.overhead`: the overhead of the pipeline over its bare steps.

The same steps run in three ways in turn: called one after the other by a bare script, by
`adapterflow train` with its embedded Prefect server on an existing database, and by `adapterflow
train` against a running Prefect server.
"""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click

from benchmarks.harness.messages import Run
from benchmarks.harness.processes import run_tool
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.harness.workloads import WORKLOADS
from benchmarks.tools import TOOLS

_SECONDS_TO_START = 120
_SAMPLES = 8
_WAYS = {
    "bare": ("ours", "the steps in a bare script"),
    "embedded": ("command", "adapterflow train, embedded server"),
    "server": ("command", "adapterflow train, running server"),
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--workload", default="demo", type=click.Choice(list(WORKLOADS)))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@setting_options
def main(setting: Setting, workload: str, repeats: int) -> None:
    """Measure the pipeline's overhead."""
    if why := setting.why_not(workload):
        raise click.UsageError(why)
    prepared, job = setting.prepare(workload, _SAMPLES)
    options = {
        "data": {"eval": str(prepared.held_out)},
        "inference": {"sample_rows": _SAMPLES, "max_new_tokens": 32},
    }
    runs: dict[str, list[Run]] = {way: [] for way in _WAYS}
    with _server(setting.folder, setting.variables) as address:
        variables = {way: dict(setting.variables) for way in _WAYS}
        variables["server"]["PREFECT_API_URL"] = address
        # The first run creates the databases.
        for repeat in range(repeats + 1):
            for way, (tool, _) in _WAYS.items():
                click.echo(f"{'warming up' if not repeat else f'repeat {repeat}'}  {way}", err=True)
                folder = job.folder / f"{way}-{repeat}"
                this = job.model_copy(update={"folder": folder, "options": options})
                run = run_tool(way, TOOLS[tool], this, repeat, variables[way])
                runs[way] += [run] if repeat else []
    header = ("", "first step s", "total s", "over bare s", "CPU s")
    setting.publish("overhead", table(header, (_row(way, runs) for way in runs)))


def _row(way: str, runs: Mapping[str, list[Run]]) -> tuple[str, ...]:
    mine, bare = runs[way], runs["bare"]
    # Pairs of consecutive runs, which other load on the machine slows down alike.
    more = [one.seconds_whole - other.seconds_whole for one, other in zip(mine, bare, strict=True)]
    return (
        _WAYS[way][1],
        f"{median(run.seconds_to_first_step for run in mine):.1f}",
        f"{median(run.seconds_whole for run in mine):.1f}",
        f"{median(more):.1f} ({min(more):.1f} to {max(more):.1f})",
        f"{median(run.usage.cpu_seconds for run in mine):.0f}",
    )


@contextmanager
def _server(folder: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """Run a Prefect server on this machine, and yield the address of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    program = str(Path(sys.executable).with_name("prefect"))
    command = [program, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    settings = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, env={**variables, **settings}, stdout=log, stderr=log
        )
        try:
            _wait_for(f"{address}/health", process)
            yield address
        finally:
            process.terminate()
            process.wait()


def _wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(_SECONDS_TO_START):
        try:
            with urllib.request.urlopen(address, timeout=1):  # noqa: S310 - this machine's own
                return
        except OSError:
            time.sleep(1)
        if process.poll() is not None:
            break
    raise RuntimeError("the Prefect server did not start; see server.log")


if __name__ == "__main__":
    main()
