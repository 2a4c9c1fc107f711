"""The search for the best settings: Optuna's TPE, with every trial in a file.

A resumed search knows all scores that there were, and the settings of trials without one. Which
settings a trial gets depends on the seed, its number and the scores before its round, not on how
often the search was interrupted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import SearchRange, TrainVariantsConfig
from tasks.errors import UserError
from tasks.records import VariantRecord
from tasks.runtime.progress import logger
from tasks.variants.expansion import identity, variant_config

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

_FILE = "search.db"
_NAME = "variants"


class Search:
    """A search, of which each round knows the scores of the rounds before."""

    def __init__(self, config: TrainVariantsConfig, folder: Path) -> None:
        import optuna

        assert config.variants.search  # noqa: S101 - the caller's case
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._alone, self._seed = config.alone, config.seed
        self._num_at_once = config.variants.search.trials_per_round or config.variants.num_at_once
        self._settings = config.variants.search
        self._study: Study = optuna.create_study(
            study_name=_NAME,
            storage=f"sqlite:///{folder / _FILE}",
            direction="minimize" if config.variants.metric.is_loss else "maximize",
            load_if_exists=True,
        )
        self._numbers: dict[str, list[int]] = {}
        """Trials by identity: the search may propose the same settings again."""

    def begun(self) -> list[VariantRecord]:
        """Return the trials of an earlier attempt, each once, with a score or not."""
        from optuna.trial import TrialState

        for trial in self._study.trials:  # interrupted before all its settings were drawn
            if not trial.state.is_finished() and not self._is_drawn(trial):
                self._study.tell(trial.number, state=TrialState.FAIL)
        return self._new([self._of(one.number, one.params) for one in self._drawn()])

    def next_round(self) -> list[VariantRecord]:
        """Return trials that were not tried before; empty once all trials are used up.

        A round in which all are known already is passed over.
        """
        while (left := self._settings.num_trials - len(self._drawn())) > 0:
            count = min(left, self._num_at_once)
            if new := self._new([self._asked() for _ in range(count)]):
                return new
        return []

    def tell(self, variant: VariantRecord, score: float | None) -> None:
        """Record a score; a trial without one stays open, and is tried again by a resume."""
        if score is None:
            return
        for number in self._numbers[self._identity(variant)]:
            self._study.tell(number, score, skip_if_finished=True)

    def _drawn(self) -> "list[FrozenTrial]":
        return [trial for trial in self._study.trials if self._is_drawn(trial)]

    def _is_drawn(self, trial: "FrozenTrial") -> bool:
        return trial.params.keys() == self._settings.ranges.keys()

    def _asked(self) -> VariantRecord:
        from optuna.samplers import TPESampler

        # A sampler's state would be lost with the process: each trial has its own.
        seed = self._seed + len(self._study.trials)
        self._study.sampler = TPESampler(seed=seed, constant_liar=True)
        trial = self._study.ask()
        drawn = {path: _draw(trial, path, tried) for path, tried in self._settings.ranges.items()}
        return self._of(trial.number, drawn)

    def _of(self, number: int, drawn: Mapping[str, Any]) -> VariantRecord:
        """Return a trial as a variant: in place of a choice's number, the choice."""
        settings = {
            path: tried[drawn[path]] if isinstance(tried, list) else drawn[path]
            for path, tried in self._settings.ranges.items()
        }
        return VariantRecord(name=f"trial-{number}", settings=settings)

    def _new(self, variants: Sequence[VariantRecord]) -> list[VariantRecord]:
        """Return the variants that no earlier trial was; a known score counts for the others."""
        new = []
        for one in variants:
            number = int(one.name.rpartition("-")[2])
            same = self._numbers.setdefault(self._identity(one), [])
            if not same:
                new.append(one)
            elif number not in same:
                first = self._study.trials[same[0]]
                logger().info("%s has the settings of trial-%d", one.name, first.number)
                if first.value is not None:
                    self._study.tell(number, first.value, skip_if_finished=True)
            same.append(number)
        return new

    def _identity(self, variant: VariantRecord) -> str:
        try:
            return identity(variant_config(self._alone, variant))
        except UserError:  # settings that exclude each other: the variant fails by itself
            return variant.model_dump_json(include={"settings"})


def _draw(trial: "Trial", path: str, tried: "SearchRange | list[Any]") -> Any:  # noqa: ANN401 - a setting
    if isinstance(tried, list):
        # By number, as Optuna keeps numbers and texts only.
        return trial.suggest_categorical(path, range(len(tried)))
    if tried.is_integer:
        return trial.suggest_int(path, int(tried.low), int(tried.high), log=tried.log)
    return trial.suggest_float(path, tried.low, tried.high, log=tried.log)
