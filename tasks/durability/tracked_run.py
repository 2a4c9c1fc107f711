"""The MLflow run of a flow run: opened or reopened, and always ended with the true status."""

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from prefect.runtime import flow_run

from tasks.config import TrainAdapterConfig, TrainVariantsConfig
from tasks.durability.dead_runs import end_dead_runs
from tasks.durability.retention import tidy
from tasks.durability.run_folder import check_output_folder, run_folder
from tasks.durability.run_lock import alive
from tasks.durability.shown_run import about, about_set, publish_link
from tasks.durability.unchanged import (
    INPUTS_TAG,
    ROWS_PARAM,
    ROWS_TAG,
    fingerprint,
    rows_sha256,
)
from tasks.engine.data.splits import odd_text
from tasks.errors import UserError
from tasks.records import (
    DataRecord,
    InputsRecord,
    RunRecord,
    SourceRecord,
    SplitRecord,
    source_in,
    tokens_in,
)
from tasks.runtime import home
from tasks.runtime.libraries import import_libraries
from tasks.runtime.progress import logger
from tasks.tracking import (
    VARIANT_TAG,
    Status,
    Tracker,
    is_begun,
    open_run,
    param_before,
    ship_all,
    ship_command,
    tag_before,
)

_SECONDS_FOR_EARLIER_RUNS = 5.0
_SECONDS_FOR_THE_LOCK = 10.0
_SOURCE_PARAM = "lora/from_sha256"
_SOURCE_TAG = "adapterflow.begins_with"
"""Tag: the adapter that the run begins with, where it is not a fresh one."""
ROWS_FILE = "rows.json"
"""The artifact that says how a run's training rows can be read again."""
_RECORDED_VERSIONS = ("adapterflow", "torch", "transformers", "peft", "bitsandbytes")


@contextmanager
def being_alive(config: TrainAdapterConfig) -> Iterator[Path]:
    """Hold this flow run's lock, so that no other process executes it or takes it for dead.

    Yields the run's folder. If no MLflow run was opened in the block, because of a mistake in the
    inputs or because there was nothing to train, what was written to the folder is removed.

    Raises:
        UserError: the output folder can't be written, or another process is executing the run.
    """
    check_output_folder(config)
    # Wait: another run that checks whether this one is alive holds the lock for a moment.
    folder = _own_folder(config)
    with alive(folder, _SECONDS_FOR_THE_LOCK):
        try:
            yield folder
        except UserError:
            _remove_unbegun(folder)
            raise
        _remove_unbegun(folder)


def _remove_unbegun(folder: Path) -> None:
    if not is_begun(folder):
        for made in (tokens_in(folder), source_in(folder)):
            shutil.rmtree(made, ignore_errors=True)
        with suppress(OSError):  # not empty, or not there
            folder.rmdir()


@contextmanager
def tracked_run(config: TrainAdapterConfig, inputs: InputsRecord) -> Iterator[RunRecord]:
    """Open this flow run's MLflow run, and end it FINISHED, FAILED or KILLED.

    A user's mistake in a new run leaves no run and no folder, unless training had begun.

    Raises:
        UserError: the run is resumed with other rows, or another adapter to begin with, than it
            began with.
    """
    import_libraries()
    folder = _own_folder(config)
    is_new = not is_begun(folder)
    data, source = inputs.data, inputs.lora.source
    rows = rows_sha256(data)
    # Without its token files, which are removed in time, a resumed run has read the rows anew.
    before = param_before(folder, ROWS_PARAM) or tag_before(folder, ROWS_TAG)
    if before not in (None, rows):
        raise UserError(
            f"the rows of {data.train.source} changed since this run began, and its token files "
            "are missing; start a new run"
        )
    if source and param_before(folder, _SOURCE_PARAM) not in (None, source.weights.sha256):
        raise UserError(
            f"lora.from {source.given} means another adapter since this run began, and its copy in "
            f"{source.folder} was missing; start a new run"
        )
    run = open_run(
        config.tracking,
        run_name=str(flow_run.get_name()),
        flow_run_id=str(flow_run.get_id()),
        folder=folder,
        tags={INPUTS_TAG: fingerprint(config, data, source), **_source_tags(source)},
    )
    tracker = Tracker(run)
    with _ending(run, tracker, is_new=is_new):
        publish_link(run)
        if not _is_variant(config):
            _look_after_earlier_runs(run)
        _log_inputs(config, data, tracker)
        if source:
            tracker.log_params(_source_params(source))
        tracker.describe(about(config, data, source))
        yield run
    tidy(config.output, run, beside=not _is_variant(config))


@contextmanager
def tracked_set(config: TrainVariantsConfig) -> Iterator[RunRecord]:
    """Open the MLflow run of a set of variants, whose own runs MLflow shows below it, and end it.

    It is never discarded, as its folder may have variants that were trained already.
    """
    run = open_run(
        config.tracking,
        run_name=str(flow_run.get_name()),
        flow_run_id=str(flow_run.get_id()),
        folder=_own_folder(config),
        tags={},
    )
    tracker = Tracker(run)
    with _ending(run, tracker, is_new=False):
        publish_link(run)
        _look_after_earlier_runs(run)
        tracker.describe(about_set(config))
        tracker.log_text(config.model_dump_json(indent=2), "configuration.json")
        yield run
    tidy(config.output, run)


def _is_variant(config: TrainAdapterConfig) -> bool:
    """Return whether the run is one of a set, which looks after other runs once for all of them."""
    return VARIANT_TAG in config.tracking.tags


def _own_folder(config: TrainAdapterConfig) -> Path:
    return run_folder(config, str(flow_run.get_name()), str(flow_run.get_id()))


@contextmanager
def _ending(run: RunRecord, tracker: Tracker, *, is_new: bool) -> Iterator[None]:
    try:
        yield
    except UserError:
        # An earlier attempt may have trained: then the run is kept.
        if is_new and not run.checkpoints.exists():
            _discard(tracker)
        else:
            _end(tracker, "FAILED")
        raise
    except Exception:
        _end(tracker, "FAILED")
        raise
    except BaseException:  # cancelled by Prefect (TerminationSignal) or by hand (Ctrl-C)
        _end(tracker, "KILLED")
        raise
    _end(tracker, "FINISHED")


def _look_after_earlier_runs(own: RunRecord) -> None:
    folders = {home.outputs(), own.folder.parent}
    end_dead_runs(own, folders)
    for folder, outcome in ship_all(folders, _SECONDS_FOR_EARLIER_RUNS):
        if outcome.num_shipped:
            logger().info(
                "shipped %d pending operations of the run %s to MLflow; %d are still pending",
                outcome.num_shipped,
                folder.name,
                outcome.num_waiting,
            )


def _end(tracker: Tracker, status: Status) -> None:
    try:
        tracker.end(status)
    except OSError as error:  # a full disk; the next run ends this one
        logger().warning("can't record that the run is %s: %s", status, error)
        return
    if waiting := tracker.what_waits():
        logger().warning(
            "%s are pending in %s; the next run ships them once the server answers, or run: %s",
            waiting,
            tracker.run.folder,
            ship_command(tracker.run),
        )


def _discard(tracker: Tracker) -> None:
    tracker.discard()
    if not tracker.num_waiting():
        shutil.rmtree(tracker.run.folder, ignore_errors=True)


def _log_inputs(config: TrainAdapterConfig, data: DataRecord, tracker: Tracker) -> None:
    splits = {"train": data.train, **({"eval": data.eval} if data.eval else {})}
    for name, split in splits.items():
        _log_datasets(split, name, tracker)
    tracker.log_params(
        {
            "data/row_format": data.row_format,
            "data/template": data.template,
            ROWS_PARAM: rows_sha256(data),
            **{k: v for name, one in splits.items() for k, v in _counts(name, one).items()},
            **{f"data/odd/{one.kind}": odd_text(one) for one in data.odd},
        }
    )
    versions = {f"versions/{name}": version(name) for name in _RECORDED_VERSIONS}
    tracker.log_params({**versions, "versions/python": platform.python_version()})
    tracker.log_text(config.model_dump_json(indent=2), "configuration.json")
    learned = data.learned(config.base_model.task)
    tracker.log_text(learned.model_dump_json(indent=2), ROWS_FILE)
    if data.chat_template is not None:
        tracker.log_text(data.chat_template, "chat_template.jinja")


def _source_tags(source: SourceRecord | None) -> dict[str, str]:
    return {_SOURCE_TAG: source.reference} if source else {}


def _source_params(source: SourceRecord) -> dict[str, object]:
    learned = source.learned
    return {
        "lora/from": source.given,
        "lora/from_reference": source.reference,
        _SOURCE_PARAM: source.weights.sha256,
        "lora/from_config_sha256": source.config.sha256,
        "lora/from_rows_sha256": learned.sha256 if learned else None,
    }


def _log_datasets(split: SplitRecord, context: str, tracker: Tracker) -> None:
    """Log each source of a split as a dataset."""
    for part in split.by_source:
        if not split.parts:
            tracker.log_dataset(part, context)
        elif part.num_rows:
            tracker.log_dataset(part, f"{context}/{part.name}")


def _counts(context: str, split: SplitRecord) -> dict[str, object]:
    """Return the counts of a split and of each of its sources, as parameters."""
    counts = {
        f"data/{context}/{name}": value
        for name, value in split.model_dump().items()
        if name.startswith(("num_", "sha"))
    }
    for part in split.parts:
        counts |= _counts(f"{context}/{part.name}", part)
    return counts
