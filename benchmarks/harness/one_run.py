"""The process that a tool runs in: `… benchmarks.harness.one_run TOOL JOB.json OUTCOME.json`."""

import sys
from importlib import import_module
from pathlib import Path

from benchmarks.harness.messages import Job


def main() -> None:
    """Run the job and write its outcome."""
    module, request, outcome_file = sys.argv[1:]
    job = Job.model_validate_json(Path(request).read_text())
    outcome = import_module(f"benchmarks.tools.{module}").run(job)
    Path(outcome_file).write_text(outcome.model_dump_json(indent=2))


if __name__ == "__main__":
    main()
