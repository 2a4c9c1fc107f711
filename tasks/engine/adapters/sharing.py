"""Which adapters can be on one base together, as far as PEFT adapts parameters for them.

For a parameter PEFT wraps the module that holds it, once per parameter. The place in this nesting
says which parameter a weight is for, so that all adapters of a base must adapt the same ones.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

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
