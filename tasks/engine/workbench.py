"""The one place where a live model sits between steps: a memo for this process only.

A step takes the model and thereby owns it; it puts the model back under its new record once it
has succeeded. A failed step's model is discarded, because nobody knows how far it was changed,
and the retry rebuilds it from the record: base, initial weights, trained weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tasks.engine.base import give_back, keeping_warm, load_base, release_memory
from tasks.errors import UserError
from tasks.records import BaseModelRecord, InjectedRecord, TrainedRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ModelRecord = BaseModelRecord | InjectedRecord | TrainedRecord

_bench: dict[str, "PreTrainedModel"] = {}


def put(record: ModelRecord, model: "PreTrainedModel") -> None:
    """Leave the model for the next step; there is room for one."""
    _bench.clear()
    _bench[_key(record)] = model


def take(record: ModelRecord) -> "PreTrainedModel":
    """Return the model in the state that the record describes, and forget it.

    Raises:
        UserError: a file that the record names is missing or has changed.
        VerificationError: the rebuilt state is not the recorded one.
    """
    model = _bench.pop(_key(record), None)
    _bench.clear()
    return model if model is not None else _rebuild(record)


def clear() -> None:
    """Discard the model, to free its memory."""
    _bench.clear()


def release() -> None:
    """Discard the model, and return its memory; a base that is kept warm stays."""
    while _bench:
        give_back(_bench.popitem()[1])
    release_memory()


@contextmanager
def keeping_base() -> Iterator[None]:
    """Have the runs of this process use one base in memory, one run after the other.

    Each takes it in step 1, and as the fresh base of steps 5 and 6, if it is proven to be as it was
    loaded; otherwise it is loaded anew. Each run belongs into a `single_run`.
    """
    with keeping_warm():
        yield


@contextmanager
def single_run() -> Iterator[None]:
    """Leave nothing of a run to the next one in this process but the base.

    A resumed training sets PyTorch's number of threads to that of its first attempt, which rounding
    depends on.
    """
    import torch

    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        release()


def _key(record: ModelRecord) -> str:
    return f"{type(record).__name__}:{record.model_dump_json()}"


def _rebuild(record: ModelRecord) -> "PreTrainedModel":
    from tasks.engine.adapters import reinject
    from tasks.engine.training import retrain

    spoiled = record.spoiled_files()
    if spoiled:
        raise UserError(f"{spoiled[0]} is missing or has changed since this run recorded it")
    match record:
        case BaseModelRecord():
            return load_base(record)
        case InjectedRecord():
            model = _rebuild(record.lora.base)
            reinject(model, record)
        case TrainedRecord():
            model = _rebuild(record.injected)
            retrain(model, record)
    return model
