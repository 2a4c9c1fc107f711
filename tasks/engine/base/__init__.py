"""Find, load and describe a base model.

Here belongs what is known of a base without any adapter: where its files are, its dtype and
quantization, its tokenizer, what its task needs of it, and how long an input it can read.
"""

from tasks.engine.base.base_models import (
    check_local_weights,
    compute_dtype,
    describe_base,
    end_ids,
    load_base,
    load_config,
    load_skeleton,
    load_tokenizer,
    mixed_precision,
    new_token_ids,
    pad_with_known,
    read_tokenizer,
    seeded,
    tokenizer_of,
)
from tasks.engine.base.devices import bases_on_host, device
from tasks.engine.base.hub import ADAPTER_FILES, TOKENIZER_FILES, check_push, download, push_adapter
from tasks.engine.base.input_limits import (
    InputLimits,
    check_embedded,
    describe_unknown,
    limits_in,
    limits_of,
)
from tasks.engine.base.license import license_of
from tasks.engine.base.memory import release_memory
from tasks.engine.base.sources import base_sha256, check_files, find_base
from tasks.engine.base.task_traits import TaskTraits, learnable_formats, traits_of
from tasks.engine.base.warm_base import give_back, keeping_warm
from tasks.engine.base.weight_dtype import multiplies_bfloat16_fast

__all__ = [
    "ADAPTER_FILES",
    "TOKENIZER_FILES",
    "InputLimits",
    "TaskTraits",
    "base_sha256",
    "bases_on_host",
    "check_embedded",
    "check_files",
    "check_local_weights",
    "check_push",
    "compute_dtype",
    "describe_base",
    "describe_unknown",
    "device",
    "download",
    "end_ids",
    "find_base",
    "give_back",
    "keeping_warm",
    "learnable_formats",
    "license_of",
    "limits_in",
    "limits_of",
    "load_base",
    "load_config",
    "load_skeleton",
    "load_tokenizer",
    "mixed_precision",
    "multiplies_bfloat16_fast",
    "new_token_ids",
    "pad_with_known",
    "push_adapter",
    "read_tokenizer",
    "release_memory",
    "seeded",
    "tokenizer_of",
    "traits_of",
]
