"""The MLflow run of a flow run: opened or found again, and always ended with what is true."""

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from prefect.runtime import flow_run

from tasks import home
from tasks.config import TrainAdapterConfig
from tasks.dead_runs import end_dead_runs
from tasks.errors import UserError
from tasks.progress import logger
from tasks.records import DataRecord, RunRecord
from tasks.retention import tidy
from tasks.run_lock import alive
from tasks.tracking import Status, Tracker, open_run, ship_all, ship_command
from tasks.validate_inputs import check_output

_SECONDS_FOR_EARLIER_RUNS = 5.0
_RECORDED_VERSIONS = ("adapterflow", "torch", "transformers", "peft", "bitsandbytes")


@contextmanager
def tracked_run(config: TrainAdapterConfig, data: DataRecord) -> Iterator[RunRecord]:
    """Open this flow run's MLflow run, and end it FINISHED, FAILED or KILLED.

    A mistake in a new run leaves no run and no folder, unless something was trained already.
    """
    name, identity = str(flow_run.get_name()), str(flow_run.get_id())
    folder = run_folder(config, name, identity)
    is_new = not folder.exists()
    with alive(folder):
        run = open_run(config.tracking, run_name=name, flow_run_id=identity, folder=folder, tags={})
        tracker = Tracker(run)
        with _truly_ended(run, tracker, is_new=is_new):
            _look_after_earlier_runs({home.outputs(), folder.parent})
            _log_inputs(config, data, tracker)
            yield run
    tidy(config.output, folder.parent)


def run_folder(config: TrainAdapterConfig, name: str, flow_run_id: str) -> Path:
    """Give the folder that a flow run writes to."""
    return check_output(config) / f"{name}-{flow_run_id[:8]}"


@contextmanager
def _truly_ended(run: RunRecord, tracker: Tracker, *, is_new: bool) -> Iterator[None]:
    try:
        yield
    except UserError:
        # An earlier try may have left an adapter or checkpoints, even where none are now.
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


def _look_after_earlier_runs(folders: set[Path]) -> None:
    end_dead_runs(folders)
    for folder, outcome in ship_all(folders, _SECONDS_FOR_EARLIER_RUNS):
        if outcome.num_shipped:
            logger().info(
                "brought %d waiting operations of the run %s to MLflow; %d still wait",
                outcome.num_shipped,
                folder.name,
                outcome.num_waiting,
            )


def _end(tracker: Tracker, status: Status) -> None:
    tracker.end(status)
    if waiting := tracker.what_waits():
        logger().warning(
            "%s wait in %s; once the server answers, the next run ships them, or: %s",
            waiting,
            tracker.run.folder,
            ship_command(tracker.run),
        )


def _discard(tracker: Tracker) -> None:
    tracker.discard()
    if not tracker.num_waiting():
        shutil.rmtree(tracker.run.folder, ignore_errors=True)


def _log_inputs(config: TrainAdapterConfig, data: DataRecord, tracker: Tracker) -> None:
    tracker.log_dataset(data.train, "train")
    if data.eval:
        tracker.log_dataset(data.eval, "eval")
    tracker.log_params(
        {
            "data/row_format": data.row_format,
            "data/template": data.template,
            **_counts("train", data.train.model_dump()),
            **(_counts("eval", data.eval.model_dump()) if data.eval else {}),
        }
    )
    versions = {f"versions/{name}": version(name) for name in _RECORDED_VERSIONS}
    tracker.log_params({**versions, "versions/python": platform.python_version()})
    tracker.log_text(config.model_dump_json(indent=2), "configuration.json")


def _counts(split: str, fields: dict[str, object]) -> dict[str, object]:
    return {f"data/{split}/{k}": v for k, v in fields.items() if k.startswith(("num_", "sha"))}
