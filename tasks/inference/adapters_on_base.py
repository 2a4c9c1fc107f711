"""Load a base with adapters from a folder, the Hub, or MLflow."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from tasks.config import (
    AdapterSettings,
    BaseModelSettings,
    PredictBatchConfig,
    Task,
    TrackingSettings,
)
from tasks.config.hub_ids import is_hub_id
from tasks.config.reading import settings_here
from tasks.engine.adapters import (
    AdapterFolder,
    AdapterSet,
    check_adapter,
    check_fit,
    check_together,
    find_adapter,
)
from tasks.engine.base import (
    check_local_weights,
    find_base,
    load_skeleton,
    tokenizer_of,
    traits_of,
)
from tasks.errors import PassingError, UserError
from tasks.runtime.progress import logger
from tasks.tracking import fetched_adapter, is_mlflow_uri, pinned_adapter

_TASK = ("task", "labels")
_TRAINED_ON = ("dtype", "quantization", "new_tokens", *_TASK)
"""Settings of the base that an adapter records of its training."""


@contextmanager
def found_adapters(
    wanted: Sequence[AdapterSettings], tracking_uri: str | None = None
) -> Iterator[list[AdapterFolder]]:
    """Find the adapters' folders; those downloaded from MLflow are removed after the block.

    Raises:
        UserError: one of them does not exist.
    """
    with ExitStack() as stack:
        folders = []
        for one in wanted:
            if is_mlflow_uri(one.source):
                tracking = TrackingSettings(uri=tracking_uri)
                path = stack.enter_context(fetched_adapter(one.source, tracking))
                folders.append(find_adapter(path, named=one.source))
            else:
                folders.append(find_adapter(one.source, one.revision))
        yield folders


def pinned(
    wanted: Sequence[AdapterSettings], tracking_uri: str | None = None
) -> list[AdapterSettings]:
    """Return the adapters with addresses in MLflow that do not move: of an alias, its version.

    Raises:
        UserError: MLflow has nothing there.
        PassingError: the server can't be reached.
    """
    tracking = TrackingSettings(uri=tracking_uri)
    return [
        one.model_copy(update={"source": pinned_adapter(one.source, tracking).uri})
        if is_mlflow_uri(one.source)
        else one
        for one in wanted
    ]


def load_adapters(
    base: BaseModelSettings | None,
    wanted: Sequence[AdapterSettings],
    folders: Sequence[AdapterFolder],
) -> AdapterSet:
    """Load a base and these adapters on it, none of them active.

    Args:
        base: the base; by default the one that the first adapter was trained on.
        wanted: the adapters.
        folders: their folders, in the same order.

    Raises:
        UserError: the base is not found, or an adapter does not fit it.
    """
    return load_checked(check_adapters(base, wanted, folders), wanted, folders)


def load_checked(
    base: BaseModelSettings,
    wanted: Sequence[AdapterSettings],
    folders: Sequence[AdapterFolder],
) -> AdapterSet:
    """Load a base and adapters on it that `check_adapters` has checked, none of them active.

    Args:
        base: the base, as returned by `check_adapters`.
        wanted: the adapters.
        folders: their folders, in the same order.

    Raises:
        UserError: as `load_adapters`.
    """
    adapters = AdapterSet.on(base)
    for one, folder in zip(wanted, folders, strict=True):
        loaded = adapters.load(folder, one.name, template=one.template, any_base=one.any_base)
        for warning in loaded.warnings:
            logger().warning(warning)
    adapters.disable()
    return adapters


def check_adapters(
    base: BaseModelSettings | None,
    wanted: Sequence[AdapterSettings],
    folders: Sequence[AdapterFolder],
) -> BaseModelSettings:
    """Check that adapters fit their base, and their chat templates, before a weight is loaded.

    Args:
        base: the base; by default the one that the first adapter was trained on.
        wanted: the adapters.
        folders: their folders, in the same order.

    Returns:
        The settings of the base.

    Raises:
        UserError: as `load_adapters`.
    """
    settings = _as_trained(base, folders[0]) if base else base_of(folders[0])
    source = find_base(settings)
    skeleton = load_skeleton(source)
    check_local_weights(source)
    tokenizer = tokenizer_of(source)
    # First, as no other base would help.
    check_together({one.name: f.config for one, f in zip(wanted, folders, strict=True)}, skeleton)
    for one, folder in zip(wanted, folders, strict=True):
        check_adapter(folder, source, tokenizer, one.template, any_base=one.any_base)
        check_fit(folder, skeleton)
    return settings


def check_early(config: PredictBatchConfig) -> None:
    """Check adapters and base while a server starts; adapters in MLflow are checked by the flow.

    Raises:
        UserError: as `load_adapters`.
    """
    if any(is_mlflow_uri(one.source) for one in config.adapters):
        return
    # The flow makes further attempts where the Hub can't be reached.
    with suppress(PassingError), found_adapters(config.adapters) as folders:
        check_adapters(config.base_model, config.adapters, folders)


def base_of(adapter: AdapterFolder, elsewhere: str | None = None) -> BaseModelSettings:
    """Return settings for an adapter's base, with dtype and quantization of its training if known.

    Args:
        adapter: the adapter.
        elsewhere: another source of the base than the adapter records.

    Raises:
        UserError: no source of the base is known.
    """
    recorded = _recorded_base(adapter)
    reference = recorded.get("reference") or adapter.config.base_model_name_or_path
    revision = recorded.get("revision") or adapter.config.revision
    source = elsewhere or recorded.get("source") or reference
    if not source:
        raise UserError(f"{adapter.source} does not name its base; set base_model.source")
    is_elsewhere = source == recorded.get("source") != reference
    settings = {
        "source": source,
        "hub_id": reference if is_elsewhere and is_hub_id(str(reference)) else None,
        "revision": revision if source == reference else None,
        **{key: recorded[key] for key in _TRAINED_ON if key in recorded},
    }
    return settings_here(BaseModelSettings, settings, (), f"the base of {adapter.source}")


def _recorded_base(adapter: AdapterFolder) -> Mapping[str, Any]:
    """Return the settings of the base from the adapter's manifest, or else from PEFT's config."""
    if recorded := adapter.manifest.get("base_model"):
        return dict(recorded)
    tasks = {traits_of(task).peft_task_type: task for task in Task}
    task = tasks.get(str(adapter.config.task_type), Task.CAUSAL_LM)
    if traits_of(task).generates:
        return {"task": task}
    # PEFT does not store class names; these are transformers' defaults.
    return {"task": task, "labels": [f"LABEL_{number}" for number in range(_num_classes(adapter))]}


def _num_classes(adapter: AdapterFolder) -> int:
    """Return the number of outputs of the fully trained layers' last one, which has the fewest."""
    fully_trained = set(adapter.config.modules_to_save or ())
    return min(
        (
            shape[0]
            for key, shape in adapter.shapes.items()
            if fully_trained & set(key.split(".")) and ".lora_" not in key
        ),
        default=0,
    )


def _as_trained(base: BaseModelSettings, adapter: AdapterFolder) -> BaseModelSettings:
    """Return the settings, completed by what the adapter records of its training."""
    given = set(base.model_fields_set)
    if given & set(_TASK):  # recorded classes are only valid with the recorded task
        given |= set(_TASK)
    recorded = _recorded_base(adapter)
    added = {key: recorded[key] for key in _TRAINED_ON if key in recorded and key not in given}
    given_and_added = {**base.model_dump(), **added}
    return settings_here(BaseModelSettings, given_and_added, (), f"the base of {adapter.source}")
