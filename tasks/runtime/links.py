"""Links from the MLflow run to the Prefect flow run."""

from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for

from tasks.runtime.addresses import masked

# MLflow shows this tag as the run's description, in Markdown.
_DESCRIPTION_TAG = "mlflow.note.content"


def link_to_prefect() -> dict[str, str]:
    """Return MLflow tags that link to the current flow run; none if its server has no UI."""
    if not get_current_settings().server.ui.enabled:
        return {}
    url = url_for("flow-run", obj_id=str(flow_run.get_id()))
    if not url:
        return {}
    name, url = flow_run.get_name(), masked(url)
    return {
        "prefect.flow_run_url": url,
        _DESCRIPTION_TAG: f"Prefect flow run [{name}]({url})",
    }
