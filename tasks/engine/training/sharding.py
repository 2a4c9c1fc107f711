"""A base that is spread over the processes of a training, each of which has a part of every weight.

FSDP2 (`fully_shard`) shards the frozen weights only. Those of a layer are gathered when it is
computed, and freed afterwards; what is in no layer, such as embeddings and the output layer, is
there for as long as a pass takes. What trains is small, and each process has all of it, as without
sharding: gradients, optimizer, checkpoints and results are the same.

transformers' own way, `from_pretrained(distributed_config=…)`, reads no more than a shard. But in
5.23 it shards 4-bit weights before they are packed, and PEFT then refuses them; it has no plan for
GPT-2, BERT or T5; and what an adapter computes from the base's weights when it is added (PiSSA,
DoRA) would see a shard. So here the base is loaded whole, in the host's memory and never on
a GPU, gets its adapter, is proven to be the recorded one, and is sharded layer by layer.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from tasks.engine.adapters import is_adapter_parameter
from tasks.engine.base import device, release_memory
from tasks.engine.training.group import ProcessGroup

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

T = TypeVar("T")


class ShardingGroup(ProcessGroup):
    """The processes of a training that have a part of the base each.

    Making it shards the model in place. Every pass through it is a collective: each process has to
    compute as many, in the same order.

    Args:
        model: the base with its adapter, whole, on the CPU.
        gradients: torch's group for tensors on another device than the CPU, if they are on one.
    """

    is_sharding = True

    def __init__(
        self, model: "PreTrainedModel", gradients: distributed.ProcessGroup | None = None
    ) -> None:
        super().__init__(gradients)
        from torch.distributed.device_mesh import DeviceMesh

        group = gradients or distributed.group.WORLD
        assert group is not None  # noqa: S101 - the default group is there
        mesh = DeviceMesh.from_group(group, device().type)
        self.whole_bytes = base_bytes(model)
        """Of the base's weights."""
        self._pass = _shard(model, mesh)
        release_memory()

    def compute(self, passes: Callable[[], T]) -> T:
        """Call a function that passes through the model, while the weights can be gathered."""
        return self._pass(passes)  # type: ignore[no-any-return]

    def agreed(self, make: Callable[[], T]) -> T:
        """Call a function that passes through the model; return what the first process got."""
        made = self.compute(make)
        return self.from_first(lambda: made)


def base_bytes(model: "PreTrainedModel") -> int:
    """Return the bytes of the base's weights that this process holds, quantization included."""
    from torch.distributed.tensor import DTensor

    weights = (one for name, one in model.named_parameters() if not is_adapter_parameter(name))
    held = [one.to_local() if isinstance(one, DTensor) else one for one in weights]
    return sum(one.nbytes for one in (*held, *_quantization_constants(model)))


def _quantization_constants(model: "PreTrainedModel") -> Iterator[torch.Tensor]:
    """Yield the scales of 4-bit weights, which each process has all of."""
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        while state is not None:  # those of a double quantization are quantized, too
            yield state.absmax
            state = state.state2


class _Pass(torch.nn.Module):
    """Calls any function of the model as its forward, around which FSDP gathers and frees."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, passes: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever it returns
        return passes()


def _shard(model: "PreTrainedModel", mesh: "DeviceMesh") -> _Pass:
    """Shard all frozen weights, one layer after the other, and move everything to the device."""
    from torch.distributed.fsdp import fully_shard

    _keep_quantization(model)
    trained = {
        one
        for name, one in model.named_parameters()
        if one.requires_grad or is_adapter_parameter(name)
    }
    for one in trained:
        one.data = one.data.to(mesh.device_type)
    if hasattr(model, "hf_device_map"):  # by which Trainer and accelerate judge where it is
        model.hf_device_map = {"": device()}  # type: ignore[assignment]
    whole = _Pass(model)
    for module in (*_layers(model), whole):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    return whole


def _keep_quantization(model: "PreTrainedModel") -> None:
    """Let 4-bit layers find how their weights are packed, when these become plain tensors."""
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            state.to(device())
            module.quant_state = state


def _layers(model: "PreTrainedModel") -> list[torch.nn.Module]:
    """Return the members of the model's outermost lists of modules: its layers.

    One that shares a weight with another part of the model is left out.
    """
    found = [layer for one in _outermost_lists(model) for layer in one]
    everywhere = Counter(id(one) for _, one in model.named_parameters(remove_duplicate=False))
    within = [
        Counter(id(one) for _, one in layer.named_parameters(remove_duplicate=False))
        for layer in found
    ]
    return [
        layer
        for layer, names in zip(found, within, strict=True)
        if names and all(everywhere[one] == count for one, count in names.items())
    ]


def _outermost_lists(module: torch.nn.Module) -> Iterator[Sequence[torch.nn.Module]]:
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield list(child)
        else:
            yield from _outermost_lists(child)
