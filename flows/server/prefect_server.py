"""Prefect's server, started so that it takes no run for lost because it was away itself.

Until when a run must have sent its next heartbeat is in Prefect's database. A server that was away
for longer would find that time passed, and end the run before its next heartbeat could arrive.
"""

import asyncio
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from flows.server.automations import LOST_RUNS

_GRACE = timedelta(minutes=5)
"""For the server to start, and for a heartbeat of each run to arrive."""


async def _give_time() -> None:
    """Let every run have its grace from now on; heartbeats from before now don't shorten it."""
    from prefect.server.database import provide_database_interface

    db = provide_database_interface()
    lost_runs = sa.select(db.Automation.id).where(db.Automation.name == LOST_RUNS)
    deadlines = sa.update(db.AutomationBucket)
    now = datetime.now(UTC)
    with suppress(DBAPIError):  # a new database has no tables yet
        async with db.session_context(begin_transaction=True) as session:
            await session.execute(
                deadlines.where(db.AutomationBucket.automation_id.in_(lost_runs))
                .values(start=now, end=now + _GRACE)
                .execution_options(synchronize_session=False)
            )


def main() -> None:
    """Become `prefect server start` with this process's arguments."""
    asyncio.run(_give_time())
    words = [sys.executable, "-m", "prefect", "server", "start", *sys.argv[1:]]
    os.execv(sys.executable, words)  # noqa: S606 - our own environment's program


if __name__ == "__main__":
    main()
