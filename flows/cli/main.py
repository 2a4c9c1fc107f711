"""The command line: the group of all commands, and the exit status of errors.

Exit status 0: done. 1: the run failed, and the last line is the command that resumes it. 2: the
input cannot work, and one message says what to do. Heavy libraries are imported inside the
commands, once the cheap checks have passed, so that `--help` and mistakes are answered at once.
"""

import os
import sys
from pathlib import Path

import click

from flows.cli.adapter_commands import bundle, combine, export, predict, push
from flows.cli.corrections_command import corrections
from flows.cli.record_commands import moved, ship
from flows.cli.retraining_commands import history, promote, retrain, rollback
from flows.cli.server_commands import alert, down, notify, up, watch
from flows.cli.serving_commands import publish, serve
from flows.cli.training_commands import check, init, resume, train
from flows.cli.try_command import try_adapters
from flows.cli.variant_commands import variants
from tasks.errors import AdapterflowError, UserError, shortened
from tasks.runtime import home
from tasks.runtime.addresses import has_host, masked, without_password


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="adapterflow")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn a base model and a file of examples into a small, verified, tracked LoRA adapter."""
    home.check()
    is_noted = (home.prefect_store() / home.STACK_FILE).exists()
    if context.invoked_subcommand not in _OF_THE_STACK and is_noted:
        from flows.server.servers import use_running_mlflow

        use_running_mlflow()


_COMMANDS = (
    *(init, check, train, variants, resume),
    *(predict, corrections, try_adapters, export, combine, bundle, push),
    *(retrain, history, promote, rollback),
    *(publish, serve),
    *(up, down, watch, notify, alert),
    *(ship, moved),
)
_OF_THE_STACK = (up.name, down.name, moved.name)
"""Commands that work on the servers of `adapterflow up`, or on the store itself."""
_OURS = ("ADAPTERFLOW_", "HF_", "MLFLOW_", "PREFECT_")
"""How the variables that are read begin."""
_ADDRESSES = ("HF_ENDPOINT", "PREFECT_API_URL")
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line and exit with its status."""
    try:
        _check_process()
        cli.main(standalone_mode=False)
    except UserError as mistake:
        _print_error(str(mistake))
        sys.exit(2)
    except AdapterflowError as failure:
        _print_error(str(failure))
        sys.exit(1)
    except click.exceptions.NoArgsIsHelpError as mistake:
        mistake.show()
        sys.exit(2)
    except click.ClickException as mistake:
        _print_error(mistake.format_message().rstrip(".") + _help(mistake))
        sys.exit(2)
    except ValueError as error:
        if not (names := _variables_in(error)):
            raise
        problem = " ".join(str(error).split())
        _print_error(f"a library refuses the variable {' or '.join(names)}: {problem}")
        sys.exit(2)
    except click.Abort:
        sys.exit(130)


def _variables_in(error: ValueError) -> list[str]:
    """Return the variables in the environment that a library can't read, if that is the error.

    Most libraries read theirs when they are imported, and name the variable, or only its value.
    """
    message = str(error)
    given = {name: text for name, text in os.environ.items() if text and name.startswith(_OURS)}
    if str(getattr(error, "title", "")).endswith("Settings"):  # pydantic's, of Prefect's
        return [name for name in given if name.startswith("PREFECT_")]
    return [name for name, text in given.items() if name in message or repr(text) in message]


def _check_process() -> None:
    """Check what every command builds on.

    Raises:
        UserError: the working directory was removed; an argument or variable is not UTF-8 text, as
            which it would be recorded and printed; or a server's address is none.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory does not exist any more; cd to another") from None
    texts = {name: text for name, text in os.environ.items() if name.startswith(_OURS)}
    texts |= {f"argument {number}": text for number, text in enumerate(sys.argv)}
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError:  # the text itself may be a secret
            raise UserError(f"{name} is not UTF-8 text; correct it, or rename the file") from None
    for name in _ADDRESSES:
        given = os.environ.get(name)
        if given and not (given.startswith(("http://", "https://")) and has_host(given)):
            raise UserError(f"{name} is {masked(given)!r}; it must be a URL, as in https://host")


def _print_error(message: str) -> None:
    click.echo(f"error: {shortened(without_password(message))}", err=True)


def _help(mistake: click.ClickException) -> str:
    """Return where to read what is possible."""
    context = mistake.ctx if isinstance(mistake, click.UsageError) else None
    return f"; see {context.command_path} --help" if context else ""
