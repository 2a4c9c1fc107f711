"""The findings as Markdown: the checks, and a table for each base, method and kind of rows."""

from collections.abc import Iterator
from itertools import groupby

from benchmarks.harness.tables import table
from benchmarks.on_gpu.curves import EQUAL_WITHIN, apart
from benchmarks.on_gpu.messages import Card, Figures, Finding, Item, Results, State
from benchmarks.on_gpu.peers import OURS, PEERS, REFERENCE

_TITLES = {
    "tiny": "tiny",
    "135m": "SmolLM2-135M's shape",
    "1b": "Llama 3.2 1B's shape",
    "8b": "Llama 3.1 8B's shape",
}
_ROWS = {"demo": "short rows under one template", "long": "varied rows of about 250 tokens"}
_HEADER = (
    "tool",
    "tokens/s",
    "of the best other",
    "share",
    "peak MB",
    "first loss",
    "last losses",
    "equal work",
)


def as_markdown(results: Results) -> str:
    """Return the report."""
    card = next((one.card for one in results.findings if one.card), None)
    lines = [
        f"`{results.command}`\n",
        f"{_device(card)}; {results.machine}.\n",
        *_checks([one for one in results.findings if one.item.kind != "training"]),
    ]
    trainings = [one for one in results.findings if one.item.kind == "training"]
    for group, found in groupby(sorted(trainings, key=_group), key=_group):
        _, method, workload, shape = group
        lines.append(f"## {method}, {_TITLES[shape]}, {_ROWS[workload]}\n")
        lines += _trainings(list(found), card)
    return "\n".join(lines)


def is_equal(figures: Figures, reference: Figures | None) -> bool | None:
    """Return whether a tool did the work of the reference, by their losses; None without one."""
    if reference is None:
        return None
    return apart(figures.losses, reference.losses) <= EQUAL_WITHIN


def _device(card: Card | None) -> str:
    if card is None:
        return "The device was not measured"
    kind = card.gpu or "No Nvidia GPU, so this is the form for a CPU, with a tiny base"
    return f"{kind}; a matrix product reaches {card.flops_per_second / 1e12:.2f} TFLOP/s"


def _checks(findings: list[Finding]) -> Iterator[str]:
    yield "## Exactness\n"
    findings = [one for one in findings if not one.card]
    rows = ((one.item.name, one.state, *_compared(one)) for one in findings)
    yield from table(("check", "", "difference", "allowed"), rows)
    yield from _reasons(findings)


def _compared(finding: Finding) -> tuple[str, str]:
    if finding.difference is None or finding.tolerance is None:
        return "", ""
    return f"{finding.difference:.1e}", f"{finding.tolerance:.1e}"


def _group(finding: Finding) -> tuple[int, str, str, str]:
    item = finding.item
    return list(_TITLES).index(item.shape), item.method, item.workload, item.shape


def _trainings(findings: list[Finding], card: Card | None) -> Iterator[str]:
    measured = {one.item.name: one.figures for one in findings if one.figures}
    reference = measured.get(REFERENCE)
    others = [
        one.tokens_per_second
        for name, one in measured.items()
        if name != OURS and is_equal(one, reference)
    ]
    rows = (_row(one, reference, max(others, default=None), card) for one in findings)
    yield from table(_HEADER, rows)
    yield from _reasons(findings)


def _row(
    finding: Finding, reference: Figures | None, best: float | None, card: Card | None
) -> tuple[str, ...]:
    title, figures = PEERS[finding.item.name].title, finding.figures
    if figures is None:
        return (title, finding.state, *[""] * (len(_HEADER) - 2))
    equal = is_equal(figures, reference)
    return (
        title,
        f"{figures.tokens_per_second:.0f}",
        f"{figures.tokens_per_second / best:.2f}" if best else "",
        f"{figures.flops_per_second / card.flops_per_second:.0%}" if card else "",
        f"{figures.peak_memory_mb:.0f}",
        f"{figures.losses[0]:.4f}",
        " ".join(f"{loss:.4f}" for loss in figures.losses[-3:]),
        "not judged" if equal is None else "yes" if equal else "no",
    )


def _reasons(findings: list[Finding]) -> Iterator[str]:
    told = [one for one in findings if one.reason and one.state is not State.MEASURED]
    for one in told:
        yield f"- {_name(one.item)}: {one.state}: {one.reason}"
    if told:
        yield ""


def _name(item: Item) -> str:
    return PEERS[item.name].title if item.kind == "training" else item.name
