"""The command line: the group of all commands, and the exit status of errors.

Exit status 0: done. 1: the run failed, and the last line is the command that resumes it. 2: the
input cannot work, and one message says what to do. Heavy libraries are imported inside the
commands, once the cheap checks have passed, so that `--help` and mistakes are answered at once.
"""

import sys

import click

from flows.cli.adapter_commands import bundle, combine, export, predict, push
from flows.cli.record_commands import moved, ship
from flows.cli.retraining_commands import history, retrain, rollback
from flows.cli.server_commands import alert, down, notify, up, watch
from flows.cli.training_commands import check, init, resume, train
from tasks.errors import AdapterflowError, UserError
from tasks.runtime import home
from tasks.runtime.addresses import without_password


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="adapterflow")
def cli() -> None:
    """Turn a base model and a file of examples into a small, verified, tracked LoRA adapter."""
    home.check()


_COMMANDS = (
    *(init, check, train, resume),
    *(predict, export, combine, bundle, push),
    *(retrain, history, rollback),
    *(up, down, watch, notify, alert),
    *(ship, moved),
)
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        cli.main(standalone_mode=False)
    except UserError as mistake:
        click.echo(f"error: {without_password(str(mistake))}", err=True)
        sys.exit(2)
    except AdapterflowError as failure:
        click.echo(f"error: {without_password(str(failure))}", err=True)
        sys.exit(1)
    except click.ClickException as mistake:
        mistake.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
