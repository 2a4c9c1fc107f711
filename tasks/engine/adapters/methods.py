"""PEFT's methods: which of them work here, and which options each of them has.

Both are read from PEFT's own registry, so that a method of its next version needs no code. A method
works if it only replaces layers of the model (`add_adapter`), and if nothing has to be called
between the optimizer's steps.
"""

import dataclasses
import importlib.util
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tasks.config.likeness import nearest, nearest_setting
from tasks.engine.excerpts import shown
from tasks.errors import UserError
from tasks.runtime.libraries import import_uncollected

LORA = "lora"

_NO_LAYERS = (
    "it puts virtual tokens or a second model beside the base, and add_adapter() can only replace "
    "layers"
)
_SHARED = "its layers share weights that only a PeftModel holds, and add_adapter() makes none"
_UNUSABLE = {
    "adalora": "it moves ranks between layers in a call after every optimizer step, which Trainer "
    "does not make",
    "lily": "its router averages over all tokens of a batch, so that an answer depends on what "
    "else is in the batch",
    "poly": "each row has to name its task in every call of the model",
    "shadow": _NO_LAYERS,
    "trainable_tokens": "it trains rows of the embeddings alone",
    "xlora": "it mixes adapters that were trained before",
}
"""What PEFT's classes do not say of themselves, by PEFT 0.21."""
_NEEDS_CALLS = {("adamss", "use_asa")}
"""Options that have no effect without a call after every optimizer step."""

_FLOAT32 = {"osf"}
"""Methods of PEFT 0.21 that multiply float32 by the base's half precision, which torch refuses."""


@dataclass(frozen=True)
class Method:
    """One of PEFT's methods."""

    name: str
    """PEFT's type in lower case, as in `lora.method`."""
    config_class: Any
    tuner_class: Any

    @property
    def problem(self) -> str | None:
        """Why it can't be used here; None if it can."""
        from peft.tuners.tuners_utils import BaseTuner

        if not issubclass(self.tuner_class, BaseTuner):
            return _NO_LAYERS
        if self.tuner_class.uses_shared_state:
            return _SHARED
        return _UNUSABLE.get(self.name)

    @property
    def fields(self) -> dict[str, Any]:
        """The types of all fields of its configuration, by name."""
        hints = typing.get_type_hints(self.config_class)
        return {one.name: hints[one.name] for one in dataclasses.fields(self.config_class)}

    @property
    def options(self) -> list[str]:
        """The names of what `lora.options` may contain, sorted."""
        from peft import PeftConfig

        general = {one.name for one in dataclasses.fields(PeftConfig)}
        return sorted(set(self.fields) - general - set(_SET_ELSEWHERE))

    @property
    def takes_half_precision(self) -> bool:
        """Whether the base may have weights in bfloat16 or float16."""
        return self.name not in _FLOAT32

    @property
    def takes_quantized_layers(self) -> bool:
        """Whether PEFT has layers of this method for weights that bitsandbytes quantized."""
        package = self.tuner_class.__module__.rpartition(".")[0]
        return importlib.util.find_spec(f"{package}.bnb") is not None


_SET_ELSEWHERE = {
    "target_modules": "lora.target_modules",
    "modules_to_save": "lora.modules_to_save",
}


@cache
def all_methods() -> Mapping[str, Method]:
    """Return the methods of the installed PEFT by name, also those that can't be used here."""
    import_uncollected("peft")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    return {
        kind.value.lower(): Method(kind.value.lower(), of_config, PEFT_TYPE_TO_TUNER_MAPPING[kind])
        for kind, of_config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }


@cache
def usable_methods() -> tuple[str, ...]:
    """Return the names of the methods that can be used here, sorted."""
    return tuple(sorted(name for name, one in all_methods().items() if not one.problem))


def find_method(name: str, given_as: str = "lora.method") -> Method:
    """Return a method by its name.

    Args:
        name: in any case.
        given_as: where the user named it, for messages.

    Raises:
        UserError: PEFT has no such method, or it can't be used here.
    """
    methods = all_methods()
    method = methods.get(name.lower())
    if method and not method.problem:
        return method
    possible = ", ".join(usable_methods())
    if method:
        raise UserError(
            f"{given_as} is {name}, which can't be used here: {method.problem}; possible: "
            f"{possible}"
        )
    near = nearest(name.lower(), methods)
    hint = f"; did you mean {near}?" if near else ""
    raise UserError(
        f"{given_as} is {shown(name)}, which PEFT does not have{hint}; possible: {possible}"
    )


def check_options(method: Method, options: Mapping[str, Any]) -> None:
    """Check a method's options by the fields of its configuration in the installed PEFT.

    Raises:
        UserError: there is no such option, its value has another type, or it is set elsewhere.
    """
    for name, value in options.items():
        if elsewhere := _SET_ELSEWHERE.get(name):
            raise UserError(f"lora.options.{name} is set as {elsewhere}; move it there")
        if name not in method.options:
            near = nearest_setting(name, method.options)
            hint = f"; did you mean {near}?" if near else ""
            raise UserError(
                f"lora.options: {method.name} has no option {shown(name)}{hint}; possible: "
                f"{', '.join(method.options)}"
            )
        if (method.name, name) in _NEEDS_CALLS and value:
            raise UserError(
                f"lora.options.{name} needs a call after every optimizer step, which Trainer does "
                "not make; remove it"
            )
    if problem := wrong_type(method, options):
        raise UserError(f"lora.options.{problem}")


def wrong_type(method: Method, given: Mapping[str, Any]) -> str | None:
    """Describe the first field whose value has another type than PEFT's; None if there is none.

    Args:
        method: whose configuration it is.
        given: JSON values by the names of fields; other names are skipped.
    """
    fields = method.fields
    for name, value in given.items():
        if name in fields and (possible := _possible(fields[name], value)):
            return f"{name} is {shown(value)}; it must be {possible}"
    return None


def _possible(hint: Any, value: object) -> str | None:  # noqa: ANN401 - any type
    """Return what a value of this type must be; None if the value is one."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    try:
        # As JSON and strictly: a list may be a set or a tuple, and an integer a float, but "8" is
        # not 8, and true is not 1.
        config = ConfigDict(strict=True, allow_inf_nan=False)
        TypeAdapter(hint, config=config).validate_json(json.dumps(value, default=str))
    except PydanticUserError:  # a class of PEFT's own, which PEFT checks itself
        return None
    except ValidationError as error:
        return _alternatives(one["msg"] for one in error.errors(include_url=False))
    return None


def _alternatives(messages: Iterable[str]) -> str:
    expected = [one.partition("Input should be ")[2] or one for one in messages]
    return " or ".join(dict.fromkeys(expected))
