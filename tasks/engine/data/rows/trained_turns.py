"""Which answers of a row are trained on: by their weights, and by `data.turns`."""

from collections.abc import Mapping
from dataclasses import replace

from tasks.config.data import Turns
from tasks.engine.data.rows.conversations import Message
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.excerpts import shown

_MASKS = "masked"
WEIGHT_KEYS = frozenset(
    {
        "weight",
        "loss",
        "loss_weight",
        "loss_scale",
        "loss_mask",
        "train",
        "training",
        "trainable",
        _MASKS,
    }
)
"""The keys of a message that say whether it is trained on."""

_SWITCHES = {"true": True, "yes": True, "false": False, "no": False}


def is_trained(message: Mapping[str, object], name: str, role: str) -> bool:
    """Return whether the weights of a message say that it is trained on; without any it is.

    Raises:
        BadRowError: a weight is neither 0 nor 1, two of them differ, or one is 1 for a message that
            is not the assistant's.
    """
    given = {
        key: _switch(message[key], key, name) != (key == _MASKS)
        for key in WEIGHT_KEYS.intersection(message)
        if message[key] is not None
    }
    if role != "assistant":
        if on := [key for key in given if given[key] and key != _MASKS]:
            raise BadRowError(
                f"{name} has the {on[0]} {shown(message[on[0]])}, but is the {role}'s; only the "
                "assistant's messages are trained on: remove it, or set it to 0"
            )
        return True
    if len(set(given.values())) > 1:
        raise BadRowError(f"{name} has {' and '.join(sorted(given))}, which differ; keep one")
    return all(given.values())


def with_turns(messages: tuple[Message, ...], row: Row, turns: Turns) -> tuple[Message, ...]:
    """Return a conversation in which only the answers that are trained on are marked as such.

    Args:
        messages: the conversation; an answer that is not trained on stays so.
        row: that it was read from; its column `weight` may switch off all answers.
        turns: whether all answers are trained on, or the last.
    """
    weight = row.get("weight")
    # A cell of a CSV file may be empty.
    is_on = weight in (None, "") or _switch(weight, "weight", "the row")
    if is_on and turns is Turns.ALL:
        return messages
    kept = len(messages) - 1 if is_on else -1
    return tuple(
        replace(one, is_trained=False) if one.role == "assistant" and place != kept else one
        for place, one in enumerate(messages)
    )


def trains_nothing(messages: tuple[Message, ...]) -> bool:
    """Return whether a conversation has no answer that is trained on."""
    return not any(one.role == "assistant" and one.is_trained for one in messages)


def _switch(given: object, key: str, name: str) -> bool:
    written = str(given).strip().lower()
    if written in _SWITCHES:
        return _SWITCHES[written]
    try:
        number = float(written)
    except ValueError:
        number = -1
    if number not in (0, 1):
        raise BadRowError(
            f"the {key} of {name} is {shown(given)}; it must be 0 or 1: an answer is trained on or "
            "it is not"
        )
    return bool(number)
