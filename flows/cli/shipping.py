"""What `adapterflow ship` does: send waiting records to MLflow, and print the outcome of each."""

import os
from collections.abc import Iterable
from pathlib import Path

import click

from tasks.runtime import home

# A training gives up on a slow server at once; somebody who asks for a shipment can wait.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


def ship_and_print(folders: Iterable[Path]) -> bool:
    """Ship what waits in this home's runs and in these folders; return whether nothing is left."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    from tasks.tracking import ship_all

    outcomes = list(ship_all((home.outputs(), *folders)))
    for folder, outcome in outcomes:
        click.echo(f"{folder.name}: {outcome.num_shipped} shipped, {outcome.num_waiting} waiting")
        if outcome.problem:
            click.echo(f"  {outcome.uri}: {outcome.problem}", err=True)
        for refused in outcome.refused:
            click.echo(f"  refused by the server, kept in {folder}/tracking: {refused}", err=True)
    if not outcomes:
        click.echo("nothing is waiting")
    return not any(outcome.num_waiting or outcome.refused for _, outcome in outcomes)
