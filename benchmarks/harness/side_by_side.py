"""Run all tools on one workload: a counting run, timed repeats in turn, then the common judge."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.findings import BASE, Findings, positions_a_forward
from benchmarks.harness.messages import (
    Candidate,
    Job,
    Prepared,
    Run,
    Throughput,
    ThroughputRequest,
    Verdict,
)
from benchmarks.harness.processes import ProcessFailed, ask, run_tool
from benchmarks.harness.setting import Setting
from benchmarks.harness.workloads import COMPARED, DPO
from benchmarks.tools import TOOLS

_COUNTED_STEPS = 4
"""Steps of the separate run that counts FLOPs: counting is slow, and all steps are alike."""


@dataclass(frozen=True)
class Plan:
    """What a comparison runs, and how often."""

    repeats: int
    judged_rows: int
    """Number of training rows, and of held-out rows, that the judge uses."""
    tools: tuple[str, ...]
    adds_tools: bool
    """Whether a workload may add tools of its own."""


@dataclass
class _Side:
    """The state of one workload's comparison."""

    name: str
    setting: Setting
    judged_rows: int
    prepared: Prepared
    job: Job
    tools: list[str]
    runs: list[Run] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def able(tools: Sequence[str], workload: str) -> list[str]:
    """Return the tools, in the order of tables, that learn from the rows of a workload."""
    objective = COMPARED[workload].objective
    return [name for name, tool in TOOLS.items() if name in tools and objective in tool.learns]


def compare_on(name: str, setting: Setting, plan: Plan) -> Findings:
    """Run a plan's tools on a workload.

    Raises:
        ProcessFailed: the base or the rows cannot be prepared, or an adapter cannot be judged.
    """
    workload = COMPARED[name]
    # A pair is two rows, and the judge takes one at a time.
    judged_rows = plan.judged_rows // 2 if workload.objective == DPO else plan.judged_rows
    prepared, job = setting.prepare(name, judged_rows)
    added = workload.tools if plan.adds_tools else ()
    tools = able((*plan.tools, *added), name)
    side = _Side(name, setting, judged_rows, prepared, job, tools)
    for tool in list(side.tools):
        _run(side, tool, 0)
    throughputs: list[Throughput] = []
    for repeat in range(1, plan.repeats + 1):
        throughputs += _throughputs(side, repeat)
        for tool in _rotated(side.tools, repeat):
            _run(side, tool, repeat)
    # A tool that failed once has too few repeats for a median.
    kept = [run for run in side.runs if run.tool not in side.failed]
    return Findings(
        workload=name,
        title=workload.title,
        job=side.job,
        tokens=side.prepared.tokens,
        num_trained_tokens=sum(side.prepared.trained_tokens),
        runs=kept,
        throughputs=throughputs,
        verdicts=_judged(side, kept),
        failed=side.failed,
    )


def _run(side: _Side, name: str, repeat: int) -> None:
    tool = TOOLS[name]
    changes = {"folder": side.job.folder / f"{name}-{repeat}", "options": tool.options}
    job = side.job.model_copy(update={**changes, **({} if repeat else _counted(side))})
    print(f"{side.name}  {'counting' if not repeat else f'repeat {repeat}'}  {name}", flush=True)  # noqa: T201
    try:
        run = run_tool(name, tool, job, repeat, side.setting.variables)
    except ProcessFailed as error:
        print(f"  failed: {error}", file=sys.stderr)  # noqa: T201
        side.failed[name] = str(error)
        side.tools.remove(name)
        return
    side.runs.append(run)
    with (side.job.folder / "runs.jsonl").open("a") as kept:  # in case a later run does not finish
        kept.write(run.model_dump_json() + "\n")


def _counted(side: _Side) -> dict[str, object]:
    """Return the job's changes for the counting run: only the first rows, each once."""
    num_steps = min(_COUNTED_STEPS, side.job.num_steps)
    rows = side.job.train.read_text(encoding="utf-8").splitlines(keepends=True)
    file = side.job.folder / "counted.jsonl"
    file.write_text("".join(rows[: num_steps * side.job.batch_size]), encoding="utf-8")
    return {"counts": True, "num_steps": num_steps, "train": file}


def _rotated(tools: list[str], by: int) -> Iterator[str]:
    """Return the tools in rotated order, so that none always follows the same, hot CPU included."""
    at = by % len(tools) if tools else 0
    return iter([*tools[at:], *tools[:at]])


def _throughputs(side: _Side, repeat: int) -> list[Throughput]:
    works = [run.outcome.work for run in side.runs if run.outcome.work]
    request = ThroughputRequest(
        base=side.prepared.base, num_tokens=sorted({positions_a_forward(work) for work in works})
    )
    file = side.job.folder / f"throughput-{repeat}.json"
    return ask("throughput", request, Throughput, file, side.setting.variables)


def _judged(side: _Side, runs: list[Run]) -> dict[str, Verdict]:
    """Judge each adapter once: repeats with the same seed often give the same one, bit for bit."""
    adapters = [run.outcome.adapter for run in runs if run.repeat]
    distinct = {_sha256(adapter): adapter for adapter in adapters}
    candidates = [Candidate(adapter=one) for one in distinct.values()]
    base, *others = side.setting.judge(side.job, side.judged_rows, candidates)
    by_content = dict(zip(distinct, others, strict=True))
    return {BASE: base, **{str(adapter): by_content[_sha256(adapter)] for adapter in adapters}}


def _sha256(adapter: Path) -> str:
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
