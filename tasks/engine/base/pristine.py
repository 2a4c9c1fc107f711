"""What a freshly loaded model consists of: put back in its place, and compared with a model.

Nothing is copied but small containers and settings: the note refers to the model's own modules and
tensors, and has a checksum of each tensor.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.engine.base.tensor_checksum import checksums

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PLAIN = (bool, int, float, str, bytes, tuple, type(None))
"""Types of attributes that are compared by value; others are the same object or differ."""


class _Attribute(NamedTuple):
    """An attribute of a module, and what it contained if it is a container."""

    value: Any
    contents: Any

    @classmethod
    def of(cls, value: Any) -> "_Attribute":  # noqa: ANN401
        is_container = isinstance(value, dict | list | set)
        return cls(value, copy.copy(value) if is_container else None)

    def restore(self) -> Any:  # noqa: ANN401
        """Restore the contents in place, as hooks' handles refer to their dictionary."""
        if isinstance(self.value, list):
            self.value[:] = self.contents
        elif isinstance(self.value, dict | set):
            self.value.clear()
            self.value.update(self.contents)
        return self.value

    def is_same(self, found: Any) -> bool:  # noqa: ANN401
        if isinstance(self.value, _PLAIN):
            return type(found) is type(self.value) and bool(found == self.value)
        return found is self.value and _has_contents(found, self.contents)


class _Tensor(NamedTuple):
    """A parameter or buffer: the object, and what must not have changed about it."""

    tensor: "torch.Tensor"
    dtype: "torch.dtype"
    shape: tuple[int, ...]
    requires_grad: bool

    @classmethod
    def of(cls, tensor: "torch.Tensor") -> "_Tensor":
        return cls(tensor, tensor.dtype, tuple(tensor.shape), tensor.requires_grad)

    def restore(self) -> None:
        """Undo what PEFT's and Trainer's preparation do to a tensor; its values stay."""
        tensor = self.tensor
        tensor.grad = None
        tensor.requires_grad_(self.requires_grad)
        if tensor.dtype != self.dtype:  # upcast without loss, for training on a quantized base
            tensor.data = tensor.data.to(self.dtype)

    def is_same(self, found: "torch.Tensor") -> bool:
        hooks = (found._backward_hooks, getattr(found, "_post_accumulate_grad_hooks", None))  # noqa: SLF001
        return found.grad is None and not any(hooks) and _Tensor.of(found)[1:] == self[1:]


class Pristine:
    """The note of a model as it was loaded.

    Args:
        identity: of what it was loaded from.
        model: as loaded.
        ignoring: an attribute of the model that does not count.
    """

    def __init__(self, identity: str, model: "PreTrainedModel", ignoring: str) -> None:
        self.identity = identity
        self._ignored = ignoring
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._types = {name: type(module) for name, module in self._modules.items()}
        self._attributes = {
            name: {key: _Attribute.of(value) for key, value in self._vars(module).items()}
            for name, module in self._modules.items()
        }
        self._settings = [(one, _copied(one)) for one in _settings_in(self._modules)]
        self._tensors = {name: _Tensor.of(one) for name, one in _tensors_in(model)}
        self._checksums = checksums(_contents_of(model))

    def restore(self) -> None:
        """Put modules, parameters, buffers, hooks, modes and settings back in their places."""
        for name, module in self._modules.items():
            ignored = {k: v for k, v in vars(module).items() if k == self._ignored}
            kept = {key: one.restore() for key, one in self._attributes[name].items()}
            _replace_fields(module, kept | ignored)
        for settings, contents in self._settings:
            _replace_fields(settings, _copied(contents))
        for one in self._tensors.values():
            one.restore()

    def difference(self, model: "PreTrainedModel") -> str | None:
        """Return what is not as it was loaded: the first such thing, the weights last."""
        return next(self._differences(model), None)

    def _differences(self, model: "PreTrainedModel") -> Iterator[str]:
        modules = dict(model.named_modules(remove_duplicate=False))
        yield from (f"module {name!r} was added" for name in modules.keys() - self._modules.keys())
        yield from (f"module {name!r} is missing" for name in self._modules.keys() - modules.keys())
        if list(modules) != list(self._modules):
            yield "the modules have another order"
        for name, module in modules.items():
            if module is not self._modules[name] or type(module) is not self._types[name]:
                yield f"module {name!r} was replaced by a {type(module).__name__}"
            yield from (f"{key} of {name or 'the model'!r} changed" for key in self._changed(name))
        for settings, contents in self._settings:
            if vars(settings) != contents:
                yield f"the {type(settings).__name__} changed"
        tensors = dict(_tensors_in(model))
        for name, noted in self._tensors.items():
            if name not in tensors or not noted.is_same(tensors[name]):
                yield f"dtype, shape, gradient or hooks of {name!r} changed"
        found = checksums(_contents_of(model))
        if list(found) != list(self._checksums):
            yield "the keys of the state dictionary changed"
        yield from (f"values of {k!r} changed" for k, v in found.items() if v != self._checksums[k])

    def _changed(self, name: str) -> Iterator[str]:
        found, noted = self._vars(self._modules[name]), self._attributes[name]
        yield from sorted(found.keys() ^ noted.keys())
        yield from (k for k, one in noted.items() if k in found and not one.is_same(found[k]))

    def _vars(self, module: Any) -> dict[str, Any]:  # noqa: ANN401
        return {key: value for key, value in vars(module).items() if key != self._ignored}


def _replace_fields(one: Any, fields: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Replace all attributes of an object by these."""
    vars(one).clear()
    vars(one).update(fields)


def _has_contents(found: Any, noted: Any) -> bool:  # noqa: ANN401
    if noted is None:
        return True
    if isinstance(noted, set):
        return bool(found == noted)
    if list(found) != list(noted):
        return False
    return not isinstance(noted, dict) or all(found[k] is v for k, v in noted.items())


def _settings_in(modules: Mapping[str, Any]) -> list[Any]:
    """Return the configurations that modules refer to, and those within them, each once."""
    from transformers import GenerationConfig, PretrainedConfig

    found: dict[int, Any] = {}
    waiting = [value for module in modules.values() for value in vars(module).values()]
    while waiting:
        one = waiting.pop()
        if isinstance(one, GenerationConfig | PretrainedConfig) and id(one) not in found:
            found[id(one)] = one
            waiting += vars(one).values()
    return list(found.values())


def _copied(settings: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a copy of a configuration's fields; configurations within it are noted themselves."""
    from transformers import PretrainedConfig

    fields = settings if isinstance(settings, dict) else vars(settings)
    return {
        key: value if isinstance(value, PretrainedConfig) else copy.deepcopy(value)
        for key, value in fields.items()
    }


def _tensors_in(model: "PreTrainedModel") -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield all parameters and buffers, and the tensors that are plain attributes of modules."""
    import torch

    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, module in model.named_modules():
        plain = ((key, v) for key, v in vars(module).items() if isinstance(v, torch.Tensor))
        yield from ((f"{name}.{key}", value) for key, value in plain)


def _contents_of(model: "PreTrainedModel") -> dict[str, "torch.Tensor"]:
    """Return the state dictionary, which has the parts of quantized weights, and what it lacks."""
    return {**model.state_dict(), **{f"{name} (tensor)": one for name, one in _tensors_in(model)}}
