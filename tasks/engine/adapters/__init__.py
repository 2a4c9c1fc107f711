"""Adapters: configure, inject, read, write, save, load, switch, merge and combine.

Here belongs what is done with an adapter's configuration and weights, in a model or in a folder.
Training them is in `tasks.engine.training`.
"""

from tasks.engine.adapters import adapter_state
from tasks.engine.adapters.activation import adapters_disabled
from tasks.engine.adapters.adapter_set import (
    AdapterSet,
    LoadedAdapter,
    check_adapter,
    check_shareable,
)
from tasks.engine.adapters.adapter_state import (
    WEIGHTS_FILE,
    base_checksum,
    is_adapter_parameter,
    load_weights,
    read_adapter,
    save_weights,
    weight_change,
    weights_checksum,
    write_adapter,
)
from tasks.engine.adapters.combining import METHODS, Combination, combine
from tasks.engine.adapters.compatibility import (
    check_base,
    check_fit,
    check_tokenizer,
    template_of,
    tokenizer_identity,
)
from tasks.engine.adapters.folders import AdapterFolder, copy_adapter, find_adapter
from tasks.engine.adapters.gguf_adapter import write_gguf
from tasks.engine.adapters.injection import inject, probe_logits, reinject
from tasks.engine.adapters.loading import load_adapter
from tasks.engine.adapters.lora import build_config
from tasks.engine.adapters.merging import export_merged
from tasks.engine.adapters.model_card import write_card
from tasks.engine.adapters.resolution import resolve_lora
from tasks.engine.adapters.saving import Prompting, files_to_save, lineage_of, save_adapter
from tasks.engine.adapters.sharing import check_together
from tasks.engine.adapters.source_adapters import (
    check_source_tokenizer,
    describe_source,
    find_source,
    keep_source,
    prompted_otherwise,
)

__all__ = [
    "METHODS",
    "WEIGHTS_FILE",
    "AdapterFolder",
    "AdapterSet",
    "Combination",
    "LoadedAdapter",
    "Prompting",
    "adapter_state",
    "adapters_disabled",
    "base_checksum",
    "build_config",
    "check_adapter",
    "check_base",
    "check_fit",
    "check_shareable",
    "check_source_tokenizer",
    "check_together",
    "check_tokenizer",
    "combine",
    "copy_adapter",
    "describe_source",
    "export_merged",
    "files_to_save",
    "find_adapter",
    "find_source",
    "inject",
    "is_adapter_parameter",
    "keep_source",
    "lineage_of",
    "load_adapter",
    "load_weights",
    "probe_logits",
    "prompted_otherwise",
    "read_adapter",
    "reinject",
    "resolve_lora",
    "save_adapter",
    "save_weights",
    "template_of",
    "tokenizer_identity",
    "weight_change",
    "weights_checksum",
    "write_adapter",
    "write_card",
    "write_gguf",
]
