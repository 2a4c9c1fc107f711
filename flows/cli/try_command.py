"""The command `try`: type a question, and read the answers of base and adapters."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flows.cli import options
from flows.cli.console import show_steps
from flows.cli.early_checks import check_sources
from tasks.errors import UserError
from tasks.runtime.paths import exists

if TYPE_CHECKING:
    from tasks.engine.scoring import Answered
    from tasks.inference.trying import Trial

_NAMED = re.compile(r"([A-Za-z0-9_-]+)=(.*)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal would obey rather than show."""


@click.command("try")
@click.argument("adapters", metavar="[NAME=]ADAPTER...", nargs=-1, required=True)
@click.option("--system", help="System message of each question.")
@click.option("--chat", is_flag=True, help="Remember earlier questions and answers.")
@click.option("--no-base", is_flag=True, help="Leave out the answers of the base.")
@click.option(
    "--base-model", help="Base model, if not the one that the first adapter was trained on."
)
@click.option("--max-new-tokens", type=options.MAX_NEW_TOKENS, default=128, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a question.")
def try_adapters(  # noqa: PLR0913 - what a user may give
    adapters: tuple[str, ...],
    system: str | None,
    chat: bool,  # noqa: FBT001
    no_base: bool,  # noqa: FBT001
    base_model: str | None,
    max_new_tokens: int,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Answer questions as they are typed: the base, then each ADAPTER.

    ADAPTER is a folder, a Hub id, models:/name@alias or runs:/…. Each line is a question. Ctrl-C
    stops an answer, Ctrl-D ends. Where stdin is not a terminal, one adapter answers each line with
    one line, in which spaces stand for line breaks; with --json each line is an object with all
    answers.
    """
    is_typed = not as_json and bool(sys.stdin) and sys.stdin.isatty()
    sources = _sources(adapters, is_line=not (is_typed or as_json))
    if system is not None and not system.strip():
        raise UserError("--system is empty; leave it out, or give a message")
    check_sources(list(sources.values()))
    from tasks.config import BaseModelSettings
    from tasks.config.reading import settings_here
    from tasks.engine.adapters import find_adapter

    if base_model:
        settings_here(BaseModelSettings, {"source": base_model}, (), "--base-model")

    for source in sources.values():
        if Path(source).is_dir():
            find_adapter(source)
    show_steps()
    from tasks.inference.trying import Asking, load_trial

    click.echo("loading ...", err=True)
    with_base = not no_base and (is_typed or as_json)
    trial = load_trial(sources, base_model, Asking(system, chat, with_base, max_new_tokens))
    if is_typed:
        _answer_typed(trial)
    else:
        _answer_lines(trial, as_json=as_json)


def _sources(adapters: Sequence[str], *, is_line: bool) -> dict[str, str]:
    """Return the adapters' sources by their names, or else by themselves.

    Raises:
        UserError: two have the same name, or one has the base's, or the answers of several would
            have to share a line.
    """
    if is_line and len(adapters) > 1:
        raise UserError(
            f"{len(adapters)} adapters were given, but on a pipe one adapter answers each line "
            "with one line; give one adapter, or --json"
        )
    sources: dict[str, str] = {}
    for given in adapters:
        named = None if exists(given) else _NAMED.fullmatch(given)
        name, source = named.groups() if named else (given, given)
        if name == "base":
            raise UserError(f"{given!r}: base names the answers of the base; choose another name")
        if name in sources:
            raise UserError(f"{name!r} is given twice; write NAME=ADAPTER with different names")
        sources[name] = source
    return sources


def _answer_typed(trial: "Trial") -> None:
    """Answer what is typed on the terminal, until Ctrl-D."""
    click.echo("Each line is a question. Ctrl-C stops an answer, Ctrl-D ends.", err=True)
    for number, line in enumerate(_typed(), 1):
        answers = {}
        try:
            for label in trial.labels:
                click.echo(f"[{label}]")
                shown = _Shown()
                answers[label] = trial.answer(label, number, line, shown.grow)
                shown.finish(answers[label])
        except KeyboardInterrupt:
            click.echo("\nstopped")
            continue
        trial.keep(line, answers)


def _typed() -> Iterator[str]:
    """Yield the lines that are typed, except blank ones."""
    with suppress(ImportError):
        import readline  # noqa: F401 - input() then has a history, and its lines can be edited
    while True:
        try:
            line = input("> ")
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            continue
        except UnicodeDecodeError:
            click.echo("error: the line is not UTF-8 text", err=True)
            continue
        if line.strip():
            yield line


class _Shown:
    """An answer on the terminal, while it grows."""

    def __init__(self) -> None:
        self._text = ""

    def grow(self, text: str) -> None:
        """Show what an answer has more than before."""
        if text.startswith(self._text):
            click.echo(_visible(text[len(self._text) :]), nl=False)
            self._text = text

    def finish(self, given: "Answered") -> None:
        """Show the rest of an answer; or all of it, should it differ from what was shown."""
        if given.answer is None:
            click.echo(f"error: {given.error}", err=True)
            return
        if not given.answer.startswith(self._text):
            click.echo("\n(read as)")
            self._text = ""
        probability = "" if given.probability is None else f" ({given.probability:.3f})"
        click.echo(_visible(given.answer[len(self._text) :]) + probability)


def _visible(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _answer_lines(trial: "Trial", *, as_json: bool) -> None:
    """Answer each line of stdin with one line of stdout."""
    for number, line in enumerate(sys.stdin.buffer if sys.stdin else (), 1):
        question, answers = _answers(trial, number, line.removesuffix(b"\n").removesuffix(b"\r"))
        if as_json:
            given = {label: asdict(one) for label, one in answers.items()}
            click.echo(json.dumps({"question": question, "answers": given}))
            continue
        (only,) = answers.values()
        if only.error:
            click.echo(f"error: {only.error}", err=True)
        click.echo(" ".join((only.answer or "").splitlines()))


def _answers(trial: "Trial", number: int, line: bytes) -> "tuple[str, dict[str, Answered]]":
    """Return a line as text, and the answers to it by who gave them."""
    from tasks.engine.scoring import Answered

    try:
        question = line.decode()
    except UnicodeDecodeError as error:
        bad = Answered(error=f"row {number}: not UTF-8 text: {error}")
        return line.decode(errors="replace"), dict.fromkeys(trial.labels, bad)
    answers = {label: trial.answer(label, number, question) for label in trial.labels}
    trial.keep(question, answers)
    return question, answers
