"""Step 6's work: load a saved adapter into a base, strictly: completely or not at all."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.engine.adapters.activation import same_trainable, switch_adapter
from tasks.engine.adapters.adapter_state import is_adapter_parameter, write_adapter
from tasks.engine.adapters.compatibility import fitting_weights
from tasks.engine.adapters.folders import AdapterFolder, find_adapter
from tasks.engine.adapters.methods import LORA
from tasks.engine.adapters.sharing import adapted_parameters, check_together
from tasks.engine.adapters.siblings import add_sibling, forget, remember, sibling_of
from tasks.engine.excerpts import reason
from tasks.errors import UserError, VerificationError

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor
    from transformers import PreTrainedModel


def load_adapter(
    model: "PreTrainedModel",
    source: str | Path,
    name: str = "default",
    *,
    revision: str | None = None,
) -> None:
    """Load a saved adapter into a base and activate it; all weights stay frozen.

    Args:
        model: the base, which may have other adapters already.
        source: the adapter's folder or Hub id.
        name: of the adapter in the model.
        revision: branch, tag or commit of a Hub id.

    Raises:
        UserError: there is no such adapter, the name is taken, or the adapter does not fit the
            base; the model is unchanged.
        VerificationError: transformers did not load all weights; the model is unchanged.
        PassingError: the Hub cannot be reached.
    """
    load_folder(model, find_adapter(source, revision), name)


def load_folder(model: "PreTrainedModel", adapter: AdapterFolder, name: str) -> None:
    """Load an adapter that was found into a base, as `load_adapter` does.

    transformers 5.23 only logs missing and unexpected weights, and leaves half an adapter behind
    if it fails. So everything that can be is checked first, and after a failure the adapter is
    removed.

    Raises:
        UserError: the name is taken, or the adapter does not fit the base; the model is unchanged.
        VerificationError: transformers did not load all weights; the model is unchanged.
    """
    if name in getattr(model, "peft_config", {}):
        raise UserError(f"the model already has an adapter {name!r}; load under another name")
    others = getattr(model, "peft_config", {})
    # A copy: transformers and PEFT write into the configuration that they are given.
    config = copy.deepcopy(adapter.config)
    if getattr(config, "target_parameters", None):
        config.target_parameters = adapted_parameters(config.target_parameters, model)
    check_together({**others, name: config}, model)
    names = list(others)
    weights = fitting_weights(adapter, model)
    sibling = sibling_of(model, adapter.given_config, weights)
    try:
        if sibling is not None:
            _check_fit(add_sibling(model, sibling, name, config, weights), adapter, sibling)
        else:
            with same_trainable(model):
                if adapter.method == LORA:
                    _load_lora(model, adapter, config, name, weights)
                else:
                    _load_other(model, config, name, weights)
    except BaseException as error:
        unload_adapter(model, name)
        if names and isinstance(error, TypeError | ValueError | KeyError):
            raise UserError(
                f"{adapter.source} can't share a base with {', '.join(names)}: PEFT refuses it, "
                "as it does a module that one adapter adapts and another trained fully "
                f"({reason(error)}); load it on a base of its own"
            ) from error
        raise
    switch_adapter(model, name)
    remember(model, name, adapter.given_config)


def _check_fit(misfits: list[str], adapter: AdapterFolder, sibling: str) -> None:
    if misfits:
        raise VerificationError(
            f"{len(misfits)} weights of {adapter.source} do not fit beside {sibling!r}, such as "
            f"{misfits[0]}"
        )


def _load_lora(
    model: "PreTrainedModel",
    adapter: AdapterFolder,
    config: "PeftConfig",
    name: str,
    weights: dict[str, "Tensor"],
) -> None:
    with _without_report():
        info = model.load_adapter(
            peft_config=config,
            adapter_state_dict=weights,
            adapter_name=name,
        )
    if problem := _problem(info, name, model):
        raise VerificationError(f"{adapter.source} did not load completely: {problem}")
    if config.use_dora:
        # They were rounded to the base's dtype. LoRA's are factors of products, which round them
        # anyway, but DoRA divides its magnitudes by the norm of base and adapter together.
        _keep_float32(model, name, but="modules_to_save")
        write_adapter(model, name, weights)


def _load_other(
    model: "PreTrainedModel", config: "PeftConfig", name: str, weights: dict[str, "Tensor"]
) -> None:
    """Load an adapter of another method than LoRA.

    `load_adapter` of transformers 5.23 takes the indices that some methods save for unexpected.
    """
    model.add_adapter(config, adapter_name=name)
    # They have the base's dtype, and would round what is loaded.
    _keep_float32(model, name)
    write_adapter(model, name, weights)
    model.eval()


def _keep_float32(model: "PreTrainedModel", name: str, but: str | None = None) -> None:
    """Make an adapter's weights float32, but for those that have a part of this name."""
    for key, parameter in model.named_parameters():
        is_own = is_adapter_parameter(key, name) and but not in key.split(".")
        if is_own and parameter.is_floating_point():
            parameter.data = parameter.data.float()


def unload_adapter(model: "PreTrainedModel", name: str) -> None:
    """Remove an adapter from the model, with the wrappers around layers that only it used.

    PEFT 0.21 leaves the empty wrappers in place, where they block other adapters from these layers.
    """
    if name in getattr(model, "peft_config", {}):
        model._hf_peft_config_loaded = True  # noqa: SLF001 - not set yet if loading failed
        with same_trainable(model):
            model.delete_adapter(name)
    forget(model, name)
    _unwrap(model)


def _unwrap(model: "PreTrainedModel") -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    removed = "."
    for name, module in list(model.named_modules()):
        # Wrappers around parameters of one module are nested, and removed with the outermost.
        if name.startswith(removed) or not isinstance(
            module, BaseTunerLayer | AuxiliaryTrainingWrapper
        ):
            continue
        if any(map(len, _holders(module))):
            continue
        removed = f"{name}."
        is_tuner = isinstance(module, BaseTunerLayer)
        model.set_submodule(name, module.get_base_layer() if is_tuner else module.original_module)


def _holders(module: Any) -> list[Any]:  # noqa: ANN401 - PEFT has no types
    """Return the dictionaries in which a wrapper has its adapters' weights by name."""
    from torch.nn import ModuleDict, ParameterDict

    parts = (attrgetter(name)(module) for name in module.adapter_layer_names)
    return [part for part in parts if isinstance(part, ModuleDict | ParameterDict)]


@contextmanager
def _without_report() -> Iterator[None]:
    """Silence transformers 5.23, which reports other adapters' weights as newly initialized."""
    log = logging.getLogger("transformers.integrations.peft")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _problem(info: Any, name: str, model: "PreTrainedModel") -> str | None:  # noqa: ANN401 - transformers' loading info
    found = {
        kind: sorted(getattr(info, f"{kind}_keys", None) or ())
        for kind in ("missing", "unexpected", "mismatched")
    }
    # transformers 5.23 reports any key as missing that contains the adapter's name or `lora`.
    missing = [key for key in found["missing"] if is_adapter_parameter(key, name)]
    found["missing"] = _not_loaded(model, set(missing))
    texts = [f"{len(keys)} {kind} keys, such as {keys[0]}" for kind, keys in found.items() if keys]
    return "; ".join(texts) or None


def _not_loaded(model: "PreTrainedModel", missing: set[str]) -> list[str]:
    """Return those of the missing parameters that are not loaded ones by another name.

    With tied embeddings, the trained rows of the output layer are the input's: the same object.
    """
    if not missing:
        return []
    named = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameter) for key, parameter in named.items() if key not in missing}
    return sorted(key for key in missing if key not in named or id(named[key]) not in loaded)


def verify_same(difference: float, largest: float, what: str, tolerance: float = 1e-4) -> None:
    """Check that two models' logits agree.

    Args:
        difference: largest absolute difference.
        largest: largest absolute logit.
        what: which models, for the message.
        tolerance: allowed difference as a share of the largest logit.

    Raises:
        VerificationError: they do not.
    """
    # Not `>`, which is False for NaN.
    if not difference <= tolerance * largest:
        raise VerificationError(f"{what}: logits differ by {difference:.3g} of {largest:.3g}")
