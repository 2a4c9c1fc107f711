"""Run fresh processes, one after the other, and measure each.

The parent must stay small: Linux counts the memory of a forked process before `exec` in its peak,
so a parent with torch loaded would distort every figure.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from benchmarks.harness.messages import Job, Message, Outcome, Run, Usage
from benchmarks.tools import Tool

CHECKOUT = Path(__file__).resolve().parents[2]
_MAIN = "import sys; from flows.cli.main import main; sys.argv[0] = 'adapterflow'; main()"
ADAPTERFLOW = (sys.executable, "-c", _MAIN)
"""Runs the command line of this checkout, whichever version is installed."""
_ERROR_LINES = 3
_SERVERS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")

Answer = TypeVar("Answer", bound=Message)


class ProcessFailed(RuntimeError):  # noqa: N818 - what happened, not a mistake of the caller
    """A process exited with a nonzero status; the message has the end of its output."""


def environment(threads: int, caches: Path) -> dict[str, str]:
    """Return the environment of all tools: number of threads, separate caches, no network.

    The user's own Prefect and MLflow servers are removed: their speed is not to be measured.
    """
    return {
        **{name: value for name, value in os.environ.items() if name not in _SERVERS},
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HOME": str(caches / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "ADAPTERFLOW_HOME": str(caches / "adapterflow"),
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), *_python_path()]),
        "TQDM_DISABLE": "1",
    }


def _python_path() -> list[str]:
    """Return where else the caller has libraries."""
    return [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]


def run_fresh(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> Usage:
    """Run a command to its end, with its output in a file, and measure it.

    Raises:
        ProcessFailed: the process exited with a nonzero status.
    """
    load_before = os.getloadavg()[0]
    with log.open("wb") as output:
        began = time.time()
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, env=variables, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ProcessFailed(f"status {process.returncode}: {_last_lines(log)}")
    return Usage(
        began=began,
        ended=time.time(),
        peak_memory_mb=used.ru_maxrss * 1024 / 1e6,
        cpu_seconds=used.ru_utime + used.ru_stime,
        load_before=load_before,
        load_after=os.getloadavg()[0],
    )


def ask(
    module: str, request: Message, answer: type[Answer], file: Path, variables: Mapping[str, str]
) -> list[Answer]:
    """Send a request to a module of this folder, run in a process of its own.

    Args:
        module: its main program reads the request's file and writes answers next to it.
        request: the request.
        answer: the type of each answer.
        file: where the request is written.
        variables: the environment of the process.

    Raises:
        ProcessFailed: the process exited with a nonzero status.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(request.model_dump_json(indent=2))
    command = [sys.executable, "-m", f"benchmarks.harness.{module}", str(file)]
    run_fresh(command, file.with_suffix(".log"), variables)
    lines = file.with_suffix(".answers.jsonl").read_text().splitlines()
    return [answer.model_validate_json(line) for line in lines]


class Worker:
    """A module in a process that keeps running and answers each line of JSON with another.

    The module is named without `benchmarks`, in which it is.
    """

    def __init__(
        self, module: str, argument: Path, log: Path, variables: Mapping[str, str]
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", f"benchmarks.{module}", str(argument)],
                env=variables,
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def send(self, request: Message) -> None:
        """Send a line; if the process has exited, `receive` raises with the reason."""
        assert self._process.stdin is not None  # noqa: S101 - opened above
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{request.model_dump_json()}\n")
            self._process.stdin.flush()

    def receive(self, answer: type[Answer], seconds: float | None = None) -> Answer:
        """Wait for an answer, and return it.

        Args:
            answer: its type.
            seconds: how long to wait, if not forever; the process is killed then.

        Raises:
            ProcessFailed: the process exited instead, or took longer.
        """
        assert self._process.stdout is not None  # noqa: S101 - opened above
        if seconds is not None and not select.select([self._process.stdout], [], [], seconds)[0]:
            self._process.kill()
            raise ProcessFailed(f"no answer within {seconds:.0f} s: {_last_lines(self._log)}")
        line = self._process.stdout.readline()
        if not line:
            raise ProcessFailed(f"status {self._process.wait()}: {_last_lines(self._log)}")
        return answer.model_validate_json(line)


def run_tool(name: str, tool: Tool, job: Job, repeat: int, variables: Mapping[str, str]) -> Run:
    """Run a tool on a job, in a process of its own; `name` identifies the run.

    Raises:
        ProcessFailed: the process exited with a nonzero status.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    request, outcome_file = job.folder / "job.json", job.folder / "outcome.json"
    request.write_text(job.model_dump_json(indent=2))
    command = [
        str(tool.python),
        "-m",
        "benchmarks.harness.one_run",
        tool.module,
        str(request),
        str(outcome_file),
    ]
    usage = run_fresh(command, job.folder / "output.log", variables)
    outcome = Outcome.model_validate_json(outcome_file.read_text())
    return Run(tool=name, repeat=repeat, num_rows=job.num_rows, usage=usage, outcome=outcome)


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_ERROR_LINES:]) + f" (full output: {log})"
