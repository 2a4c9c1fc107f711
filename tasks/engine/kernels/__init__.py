"""What is computed faster than upstream does it, each with a test that the result is exact.

Here belong replacements of a model's or PEFT's `forward` that are put in place for a while, as
context managers, and leave modules and weights as they are.
"""

from tasks.engine.kernels.adapter_layers import fused_adapter_layers, num_unfused
from tasks.engine.kernels.answer_layers import answering_layers
from tasks.engine.kernels.for_training import training_kernels
from tasks.engine.kernels.kernel_attention import attend_one_by_one
from tasks.engine.kernels.last_layer import last_layer_where_looked_at, looking_only_at
from tasks.engine.kernels.norms_and_gates import lean_layers
from tasks.engine.kernels.row_attention import BY_ROW, attending_by_row, segments_in
from tasks.engine.kernels.segments import NO_PARENT, Segments

__all__ = [
    "BY_ROW",
    "NO_PARENT",
    "Segments",
    "answering_layers",
    "attend_one_by_one",
    "attending_by_row",
    "fused_adapter_layers",
    "last_layer_where_looked_at",
    "lean_layers",
    "looking_only_at",
    "num_unfused",
    "segments_in",
    "training_kernels",
]
