"""The comparison as Markdown, short enough to read in a minute, and the proposal of a promotion."""

from tasks.config import ApprovalSettings, OnTimeout
from tasks.engine.scoring import LESS_IS_BETTER, ModelScores, metric_title, read_scores
from tasks.records import (
    CHALLENGER,
    CheckedRecord,
    DecisionRecord,
    EvaluatedRecord,
    HarnessRecord,
    HarnessScore,
    Outcome,
    ScoredModel,
)
from tasks.runtime.markdown import blocks, breakable

_SHOWN_ROWS = 3
_TITLES = {
    Outcome.PROMOTE: "Promoted",
    Outcome.REJECT: "Rejected",
    Outcome.REFUSE: "Refused",
    Outcome.OUTDATED: "Not promoted",
    Outcome.UNANSWERED: "Not promoted",
    Outcome.SKIP: "Skipped",
}


def comparison_report(
    evaluated: EvaluatedRecord,
    decision: DecisionRecord,
    checked: CheckedRecord,
    *,
    is_proposal: bool = False,
    picture: str = "",
) -> str:
    """Return the decision, the scores side by side, and the rows that changed most.

    Args:
        evaluated: the models' scores.
        decision: what was decided.
        checked: what the retraining started from.
        is_proposal: a person has still to approve what was decided.
        picture: Markdown of the scores' picture.
    """
    title = question(decision, checked) if is_proposal else _TITLES[decision.outcome]
    return "\n".join(
        [
            f"# {title}",
            "",
            f"{decision.reason[:1].upper()}{decision.reason[1:]}",
            "",
            *([picture, ""] if picture else []),
            *_scores(evaluated, decision),
            *_guards(decision),
            *_changed_rows(evaluated, decision),
            *_about(evaluated, checked),
        ]
    )


def proposal(
    evaluated: EvaluatedRecord,
    decision: DecisionRecord,
    checked: CheckedRecord,
    settings: ApprovalSettings,
) -> str:
    """Return what an approver is shown: the question, what no answer means, and the scores."""
    minutes = f"{settings.timeout_minutes:g} minutes"
    then = "is promoted" if settings.on_timeout is OnTimeout.PROMOTE else "is not promoted"
    silence = (
        f"Without an answer within {minutes} it {then}. The rows that improved or got worse are in "
        "this run's artifact `adapter-comparison`."
    )
    return "\n".join(
        [
            f"## {question(decision, checked)}",
            "",
            # First: Prefect's form shows as much of a long text as fits, and the rest by scrolling.
            silence,
            "",
            *_scores(evaluated, decision),
            *_guards(decision),
        ]
    )


def question(decision: DecisionRecord, checked: CheckedRecord) -> str:
    """Return in one line what is proposed, before any of it has happened."""
    who = "the base"
    if checked.champion:
        who = f"the champion (version {checked.champion.version})"
    scores = f"{decision.challenger:.4g} against {decision.incumbent:.4g}"
    return (
        f"Better than {who}: {metric_title(decision.metric)} {scores} on {decision.num_rows} rows. "
        "Make it champion?"
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
    """Return the tables of scores, the metric that decides first; then those on older rows."""
    lines = _table(evaluated, decision)
    if evaluated.older:
        title = f"On {evaluated.older.num_rows} older rows:"
        lines += [title, "", *_table(evaluated.older, decision, decides=False)]
    if evaluated.harness:
        lines += _harness_table(evaluated.harness)
    return lines


def _harness_table(harness: HarnessRecord) -> list[str]:
    """Return the table of the harness's scores, with their standard errors."""
    names = [model.name for model in harness.models]
    limit = f", the first {harness.limit} rows of each task" if harness.limit else ""
    lines = [
        f"On lm-evaluation-harness {harness.lm_eval_version}{limit} (± standard error):",
        "",
        f"| task/metric | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for name in harness.shown_scores(names[0]):
        found = [harness.score(model, name) for model in names]
        lines.append(f"| {name} | {' | '.join(map(_harness_cell, found))} |")
    seconds = [f"{model.seconds:.0f}" for model in harness.models]
    return [*lines, f"| s | {' | '.join(seconds)} |", ""]


def _harness_cell(score: HarnessScore | None) -> str:
    if score is None:
        return "-"
    return f"{score.value:.4g}" + (f" ± {score.stderr:.2g}" if score.stderr is not None else "")


def _table(
    evaluated: EvaluatedRecord, decision: DecisionRecord, *, decides: bool = True
) -> list[str]:
    names = [model.name for model in evaluated.models]
    lines = [f"| metric | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    metrics = sorted(evaluated.models[0].scores, key=lambda name: name != decision.metric)
    for metric in metrics:
        values = [model.scores[metric] for model in evaluated.models]
        best = min(values) if metric in LESS_IS_BETTER else max(values)
        cells = [f"**{v:.4g}**" if v == best else f"{v:.4g}" for v in values]
        mark = " (decides)" if decides and metric == decision.metric else ""
        lines.append(f"| {metric_title(metric)}{mark} | {' | '.join(cells)} |")
    speeds = [f"{model.rows_per_second:.1f}" for model in evaluated.models]
    return [*lines, f"| rows/s | {' | '.join(speeds)} |", ""]


def _guards(decision: DecisionRecord) -> list[str]:
    lines = [
        f"- guard {metric_title(guard.metric)}{guard.where}: {guard.incumbent:.4g} to "
        f"{guard.challenger:.4g}, {guard.tolerated:g} worse tolerated: "
        f"{'holds' if guard.holds else '**violated**'}"
        for guard in decision.guards
    ]
    return [*lines, ""] if lines else []


def _changed_rows(evaluated: EvaluatedRecord, decision: DecisionRecord) -> list[str]:
    prompts, scores = read_scores(evaluated.rows.path, evaluated.answers)
    incumbent, challenger = scores[evaluated.incumbent], scores[CHALLENGER]
    lines = []
    for what, rows in zip(
        ("better", "worse"), row_changes(decision.metric, incumbent, challenger), strict=True
    ):
        lines += [f"## {len(rows)} rows got {what}", ""]
        for row in rows[:_SHOWN_ROWS]:
            texts = {
                "Prompt": prompts[row],
                "Expected": challenger.expected[row],
                evaluated.incumbent.capitalize(): incumbent.rows[row].answer,
                CHALLENGER.capitalize(): challenger.rows[row].answer,
            }
            lines += [f"### Row {row + 1}", "", *blocks(texts)]
    return lines


def _about(evaluated: EvaluatedRecord, checked: CheckedRecord) -> list[str]:
    leaks = len(checked.leaked_rows) + len(checked.similar_rows)
    return [
        "## About",
        "",
        f"- {evaluated.num_rows} held-out rows, sha256 `{checked.held_out.sha256}`",
        f"- of them in the training data: {leaks}",
        *_older(checked),
        *_harness(evaluated),
        f"- the challenger began as {_beginning(checked)}",
        *(f"- {_about_model(model)}" for model in evaluated.models),
        *(f"- {warning}" for warning in evaluated.warnings),
        "",
    ]


def _older(checked: CheckedRecord) -> list[str]:
    return [f"- older rows: sha256 `{checked.older.sha256}`"] if checked.older else []


def _harness(evaluated: EvaluatedRecord) -> list[str]:
    if evaluated.harness is None:
        return []
    model = evaluated.harness.models[0]
    return [
        f"- task {one.name}, version {one.version}: {one.num_rows} rows, {one.num_fewshot}-shot"
        for one in model.tasks
    ]


def _beginning(checked: CheckedRecord) -> str:
    source = checked.source
    if source is None:
        return "a fresh adapter"
    return f"{breakable(source.reference)}, sha256 `{source.weights.sha256}`"


def _about_model(model: ScoredModel) -> str:
    return f"{model.name}: {breakable(model.source)}, sha256 `{model.weights_sha256}`"
