"""The variants' settings: how one training becomes many, where they run, and which is the best."""

import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PureWindowsPath
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field, field_validator, model_validator

from tasks.config.section import Section

MOST_VARIANTS = 10_000
"""Each is a flow run, an MLflow run and a folder of its own."""
_MOST = 10**9
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


def _can_be_a_folder(name: str) -> str:
    if name.endswith(".") or PureWindowsPath(name).is_reserved():
        raise ValueError(f"{name} can't be the name of a folder on Windows; choose another")
    return name


VariantName = Annotated[str, Field(pattern=_NAME), AfterValidator(_can_be_a_folder)]
"""What can be a folder's name on every system."""
Choices = Annotated[list[Any], Field(min_length=1)]


class Score(StrEnum):
    """What variants are compared by."""

    EVAL_LOSS = "eval_loss"
    TRAIN_LOSS = "train_loss"
    EXACT_MATCH = "exact_match"
    ACCURACY = "accuracy"
    MACRO_F1 = "macro_f1"
    ENTITY_F1 = "entity_f1"
    REWARD_ACCURACY = "rewards/accuracies"

    @property
    def is_loss(self) -> bool:
        """Whether the lowest is the best."""
        return self in (Score.EVAL_LOSS, Score.TRAIN_LOSS)


class RunOn(StrEnum):
    """Where the variants are trained."""

    HERE = "here"
    WORK_POOL = "work-pool"
    RAY = "ray"


class OnTooFew(StrEnum):
    """What happens to rows that are too few for an adapter of their own."""

    ERROR = "error"
    DROP = "drop"


class ListedVariant(Section):
    """A variant, and how it differs from the configuration around it."""

    model_config = ConfigDict(title="Variant")

    name: VariantName
    """Its name in reports, and of its files: letters, digits, `_`, `-` and `.`."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings by key path, such as `lora.r: 8`; all others are those of the configuration."""


class SearchRange(Section):
    """The numbers that a setting is searched in."""

    model_config = ConfigDict(title="Range")

    low: int | float = Field(ge=-_MOST, le=_MOST)
    """The least value."""

    high: int | float = Field(ge=-_MOST, le=_MOST)
    """The greatest value. If both are integers, only integers are tried."""

    log: bool = False
    """Search the logarithm, as suits learning rates."""

    @property
    def is_integer(self) -> bool:
        """Whether only integers are tried."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; low must be less")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low}, which has no logarithm; raise it, or remove log")
        return self


class SearchSettings(Section):
    """A search by Optuna's TPE: each trial depends on the scores of those before it."""

    model_config = ConfigDict(title="Search")

    ranges: dict[str, SearchRange | Choices] = Field(min_length=1)
    """By key path, what is tried: a range such as `{low: 1.0e-5, high: 1.0e-3, log: true}`, or a
    list of values."""

    num_trials: int = Field(default=20, ge=1, le=MOST_VARIANTS)
    """Number of variants that are tried, round after round. Each knows the scores of the rounds
    before its own."""

    trials_per_round: int | None = Field(default=None, ge=1, le=1024)
    """Number of variants that are tried at the same time; by default as many as there are
    processes. If it is set, what is tried does not depend on their number."""


class SplitSettings(Section):
    """One adapter for each value of a column."""

    model_config = ConfigDict(title="Split by a column")

    column: str = Field(min_length=1)
    """A column of the data, by its name in the file, such as `tenant` or `language`. Each variant
    trains on the rows with one value and holds out some of them, as `data.where` does."""

    min_rows: int = Field(default=10, ge=2, le=10**9)
    """The least number of training rows that a value must have, those to hold out included."""

    on_too_few: OnTooFew = OnTooFew.ERROR
    """What to do about values with fewer rows, and rows without a value: fail (`error`), or train
    no adapter for them and report how many there are (`drop`)."""


class VariantsSettings(Section):
    """The variants: one of `list`, `grid`, `search` and `split_by`."""

    model_config = ConfigDict(title="Variants")

    list: tuple[ListedVariant, ...] | None = Field(default=None, min_length=1)
    """Variants by name, each with the settings that differ."""

    grid: dict[str, Choices] | None = Field(default=None, min_length=1)
    """By key path, the values of a setting; every combination is a variant."""

    search: SearchSettings | None = None
    """A search for the best values by Optuna."""

    split_by: SplitSettings | None = None
    """One adapter for each value of a column of the data; `split_by: tenant` is short for its
    `column`."""

    metric: Score = Score.EVAL_LOSS
    """What variants are compared and searched by: `eval_loss` and `exact_match` (of the sample
    answers) of the held-out rows; `accuracy`, `macro_f1` and `entity_f1` where rows are classified;
    `rewards/accuracies` where pairs are learned; or `train_loss`."""

    run_on: RunOn = RunOn.HERE
    """Where the variants are trained: in processes on this machine (`here`), by the workers of a
    Prefect work pool, each variant in a process of its own (`work-pool`), or in the processes of a
    Ray cluster (`ray`). Wherever it is, paths of the data, the base and the home must be the same
    on storage that all machines see."""

    num_processes: int = Field(default=1, ge=1, le=1024)
    """Processes that train at the same time, each one variant after the other, here or on Ray. On a
    machine with several GPUs they take turns in having one each; on Ray each has a GPU of its own,
    if the cluster has any. On a work pool, the workers decide how many runs are active; a search
    tries so many variants at once."""

    deployment: str = Field(default="train-adapter/variant", pattern=r"^[^/]+/[^/]+$")
    """On a work pool: the deployment of the flow `train-adapter` that the variants are runs of."""

    ray_address: str = Field(default="auto", min_length=1)
    """On Ray: the cluster's address, `HOST:PORT`. `auto` is the cluster that this machine belongs
    to."""

    cpus_each: int = Field(default=1, ge=1, le=1024)
    """On Ray: CPU cores that each process reserves, and so many threads it computes with."""

    register_as: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    """Register the best adapter in MLflow under this name, as the challenger; split by a column,
    each adapter as `NAME-VARIANT`. By default none is registered."""

    @field_validator("split_by", mode="before")
    @classmethod
    def _accept_a_column(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        return {"column": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [name for name in ("list", "grid", "search", "split_by") if getattr(self, name)]
        if len(kinds) != 1:
            raise ValueError(
                f"variants has {' and '.join(kinds) or 'none of them'}; give one of list, grid, "
                "search and split_by"
            )
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        # A file system may ignore case.
        seen: set[str] = set()
        for one in self.list or ():
            if one.name.casefold() in seen:
                raise ValueError(f"two variants are named {one.name!r}; give each its own name")
            seen.add(one.name.casefold())
        return self

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        number = math.prod(len(values) for values in (self.grid or {}).values())
        if number > MOST_VARIANTS:
            raise ValueError(f"the grid has {number:,} variants; at most {MOST_VARIANTS:,} are run")
        return self

    @property
    def num_at_once(self) -> int:
        """Number of variants that are trained at the same time."""
        return self.num_processes

    @property
    def key_paths(self) -> Mapping[str, str]:
        """Where each setting that differs is given, by its key path."""
        found = dict.fromkeys(self.grid or (), "variants.grid")
        if self.search:
            found |= dict.fromkeys(self.search.ranges, "variants.search.ranges")
        for one in self.list or ():
            found |= dict.fromkeys(one.settings, f"the variant {one.name}")
        return found
