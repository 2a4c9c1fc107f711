"""The last feed-forward layer is left out only where nothing of the loss depends on it."""

import torch
from drawn_rows import draw_rows
from exact_training import assert_same, made, ours, plain

from tasks.engine.batching.batches import PackedBatches, as_items
from tasks.engine.batching.loss import summed_loss
from tasks.engine.kernels import attending_by_row, last_layer_where_looked_at

ROWS = draw_rows((7, 3), (20, 2), (4, 9))


def test_only_positions_with_a_label_are_computed() -> None:
    """The layer is given as many positions as have a label, in a training's pass alone."""
    model = made("llama")
    mlp = model.get_decoder().layers[-1].mlp
    seen = []
    mlp.gate_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    [micro_batch] = PackedBatches(0, 10**6)(as_items(ROWS))["micro_batches"]
    with last_layer_where_looked_at(model), attending_by_row(model):
        seen.clear()
        summed_loss(model, micro_batch, in_chunks=True)
        summed_loss(model, micro_batch)
    assert seen == [len(micro_batch["logits_to_keep"]), micro_batch["input_ids"].shape[1]]


def test_layers_that_run_twice_are_computed_in_full() -> None:
    """Where the last layer's output is the first one's input again, other positions see it."""
    model = made("llama")
    decoder = model.get_decoder()
    decoder.layers = torch.nn.ModuleList([*decoder.layers, *decoder.layers])
    model.config.num_hidden_layers *= 2
    expected = plain(model, ROWS, "none")
    given = ours(model, ROWS, PackedBatches(0, 10**6), chunks=True, layers=True)
    assert_same(given, expected)
    with last_layer_where_looked_at(model):
        assert "forward" not in vars(decoder.layers[-1].mlp)
