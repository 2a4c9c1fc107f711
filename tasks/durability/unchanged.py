"""Whether the same adapter was trained before: the same data, configuration and base settings.

What a run is a function of goes as one sha256 into a tag of its MLflow run, where a later run looks
for it. Names of files, folders and experiments are no part of it.
"""

import hashlib
import json

from tasks.config import TrainAdapterConfig
from tasks.records import DataRecord
from tasks.tracking import finished_run

INPUTS_TAG = "adapterflow.inputs"


def fingerprint(config: TrainAdapterConfig, data: DataRecord) -> str:
    """Give the sha256 of all that the trained adapter depends on.

    A Hub id without a revision counts as the same base, whatever its repository became.
    """
    rows = [data.train.sha256, data.eval.sha256 if data.eval else None]
    return hashlib.sha256(json.dumps([config.sha256(), rows]).encode()).hexdigest()


def trained_before(config: TrainAdapterConfig, data: DataRecord) -> str | None:
    """Give the id of a finished MLflow run with the same inputs; None if there is none to be seen.

    An MLflow server that can't be reached has none: then it is trained once more.
    """
    return finished_run(config.tracking, INPUTS_TAG, fingerprint(config, data))
