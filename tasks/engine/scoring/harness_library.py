"""lm-evaluation-harness as a library: imported where it is configured, and kept quiet.

Version 0.4.13 draws from the random generators of Python, NumPy and torch, sets a variable of the
Hub's client, logs, draws bars, prints, and forks processes for its bootstraps. datasets 5.2, by
which it reads rows, reports each use of a reader of files to its makers. None of that is left to
them. (`simple_evaluate` would seed the generators for good, and start `git`, `pip list` and a dozen
other programs for each model; `evaluate` does neither.)
"""

import contextlib
import io
import logging
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.config import HarnessSettings
from tasks.engine.excerpts import reason
from tasks.errors import UserError
from tasks.runtime import home

_INSTALL = "install it with: pip install 'adapterflow[harness]'"
_SEEDS = {"random": 0, "numpy": 1234, "torch": 1234}
"""Those of its own command, so that the scores are, too."""
FEWSHOT_SEED = 1234
_NO_PROCESSES = "DISABLE_MULTIPROC"
"""Its variable: a fork of a process that has threads of torch and Prefect may never end."""
_OF_THE_HUB = ("HF_XET_HIGH_PERFORMANCE", "HF_HUB_ENABLE_HF_TRANSFER")
"""Variables that its import sets: the Hub's client would use all cores for a download."""


def check_installed(settings: HarnessSettings) -> None:
    """Check in a moment, without an import, that the harness and the folder of tasks are there.

    Raises:
        UserError: one of them isn't.
    """
    if find_spec("lm_eval") is None:
        raise UserError(
            f"evaluation.harness is set, but lm-evaluation-harness is not installed; {_INSTALL}"
        )
    folder = task_folder(settings)
    if folder and not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"evaluation.harness.include_path {folder} {what}; give the folder of your tasks' "
            "YAML files, or remove it"
        )


def task_folder(settings: HarnessSettings) -> Path | None:
    """Return the folder of one's own tasks; relative to the home, as the held-out rows are."""
    given = settings.include_path
    return home.home() / Path(given).expanduser() if given else None


def import_harness() -> ModuleType:
    """Return the module `lm_eval`, with what is needed of it imported.

    Raises:
        UserError: it can't be imported.
    """
    unset = [name for name in _OF_THE_HUB if name not in os.environ]
    try:
        import lm_eval
        import lm_eval.evaluator
        import lm_eval.models.huggingface
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(
            f"lm-evaluation-harness can't be imported: {reason(error)}; {_INSTALL}"
        ) from error
    finally:
        for name in unset:
            os.environ.pop(name, None)
    module: ModuleType = lm_eval
    return module


@contextmanager
def undisturbed(warned: Callable[[str], None] | None = None) -> Iterator[None]:
    """Let the harness work for a while without traces in this process.

    Its random numbers are those of its own command, whatever was drawn before, and ours go on after
    it as if it had drawn none.

    Args:
        warned: called with each of its warnings.
    """
    with ExitStack() as stack:
        for part in (_own_randomness(), _alone(), _without_bars(), _own_log(warned)):
            stack.enter_context(part)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


@contextmanager
def _own_randomness() -> Iterator[None]:
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one it draws from
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=gpus):
        random.seed(_SEEDS["random"])
        np.random.seed(_SEEDS["numpy"])  # noqa: NPY002
        torch.manual_seed(_SEEDS["torch"])
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _alone() -> Iterator[None]:
    """Start no processes, and report nothing to anybody."""
    import datasets

    is_given, counted = _NO_PROCESSES in os.environ, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    os.environ.setdefault(_NO_PROCESSES, "1")
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counted
        if not is_given:
            del os.environ[_NO_PROCESSES]


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide bars: not all of its loops have an argument for that."""
    import datasets
    import tqdm  # type: ignore[import-untyped]

    bar = tqdm.tqdm

    class Hidden(bar):  # type: ignore[misc, valid-type]
        """A bar that is not shown; a class, as a module that is imported now may derive from it."""

        def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - tqdm's own
            super().__init__(*arguments, **{**named, "disable": True})

    modules = [tqdm, *(one for name, one in sys.modules.items() if name.startswith("lm_eval."))]
    holders: list[Any] = [one for one in modules if vars(one).get("tqdm") is bar]
    were_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    for one in holders:
        one.tqdm = Hidden
    try:
        yield
    finally:
        for one in holders:
            one.tqdm = bar
        if were_shown:
            datasets.enable_progress_bars()


class _Warnings(logging.Handler):
    def __init__(self, warned: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warned = warned

    def emit(self, record: logging.LogRecord) -> None:
        self._warned(" ".join(record.getMessage().split()))


@contextmanager
def _own_log(warned: Callable[[str], None] | None) -> Iterator[None]:
    """Pass on its warnings, and hide whatever else it logs."""
    log = logging.getLogger("lm_eval")
    handler = _Warnings(warned or (lambda _: None))
    before = log.propagate
    log.propagate = False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before
