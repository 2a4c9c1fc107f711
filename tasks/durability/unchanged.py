"""Whether the same adapter was trained before: of the same tokens, base, configuration and code.

What a run is a function of goes as one sha256 into a tag of its MLflow run, where a later run looks
for it. Names of files, folders and experiments are no part of it.
"""

import hashlib
import json

from tasks.config import TrainAdapterConfig
from tasks.records import DataRecord
from tasks.runtime.code_identity import code_sha256
from tasks.tracking import finished_run

INPUTS_TAG = "adapterflow.inputs"
ROWS_TAG = "adapterflow.rows"


def fingerprint(config: TrainAdapterConfig, data: DataRecord) -> str:
    """Return the sha256 of all that the trained adapter depends on.

    The tokens stand for the rows, for the code and libraries that read and render them, and for
    the date where a chat template writes it; the code and the libraries for all that follows.
    """
    tokens = [file.sha256 for file in data.tokens]
    inputs = [config.sha256(), tokens, data.base_sha256, code_sha256()]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def rows_sha256(data: DataRecord) -> str:
    """Return the sha256 of the rows as they were given, whatever code reads them."""
    rows = [data.train.sha256, data.eval.sha256 if data.eval else None]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def trained_before(config: TrainAdapterConfig, data: DataRecord) -> str | None:
    """Give the id of a finished MLflow run with the same inputs; None if there is none to be seen.

    An MLflow server that can't be reached has none: then it is trained once more.
    """
    return finished_run(config.tracking, INPUTS_TAG, fingerprint(config, data))
