"""Remove the deployments of earlier versions, whose names this version gave up.

`python -m flows.server.former_deployments` does it on the configured server, as `adapterflow up`
does on its own. One that stayed would train a second time on its schedule and on changed data.
"""

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

FORMER = {
    "train-adapter/on-demand": "train-adapter/every-setting",
    "train-adapter/on-schedule": "train-adapter/train-weekly",
    "retrain-adapter/on-schedule": "retrain-adapter/retrain-weekly",
    "predict-batch/on-demand": "predict-batch/answer-a-file",
}
"""The names of today by those of before."""
_TAG = "adapterflow"
"""Of every deployment of ours: one without it is somebody's own."""


def former_name(deployment: str) -> str | None:
    """Return the name that a deployment had in earlier versions, if any."""
    return next((former for former, name in FORMER.items() if name == deployment), None)


def remove_former_deployments() -> list[str]:
    """Remove them from the current server, and return a line about each for its users.

    One stays until its successor is deployed. Its runs stay, too, and can be resumed with
    `adapterflow resume`.
    """
    with get_client(sync_client=True) as client:
        lines = []
        for former, name in FORMER.items():
            try:
                found = client.read_deployment_by_name(former)
                client.read_deployment_by_name(name)
            except ObjectNotFound:
                continue
            if _TAG not in found.tags:
                continue
            client.delete_resource_owned_automations(f"prefect.deployment.{found.id}")
            client.delete_deployment(found.id)
            lines.append(f"the deployment {former} is now called {name}; the former was removed")
        return lines


if __name__ == "__main__":
    for line in remove_former_deployments():
        print(line)  # noqa: T201 - a command's output
