"""The MLflow run of a flow run: opened or found again, and always ended with what is true."""

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from prefect.runtime import flow_run

from tasks.config import TrainAdapterConfig
from tasks.errors import UserError
from tasks.records import DataRecord, RunRecord
from tasks.tracking import Tracker, open_run
from tasks.validate_inputs import check_output

_RECORDED_VERSIONS = ("adapterflow", "torch", "transformers", "peft", "bitsandbytes")


@contextmanager
def tracked_run(config: TrainAdapterConfig, data: DataRecord) -> Iterator[RunRecord]:
    """Open this flow run's MLflow run, and end it FINISHED, FAILED or KILLED.

    A user's mistake leaves no run and no folder, unless something was trained already.
    """
    run = _open(config)
    tracker = Tracker(run)
    try:
        _log_inputs(config, data, tracker)
        yield run
    except UserError:
        if run.checkpoints.exists():
            tracker.end("FAILED")
        else:
            tracker.discard()
            shutil.rmtree(run.folder, ignore_errors=True)
        raise
    except Exception:
        tracker.end("FAILED")
        raise
    except BaseException:  # cancelled by Prefect (TerminationSignal) or by hand (Ctrl-C)
        tracker.end("KILLED")
        raise
    tracker.end("FINISHED")


def _open(config: TrainAdapterConfig) -> RunRecord:
    name, identity = str(flow_run.get_name()), str(flow_run.get_id())
    folder = check_output(config) / f"{name}-{identity[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    return open_run(config.tracking, run_name=name, flow_run_id=identity, folder=folder, tags={})


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
