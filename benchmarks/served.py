"""`python -m benchmarks.served`: throughput and latency of vLLM beside MLflow's server.

One trained adapter under many names, on one base. All servers run at once and are asked in turn,
each several times. Every request has a prompt of its own, for no server may remember an answer's
beginning; the adapters are named in turn.
"""

import json
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import click

from benchmarks.harness.processes import CHECKOUT, run_tool
from benchmarks.harness.servers import Server, mlflow_server, vllm_server
from benchmarks.harness.setting import Setting, setting_options
from benchmarks.harness.tables import table
from benchmarks.tools import TOOLS

_HEADER = (
    "server, adapters",
    "clients",
    "requests/s",
    "tokens/s",
    "median s",
    "95th percentile s",
    "s to start",
)
_NEW_TOKENS = 32
_WARMING_AT_ONCE = 4

Row = Mapping[str, Any]


class Answered(NamedTuple):
    """One answer: how long it took, and its number of tokens."""

    seconds: float
    num_tokens: int


class Measured(NamedTuple):
    """What a number of clients got from a server, who each ask again once they are answered."""

    answers: tuple[Answered, ...]
    seconds: float

    @property
    def requests_per_second(self) -> float:
        """Answers in a second."""
        return len(self.answers) / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """New tokens in a second, of all clients."""
        return sum(one.num_tokens for one in self.answers) / self.seconds


class Served(NamedTuple):
    """A server, and how it is asked."""

    title: str
    names: tuple[str, ...]
    """Of its adapters."""
    seconds_to_start: float
    ask: Callable[[Row, str], int]
    """Ask the adapter of this name for a row's answer, and return its number of tokens."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--vllm",
    "program",
    default=CHECKOUT / ".venv-vllm/bin/vllm",
    type=click.Path(path_type=Path),
    help="vLLM's program, which `make vllm` installs; without it, MLflow's server alone.",
)
@click.option("--vllm-args", "more", default="--max-model-len 1024", show_default=True)
@click.option("--adapters", "counts", multiple=True, default=(1, 10), show_default=True, type=int)
@click.option("--clients", multiple=True, default=(1, 4), show_default=True, type=int)
@click.option("--requests", default=12, show_default=True, help="Requests in each measurement.")
@click.option("--repeats", default=2, show_default=True)
@setting_options
def main(  # noqa: PLR0913 - what a user may set
    setting: Setting,
    program: Path,
    more: str,
    counts: tuple[int, ...],
    clients: tuple[int, ...],
    requests: int,
    repeats: int,
) -> None:
    """Measure throughput and latency of both servers, by adapters and clients."""
    # The servers are ended with this program, also when it is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    num_prompts = repeats * len(clients) * requests + 1  # one for warming up
    prepared, job = setting.with_steps(2).prepare("demo", num_prompts)
    rows = [json.loads(line) for line in prepared.held_out.read_text().splitlines()]
    if len(rows) < num_prompts:
        raise click.UsageError(
            f"there are {len(rows)} held-out rows, and {num_prompts} are needed, one for each "
            "request; take fewer --requests or --repeats"
        )
    click.echo("training the adapter", err=True)
    adapter = run_tool("ours", TOOLS["ours"], job, 1, setting.variables).outcome.adapter
    assert adapter is not None  # noqa: S101 - it was saved
    with ExitStack() as stack:
        servers: list[Served] = []
        for count in counts:
            sources = {f"adapter-{number}": adapter for number in range(count)}
            click.echo(f"starting servers of {count} adapters", err=True)
            started = mlflow_server(sources, job.folder / f"mlflow-{count}", setting.variables)
            servers.append(_of_mlflow(stack.enter_context(started), sources, prepared.base))
            if program.exists():
                place = job.folder / f"vllm-{count}"
                run = vllm_server(sources, place, str(program), more, setting.variables)
                servers.append(_of_vllm(stack.enter_context(run), sources))
        found = _measured(servers, rows, clients, requests, repeats)
    if not program.exists():
        click.echo(f"Skipped vLLM: there is no {program}; install it with: make vllm", err=True)
    said = (
        f"{_NEW_TOKENS} new tokens per answer, greedily; {requests} requests in each of {repeats} "
        "repeats, all servers in turn. Rates are medians of the repeats, latencies of all their "
        f"requests.{_shorter(found)} vLLM: `{more}`.\n"
    )
    setting.publish("served", [said, *table(_HEADER, _rows(found))])


Found = dict[tuple[Served, int], list[Measured]]
"""The repeats of a server and a number of clients."""


def _measured(
    servers: Sequence[Served],
    rows: Sequence[Row],
    clients: Sequence[int],
    num_requests: int,
    repeats: int,
) -> Found:
    for server in servers:
        # An adapter's first request takes longer: it is put where the computation finds it.
        with ThreadPoolExecutor(_WARMING_AT_ONCE) as pool:
            list(pool.map(lambda name, ask=server.ask: ask(rows[-1], name), server.names))
    found: Found = {(one, number): [] for one in servers for number in clients}
    given = iter(rows)
    for repeat in range(repeats):
        for number in clients:
            asked = [next(given) for _ in range(num_requests)]
            for server in servers:
                what = f"{server.title}, adapters: {len(server.names)}, clients: {number}"
                click.echo(f"repeat {repeat + 1}: {what}", err=True)
                found[server, number].append(_asked(server, asked, number))
    return found


def _asked(server: Served, rows: Sequence[Row], clients: int) -> Measured:
    def answered(row: Row, name: str) -> Answered:
        began = time.perf_counter()
        num_tokens = server.ask(row, name)
        return Answered(time.perf_counter() - began, num_tokens)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = tuple(pool.map(answered, rows, cycle(server.names)))
    return Measured(answers, time.perf_counter() - began)


def _rows(found: Found) -> Iterator[tuple[str, ...]]:
    for (server, clients), repeats in found.items():
        seconds = [answer.seconds for one in repeats for answer in one.answers]
        most = quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
        yield (
            f"{server.title}, {len(server.names)}",
            str(clients),
            f"{median(one.requests_per_second for one in repeats):.2f}",
            f"{median(one.tokens_per_second for one in repeats):.1f}",
            f"{median(seconds):.2f}",
            f"{most:.2f}",
            f"{server.seconds_to_start:.0f}",
        )


def _shorter(found: Found) -> str:
    """Describe how many answers ended sooner, which only vLLM can be told not to do."""
    answers = [one for repeats in found.values() for each in repeats for one in each.answers]
    num_shorter = sum(one.num_tokens < _NEW_TOKENS for one in answers)
    return f" {num_shorter} of {len(answers)} answers ended sooner." if num_shorter else ""


def _of_vllm(server: Server, sources: Mapping[str, Path]) -> Served:
    def ask(row: Row, name: str) -> int:
        answer = _post(
            f"{server.url}/v1/chat/completions",
            {
                "model": name,
                "messages": row["messages"][:-1],
                "max_tokens": _NEW_TOKENS,
                "ignore_eos": True,
                "temperature": 0,
            },
        )
        return int(answer["usage"]["completion_tokens"])

    return Served("vLLM", tuple(sources), server.seconds_to_start, ask)


def _of_mlflow(server: Server, sources: Mapping[str, Path], base: Path) -> Served:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))

    def ask(row: Row, name: str) -> int:
        given = {"messages": json.dumps(row["messages"][:-1])}
        params = {"max_new_tokens": _NEW_TOKENS, "adapter": name}
        body = {"inputs": [given], "params": params}
        (answer,) = _post(f"{server.url}/invocations", body)["predictions"]
        # Its tokens are counted again, and of half a character there may be more than there were.
        return min(_NEW_TOKENS, len(tokenizer.encode(answer, add_special_tokens=False).ids))

    return Served("MLflow", tuple(sources), server.seconds_to_start, ask)


def _post(url: str, body: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
    request = urllib.request.Request(  # noqa: S310 - our own server
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
        return json.loads(answer.read())


if __name__ == "__main__":
    main()
