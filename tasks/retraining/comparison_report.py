"""The comparison as Markdown, short enough to read in a minute."""

from tasks.engine.scoring import LESS_IS_BETTER, ModelScores, read_scores
from tasks.records import CheckedRecord, DecisionRecord, EvaluatedRecord
from tasks.runtime.markdown import cell

_SHOWN_ROWS = 5
_LONGEST_CELL = 160


def comparison_report(
    evaluated: EvaluatedRecord, decision: DecisionRecord, checked: CheckedRecord
) -> str:
    """Return the decision, the scores side by side, and the rows that changed most."""
    names = [model.name for model in evaluated.models]
    header = [f"| metric | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    return "\n".join(
        [
            f"# {decision.reason}",
            "",
            *header,
            *_scores(evaluated, decision),
            "",
            *_guards(decision),
            *_changed_rows(evaluated, decision),
            *_about(evaluated, checked),
        ]
    )


def row_changes(
    metric: str, incumbent: ModelScores, challenger: ModelScores
) -> tuple[list[int], list[int]]:
    """Return the rows with a better and those with a worse score, the largest change first."""
    gains = [
        challenger.of_row(metric, row) - incumbent.of_row(metric, row)
        for row in range(len(challenger))
    ]
    order = sorted(range(len(gains)), key=lambda row: -abs(gains[row]))
    return [row for row in order if gains[row] > 0], [row for row in order if gains[row] < 0]


def _scores(evaluated: EvaluatedRecord, decision: DecisionRecord) -> list[str]:
    lines = []
    for metric in evaluated.models[0].scores:
        values = [model.scores[metric] for model in evaluated.models]
        best = min(values) if metric in LESS_IS_BETTER else max(values)
        cells = [f"**{v:.4g}**" if v == best else f"{v:.4g}" for v in values]
        mark = " (decides)" if metric == decision.metric else ""
        lines.append(f"| {metric}{mark} | {' | '.join(cells)} |")
    speeds = [f"{model.rows_per_second:.1f}" for model in evaluated.models]
    return [*lines, f"| rows/s | {' | '.join(speeds)} |"]


def _guards(decision: DecisionRecord) -> list[str]:
    lines = [
        f"- guard {guard.metric}: {guard.incumbent:.4g} to {guard.challenger:.4g}, "
        f"{guard.tolerated:g} worse tolerated: {'holds' if guard.holds else '**violated**'}"
        for guard in decision.guards
    ]
    return [*lines, ""] if lines else []


def _changed_rows(evaluated: EvaluatedRecord, decision: DecisionRecord) -> list[str]:
    prompts, scores = read_scores(evaluated.rows.path, evaluated.answers)
    incumbent, challenger = scores[evaluated.incumbent], scores["challenger"]
    lines = []
    for what, rows in zip(
        ("better", "worse"), row_changes(decision.metric, incumbent, challenger), strict=True
    ):
        lines += [f"## {len(rows)} rows got {what}", ""]
        if rows:
            lines += [
                f"| prompt | expected | {evaluated.incumbent} | challenger |",
                "|---|---|---|---|",
            ]
        for row in rows[:_SHOWN_ROWS]:
            texts = (
                prompts[row],
                challenger.expected[row],
                incumbent.rows[row].answer,
                challenger.rows[row].answer,
            )
            lines.append(f"| {' | '.join(cell(text, _LONGEST_CELL) for text in texts)} |")
        lines += [""] * bool(rows)
    return lines


def _about(evaluated: EvaluatedRecord, checked: CheckedRecord) -> list[str]:
    leaks = len(checked.leaked_rows) + len(checked.similar_rows)
    return [
        "## About",
        "",
        f"- {evaluated.num_rows} held-out rows, sha256 `{checked.held_out.sha256}`",
        f"- of them in the training data: {leaks}",
        *(
            f"- {model.name}: `{model.source}`, sha256 `{model.weights_sha256}`"
            for model in evaluated.models
        ),
        *(f"- {warning}" for warning in evaluated.warnings),
        "",
    ]
