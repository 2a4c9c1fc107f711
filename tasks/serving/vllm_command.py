"""The command of a vLLM server for adapters, with everything that their answers depend on."""

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.config import AdapterSettings, ServingSettings, Task, Template, TrackingSettings
from tasks.config.reading import adapter_here
from tasks.engine.adapters import AdapterFolder, check_adapter
from tasks.engine.base import find_base, tokenizer_of
from tasks.errors import UserError
from tasks.inference.adapters_on_base import base_of, check_adapters, found_adapters
from tasks.records import BaseSource, ChatOptions
from tasks.serving.publishing import find_version, keep_files, served_name
from tasks.serving.vllm_limits import RANKS, check_servable, rank_of
from tasks.tracking import is_mlflow_uri

ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_NO_USAGE_STATS": "1"}
"""Adapters can be loaded while it runs, which `publish` needs; and it reports no usage."""
_TEMPLATE_FILE = "chat_template.jinja"
_ROOM = 2
"""Adapters in memory beside those given: the new version and, for a while, the one before."""


class VllmServer(NamedTuple):
    """How a server is started."""

    host: str
    port: int
    program: str = "vllm"
    more: tuple[str, ...] = ()
    """Arguments of the user's."""


def vllm_command(
    given: Sequence[str],
    server: VllmServer,
    settings: ServingSettings,
    tracking: TrackingSettings,
    base_model: str | None = None,
) -> list[str]:
    """Return the command that serves adapters on their base.

    Args:
        given: the adapters: versions of registered models, served as `publish` does, or
            `NAME=FOLDER`.
        server: its program and address.
        settings: where the files of versions are put.
        tracking: which MLflow store has them.
        base_model: their base, if not the one that the first names.

    Raises:
        UserError: an adapter can't be served by vLLM, or together with the others.
    """
    wanted = [_local(one, settings, tracking) for one in given]
    names = [one.name for one in wanted]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two adapters are named {twice[0]!r}; give each its own name")
    with found_adapters(wanted) as adapters:
        for one in adapters:
            check_servable(one)
        base = find_base(check_adapters(base_of(adapters[0], base_model), wanted, adapters))
        if base.settings.task is not Task.CAUSAL_LM:
            raise UserError(
                f"{adapters[0].source} is for {base.settings.task.value}, and vLLM serves adapters "
                "of causal language models only; see `adapterflow bundle`"
            )
        modules = [f"{one.name}={found.path}" for one, found in zip(wanted, adapters, strict=True)]
        rank = max(map(rank_of, adapters))
        return [
            *(server.program, "serve", base.location),
            *(("--revision", base.revision) if base.revision else ()),
            *("--served-model-name", base.reference),
            *("--dtype", base.dtype),
            *_chat(adapters, base),
            "--enable-lora",
            *("--max-lora-rank", str(next(one for one in RANKS if one >= rank))),
            *("--max-loras", str(len(adapters) + _ROOM)),
            *("--lora-modules", *modules),
            *("--host", server.host, "--port", str(server.port)),
            *server.more,
        ]


def command_line(command: Sequence[str]) -> str:
    """Return the command with its environment as a line for a shell."""
    variables = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    return " ".join([*variables, shlex.join(command)])


def check_program(program: str) -> None:
    """Check that vLLM can be started.

    Raises:
        UserError: there is no such program.
    """
    if shutil.which(program) is None:
        raise UserError(
            f"there is no program {program!r}; install vLLM in an environment of its own, and give "
            "its program with --vllm, as in --vllm .venv-vllm/bin/vllm"
        )


def become(command: Sequence[str]) -> None:
    """Replace this process by the server, so that signals reach it.

    Raises:
        UserError: the program can't be executed.
    """
    try:
        os.execvpe(command[0], list(command), {**os.environ, **ENVIRONMENT})  # noqa: S606 - the user's program
    except OSError as error:
        raise UserError(
            f"{command[0]} can't be executed: {error.strerror}; give vLLM's program with --vllm"
        ) from error


def _local(given: str, settings: ServingSettings, tracking: TrackingSettings) -> AdapterSettings:
    """Return a folder that is served, and its name there."""
    name, sign, source = given.partition("=")
    if not sign:
        version, _ = find_version(given, tracking)
        folder = keep_files(version, settings, tracking)
        return AdapterSettings.model_construct(source=str(folder), name=served_name(version))
    if not name or is_mlflow_uri(source) or not Path(source).expanduser().is_dir():
        raise UserError(
            f"{given!r} is neither a version, as in models:/tickets@champion, nor NAME=FOLDER"
        )
    return adapter_here(source, name)


def _chat(adapters: Sequence[AdapterFolder], base: BaseSource) -> list[str]:
    """Return the arguments by which the server renders prompts as in training.

    Raises:
        UserError: the adapters' prompts are rendered differently.
    """
    tokenizer = tokenizer_of(base)
    own = [
        str(
            check_adapter(
                one, base, tokenizer, Template.AUTO, any_base=False
            ).tokenizer.chat_template
        )
        for one in adapters
    ]
    options = [ChatOptions.in_manifest(one.manifest).chat_template_kwargs for one in adapters]
    if len(set(own)) > 1 or any(one != options[0] for one in options):
        raise UserError(
            f"{' and '.join(one.source for one in adapters)} have different chat templates or "
            "chat_template_kwargs, and a vLLM server has one for all; start a server for each"
        )
    found: list[str] = []
    if own[0] != str(tokenizer.chat_template):
        found += ["--chat-template", str(adapters[0].path / _TEMPLATE_FILE)]
    if options[0]:
        found += ["--default-chat-template-kwargs", json.dumps(options[0])]
    return found
