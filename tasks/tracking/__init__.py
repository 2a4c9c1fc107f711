"""Tracking in MLflow: the only package that uses mlflow.

mlflow reads some of its settings when it is imported, and the import takes seconds. So the defaults
are set here, and mlflow is imported inside the functions that need it.
"""

import os

# A variable that the user has set wins.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Pickled models run code when they are loaded; ours are not pickled.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # mlflow 3.17 prints a link to the run on stdout, which is reserved for `--json`.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # With mlflow 3.17's defaults (7 retries, 120 s), a call to a dead server blocks for 4 minutes.
    # Nothing is lost by giving up early, as the operation stays in the journal.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
}
for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)

from tasks.tracking.adapter_bundle import write_bundle  # noqa: E402  # after the defaults
from tasks.tracking.adapter_sources import (  # noqa: E402
    fetched_adapter,
    is_mlflow_uri,
    pinned_adapter,
    text_of_run,
)
from tasks.tracking.moving import repair  # noqa: E402
from tasks.tracking.offline.shipping import (  # noqa: E402
    FLOW_RUN_TAG,
    Outcome,
    ship_all,
    shipping_together,
)
from tasks.tracking.past_runs import (  # noqa: E402
    RecordedRun,
    Status,
    end_elsewhere,
    finished_run,
    is_begun,
    is_registered,
    mlflow_run_id,
    param_before,
    recorded_numbers,
    recorded_runs,
    run_url,
    running_elsewhere,
    tag_before,
)
from tasks.tracking.publications import (  # noqa: E402
    published_at,
    published_to,
    record_publication,
    served_from,
)
from tasks.tracking.registered_versions import Promoted  # noqa: E402
from tasks.tracking.registry import Registry  # noqa: E402
from tasks.tracking.run import (  # noqa: E402
    PARENT_TAG,
    SET_TAG,
    VARIANT_TAG,
    Tracker,
    open_run,
    ship_command,
    ui_command,
)
from tasks.tracking.store import check_store, embedded_store, ready_client, tracking_uri  # noqa: E402
from tasks.tracking.version_tags import OUTCOME_TAG, REASON_TAG, ROLLED_BACK_TAG  # noqa: E402

__all__ = [
    "FLOW_RUN_TAG",
    "OUTCOME_TAG",
    "PARENT_TAG",
    "REASON_TAG",
    "ROLLED_BACK_TAG",
    "SET_TAG",
    "VARIANT_TAG",
    "Outcome",
    "Promoted",
    "RecordedRun",
    "Registry",
    "Status",
    "Tracker",
    "check_store",
    "embedded_store",
    "end_elsewhere",
    "fetched_adapter",
    "finished_run",
    "is_begun",
    "is_mlflow_uri",
    "is_registered",
    "mlflow_run_id",
    "open_run",
    "param_before",
    "pinned_adapter",
    "published_at",
    "published_to",
    "ready_client",
    "record_publication",
    "recorded_numbers",
    "recorded_runs",
    "repair",
    "run_url",
    "running_elsewhere",
    "served_from",
    "ship_all",
    "ship_command",
    "shipping_together",
    "tag_before",
    "text_of_run",
    "tracking_uri",
    "ui_command",
    "write_bundle",
]
