"""`python -m benchmarks.startup`: where the seconds go before a command's first step.

Measured is CPU time, user and system, which other load on the machine changes little. Each part is
in the order of `adapterflow train`, so a library counts for the first part that imports it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import click

from benchmarks.harness.tables import table

_PARTS = {
    "torch": ("tasks.engine", "torch"),
    "transformers' models": ("transformers.modeling_utils",),
    "PEFT": ("peft",),
    "Trainer, with datasets and pandas": ("tasks.engine.training.training",),
    "MLflow": ("mlflow",),
    "MLflow's embedded store": ("mlflow.store.tracking.sqlalchemy_store",),
    "matplotlib": ("matplotlib.figure",),
    "Prefect and the flows": ("flows.cli.runs",),
}
"""The modules that are imported, by what they are for."""
_IMPORTS = """
import json, os, sys
from tasks.runtime.libraries import import_uncollected
def seconds():
    now = os.times()
    return now.user + now.system
found = {}
for name, modules in json.loads(sys.argv[1]).items():
    before = seconds(), len(sys.modules)
    import_uncollected(*modules)
    found[name] = seconds() - before[0], len(sys.modules) - before[1]
print(json.dumps(found))
"""
_SERVER = """
import json, psutil
from flows.server.servers import use_prefect_server
server = use_prefect_server()
server.wait()
[process] = psutil.Process().children()
used = process.cpu_times()
print(json.dumps(used.user + used.system))
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Print the CPU seconds of each part of a command's start."""
    with tempfile.TemporaryDirectory() as home:
        variables = {**os.environ, "ADAPTERFLOW_HOME": home}
        _seconds_of_help(variables)  # has Python compile what it has not
        rows = [("adapterflow --help", f"{_seconds_of_help(variables):.2f}", "")]
        _run(variables, "-c", _IMPORTS, json.dumps(_PARTS))
        parts = json.loads(_run(variables, "-c", _IMPORTS, json.dumps(_PARTS)))
        rows += [(name, f"{used:.1f}", f"{count:,}") for name, (used, count) in parts.items()]
        together = sum(used for used, _ in parts.values())
        rows.append(("all imports of a training", f"{together:.1f}", ""))
        _run(variables, "-c", _SERVER)  # makes the database
        server = json.loads(_run(variables, "-c", _SERVER))
        rows.append(("embedded Prefect server, beside the imports", f"{server:.1f}", ""))
    click.echo("\n".join(table(("part", "CPU s", "modules"), rows)))


def _run(variables: Mapping[str, str], *words: str) -> str:
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, *words], env=variables, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def _seconds_of_help(variables: Mapping[str, str]) -> float:
    before = os.times()
    code = "from flows.cli.main import main; import sys; sys.argv[1:] = ['--help']; main()"
    _run(variables, "-c", code)
    after = os.times()
    used = after.children_user + after.children_system
    return used - before.children_user - before.children_system


if __name__ == "__main__":
    main()
