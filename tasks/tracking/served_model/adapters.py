"""Load adapters into the base, and have each row of a batch computed with its own."""

import importlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .adapter_files import adapter_config, adapter_weights
from .reading import reading

# The engine's file is beside this package wherever it is not part of the project.
_is_project = __name__.startswith("tasks.")
siblings: Any = importlib.import_module(
    "tasks.engine.adapters.siblings" if _is_project else "..siblings", __package__
)


def load_adapter(model: Any, folder: str, name: str, base: str) -> None:  # noqa: ANN401
    """Load an adapter into the model, under a name.

    Raises:
        ValueError: a file of it can't be read, or its weights don't fit the base exactly.
    """
    is_lora = adapter_config(Path(folder)).get("peft_type") == "LORA"
    wrong = (_load_lora if is_lora else _load_other)(model, folder, name)
    if wrong:
        raise ValueError(
            f"the adapter in {folder} was trained on another base than {base!r}: {len(wrong)} "
            f"weights are missing, unexpected or of another shape, such as {min(wrong)}"
        )


def _load_lora(model: Any, folder: str, name: str) -> list[str]:  # noqa: ANN401
    """Load a LoRA adapter; return the weights that do not fit."""
    from peft import PeftConfig

    given, saved = adapter_config(Path(folder)), adapter_weights(folder)
    weights = {key.removeprefix("base_model.model."): weight for key, weight in saved.items()}
    if sibling := siblings.sibling_of(model, given, weights):
        config = PeftConfig.from_pretrained(folder)
        return list(siblings.add_sibling(model, sibling, name, config, weights))
    wrong = _load_lora_by_transformers(model, folder, name, saved)
    if not wrong:
        siblings.remember(model, name, given)
    return wrong


def _load_lora_by_transformers(
    model: Any,  # noqa: ANN401
    folder: str,
    name: str,
    weights: dict[str, Any],
) -> list[str]:
    """Load a LoRA adapter that has no sibling; return the weights that do not fit."""
    # transformers 5.23 warns that all other adapters' weights are newly initialized.
    log = logging.getLogger("transformers.integrations.peft")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with reading(f"the adapter in {folder}"):
            info = model.load_adapter(folder, adapter_name=name, adapter_state_dict=weights)
    finally:
        log.setLevel(level)
    # Weights that do not fit are only logged by transformers, and stay random.
    own = re.compile(rf"\.(lora_\w+|trainable_tokens_\w+|modules_to_save)\.{re.escape(name)}(\.|$)")
    absent = {key for key in map(str, info.missing_keys) if own.search(key)}
    # With tied embeddings, the output layer's rows of new tokens are the input's: the same object.
    named = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameter) for key, parameter in named.items() if key not in absent}
    missing = [key for key in absent if key not in named or id(named[key]) not in loaded]
    return [*missing, *map(str, info.unexpected_keys), *map(str, info.mismatched_keys)]


def _load_other(model: Any, folder: str, name: str) -> list[str]:  # noqa: ANN401
    """Load an adapter of another method than LoRA; return the weights that do not fit.

    `load_adapter` of transformers 5.23 takes the indices that some methods save for unexpected.
    """
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict

    with reading(f"the adapter in {folder}"):
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = False
        model.requires_grad_(requires_grad=False)
        model.add_adapter(config, adapter_name=name)
        for parameter in model.parameters():
            if parameter.requires_grad:  # has the base's dtype, and would round what is loaded
                parameter.data = parameter.data.float()
        model.requires_grad_(requires_grad=False)
        saved = adapter_weights(folder).items()
        given = {key.removeprefix("base_model.model."): weight for key, weight in saved}
        own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        there = {key: weight.shape for key, weight in own.items()}
        here = {key: weight.shape for key, weight in given.items()}
        if wrong := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
            return wrong
        set_peft_model_state_dict(model, given, adapter_name=name)
    return []


def name_adapters(model: Any, names: Callable[[], list[str] | None]) -> None:  # noqa: ANN401
    """Pass each row's adapter to the LoRA layers, if `names()` returns names.

    PEFT's own `adapter_names` argument exists only on a PeftModel, which this model is not.
    """
    from peft.tuners.lora import LoraLayer

    def add_names(_: Any, inputs: Any, keywords: dict[str, Any]) -> Any:  # noqa: ANN401
        given = names()
        return None if given is None else (inputs, {**keywords, "adapter_names": given})

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_pre_hook(add_names, with_kwargs=True)
