"""Send events to Prefect, which has received them when the call returns.

Prefect's own `emit_event` (3.8) hands events to a background thread, so they are lost if the
process ends too early. Events that a completed step must have sent are sent by this module.
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tasks.errors import PassingError

if TYPE_CHECKING:
    from prefect.events import Event


def send(events: "Iterable[Event]") -> None:
    """Send events, and wait until the server has received them; events with the same id count once.

    Raises:
        PassingError: the Prefect server can't be reached.
    """
    from prefect.events.clients import RETRYABLE_EXCEPTIONS, get_events_client

    async def send_all() -> None:
        async with get_events_client(checkpoint_every=1) as client:
            for event in events:
                await client.emit(event)

    try:
        asyncio.run(send_all())
    except RETRYABLE_EXCEPTIONS as error:
        raise PassingError(f"events can't be sent to Prefect: {error}") from error
