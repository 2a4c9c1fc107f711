"""Settings that narrow down what is adapted, or give a part of it a rank or alpha of its own.

PEFT's own functions decide what a pattern reaches. What reaches nothing is an error here: PEFT
only warns, or trains without it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.config import LoraSettings
from tasks.config.likeness import nearest
from tasks.engine.adapters.name_patterns import check_patterns, is_pattern
from tasks.engine.excerpts import listed
from tasks.errors import UserError
from tasks.records import AdaptedLayer

NAMES_ARE_WHOLE = (
    "a regular expression has to match whole dotted names, such as model.layers.0.self_attn.q_proj"
)
Reached = dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Kept:
    """What is left of the targets, and what each pattern reached."""

    names: set[str]
    reached: Reached = field(default_factory=dict)

    @property
    def named(self) -> str:
        """The settings that were given, for messages."""
        return " and ".join(f"lora.{setting}" for setting in self.reached)


def kept_by_patterns(settings: LoraSettings, names: set[str], modules: Collection[str]) -> Kept:
    """Return what `exclude_modules` and `layers_to_transform` leave of the targets.

    Args:
        settings: what the user set.
        names: the dotted names of modules and parameters that the targets select.
        modules: those of modules.

    Raises:
        UserError: one of them excludes nothing, or a layer has no target.
    """
    reached: Reached = {}
    if (excluded := settings.exclude_modules) is not None:
        check_patterns({"exclude_modules": excluded}, names, "lora.")
        given = [excluded] if isinstance(excluded, str) else excluded
        # A parameter by its module, too: what PEFT excludes is called after modules.
        paths = {n: {n} if n in modules else {n, n.rpartition(".")[0]} for n in names}
        by_pattern = {one: _excluded(one, excluded, paths) for one in given}
        _check_reached("exclude_modules", by_pattern, names)
        reached["exclude_modules"] = by_pattern
        names = names - {name for found in by_pattern.values() for name in found}
    # As for PEFT, an empty list is no restriction.
    if (layers := settings.layers_to_transform) is not None and layers != []:
        numbers = [layers] if isinstance(layers, int) else layers
        by_layer = {str(one): _in_layer(one, names) for one in numbers}
        _check_layers(by_layer, names)
        reached["layers_to_transform"] = by_layer
        names = {name for found in by_layer.values() for name in found}
    return Kept(names, reached)


def fused_patterns(
    settings: LoraSettings,
    num_fused: Mapping[str, int],
    targets: Mapping[str, list[str]],
    r: int,
    alpha: float,
) -> dict[str, dict[str, Any]]:
    """Return PEFT's `rank_pattern` and `alpha_pattern`, with those of fused experts written out.

    As PEFT does when it converts the names of transformers 4, a parameter that was fused from two
    layers has twice the rank, so that each of them has its own, and the alpha that keeps its scale.
    What the user's own patterns reach is left to them.

    Args:
        settings: what the user set.
        num_fused: by the name of an expert parameter, how many layers it is adapted as.
        targets: the adapted parameters by the names in PEFT's `target_parameters`.
        r: of all that no pattern reaches.
        alpha: of all that no pattern reaches.
    """
    ranks: dict[str, Any] = dict(settings.rank_pattern)
    alphas: dict[str, Any] = dict(settings.alpha_pattern)
    for target, names in targets.items():
        for name in names:
            if (count := num_fused.get(name, 1)) == 1:
                continue
            # rsLoRA divides by the root of the rank.
            scaled = alpha * (count**0.5 if settings.use_rslora else count)
            for patterns, of_user, value in (
                (ranks, settings.rank_pattern, r * count),
                (alphas, settings.alpha_pattern, scaled),
            ):
                left = [one for one in names if _pattern_of(of_user, one) is None]
                if name in left:
                    alike = left == names and all(num_fused.get(one) == count for one in names)
                    patterns[target if alike else name] = value
    return {"rank_pattern": ranks, "alpha_pattern": alphas}


def resolved_layers(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, AdaptedLayer]:
    """Return rank and alpha of each adapted module and parameter, by its dotted name.

    Args:
        config: PEFT's configuration.
        names: of what is adapted.
    """
    ranks, alphas = config["rank_pattern"], config["alpha_pattern"]
    return {
        name: AdaptedLayer(
            r=ranks.get(_pattern_of(ranks, name), config["r"]),
            lora_alpha=alphas.get(_pattern_of(alphas, name), config["lora_alpha"]),
        )
        for name in names
    }


def reached_by_values(settings: LoraSettings, names: list[str]) -> Reached:
    """Return what the user's `rank_pattern` and `alpha_pattern` reach.

    Args:
        settings: what the user set.
        names: of what is adapted.

    Raises:
        UserError: a pattern reaches nothing, or its order decides what it reaches.
    """
    given: dict[str, Mapping[str, float]] = {
        "rank_pattern": settings.rank_pattern,
        "alpha_pattern": settings.alpha_pattern,
    }
    found: Reached = {}
    for setting, patterns in given.items():
        if not patterns:
            continue
        check_patterns({setting: [*patterns]}, names, "lora.")
        for name in names:
            _check_order(setting, patterns, name)
        by_pattern = {
            one: tuple(n for n in names if _pattern_of(patterns, n) == one) for one in patterns
        }
        _check_reached(setting, by_pattern, names)
        found[setting] = by_pattern
    return found


def _excluded(
    one: str, given: str | list[str], paths: Mapping[str, Collection[str]]
) -> tuple[str, ...]:
    """Return what a pattern excludes, of what has these dotted names."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(
        target_modules=sorted(path for names in paths.values() for path in names),
        # A string is a regular expression for PEFT, and a name here if it can only be one.
        exclude_modules=one if isinstance(given, str) and is_pattern(one) else [one],
    )
    return tuple(
        name
        for name, names in sorted(paths.items())
        if not all(check_target_module_exists(config, path) for path in names)
    )


def _in_layer(number: int, names: Collection[str]) -> tuple[str, ...]:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    # Without the first part: for PEFT a complete name is in every layer.
    names = [name for name in names if f".{number}." in name]
    ends = sorted({name.partition(".")[2] for name in names})
    config = LoraConfig(target_modules=ends, layers_to_transform=[number])
    return tuple(n for n in sorted(names) if check_target_module_exists(config, n))


def _pattern_of(patterns: Collection[str], name: str) -> str | None:
    from peft.utils.other import get_pattern_key

    # PEFT returns the name itself if there is no pattern for it.
    found = get_pattern_key([*patterns], name)
    return found if found in patterns else None


def _check_order(setting: str, patterns: Mapping[str, float], name: str) -> None:
    first, saved = _pattern_of(patterns, name), _pattern_of(sorted(patterns), name)
    if first is not None and saved is not None and patterns[first] != patterns[saved]:
        raise UserError(
            f"lora.{setting}: {first!r} and {saved!r} both reach {name}, with {patterns[first]} "
            f"and {patterns[saved]}; PEFT takes the first, and sorts them when it saves; write "
            "them so that one reaches it"
        )


def _check_reached(
    setting: str, by_pattern: Mapping[str, tuple[str, ...]], names: Collection[str]
) -> None:
    if not (idle := [one for one, found in by_pattern.items() if not found]):
        return
    leaves = sorted({name.rpartition(".")[2] for name in names})
    near = [match for one in idle if (match := nearest(one, leaves))]
    hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
    raise UserError(
        f"lora.{setting} {idle} reach nothing that is adapted{hint}; adapted: {listed(leaves)}"
    )


def _check_layers(by_layer: Mapping[str, tuple[str, ...]], names: Collection[str]) -> None:
    if idle := [one for one, found in by_layer.items() if not found]:
        numbers = {int(part) for name in names for part in name.split(".") if part.isdigit()}
        possible = [str(one) for one in sorted(numbers) if _in_layer(one, names)]
        raise UserError(
            f"lora.layers_to_transform [{', '.join(idle)}] reach nothing that is adapted; layers "
            f"with adapted modules: {listed(possible) or 'none'}"
        )
