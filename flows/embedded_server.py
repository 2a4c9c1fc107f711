"""The embedded Prefect server's own process; it ends when the run that started it does.

Prefect's own ephemeral server outlives a run that is killed, and takes Ctrl-C for itself before the
run could say that it was stopped. This one is told nothing by signals to the run: it reads a pipe
that the run holds open, and ends once the kernel closes it.
"""

import os
import signal
import sys
import threading


def _end_with_the_run() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Serve on the listening socket whose descriptor is the first argument."""
    import uvicorn

    threading.Thread(target=_end_with_the_run, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        fd=int(sys.argv[1]),
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
