"""Which of a model's adapters is active: one of them, or none, so that the base answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.engine.adapters.siblings import are_plain, wrappers
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def switch_adapter(model: "PreTrainedModel", name: str) -> None:
    """Make one of the loaded adapters the only active one, without making it trainable.

    Raises:
        UserError: the model has no adapter of that name.
    """
    from peft.functional import set_adapter

    names = list(getattr(model, "peft_config", {}))
    if name not in names:
        raise UserError(f"the model has no adapter {name!r}; it has {', '.join(names) or 'none'}")
    if are_plain(model) and not _trains(model):
        for _, layer in wrappers(model):
            if layer.disable_adapters:
                layer.enable_adapters(enabled=True)
            layer.set_adapter(name, inference_mode=True)
        return
    with same_trainable(model):
        enable_adapters(model)
        # Not the model's own method: transformers 5.23 fails at a module that another adapter
        # trained fully and this one did not.
        set_adapter(model, name)


def _trains(model: "PreTrainedModel") -> bool:
    """Return whether some adapter trains: an adapter's weights of a kind all do, or none."""
    one_of_each: dict[tuple[str, str], Any] = {}
    for _, wrapper in wrappers(model):
        for kind in wrapper.adapter_layer_names:
            for name, weights in getattr(wrapper, kind).items():
                one_of_each.setdefault((name, kind), weights)
    return any(
        weight.requires_grad
        for weights in one_of_each.values()
        for weight in (weights.parameters() if hasattr(weights, "parameters") else [weights])
    )


def enable_adapters(model: "PreTrainedModel") -> None:
    """Enable the active adapters and their fully trained modules, without making them trainable."""
    with same_trainable(model):
        model.enable_adapters()
        _set_fully_trained_modules(model, enabled=True)


def disable_adapters(model: "PreTrainedModel") -> None:
    """Disable all adapters: the model answers as its base (unless its biases were trained)."""
    model.disable_adapters()
    _set_fully_trained_modules(model, enabled=False)


@contextmanager
def adapters_disabled(model: "PreTrainedModel") -> Iterator[None]:
    """Disable all adapters for a while."""
    with same_trainable(model):  # PEFT freezes what it disables
        disable_adapters(model)
        try:
            yield
        finally:
            enable_adapters(model)


@contextmanager
def same_trainable(model: "PreTrainedModel") -> Iterator[None]:
    """Restore which parameters are trainable: PEFT makes adapters trainable that it activates."""
    trains = {key for key, p in model.named_parameters() if p.requires_grad}
    try:
        yield
    finally:
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key in trains)


def _set_fully_trained_modules(model: "PreTrainedModel", *, enabled: bool) -> None:
    # transformers 5.23 disables these wrappers with the adapters, but never enables them again.
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.enable_adapters(enabled)
