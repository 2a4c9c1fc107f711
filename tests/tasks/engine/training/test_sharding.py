"""What is sharded, and how passes fill up; several processes are in `tests/tasks/launching`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tasks.engine.base import bases_on_host, device, devices
from tasks.engine.batching import Batch, as_batch
from tasks.engine.training.fillers import filled_up
from tasks.engine.training.group import Group
from tasks.engine.training.sharding import _layers

SIZES = {
    "llama": {"hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2},
    "bert": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2},
    "t5": {"d_model": 32, "num_layers": 2, "num_decoder_layers": 1, "d_kv": 8, "num_heads": 4},
}


@pytest.mark.parametrize("kind", SIZES)
def test_each_layer_is_sharded_by_itself(kind: str) -> None:
    """The layers are found in any architecture, and have most weights that are no embeddings."""
    config = AutoConfig.for_model(kind, vocab_size=50, **SIZES[kind])
    make = AutoModelForCausalLM if kind in {"llama", "gpt2"} else AutoModel
    with torch.device("meta"):
        model = make.from_config(config)  # type: ignore[no-untyped-call]
    found = _layers(model)
    assert len(found) == 3
    assert all("mbedding" not in type(layer).__name__ for layer in found)


def test_layers_that_share_a_weight_are_not_sharded_by_themselves() -> None:
    """FSDP would make two weights of it: both parts are gathered with all else."""
    config = AutoConfig.for_model("llama", vocab_size=50, **SIZES["llama"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    first, second, third = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    assert _layers(model) == [third]


class Told(Group):
    """A stand-in for a group: `gather` returns what this process and another one give."""

    size = 2
    is_sharding = True

    def __init__(self, *others: Any) -> None:  # noqa: ANN401
        self._others = iter(others)

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401
        """Return what both give."""
        return [value, next(self._others)]

    def from_first(self, make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Call it, as this is the first one."""
        return make()


def batch_of(*sizes: int) -> Batch:
    """Return a batch with micro-batches of so many tokens."""
    made = [{"input_ids": torch.zeros(1, n), "labels": torch.zeros(1, n)} for n in sizes]
    return as_batch(made)


def test_a_process_with_fewer_micro_batches_fills_up() -> None:
    """It computes its smallest one again, as often as needed in each batch, and no more."""
    own = [batch_of(4, 2), batch_of(3)]
    first, second = filled_up(own, Told([(4, 0), (1, 1)]))
    assert [one["input_ids"].shape[1] for one in first["fillers"]] == [2, 2]
    assert not second["fillers"]
    assert len(second["mismatched_fillers"]) == 1
    assert first["micro_batches"] == own[0]["micro_batches"]


def test_a_process_without_micro_batches_computes_one_of_another() -> None:
    """A step may have fewer rows than there are processes."""
    [other] = batch_of(7)["micro_batches"]
    [found] = filled_up([batch_of()], Told([(2, 0)], other))
    assert found["fillers"] == [other, other]
    assert not found["micro_batches"]
    assert not len(found["labels"])


def test_bases_stay_on_the_host_while_a_gpu_is_computed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only within the block, and only where it is needed; what is computed on stays the GPU."""
    monkeypatch.setattr(devices, "_is_available", lambda kind: kind == "cuda")
    assert devices.base_device().type == "cuda"
    with bases_on_host(needed=False):
        assert devices.base_device().type == "cuda"
    with bases_on_host():
        assert devices.base_device().type == "cpu"
        assert device().type == "cuda"
    assert devices.base_device().type == "cuda"
