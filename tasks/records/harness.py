"""Scores of lm-evaluation-harness, as its own names have them."""

from pydantic import ConfigDict

from tasks.records.record import Record


class HarnessScore(Record):
    """One model's score in one metric of a task or group."""

    # A perplexity may be infinite, which JSON has no number for.
    model_config = ConfigDict(ser_json_inf_nan="strings")

    task: str
    metric: str
    """Such as `acc`; with a filter, `exact_match/strict-match`."""
    value: float
    stderr: float | None
    """Standard error; None where the harness has none."""
    higher_is_better: bool | None
    """None where the task does not say."""

    @property
    def name(self) -> str:
        """The score's name among the guards."""
        return f"{self.task}/{self.metric}"


class HarnessTask(Record):
    """A task as it was scored."""

    name: str
    version: str
    """The task's own; `Yaml` where it states none."""
    num_rows: int
    """Scored: of all, or as many as `limit`."""
    num_fewshot: int


class HarnessModel(Record):
    """One model's scores on all tasks."""

    name: str
    """`base`, `champion` or `challenger`."""
    made_from: str
    """The sha256 of all that the scores depend on."""
    tasks: tuple[HarnessTask, ...]
    scores: tuple[HarnessScore, ...]
    warnings: tuple[str, ...]
    """What the harness warned of, each once."""
    seconds: float
    """Without the time for loading."""


class HarnessRecord(Record):
    """Base, champion and challenger on tasks of lm-evaluation-harness."""

    lm_eval_version: str
    limit: int | None
    models: tuple[HarnessModel, ...]
    shown: tuple[str, ...]
    """The tasks and groups that reports name: those configured, without the members of a group."""

    def score(self, model: str, name: str) -> HarnessScore | None:
        """Return a model's score by its name among the guards; None if there is none."""
        scores = (score for one in self.models if one.name == model for score in one.scores)
        return next((score for score in scores if score.name == name), None)

    def shown_scores(self, model: str) -> dict[str, float]:
        """Return a model's scores that reports name, by their names among the guards."""
        return {
            score.name: score.value
            for one in self.models
            if one.name == model
            for score in one.scores
            if score.task in self.shown
        }
