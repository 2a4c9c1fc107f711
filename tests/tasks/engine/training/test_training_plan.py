"""Step 4 where memory is short: smaller micro-batches with the same losses, or what to change."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from engine_steps import injected, prepared, train_here, training

from tasks.errors import AdapterflowError, UserError
from tasks.records import TrainedRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def losses(record: TrainedRecord) -> list[float | None]:
    """Return the logged training losses."""
    return [point.train_loss for point in record.loss_curve if point.train_loss is not None]


def memory_for(num_tokens: int, model: "PreTrainedModel") -> None:
    """Make the allocator refuse, as it does, to train on more tokens in one forward pass."""

    def allocate(_: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if torch.is_grad_enabled() and arguments[0].numel() > num_tokens:
            torch.empty(2**50)

    model.get_input_embeddings().register_forward_pre_hook(allocate)


def test_micro_batches_shrink_until_memory_suffices(tiny_base: Path, tmp_path: Path) -> None:
    """With `auto`, the losses are what they would have been; the record says what happened."""
    model, record = injected(tiny_base, tmp_path)
    expected = train_here(model, record, tmp_path / "roomy")
    model, record = injected(tiny_base, tmp_path)
    rows = prepared(record.lora.base, tmp_path).train.rows
    longest = max(len(row.input_ids) for row in rows)
    memory_for(longest, model)

    result = train_here(model, record, tmp_path)

    assert losses(result) == pytest.approx(losses(expected), rel=1e-4)
    [warning] = result.warnings
    assert warning.startswith("out of memory")
    assert warning.endswith(f"reduced to {longest}")


@pytest.mark.parametrize(("tokens", "advice"), [(512, "batch_tokens: auto"), ("auto", "4bit")])
def test_memory_that_never_suffices_says_what_to_change(
    tiny_base: Path, tmp_path: Path, tokens: object, advice: str
) -> None:
    """A size that the user gave stays, and a row cannot be cut: then the run fails."""
    model, record = injected(tiny_base, tmp_path)
    memory_for(1, model)

    with pytest.raises(AdapterflowError, match=advice) as raised:
        train_here(model, record, tmp_path, training(batch_tokens=tokens))
    assert not isinstance(raised.value, UserError)
    assert "gradient_checkpointing: true" in str(raised.value)
