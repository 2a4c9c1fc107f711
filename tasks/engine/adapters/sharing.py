"""Which adapters can be on one base together, as far as PEFT adapts parameters for them.

For a parameter PEFT wraps the module that holds it, once per parameter. The place in this nesting
says which parameter a weight is for, so that all adapters of a base must adapt the same ones.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from tasks.engine.adapters.adapter_state import is_adapter_parameter
from tasks.engine.adapters.targets import is_selected
from tasks.engine.excerpts import listed
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def adapted_parameters(
    target_parameters: Collection[str] | None, model: "PreTrainedModel"
) -> list[str]:
    """Return the dotted names of the parameters that PEFT's setting selects in a model.

    PEFT compares the settings of two adapters as they are written, so that `down_proj` and
    `experts.down_proj` would not be the same.

    Args:
        target_parameters: PEFT's setting.
        model: the base, with any adapters.
    """
    if not target_parameters:
        return []
    own = [name for name, _ in model.named_parameters() if not is_adapter_parameter(name)]
    names = [name.replace(".base_layer", "") for name in own]
    return sorted(n for n in names if any(is_selected(n, one) for one in target_parameters))


def check_same_parameters(adapters: Mapping[str, Collection[str]]) -> None:
    """Check that adapters which adapt parameters adapt the same ones.

    Args:
        adapters: the dotted names of the parameters, by the adapters' names.

    Raises:
        UserError: they don't.
    """
    given = {name: {*names} for name, names in adapters.items() if names}
    for name, parameters in given.items():
        first = next(iter(given))
        if parameters != given[first]:
            only = sorted(parameters ^ given[first])
            raise UserError(
                f"the adapters {first} and {name} can't share a base: one of them adapts "
                f"{listed(only)} and the other does not, and PEFT wants all adapters of parameters "
                "to adapt the same ones; load them on a base each, or train them with the same "
                "targets"
            )


def check_together(configs: Mapping[str, Any], model: "PreTrainedModel") -> None:
    """Check that PEFT can have adapters on one base together.

    Args:
        configs: PEFT's configurations, by the adapters' names.
        model: the base, with any adapters.

    Raises:
        UserError: it can't.
    """
    _check_methods(configs)
    _check_tokens(configs)
    targets = {name: getattr(one, "target_parameters", None) for name, one in configs.items()}
    check_same_parameters({n: adapted_parameters(one, model) for n, one in targets.items()})


def _check_tokens(configs: Mapping[str, Any]) -> None:
    trained = [n for n, one in configs.items() if getattr(one, "trainable_token_indices", None)]
    # PEFT 0.21 fails in the wrapper for such tokens as soon as another adapter is active.
    if trained and len(configs) > 1:
        raise UserError(
            f"{listed(trained)} trained single tokens' embeddings (as base_model.new_tokens does), "
            f"so that {listed([*configs])} can't share a base; merge it with `adapterflow export "
            "--merged`, or load it alone"
        )


def _check_methods(configs: Mapping[str, Any]) -> None:
    methods = {name: str(one.peft_type.value).lower() for name, one in configs.items()}
    if len(set(methods.values())) > 1:
        given = [f"{name} ({method})" for name, method in methods.items()]
        raise UserError(
            f"the adapters {listed(given)} can't share a base: PEFT would put the layers of one "
            "method around those of another; load them on a base each"
        )
    # In PEFT 0.21 each of them replaces the random projections that the layers have.
    if len(configs) > 1 and any(hasattr(one, "projection_prng_key") for one in configs.values()):
        raise UserError(
            f"the adapters {listed([*configs])} can't share a base: they are of the method "
            f"{next(iter(methods.values()))}, of which PEFT can load one at a time; load them on "
            "a base each"
        )
