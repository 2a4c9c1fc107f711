"""Which of a model's adapters answers: one of them, or none, and then the base's own weights do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def switch_adapter(model: "PreTrainedModel", name: str) -> None:
    """Make one of the loaded adapters the only active one; nothing becomes trainable.

    Raises:
        UserError: the model has no adapter of that name.
    """
    from peft.functional import set_adapter

    names = list(getattr(model, "peft_config", {}))
    if name not in names:
        raise UserError(f"the model has no adapter {name!r}; it has {', '.join(names) or 'none'}")
    with same_trainable(model):
        enable_adapters(model)
        # Not the model's own method: transformers 5.23 gives up at a module that another adapter
        # trained whole and this one did not.
        set_adapter(model, name)


def enable_adapters(model: "PreTrainedModel") -> None:
    """Switch the adapters on again, with what they trained whole; nothing becomes trainable."""
    with same_trainable(model):
        model.enable_adapters()
        _set_whole_modules(model, enabled=True)


def disable_adapters(model: "PreTrainedModel") -> None:
    """Switch all adapters off: the model answers as its base (unless biases trained along)."""
    model.disable_adapters()
    _set_whole_modules(model, enabled=False)


@contextmanager
def adapters_disabled(model: "PreTrainedModel") -> Iterator[None]:
    """Give the base's answers for a while."""
    disable_adapters(model)
    try:
        yield
    finally:
        enable_adapters(model)


@contextmanager
def same_trainable(model: "PreTrainedModel") -> Iterator[None]:
    """Undo that PEFT makes the adapters trainable that it loads or activates."""
    trains = {key for key, p in model.named_parameters() if p.requires_grad}
    yield
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trains)


def _set_whole_modules(model: "PreTrainedModel", *, enabled: bool) -> None:
    # transformers 5.23 disables these wrappers along with the adapters and never enables them.
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.enable_adapters(enabled)
