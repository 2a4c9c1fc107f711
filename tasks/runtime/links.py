"""Links to the Prefect flow run, for MLflow."""

from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for

from tasks.runtime.addresses import masked


def link_to_prefect() -> str:
    """Return the current flow run's name in Markdown, as a link if its server has a UI."""
    name = str(flow_run.get_name())
    has_pages = get_current_settings().server.ui.enabled
    url = url_for("flow-run", obj_id=str(flow_run.get_id())) if has_pages else None
    return f"[{name}]({masked(url)})" if url else f"`{name}`"
