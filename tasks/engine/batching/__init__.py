"""Collators: rows into micro-batches; the loss over one; the order of rows."""

from tasks.engine.batching import loss
from tasks.engine.batching.batches import (
    Batch,
    Batches,
    MicroBatch,
    Row,
    as_batch,
    as_item,
    as_items,
    split_rows,
)
from tasks.engine.batching.choice import BatchingChoice, choose_batching, make_batches
from tasks.engine.batching.loss import label_nll, labeled_logits, summed_loss, token_nll
from tasks.engine.batching.padded_rows import (
    LabeledBatches,
    Padding,
    longest_input,
    model_inputs,
    padded_micro_batch,
)
from tasks.engine.batching.preference_batches import Answers, PreferenceBatches, answer_logps
from tasks.engine.batching.prefix_trees import num_shared
from tasks.engine.batching.row_orders import OrderByLength, RowOrder, eval_order, row_order
from tasks.engine.batching.shares import deal

__all__ = [
    "Answers",
    "Batch",
    "Batches",
    "BatchingChoice",
    "LabeledBatches",
    "MicroBatch",
    "OrderByLength",
    "Padding",
    "PreferenceBatches",
    "Row",
    "RowOrder",
    "answer_logps",
    "as_batch",
    "as_item",
    "as_items",
    "choose_batching",
    "deal",
    "eval_order",
    "label_nll",
    "labeled_logits",
    "longest_input",
    "loss",
    "make_batches",
    "model_inputs",
    "num_shared",
    "padded_micro_batch",
    "row_order",
    "split_rows",
    "summed_loss",
    "token_nll",
]
