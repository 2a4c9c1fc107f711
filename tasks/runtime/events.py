"""Events that Prefect has when the call returns.

Prefect's own `emit_event` hands them to a thread of the process, and with the process they may be
lost. What a later try must not leave out is sent here.
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tasks.errors import PassingError

if TYPE_CHECKING:
    from prefect.events import Event


def send(events: "Iterable[Event]") -> None:
    """Send events, and wait until the server has received them; the same id counts once.

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
        raise PassingError(f"Prefect can't be told: {error}") from error
