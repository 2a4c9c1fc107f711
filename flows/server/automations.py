"""Prefect automations: mark runs of lost machines as crashed, and call a webhook on failures.

`python -m flows.server.automations` installs the former on the configured server, as
`adapterflow up` does on its own.
"""

import time
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.filters import EventFilter
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.server.embedded import HEARTBEAT_SECONDS
from tasks.durability.run_labels import STEP
from tasks.tracking import SET_TAG

LOST_AFTER = timedelta(seconds=3 * HEARTBEAT_SECONDS)
"""Three heartbeats: with fewer, a run that is only slow for a while would count as lost."""

LOST_RUNS = "adapterflow: runs whose machine is lost"
"""The automation's name on the server, also looked up by `flows.server.prefect_server`.

Both names identify automations that earlier versions installed: another name would be a second one.
"""

_ALERT = "adapterflow: tell of failed runs"
_BLOCK = "adapterflow-alerts"
_STEP = f'flow_run.labels["{STEP}"]'
_SET = f'flow_run.parameters.config.tracking.tags["{SET_TAG}"]'
"""The set of variants that a run belongs to, if any: resuming it resumes the run."""
_TEXT = f"""
flow.name ~ ": the run " ~ flow_run.name ~ " is " ~ flow_run.state.name
~ ((" in " ~ {_STEP}) if {_STEP} else "")
~ ": " ~ ((flow_run.state.message or "") | replace("Flow run encountered an exception: ", ""))
~ (
    ("; to resume: adapterflow resume " ~ ({_SET} or flow_run.id))
    if flow.name in ["train-adapter", "retrain-adapter", "train-variants"]
    else ("; to resume: prefect flow-run retry " ~ flow_run.id) if flow_run.deployment_id
    else "; to resume: run the same command again"
)
"""
_PAYLOAD = (
    f'{{"text": {{{{ ({_TEXT}) | tojson }}}}, "flow_run": {{{{ flow_run | ui_url | tojson }}}}}}'
)
_SECONDS_TO_ALERT = 20.0
_LONGEST_ATTEMPT = timedelta(days=366)
"""Longer than any run lasts from its start to its end, a wait for approval included."""


def lost_runs() -> AutomationCore:
    """Return the automation that marks a run as crashed once its heartbeats stop."""
    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=LOST_RUNS,
        description="Three heartbeats missed: the run is marked as crashed. Retry resumes it.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={heartbeat},
            # Any other event means that the run ended, or paused and sends no heartbeats; when it
            # continues, a heartbeat comes first.
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=LOST_AFTER,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {LOST_AFTER.seconds} s: the machine may be lost.",
            )
        ],
    )


def failed_runs(webhook: UUID) -> AutomationCore:
    """Return the automation that calls a webhook when a run fails, crashes or times out.

    It sees every run of the server's database, also one that a terminal started. It
    alerts once per attempt, although Prefect 3.8's runner and worker both report a crash.
    """
    return AutomationCore(
        name=_ALERT,
        trigger=EventTrigger(
            posture=Posture.Reactive,
            # The start of an attempt; a heartbeat stands for one that began before the automation.
            after={f"prefect.flow-run.{sign}" for sign in ("Pending", "Running", "heartbeat")},
            expect={f"prefect.flow-run.{end}" for end in ("Failed", "Crashed", "TimedOut")},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=_LONGEST_ATTEMPT,
        ),
        actions=[CallWebhook(block_document_id=webhook, payload=_PAYLOAD)],
    )


def install_lost_runs() -> None:
    """Install on the current server the automation that marks lost runs as crashed."""
    with get_client(sync_client=True) as client:
        install(client, lost_runs())


def install(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Install an automation once, in place of earlier ones of the same name.

    An identical one stays: deleting it would discard the heartbeats that it has seen of active
    runs.
    """
    earlier: list[Automation] = client.read_automations_by_name(wanted.name)
    same = [one for one in earlier if one.model_dump(exclude={"id"}) == wanted.model_dump()]
    if not same:
        client.create_automation(wanted)
    for one in earlier:
        if one not in same[:1]:
            client.delete_automation(one.id)


def install_alert(webhook_url: str) -> None:
    """Install on the current server a call of this URL when a run fails; a block stores the URL."""
    headers = SecretDict({"Content-Type": "application/json"})
    block: Any = Webhook(url=SecretStr(webhook_url), method="POST", headers=headers)
    webhook = block.save(_BLOCK, overwrite=True)
    with get_client(sync_client=True) as client:
        install(client, failed_runs(webhook))


def wait_for_alert(flow_run_id: UUID) -> None:
    """Wait until the webhook was called for a run that failed, if there is one.

    An embedded server ends with the command, and would take the call with it. The call for another
    run does not count: a set's variants fail before the set does.
    """
    deadline = time.monotonic() + _SECONDS_TO_ALERT
    with get_client(sync_client=True) as client:
        alerts = client.read_automations_by_name(_ALERT)
        state = client.read_flow_run(flow_run_id).state
        names = [f"prefect.automation.action.{end}" for end in ("executed", "failed")]
        wanted = {
            "event": {"name": names},
            "resource": {"id": [f"prefect.automation.{one.id}" for one in alerts]},
            # Prefect's event about a state has the state's id.
            "related": {"id": [f"prefect.event.{state.id}"]} if state else None,
        }
        while alerts and time.monotonic() < deadline:
            if client.read_events(EventFilter.model_validate(wanted), limit=1).events:
                return
            time.sleep(0.2)


if __name__ == "__main__":
    install_lost_runs()
