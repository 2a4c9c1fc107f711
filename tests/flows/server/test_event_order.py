"""An embedded server reacts to what a resumed run does."""

import asyncio
from datetime import UTC, datetime
from uuid import uuid4

from prefect.events import Event, Resource
from prefect.server.events.ordering import get_triggers_causal_ordering
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.settings import PREFECT_SERVER_EVENTS_CAUSAL_ORDERING, temporary_settings

from flows.server.embedded import OF_THE_SERVER


def test_an_event_is_not_held_back_for_one_that_an_earlier_server_had() -> None:
    """A resumed run that fails again is alerted of, although this server never saw it fail."""
    sent = Event(
        event="prefect.flow-run.Failed",
        resource=Resource({"prefect.resource.id": "prefect.flow-run.a"}),
        id=uuid4(),
        follows=uuid4(),
    )
    received = ReceivedEvent.model_validate({**sent.model_dump(), "received": datetime.now(UTC)})
    taken = []

    async def react(event: ReceivedEvent, depth: int = 0) -> None:
        async with get_triggers_causal_ordering().preceding_event_confirmed(react, event, depth):
            taken.append(event.id)

    name = PREFECT_SERVER_EVENTS_CAUSAL_ORDERING.name
    with temporary_settings({PREFECT_SERVER_EVENTS_CAUSAL_ORDERING: OF_THE_SERVER[name]}):
        asyncio.run(react(received))
    assert taken == [sent.id]
