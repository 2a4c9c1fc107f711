"""The order in which an embedded server takes events: that in which they arrive.

Prefect 3.8 holds an event back until the one before it has come, for up to 15 minutes. What a
resumed run does follows its failure, which came to the server of an earlier command: an alert about
a second failure would never be sent.
"""

from prefect.server.events.ordering import memory
from prefect.server.events.schemas.events import ReceivedEvent


class CausalOrdering(memory.CausalOrdering):
    """Holds no event back; Prefect finds it by its name, in a module that a setting names."""

    async def wait_for_leader(self, event: ReceivedEvent) -> None:
        """Let the event be processed now, whatever it follows."""
