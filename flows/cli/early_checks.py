"""What can be checked in a second or two, before heavy libraries are imported."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import UserError

if TYPE_CHECKING:
    from tasks.config import RowFormat, TrainAdapterConfig, TrainVariantsConfig
    from tasks.records import PlanRecord

_OF_ROWS: dict[str, Any] = {"base_model": True, "data": True, "training": {"objective"}}
"""The settings that the rows' checks read."""
_OF_BASE: dict[str, Any] = {
    "base_model": True,
    "lora": True,
    "training": {"optim", "loraplus_lr_ratio", "neftune_noise_alpha", "batching"},
}
"""The settings that `check_base_early` reads, beside those of the data."""


def check_training(config: "TrainAdapterConfig") -> "tuple[RowFormat, ...]":
    """Check a training's output folder, MLflow's address, template, first rows and base's files.

    Returns:
        The formats of the training rows.

    Raises:
        UserError: one of them can't work.
        UnwritableError: the disk is full.
    """
    from tasks.durability.run_folder import check_output_folder
    from tasks.engine.base import check_files
    from tasks.engine.data.rendering import read_chat_template
    from tasks.engine.data.rendering import start as start_trials
    from tasks.engine.data.splits import check_first_rows
    from tasks.launching import check_processes
    from tasks.tracking import check_store

    check_processes(config.launch, config.training)
    start_trials()
    check_output_folder(config)
    check_store(config.tracking)
    wanted = config.base_model
    read_chat_template(config.data.chat_template)
    objective = config.training.objective
    row_formats = check_first_rows(config.data, wanted.task, wanted.labels, objective)
    check_files(wanted)
    return row_formats


class CheckedSet(NamedTuple):
    """What was found of a set of variants."""

    plan: "PlanRecord"
    configs: "list[TrainAdapterConfig]"
    """Of the variants; of a search, the configuration without it."""
    row_formats: "tuple[RowFormat, ...]"
    """Of the first variant's training rows."""


def check_set(config: "TrainVariantsConfig") -> CheckedSet:
    """Check a set of variants, and the training of each that reads other rows or another base.

    Raises:
        UserError: a variant can't work, or the data can't be split as configured.
    """
    from tasks.variants.expansion import planned, variant_config

    plan = planned(config)
    alone = config.alone
    configs = [variant_config(alone, one) for one in plan.variants] or [alone]
    formats: dict[str, tuple[RowFormat, ...]] = {}
    # The rows of a split are there, and differ in their values only; each run checks its own.
    is_split = bool(config.variants.split_by)
    names = [None] * len(configs) if is_split else _names(plan, _OF_ROWS)
    for name, one in zip(names, configs, strict=True):
        rows = one.data.model_copy(update={"where": {}}) if is_split else one.data
        read = one.model_copy(update={"data": rows}).model_dump_json(include=_OF_ROWS)
        if read not in formats:
            with _naming(name):
                formats[read] = check_training(one)
    return CheckedSet(plan, configs, next(iter(formats.values())))


def check_bases(checked: CheckedSet) -> None:
    """Check what depends on the base in each variant's settings, while a server starts.

    Raises:
        UserError: one of them can't work; the message names the variant whose settings they are.
    """
    from tasks.validate_inputs import check_base_early

    seen: set[str] = set()
    names = _names(checked.plan, _OF_BASE)
    for name, config in zip(names, checked.configs, strict=True):
        read = config.model_dump_json(include=_OF_BASE)
        if read in seen:
            continue
        with _naming(name):
            check_base_early(config, () if seen else checked.row_formats)
        seen.add(read)


def _names(plan: "PlanRecord", read: Mapping[str, Any]) -> list[str | None]:
    """Return the variants' names: None where a variant has none of the settings that are read.

    A search has no variants yet, and is checked as one.
    """
    return [
        one.name if any(_is_read(path, read) for path in one.settings) else None
        for one in plan.variants
    ] or [None]


def _is_read(path: str, read: Mapping[str, Any]) -> bool:
    section, _, setting = path.partition(".")
    return section in read and (read[section] is True or setting in read[section])


@contextmanager
def _naming(variant: str | None) -> Iterator[None]:
    """Have a mistake begin with the variant whose settings it is in, if it is in any."""
    try:
        yield
    except UserError as mistake:
        raise UserError(f"the variant {variant}: {mistake}" if variant else str(mistake)) from None


def check_sources(adapters: Sequence[str], tracking_uri: str | None = None) -> None:
    """Check what can be checked of adapters by their sources alone, and of MLflow's address.

    The address is checked where a source needs it, or where it was given.

    Raises:
        UserError: a source can't be one, or the MLflow store can't be used.
    """
    from tasks.config import TrackingSettings
    from tasks.config.reading import adapter_here
    from tasks.tracking import check_store, is_mlflow_uri

    for source in adapters:
        adapter_here(source)
    if tracking_uri or any(is_mlflow_uri(source) for source in adapters):
        check_store(TrackingSettings(uri=tracking_uri))
