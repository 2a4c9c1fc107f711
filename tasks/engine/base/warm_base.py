"""A base that stays in memory between runs, and is proven pristine before each further use.

PEFT's `delete_adapter` (0.21) does not give the base back: wrappers and their state-dict keys stay,
and some initializations, new tokens and fully trained modules change weights or structure. Here the
freshly loaded model is noted module by module. `give_back` puts every module, parameter, buffer,
hook and setting back in its place, whatever was added or replaced. `take_warm` compares the model
with the note, the weights by their checksums; a model that differs is discarded, and the caller
loads another.

Off unless a process asks for it with `keeping_warm`: one that trains many adapters on one base.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tasks.config import Quantization
from tasks.engine.base.memory import release_memory
from tasks.records import BaseSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.engine.base.pristine import Pristine

log = logging.getLogger(__name__)

_NOTE = "_adapterflow_pristine"
"""The model's attribute with its note: a model and its note live as long as each other."""


class _Shelf:
    """Room for one base: two would not fit where one just does."""

    def __init__(self) -> None:
        self.num_users = 0
        self.model: PreTrainedModel | None = None

    def clear(self) -> "PreTrainedModel | None":
        """Take the model away, if there is one."""
        model, self.model = self.model, None
        return model


_shelf = _Shelf()


@contextmanager
def keeping_warm() -> Iterator[None]:
    """Keep a base that is given back for the next run in this process, for a while."""
    _shelf.num_users += 1
    try:
        yield
    finally:
        _shelf.num_users -= 1
        if not _shelf.num_users and _shelf.clear() is not None:
            release_memory()


def note_pristine(source: BaseSource, model: "PreTrainedModel") -> None:
    """Note how a model was just loaded, so that it can be given back; nothing if bases aren't kept.

    Args:
        source: what the model was loaded from.
        model: as loaded.
    """
    # bitsandbytes 0.50 moves 8-bit weights into a state of its own at the first forward pass.
    if not _shelf.num_users or source.settings.quantization is Quantization.INT8:
        return
    from tasks.engine.base.pristine import Pristine

    setattr(model, _NOTE, None)  # a part of what is noted
    vars(model)[_NOTE] = Pristine(_identity(source), model, ignoring=_NOTE)


def give_back(model: "PreTrainedModel") -> bool:
    """Take everything out of a base that was added to it, and keep it for `take_warm`.

    The caller must not use the model afterwards. Returns whether it is kept: a model that was
    loaded while bases weren't kept is left as it is.
    """
    note = _note_of(model)
    if note is None or not _shelf.num_users:
        return False
    note.restore()
    _shelf.model = model
    return True


def take_warm(source: BaseSource) -> "PreTrainedModel | None":
    """Return the base that was given back, if it is this one and proven to be as it was loaded.

    Any other one is discarded, so that there is room for the one to load.
    """
    model = _shelf.clear()
    note = _note_of(model) if model is not None else None
    if model is None or note is None or note.identity != _identity(source):
        return None
    difference = note.difference(model)
    if difference:
        log.info("the base is loaded anew, as the last run changed it: %s", difference)
        return None
    return model


def _note_of(model: "PreTrainedModel") -> "Pristine | None":
    note: Pristine | None = vars(model).get(_NOTE)
    return note


def _identity(source: BaseSource) -> str:
    """Return all that a base is loaded by; a record of step 1 has more fields."""
    return source.model_dump_json(include=set(BaseSource.model_fields))
