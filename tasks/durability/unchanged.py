"""Find an earlier training with the same inputs: tokens, base, configuration and code.

The sha256 of all inputs is a tag of the MLflow run, by which a later run finds it. It does not
depend on the names of files, folders and experiments.
"""

import hashlib
import json

from tasks.config import TrainAdapterConfig
from tasks.records import DataRecord, InputsRecord, SourceRecord
from tasks.runtime.code_identity import code_sha256
from tasks.tracking import finished_run

INPUTS_TAG = "adapterflow.inputs"
ROWS_PARAM = "data/rows_sha256"
ROWS_TAG = "adapterflow.rows"
"""What earlier versions have instead of the parameter."""


def fingerprint(
    config: TrainAdapterConfig, data: DataRecord, source: SourceRecord | None = None
) -> str:
    """Return the sha256 of all that the trained adapter depends on.

    The tokens cover the rows, how they were read and rendered, and the date if a chat template
    writes it. A chat template of the user's own is saved with the adapter. Code and library
    versions cover everything after that. The adapter to begin with counts by its files.
    """
    tokens = [file.sha256 for file in data.tokens]
    inputs = [config.sha256(), tokens, data.chat_template, data.base_sha256, code_sha256()]
    if source:
        inputs += [source.weights.sha256, source.config.sha256]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def rows_sha256(data: DataRecord) -> str:
    """Return the sha256 of the rows as given, independent of the code that reads them."""
    rows = [data.train.sha256, data.eval.sha256 if data.eval else None]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def trained_before(config: TrainAdapterConfig, inputs: InputsRecord) -> str | None:
    """Return the id of a finished MLflow run with the same inputs; None if none is found.

    None also if MLflow can't be reached: training again is the safe choice.
    """
    wanted = fingerprint(config, inputs.data, inputs.lora.source)
    return finished_run(config.tracking, INPUTS_TAG, wanted)
