"""The search for the best settings: Optuna's TPE, with every trial in a file.

A resumed search knows all scores that there were, and the settings of trials without one. Which
settings a trial gets depends on the seed, its number and the scores before its round, not on how
often the search was interrupted.
"""

from collections.abc import Sequence
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
        return self._new([self._completed(one) for one in self._study.trials])

    def next_round(self) -> list[VariantRecord]:
        """Return trials that were not tried before; empty once all trials are used up.

        A round in which all are known already is passed over.
        """
        while (left := self._settings.num_trials - len(self._study.trials)) > 0:
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

    def _asked(self) -> VariantRecord:
        self._seed_trial(len(self._study.trials))
        return self._variant(self._study.ask())

    def _seed_trial(self, number: int) -> None:
        """Give a trial a sampler of its own, whose state would be lost with the process."""
        from optuna.samplers import TPESampler

        self._study.sampler = TPESampler(seed=self._seed + number, constant_liar=True)

    def _completed(self, trial: "FrozenTrial") -> VariantRecord:
        """Return a trial's settings, also those that an interrupted attempt had not drawn yet."""
        import optuna

        if trial.state.is_finished():
            settings = {path: trial.params[path] for path in self._settings.ranges}
            return self._named(trial.number, self._decoded(settings))
        self._seed_trial(trial.number)
        return self._variant(optuna.Trial(self._study, trial._trial_id))  # noqa: SLF001 - no other way

    def _variant(self, trial: "Trial") -> VariantRecord:
        drawn = {path: _drawn(trial, path, tried) for path, tried in self._settings.ranges.items()}
        return self._named(trial.number, self._decoded(drawn))

    def _decoded(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """Replace a choice's number by the choice."""
        ranges = self._settings.ranges
        return {
            path: tried[drawn[path]] if isinstance(tried := ranges[path], list) else drawn[path]
            for path in ranges
        }

    def _named(self, number: int, settings: dict[str, Any]) -> VariantRecord:
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


def _drawn(trial: "Trial", path: str, tried: "SearchRange | list[Any]") -> Any:  # noqa: ANN401 - a setting
    if isinstance(tried, list):
        # By number, as Optuna keeps numbers and texts only.
        return trial.suggest_categorical(path, range(len(tried)))
    if tried.is_integer:
        return trial.suggest_int(path, int(tried.low), int(tried.high), log=tried.log)
    return trial.suggest_float(path, tried.low, tried.high, log=tried.log)
