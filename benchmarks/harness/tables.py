"""The comparison as Markdown: command, machine, and a table per workload."""

from collections.abc import Callable, Iterable, Iterator

from benchmarks.harness.findings import BASE, Comparison, Figures, Findings, Spread, figures
from benchmarks.tools import DOCUMENTED, DOCUMENTED_DPO, TOOLS

_HEADER = (
    "tool",
    "rows/s",
    "times",
    "real tokens/s",
    "peak MB",
    "share",
    "first step s",
    "adapter s",
    "CPU s",
    "training loss",
    "held-out loss",
)
_WORK_HEADER = (
    "tool",
    "GFLOP per row",
    "positions per token",
    "GFLOP/s",
    "GFLOP/s possible",
    "share of it",
)


def as_markdown(comparison: Comparison) -> str:
    """Return the report."""
    use = f"{comparison.threads} threads for each tool. Median (least to most) of"
    lines = [
        f"`{comparison.command}`\n",
        f"{comparison.machine}; {use} {comparison.repeats}.\n",
        *(line for one in comparison.findings for line in _workload(one)),
        *(f"Skipped {name}: {why}.\n" for name, why in comparison.skipped.items()),
    ]
    return "\n".join(lines)


def _workload(findings: Findings) -> Iterator[str]:
    job = findings.job
    yield f"## {findings.title}\n"
    tokens, trained = sum(findings.tokens), findings.num_trained_tokens
    yield (
        f"{job.num_rows} rows, {tokens} tokens ({trained} trained on), {job.num_steps} steps of "
        f"{job.batch_size}, at most {job.max_length} tokens per row; rank {job.r}, alpha "
        f"{job.lora_alpha}, all linear layers, AdamW at {job.learning_rate:g} (cosine), base in "
        f"{job.dtype}.\n"
    )
    found = {tool: figures(findings, tool) for tool in TOOLS if tool in findings.tools()}
    documented = found.get(DOCUMENTED_DPO if job.objective == "dpo" else DOCUMENTED)
    yield from table(_HEADER, (_row(t, f, documented) for t, f in found.items()))
    base = findings.verdicts[BASE]
    yield (
        f"The base without an adapter: {base.train_loss:.4f} and {base.held_out_loss:.4f}. "
        f"{_load(findings)}\n"
    )
    yield from table(_WORK_HEADER, (_work_row(t, f) for t, f in found.items() if f.computed))
    for tool, why in findings.failed.items():
        yield f"{TOOLS[tool].title} failed: {why}\n"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a table, with all columns but the first right-aligned."""
    yield f"| {' | '.join(header)} |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _row(tool: str, found: Figures, to: Figures | None) -> tuple[str, ...]:
    return (
        TOOLS[tool].title,
        _spread(found.rows_per_second, 2),
        _ratio(found, to, lambda one: one.rows_per_second),
        _spread(found.tokens_per_second, 0),
        _spread(found.peak_memory_mb, 0),
        _ratio(found, to, lambda one: one.peak_memory_mb),
        _spread(found.seconds_to_first_step, 1),
        _spread(found.seconds_to_adapter, 1),
        _spread(found.cpu_seconds, 0),
        _spread(found.train_loss, 4),
        _spread(found.held_out_loss, 4),
    )


def _work_row(tool: str, found: Figures) -> tuple[str, ...]:
    it = found.computed
    assert it is not None  # noqa: S101 - the caller filters by it
    return (
        TOOLS[tool].title,
        f"{it.flops_per_row / 1e9:.1f}",
        f"{it.positions_per_token:.2f}",
        f"{it.flops_per_second.median / 1e9:.1f}",
        f"{it.throughput / 1e9:.1f}",
        f"{it.share:.0%}",
    )


def _spread(it: Spread, digits: int) -> str:
    if f"{it.least:.{digits}f}" == f"{it.most:.{digits}f}":
        return f"{it.median:.{digits}f}"
    return f"{it.median:.{digits}f} ({it.least:.{digits}f}-{it.most:.{digits}f})"


def _ratio(found: Figures, to: Figures | None, of: Callable[[Figures], Spread]) -> str:
    return f"{of(found).median / of(to).median:.2f}" if to else ""


def _load(findings: Findings) -> str:
    timed = [run.usage for tool in findings.tools() for run in findings.timed(tool)]
    before = max(usage.load_before for usage in timed)
    after = max(usage.load_after for usage in timed)
    return f"Highest load average before a run: {before:.1f}, after one: {after:.1f}."
