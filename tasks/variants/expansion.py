"""What a section of variants stands for: each variant's name, and its settings by key path."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

from tasks.config import (
    OnTooFew,
    SearchRange,
    SplitSettings,
    TrainAdapterConfig,
    TrainVariantsConfig,
)
from tasks.config.reading import with_settings
from tasks.engine.data.splits import ColumnValues, column_values
from tasks.errors import UserError
from tasks.records import PlanRecord, VariantRecord

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_UNSAFE_IN_NUMBERS = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_NAME = 60
_SHOWN = 10
_NOT_COMPARED = {"output", "tracking"}
"""Sections that make no other variant: they say where it goes and how it is recorded."""


def planned(config: TrainVariantsConfig) -> PlanRecord:
    """Return the variants of a set; of a search, only how many there will be.

    Raises:
        UserError: a variant's settings can't work, two variants are the same, or the column that
            splits the data does not.
    """
    given = config.variants
    if given.search:
        _check_ranges(config)
        return PlanRecord(variants=(), num_variants=given.search.num_trials)
    if given.split_by:
        return _split(config, given.split_by)
    variants = tuple(_listed(config) if given.list else _combined(given.grid or {}))
    _check_distinct(config, variants)
    return PlanRecord(variants=variants, num_variants=len(variants))


def variant_config(alone: TrainAdapterConfig, variant: VariantRecord) -> TrainAdapterConfig:
    """Return the configuration of a variant, as one that `adapterflow train` takes.

    Args:
        alone: the configuration of the set without its variants.
        variant: how it differs.

    Raises:
        UserError: its settings are not possible, alone or with the others.
    """
    return with_settings(alone, variant.settings, f"the variant {variant.name}")


def searched_configs(config: TrainVariantsConfig) -> Iterator[tuple[str, TrainAdapterConfig]]:
    """Yield what shows whether each setting may have the values that a search tries.

    Yields:
        The setting's key path, and the configuration with one of its values.

    Raises:
        UserError: a value is not possible, alone or with the other settings.
    """
    search = config.variants.search
    for path, tried in (search.ranges if search else {}).items():
        for value in _extremes(tried):
            yield path, with_settings(config.alone, {path: value}, searched_name(path))


def searched_name(path: str) -> str:
    """Return how messages name a setting that is searched."""
    return f"variants.search.ranges.{path}"


def identity(config: TrainAdapterConfig) -> str:
    """Return what is equal for two configurations that would train the same adapter."""
    lora = config.lora.model_copy(update={"r": config.lora.rank})
    return config.model_copy(update={"lora": lora}).model_dump_json(exclude=_NOT_COMPARED)


def safe_name(text: str) -> str:
    """Return a text as a name that a folder and an adapter can have on every system."""
    name = _UNSAFE.sub("-", text)[:_LONGEST_NAME].strip("-_")
    # Nothing is left of a text in another script, and some names are Windows' devices.
    if name and not PureWindowsPath(name).is_reserved():
        return name
    return f"value-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:8]}"


def _listed(config: TrainVariantsConfig) -> Iterator[VariantRecord]:
    for one in config.variants.list or ():
        yield VariantRecord(name=one.name, settings=dict(one.settings))


def _combined(grid: Mapping[str, Sequence[Any]]) -> Iterator[VariantRecord]:
    """Yield each combination of a grid, the last setting changing fastest."""
    taken: set[str] = set()
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        # Long values are cut, and may become the same.
        name = _not_in(taken, setting_name(settings))
        taken.add(name.casefold())
        yield VariantRecord(name=name, settings=settings)


def _not_in(taken: set[str], name: str) -> str:
    """Return a name, numbered if it is taken; a file system may ignore case."""
    possible = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(one for one in possible if one.casefold() not in taken)


def setting_name(settings: Mapping[str, Any]) -> str:
    """Return a name that says how a variant differs, such as `r-8-learning_rate-0.001`."""
    parts = (f"{path.rpartition('.')[2]}-{_value_name(value)}" for path, value in settings.items())
    return _UNSAFE_IN_NUMBERS.sub("-", "-".join(parts))[:_LONGEST_NAME].strip("-.")


def _value_name(value: object) -> str:
    if isinstance(value, str):
        return value.rpartition("/")[2] or value
    if isinstance(value, list):
        return "+".join(map(_value_name, value)).replace("+", "-")
    return json.dumps(value)


def _check_distinct(config: TrainVariantsConfig, variants: Sequence[VariantRecord]) -> None:
    seen: dict[str, str] = {}
    pushed: dict[str, str] = {}
    alone = config.alone
    for one in variants:
        own = variant_config(alone, one)
        _check_variant(config, own, f"the variant {one.name}")
        key, repo = identity(own), own.output.push_to_hub
        if key in seen:
            raise UserError(
                f"the variants {seen[key]} and {one.name} are the same configuration; remove one "
                "of them, or let them differ"
            )
        seen[key] = one.name
        if repo and repo in pushed:
            raise _pushed_twice(pushed[repo], one.name, repo)
        if repo:
            pushed[repo] = one.name


def _check_variant(config: TrainVariantsConfig, own: TrainAdapterConfig, name: str) -> None:
    try:
        config.check_variant(own)
    except ValueError as mistake:
        raise UserError(f"{name}: {mistake}") from None


def _pushed_twice(one: str, other: str, repo: str) -> UserError:
    return UserError(
        f"the variants {one} and {other} would both be pushed to {repo}; remove "
        "output.push_to_hub and push the one that you want, or set it for each variant"
    )


def _check_ranges(config: TrainVariantsConfig) -> None:
    """Check that each setting may have the values that are searched, the others as they are."""
    for path, own in searched_configs(config):
        _check_variant(config, own, searched_name(path))
    search = config.variants.search
    if search and search.num_trials > 1 and (repo := config.output.push_to_hub):
        raise _pushed_twice("trial-0", "trial-1", repo)


def _extremes(tried: SearchRange | Sequence[Any]) -> Sequence[Any]:
    """Return what shows whether a setting may have every value that is tried."""
    if not isinstance(tried, SearchRange):
        return tried
    # An integer setting takes 4.0 and 8.0 as well, but nothing between them.
    between = [] if tried.is_integer else [_fraction_in(tried.low, tried.high)]
    return [tried.low, tried.high, *between]


def _fraction_in(low: float, high: float) -> float:
    """Return a number between two others that is no integer."""
    middle = low + (high - low) / 2
    return math.nextafter(middle, high) if middle.is_integer() else middle


def _split(config: TrainVariantsConfig, split: SplitSettings) -> PlanRecord:
    found = column_values(config.data, split.column, "variants.split_by")
    few = _too_few(found, split)
    kept = [value for value in found.train if value not in few]
    if few and (split.on_too_few is OnTooFew.ERROR or not kept):
        raise _few_error(config, split, found, few)
    if len(found.train) == 1:
        (value,) = found.train
        raise UserError(
            f"all rows of {config.data.train} have the same {split.column}, {value!r}: there is "
            "nothing to split; train one adapter with adapterflow train, or name another column"
        )
    where = config.data.where
    variants = [
        VariantRecord(
            name=safe_name(value),
            settings={"data.where": {**where, split.column: value}},
            value=value,
        )
        for value in kept
    ]
    _check_names(variants, split.column)
    if len(variants) > 1 and (repo := config.output.push_to_hub):
        raise _pushed_twice(variants[0].name, variants[1].name, repo)
    return PlanRecord(
        variants=tuple(variants),
        num_variants=len(variants),
        num_rows={one.name: found.train[one.value or ""] for one in variants},
        left_out=few,
    )


def _too_few(found: ColumnValues, split: SplitSettings) -> dict[str, int]:
    """Return the values that no adapter can be trained for, with their numbers of rows."""
    few = {value: count for value, count in found.train.items() if count < split.min_rows}
    if found.eval is not None:
        few |= {value: found.train[value] for value in found.train if not found.eval[value]}
    return few | ({"": found.num_without} if found.num_without else {})


def _few_error(
    config: TrainVariantsConfig, split: SplitSettings, found: ColumnValues, few: Mapping[str, int]
) -> UserError:
    source, column = config.data.train, split.column
    leave_out = "or leave them out with variants.split_by.on_too_few: drop"
    if found.num_without:
        return UserError(
            f"{found.num_without:,} rows of {source} have no {column}, the first of them row "
            f"{found.first_without}: they belong to no variant; complete them, {leave_out}"
        )
    fewest = sorted((count, value) for value, count in few.items())
    shown = ", ".join(f"{value} ({count})" for count, value in fewest[:_SHOWN])
    more = f", … ({len(few):,} in all)" if len(few) > _SHOWN else ""
    if any(count < split.min_rows for count in few.values()):
        return UserError(
            f"{len(few):,} of {len(found.train):,} values of {column} in {source} have fewer than "
            f"{split.min_rows} rows: {shown}{more}; add rows, lower variants.split_by.min_rows, "
            f"{leave_out}"
        )
    apart = config.data.eval or config.data.eval_split
    return UserError(
        f"{len(few):,} of {len(found.train):,} values of {column} have no held-out rows in "
        f"{apart}: {shown}{more}; add some, {leave_out}"
    )


def _check_names(variants: Sequence[VariantRecord], column: str) -> None:
    seen: dict[str, str | None] = {}
    for one in variants:
        key = one.name.casefold()
        if key in seen:
            raise UserError(
                f"the values {seen[key]!r} and {one.value!r} of {column} would both be named "
                f"{one.name}; write one of them otherwise in the data"
            )
        seen[key] = one.value
