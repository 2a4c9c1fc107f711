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


class Possible(NamedTuple):
    """A training that a set of variants may have."""

    name: str | None
    """What begins a message about it; None where the mistake is not in what differs."""
    settings: Sequence[str]
    """Key paths of the settings that differ from the set's."""
    config: "TrainAdapterConfig"


class CheckedSet(NamedTuple):
    """What was found of a set of variants."""

    plan: "PlanRecord"
    configs: "list[TrainAdapterConfig]"
    """Of the variants; of a search, the configuration without it."""
    possible: list[Possible]
    row_formats: "tuple[RowFormat, ...]"
    """Of the first variant's training rows."""


def check_set(config: "TrainVariantsConfig") -> CheckedSet:
    """Check a set of variants, and the training of each that reads other rows or another base.

    Raises:
        UserError: a variant can't work, or the data can't be split as configured.
    """
    from tasks.variants.expansion import planned, searched_configs, searched_name, variant_config

    plan = planned(config)
    alone = config.alone
    variants = [
        Possible(f"the variant {one.name}", list(one.settings), variant_config(alone, one))
        for one in plan.variants
    ]
    # A search has no variants yet: the values that it may try take their place.
    possible = variants or [
        Possible(None, (), alone),
        *(Possible(searched_name(path), [path], one) for path, one in searched_configs(config)),
    ]
    formats: dict[str, tuple[RowFormat, ...]] = {}
    # The rows of a split are there, and differ in their values only; each run checks its own.
    is_split = bool(config.variants.split_by)
    for one in possible:
        own = one.config
        rows = own.data.model_copy(update={"where": {}}) if is_split else own.data
        read = own.model_copy(update={"data": rows}).model_dump_json(include=_OF_ROWS)
        if read not in formats:
            with _naming(one, {} if is_split else _OF_ROWS):
                formats[read] = check_training(own)
    configs = [one.config for one in variants] or [alone]
    return CheckedSet(plan, configs, possible, next(iter(formats.values())))


def check_bases(checked: CheckedSet) -> None:
    """Check what depends on the base in each variant's settings, while a server starts.

    Raises:
        UserError: one of them can't work; the message names the variant whose settings they are.
    """
    from tasks.validate_inputs import check_base_early

    seen: set[str] = set()
    for one in checked.possible:
        read = one.config.model_dump_json(include=_OF_BASE)
        if read in seen:
            continue
        with _naming(one, _OF_BASE):
            check_base_early(one.config, () if seen else checked.row_formats)
        seen.add(read)


def _is_read(path: str, read: Mapping[str, Any]) -> bool:
    section, _, setting = path.partition(".")
    return section in read and (read[section] is True or setting in read[section])


@contextmanager
def _naming(one: Possible, read: Mapping[str, Any]) -> Iterator[None]:
    """Have a mistake begin with whose settings it is in, if what differs was read."""
    try:
        yield
    except UserError as mistake:
        is_its_own = any(_is_read(path, read) for path in one.settings)
        raise UserError(f"{one.name}: {mistake}" if is_its_own else str(mistake)) from None


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
