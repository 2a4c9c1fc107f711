"""Prefect's server, started so that its own downtime marks no run as lost.

The deadline for a run's next heartbeat is in Prefect's database. A server that was down for longer
would find it passed, and mark the run as crashed before the next heartbeat could arrive.
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
"""Time for the server to start, and for a heartbeat of each run to arrive."""


async def _extend_deadlines() -> None:
    """Set the heartbeat deadline of every run to the grace period from now."""
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
    """Replace this process by `prefect server start` with the same arguments."""
    asyncio.run(_extend_deadlines())
    words = [sys.executable, "-m", "prefect", "server", "start", *sys.argv[1:]]
    os.execv(sys.executable, words)  # noqa: S606 - our own environment's program


if __name__ == "__main__":
    main()
