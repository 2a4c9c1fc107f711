"""`python -m benchmarks.serving`: serving memory, latency and throughput by number of adapters.

One trained adapter under many names, on one base, served by MLflow. Requests go to the adapters in
turn, one at a time and eight at once.
"""

import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from statistics import median

import click
import psutil

from benchmarks.harness.processes import run_tool
from benchmarks.harness.servers import mlflow_server
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.tools import TOOLS

_HEADER = (
    "adapters",
    "s to start",
    "MB idle",
    "MB after the load",
    "ms per request, alone",
    "slowest of them",
    "requests/s, eight at once, one adapter",
    "requests/s, eight at once, in turn",
)
_NEW_TOKENS = 16
_ALONE, _TOGETHER, _AT_ONCE = 24, 64, 8


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--adapters",
    "counts",
    multiple=True,
    default=(1, 10, 50),
    show_default=True,
    type=click.IntRange(1),
    help="Number of adapters to serve; may be repeated.",
)
@setting_options
def main(setting: Setting, counts: tuple[int, ...]) -> None:
    """Measure memory, latency and throughput of serving adapters."""
    prepared, job = setting.with_steps(2).prepare("demo", _ALONE)
    click.echo("training the adapter", err=True)
    outcome = run_tool("ours", TOOLS["ours"], job, 1, setting.variables).outcome
    prompts = [json.loads(line) for line in prepared.held_out.read_text().splitlines()]
    rows = []
    for count in counts:
        click.echo(f"{count} adapters", err=True)
        names = [f"adapter-{number}" for number in range(count)]
        bundle = job.folder / f"bundle-{count}"
        assert outcome.adapter is not None  # noqa: S101 - it was saved
        sources = dict.fromkeys(names, outcome.adapter)
        with mlflow_server(sources, bundle, setting.variables) as started:
            server = _Server(started.url, started.process)
            rows.append(_measure(server, started.seconds_to_start, names, prompts))
    said = (
        f"At most {_NEW_TOKENS} new tokens per answer; {_ALONE} requests alone, {_TOGETHER} with "
        f"{_AT_ONCE} at once. Memory is the processes' proportional share (PSS).\n"
    )
    setting.publish("serving", [said, *table(_HEADER, rows)])


class _Server:
    """`mlflow models serve` on a bundle."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self._url = url
        self._process = process

    def ask(self, row: Mapping[str, object], adapter: str) -> float:
        """Send one request, and return the seconds until its response."""
        given = {"inputs": [row], "params": {"max_new_tokens": _NEW_TOKENS, "adapter": adapter}}
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self._url}/invocations",
            json.dumps(given).encode(),
            {"Content-Type": "application/json"},
        )
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
            answer.read()
        return time.perf_counter() - began

    def memory_mb(self) -> float:
        """Return the memory of the server's processes, with shared pages in proportion (PSS)."""
        tree = [self._process, *self._process.children(recursive=True)]
        return sum(float(one.memory_full_info().pss) for one in tree) / 1e6


def _measure(
    server: _Server,
    seconds: float,
    names: Sequence[str],
    prompts: Sequence[Mapping[str, object]],
) -> tuple[str, ...]:
    questions = [{"messages": json.dumps(row["messages"][:-1])} for row in prompts]  # type: ignore[index]
    server.ask(questions[0], names[0])
    at_rest = server.memory_mb()
    in_turn = list(islice(zip(cycle(questions), cycle(names), strict=False), _TOGETHER))
    alone = [1000 * server.ask(*one) for one in in_turn[:_ALONE]]
    one_adapter = _rate(server, [(question, names[0]) for question, _ in in_turn])
    mixed = _rate(server, in_turn)
    loaded = server.memory_mb()
    return (
        str(len(names)),
        f"{seconds:.0f}",
        f"{at_rest:.0f}",
        f"{loaded:.0f}",
        f"{median(alone):.0f}",
        f"{max(alone):.0f}",
        f"{one_adapter:.2f}",
        f"{mixed:.2f}",
    )


def _rate(server: _Server, asked: Sequence[tuple[Mapping[str, object], str]]) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda one: server.ask(*one), asked))
    return len(asked) / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
