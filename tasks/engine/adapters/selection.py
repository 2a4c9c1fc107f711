"""What an adapter is put on: modules and parameters, by names, by a pattern, or by a keyword.

PEFT's rules hold: a name selects each module or parameter whose dotted name is it or ends with it,
and a regular expression those whose whole dotted names it matches. PEFT ignores `exclude_modules`
and `layers_to_transform` for parameters; here they are written out as full names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import LoraSettings
from tasks.engine.adapters.adaptable import adaptable
from tasks.engine.adapters.experts import (
    ExpertParameter,
    Selects,
    expert_parameters,
    num_fused,
    routers,
    selected_parameters,
)
from tasks.engine.adapters.name_patterns import check_patterns, is_pattern
from tasks.engine.adapters.patterns import NAMES_ARE_WHOLE, kept_by_patterns
from tasks.engine.adapters.targets import (
    ALL_LINEAR,
    AUTO,
    EXPERTS,
    PEFT_DEFAULT,
    all_linear,
    is_selected,
    no_match,
    peft_default,
)
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEYWORDS = (AUTO, ALL_LINEAR, PEFT_DEFAULT)
_MATRIX = (2, 3)
"""The dimensions of a parameter that PEFT adapts."""


@dataclass(frozen=True)
class Selection:
    """What is adapted, with the names by which it was chosen."""

    target_modules: list[str]
    """PEFT's setting: names that select the modules and nothing else."""
    target_parameters: dict[str, list[str]]
    """PEFT's setting: names that select the parameters and nothing else, with the parameters."""
    reached: dict[str, tuple[str, ...]]
    """The dotted names of what is adapted, by the names or the pattern that chose it."""
    num_fused: dict[str, int]
    """By the name of an expert parameter, how many layers it is adapted as, where several."""
    patterns: dict[str, dict[str, tuple[str, ...]]]
    """What `exclude_modules` and `layers_to_transform` reach, by setting and pattern."""

    @property
    def adapted(self) -> list[str]:
        """The dotted names of all that is adapted, modules first."""
        return list(dict.fromkeys(name for names in self.reached.values() for name in names))


@dataclass(frozen=True)
class _Base:
    """What a name can select in a base."""

    modules: list[str]
    experts: list[ExpertParameter]
    routers: dict[str, str]


def select_targets(settings: LoraSettings, model: "PreTrainedModel", head: list[str]) -> Selection:
    """Return what the settings select in a base.

    Args:
        settings: what the user set.
        model: the base, without adapters.
        head: the modules that the task adds to it, which are trained fully and never targets.

    Raises:
        UserError: a name or pattern selects nothing that can be adapted.
    """
    base = _Base(list(adaptable(model)), expert_parameters(model), routers(model))
    wanted = settings.target_modules
    chosen, former = _chosen(settings, base, model, head)
    by_parameter = _parameters(settings.target_parameters, model)
    found = {**chosen, **by_parameter}
    modules = set(base.modules)
    selected = {name for names in found.values() for name in names}
    kept = kept_by_patterns(settings, selected, modules)
    keyword = wanted in _KEYWORDS
    reached = {one: tuple(n for n in names if n in kept.names) for one, names in found.items()}
    is_some = keyword and any(reached.values())
    if kept.reached and (left := [n for n, names in reached.items() if not names and not is_some]):
        raise UserError(
            f"lora.target_modules {left} select only what {kept.named} leave out; change one of "
            "them"
        )
    reached = {one: names for one, names in reached.items() if names}
    parameters = {n for names in reached.values() for n in names if n not in modules}
    is_pattern_given = isinstance(wanted, str) and is_pattern(wanted)
    return Selection(
        target_modules=sorted(
            {n for names in reached.values() for n in names if n in modules}
            if is_pattern_given
            else {one for one, names in reached.items() if set(names) & modules}
        ),
        target_parameters=_shortest(parameters, model),
        reached=reached,
        num_fused=_num_fused(base, former, parameters),
        patterns=kept.reached,
    )


def _chosen(
    settings: LoraSettings,
    base: _Base,
    model: "PreTrainedModel",
    head: list[str],
) -> tuple[dict[str, list[str]], dict[str, frozenset[str]]]:
    """Return what `target_modules` selects by its names, and the former names of experts in it."""
    wanted = settings.target_modules
    if isinstance(wanted, str) and is_pattern(wanted):
        return _by_pattern(settings, wanted, base, model)
    if wanted == PEFT_DEFAULT:
        names = peft_default(model)
    elif wanted in (AUTO, ALL_LINEAR):
        names = all_linear(model, head, experts=wanted == ALL_LINEAR)
    else:
        names = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    found: dict[str, list[str]] = {}
    former: dict[str, frozenset[str]] = {}
    for name in names:
        modules, parameters = _selected(_by_name(name, base), base)
        if wanted == AUTO:
            parameters = {}  # Llama 4's experts have the names of its dense layers
        found[name] = [*modules, *parameters]
        for parameter, old in parameters.items():
            former[parameter] = former.get(parameter, frozenset()) | old
    _drop_incomplete(found, former, base)
    unmatched = [name for name, reached in found.items() if not reached]
    if wanted == PEFT_DEFAULT and len(unmatched) < len(names):
        # PEFT has one map for all models of an architecture, and ignores what one of them lacks.
        return {name: reached for name, reached in found.items() if reached}, former
    if unmatched or not (names or settings.target_parameters):
        keywords = _KEYWORDS if isinstance(wanted, str) else ()
        possible = [
            *keywords,
            *all_linear(model, head),
            *(old for one in base.experts for old in one.formerly),
        ]
        raise no_match("target_modules", unmatched or names, list(dict.fromkeys(possible)), model)
    return found, former


def _by_pattern(
    settings: LoraSettings, pattern: str, base: _Base, model: "PreTrainedModel"
) -> tuple[dict[str, list[str]], dict[str, frozenset[str]]]:
    from peft.tuners.tuners_utils import match_target_against_key

    if settings.layers_to_transform is not None:
        raise UserError(
            "lora.layers_to_transform can't be used with a regular expression in "
            f"lora.target_modules, which is {pattern!r}: PEFT takes layers from lists of names "
            "only; write the layers' numbers into the expression, or list the names"
        )
    check_patterns({"target_modules": pattern}, (n for n, _ in model.named_modules()), "lora.")
    modules, parameters = _selected(lambda n: bool(match_target_against_key(pattern, n)), base)
    found = {pattern: [*modules, *parameters]}
    former = dict(parameters)
    _drop_incomplete(found, former, base)
    if not found[pattern]:
        raise no_match("target_modules", [pattern], base.modules[:1], model, NAMES_ARE_WHOLE)
    return found, former


def _selected(selects: Selects, base: _Base) -> tuple[list[str], dict[str, frozenset[str]]]:
    parameters = selected_parameters(selects, base.experts, base.routers)
    return [module for module in base.modules if selects(module)], parameters


def _by_name(name: str, base: _Base) -> Selects:
    if name == EXPERTS:  # whatever the modules are called that the experts are in
        modules = {one.module for one in base.experts}
        return modules.__contains__
    return lambda dotted: is_selected(dotted, name)


def _drop_incomplete(
    found: dict[str, list[str]], former: dict[str, frozenset[str]], base: _Base
) -> None:
    """Remove fused parameters that names meant for other layers select in part, in place.

    Qwen2-MoE's shared expert is a dense layer beside the experts: its `gate_proj` can be adapted
    alone, and that of the experts can't.
    """
    modules = set(base.modules)
    for one in base.experts:
        old = former.get(one.name, frozenset())
        choosing = [name for name, reached in found.items() if one.name in reached]
        if old and len(old) < len(one.formerly) and all(modules & set(found[n]) for n in choosing):
            del former[one.name]
            for name in choosing:
                found[name].remove(one.name)


def _num_fused(
    base: _Base, former: Mapping[str, frozenset[str]], parameters: Iterable[str]
) -> dict[str, int]:
    counts = {
        one.name: num_fused(one, former[one.name])
        for one in base.experts
        if one.name in former and one.name in parameters
    }
    return {name: count for name, count in counts.items() if count > 1}


def _parameters(names: list[str], model: "PreTrainedModel") -> dict[str, list[str]]:
    """Return the parameters that `target_parameters` selects, by its names."""
    matrices = [n for n, p in model.named_parameters() if p.ndim in _MATRIX and "." in n]
    found = {name: [n for n in matrices if is_selected(n, name)] for name in names}
    if unmatched := [name for name, reached in found.items() if not reached]:
        possible = sorted({".".join(n.split(".")[-2:]) for n in matrices})
        raise no_match("target_parameters", unmatched, possible, model)
    return found


def _shortest(parameters: set[str], model: "PreTrainedModel") -> dict[str, list[str]]:
    """Return names of at most two parts that select just these parameters; else their full names.

    PEFT wants all adapters of a base to have the same names here, so they are the simplest ones.
    """
    everywhere = [name for name, _ in model.named_parameters()]
    short = {".".join(name.split(".")[-2:]) for name in parameters}
    selected = {n for n in everywhere if any(is_selected(n, one) for one in short)}
    names = short if selected == parameters else parameters
    return {one: [n for n in everywhere if is_selected(n, one)] for one in sorted(names)}
