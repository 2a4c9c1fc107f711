"""A set of variants as adapters to answer with: each row goes to the adapter of its value."""

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from tasks.config import AdapterSettings, PredictBatchConfig
from tasks.config.adapter_name import check_adapter_name
from tasks.errors import UserError
from tasks.records import VARIANTS_FILE, VariantResult, VariantsRecord
from tasks.runtime.paths import expanded, path_problem

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_ADAPTER_COLUMN = PredictBatchConfig.model_fields["adapter_column"].default


def is_set(source: str) -> bool:
    """Return whether an adapter's source is the folder of a set of variants."""
    return path_problem(source) is None and (expanded(source) / VARIANTS_FILE).is_file()


def read_set(folder: Path) -> VariantsRecord:
    """Read the manifest of a set.

    Raises:
        UserError: it is missing or malformed.
    """
    file = folder / VARIANTS_FILE
    try:
        return VariantsRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {VARIANTS_FILE}, which a set of variants ends with; resume the set"
        ) from None
    except (OSError, ValidationError) as error:
        raise UserError(f"{file} can't be read as a set of variants; resume the set") from error


def lost_adapters(record: VariantsRecord, folder: Path) -> list[VariantResult]:
    """Return the variants that were trained, and whose adapter is no longer in a set's folder."""
    return [one for one in record.variants if one.adapter and not (folder / one.adapter).is_dir()]


def with_variants(config: PredictBatchConfig) -> PredictBatchConfig:
    """Return a configuration in which a set of variants is replaced by its adapters.

    The column that the set was split by selects a row's adapter, unless another one is configured.

    Raises:
        UserError: the set has no adapters, or no longer all of them, or is not the only source.
    """
    if not any(is_set(one.source) for one in config.adapters):
        return config
    if len(config.adapters) > 1:
        raise UserError(
            "a set of variants was given beside other adapters; give it alone, or name the folders "
            f"of its adapters, which {VARIANTS_FILE} lists"
        )
    given = config.adapters[0]
    folder = expanded(given.source)
    record = read_set(folder)
    adapters = _adapters(record, folder, given)
    column = config.adapter_column
    if record.column and column == _ADAPTER_COLUMN:
        column = record.column
    return PredictBatchConfig.model_validate(
        {**config.model_dump(), "adapters": adapters, "adapter_column": column}
    )


def _adapters(
    record: VariantsRecord, folder: Path, given: AdapterSettings
) -> list[AdapterSettings]:
    names: set[str] = set()
    adapters = []
    for one in record.variants:
        if one.adapter is None:
            continue
        place = _inside(folder, one.adapter)
        names.add(name := _adapter_name(one, names))
        value = one.value or one.name
        changes = {"source": str(place), "name": name, "value": value}
        adapters.append(AdapterSettings.model_validate({**given.model_dump(), **changes}))
    if lost := lost_adapters(record, folder):
        raise _lost_error(record, folder, lost)
    if not adapters:
        raise UserError(f"none of the variants in {folder} has an adapter; resume the set")
    return adapters


def _lost_error(record: VariantsRecord, folder: Path, lost: Sequence[VariantResult]) -> UserError:
    more = f", and those of {len(lost) - 1:,} more" if len(lost) > 1 else ""
    is_moved = folder.resolve() != record.run.folder
    copied = f", and copy the set again from {record.run.folder}" if is_moved else ""
    return UserError(
        f"the adapter of the variant {lost[0].name} is missing: {folder / str(lost[0].adapter)}"
        f"{more}; train what is missing with adapterflow resume {record.run.flow_run_id}{copied}"
    )


def _inside(folder: Path, adapter: str) -> Path:
    place = folder / adapter
    if not place.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{folder / VARIANTS_FILE} names {adapter}, which is outside of its folder; an adapter "
            "of a set is inside"
        )
    return place


def _adapter_name(variant: VariantResult, taken: set[str]) -> str:
    """Return a variant's name as one that PEFT takes, which some values are not."""
    name = _NOT_IN_NAMES.sub("-", variant.name)
    try:
        check_adapter_name(name)
    except ValueError:  # an attribute of torch's containers, such as `train`
        name = f"{name}-adapter"
    number = 2
    first = name
    while name in taken:
        name, number = f"{first}-{number}", number + 1
    return name
