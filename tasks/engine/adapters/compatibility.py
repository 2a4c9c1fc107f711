"""Whether an adapter fits a base, found out from files before the model is touched.

The adapter is injected by its own configuration into a copy of the model on the meta device. The
names and shapes of the weights there are what PEFT expects in the file, for any kind of LoRA.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.config import Template
from tasks.config.hub_ids import is_hub_id
from tasks.engine.adapters.adapter_files import CONFIG_FILE
from tasks.engine.adapters.adapter_state import is_adapter_parameter, loadable
from tasks.engine.adapters.folders import AdapterFolder
from tasks.engine.adapters.method_config import injected_skeleton
from tasks.engine.adapters.methods import LORA
from tasks.engine.adapters.name_patterns import check_patterns
from tasks.engine.base import read_tokenizer
from tasks.engine.data.rendering import choose_template
from tasks.engine.excerpts import listed, reason
from tasks.engine.reading import reading
from tasks.errors import UserError
from tasks.records import BaseSource

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Shapes = dict[str, tuple[int, ...]]

_known_shapes: dict[tuple[type, str, str], Shapes | None] = {}
"""What was found out by class and configuration of a model and an adapter's configuration.

Adapters of one base often have equal ones, and finding it out takes longer than loading them.
"""
_MOST_KNOWN = 32

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Initializations that change the base's weights when the adapter is injected, and settings that
# need more than the model's layers.
_ALTERING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_ALTERING_FIELDS = (
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "monteclora_config",
)


def fitting_weights(adapter: AdapterFolder, model: "PreTrainedModel") -> dict[str, "Tensor"]:
    """Check that an adapter's weights fit the model, and read them.

    Args:
        adapter: to read.
        model: the base, loaded or on the meta device; it is not changed.

    Returns:
        The weights by their names in the model.

    Raises:
        UserError: the adapter's targets, layers, rank or widths do not fit the model, or it would
            change the base's own weights.
    """
    copies = check_fit(adapter, model)
    weights = adapter.weights()
    own = _own_weights(model) if copies else {}
    _check_copies(adapter, own, {key: weights.pop(key) for key in sorted(copies)})
    return weights


def check_fit(adapter: AdapterFolder, model: "PreTrainedModel") -> set[str]:
    """Check that an adapter's weights fit the model, by the file's header alone.

    Args:
        adapter: to read.
        model: the base, loaded or on the meta device; it is not changed.

    Returns:
        The names of the weights that are copies of the base's own.

    Raises:
        UserError: the adapter's targets, layers, rank or widths do not fit the model.
    """
    _check_kind(adapter)
    expected = _expected_shapes(adapter, model)
    if expected is None:  # compared where it is loaded
        return set()
    extra = adapter.shapes.keys() - expected.keys()
    own = _own_weights(model) if extra else {}
    copies = {key for key in extra if _base_name(key) in own}
    problems = _problems(dict(adapter.shapes), expected, copies)
    if problems:
        raise _unfit(adapter, model, problems)
    return copies


def check_base(adapter: AdapterFolder, base: BaseSource) -> tuple[str, ...]:
    """Check that the adapter was made for this base, as far as its files say so.

    Returns:
        Warnings about what could not be checked.

    Raises:
        UserError: it was made for another base, another revision of it, or other classes.
    """
    _check_classes(adapter, base)
    made_for = adapter.manifest.get("base_model") or {
        "reference": adapter.config.base_model_name_or_path,
        "revision": adapter.config.revision,
    }
    reference, revision = made_for.get("reference"), made_for.get("revision")
    fingerprint = made_for.get("fingerprint") or _commit_of(revision)
    if fingerprint and fingerprint.partition(":")[0] == base.fingerprint.partition(":")[0]:
        if fingerprint == base.fingerprint:
            return ()
        raise _another_base(adapter, f"{reference} ({fingerprint})", base)
    if reference == base.reference and not fingerprint:
        return ()
    if reference != base.reference and all(map(is_hub_id, (reference or "", base.reference))):
        raise _another_base(adapter, str(reference), base)
    made = f"{reference or 'an unnamed base'} ({fingerprint or 'no fingerprint'})"
    here = f"{base.reference} ({base.fingerprint})"
    return (f"{adapter.source} was made for {made}; {here} may be another base",)


def _check_classes(adapter: AdapterFolder, base: BaseSource) -> None:
    """Check that the classes are the same, if the adapter's manifest names them."""
    labels = (adapter.manifest.get("base_model") or {}).get("labels")
    if labels is not None and tuple(labels) != base.labels:
        made_for = ", ".join(labels) or "no classes"
        raise UserError(
            f"the adapter {adapter.source} was made for {made_for}, but the base is loaded for "
            f"{', '.join(base.labels) or 'no classes'}; load the adapter on a base of its own"
        )


def check_tokenizer(
    adapter: AdapterFolder, tokenizer: "PreTrainedTokenizerBase"
) -> "PreTrainedTokenizerBase":
    """Check that text becomes the same tokens as in the adapter's training.

    Returns:
        The tokenizer saved with the adapter, for its chat template; without one, the base's.

    Raises:
        UserError: the vocabularies differ, or for an adapter trained with a chat template, the
            templates differ.
    """
    if adapter.has_tokenizer():
        own = read_tokenizer(str(adapter.path), None, "the adapter")
        ours, theirs = tokenizer.get_vocab(), own.get_vocab()
        different = sorted(ours.items() ^ theirs.items(), key=lambda one: one[1])
        if different:
            raise UserError(
                f"the adapter {adapter.source} was trained with another vocabulary: it has "
                f"{len(theirs)} tokens, the base has {len(ours)}, and {different[0][0]!r} is not "
                f"the same token in both; {_how_to_match(ours, theirs)}"
            )
        return own
    recorded, here = adapter.manifest.get("tokenizer", {}), tokenizer_identity(tokenizer)
    is_chat = adapter.manifest.get("template") == "chat"
    for kind in ("vocabulary", "chat_template") if is_chat else ("vocabulary",):
        if recorded and recorded[kind] != here[kind]:
            raise UserError(
                f"the adapter {adapter.source} was trained with another {kind.replace('_', ' ')} "
                "than the base's tokenizer has; load the base that it was trained on"
            )
    return tokenizer


def _how_to_match(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """Return what to do about another vocabulary than the adapter's, which is the second."""
    added = sorted(theirs.keys() - ours.keys(), key=lambda token: theirs[token])
    if ours.items() <= theirs.items():
        return f"set base_model.new_tokens to those that the adapter adds: {listed(added)}"
    return "load the base that it was trained on"


def template_of(
    adapter: AdapterFolder,
    tokenizer: "PreTrainedTokenizerBase",
    wanted: Template = Template.AUTO,
) -> Template:
    """Return how an adapter's prompts are written: as in training, unless set otherwise.

    If no manifest says how, the tokenizer's chat template is used, if it has one.

    Args:
        adapter: with its manifest.
        tokenizer: that writes the prompts.
        wanted: what the user set.

    Raises:
        UserError: as `choose_template`.
    """
    if wanted is Template.AUTO:
        wanted = Template(adapter.manifest.get("template", wanted))
    return choose_template(wanted, tokenizer, is_text=False)


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    """Return the sha256 of the vocabulary and of the chat template."""
    parts: dict[str, object] = {
        "vocabulary": tokenizer.get_vocab(),
        "chat_template": tokenizer.chat_template,
    }
    return {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
        for name, part in parts.items()
    }


def _check_kind(adapter: AdapterFolder) -> None:
    config = adapter.config
    init = str(getattr(config, "init_lora_weights", True))
    if init.startswith(_ALTERING_INITS):
        raise UserError(
            f"{adapter.source} was initialized by {init}, which changes the base's weights: other "
            "adapters and the base itself would give wrong answers; save it as a plain LoRA "
            "(PEFT's path_initial_model_for_weight_conversion)"
        )
    for field in _ALTERING_FIELDS:
        if getattr(config, field, None):
            raise UserError(
                f"{adapter.source} sets {field}, which adapterflow can't load; train it without"
            )


def _expected_shapes(adapter: AdapterFolder, model: "PreTrainedModel") -> Shapes | None:
    """Return the weights that the configuration asks for; None if that needs the base's weights."""
    given = json.dumps(adapter.given_config, sort_keys=True)
    asked = (type(model), model.config.to_json_string(use_diff=False), given)
    if asked not in _known_shapes:
        if len(_known_shapes) == _MOST_KNOWN:
            _known_shapes.clear()
        _known_shapes[asked] = _shapes_when_injected(adapter, model)
    return _known_shapes[asked]


def _shapes_when_injected(adapter: AdapterFolder, model: "PreTrainedModel") -> Shapes | None:
    from peft import get_peft_model_state_dict

    modules = (name for name, _ in model.named_modules())
    check_patterns(adapter.given_config, modules, f"{adapter.source}: {CONFIG_FILE}: ")
    config = copy.deepcopy(adapter.config)
    if adapter.method == LORA:
        config.init_lora_weights = False
    with reading(f"{adapter.source}: {CONFIG_FILE} can't be used with {_named(model)}"):
        try:
            empty = injected_skeleton(config, partial(_skeleton, model))
        except ValueError as error:
            raise _unfit(adapter, model, reason(error)) from error
        if empty is None:
            return None
        state = get_peft_model_state_dict(
            empty, adapter_name="default", save_embedding_layers=False
        )
    return {loadable(key): tuple(value.shape) for key, value in state.items()}


def _skeleton(model: "PreTrainedModel") -> Any:  # noqa: ANN401 - PEFT takes any module
    import torch

    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config))


def _own_weights(model: "PreTrainedModel") -> dict[str, "Tensor"]:
    """Return the base's weights by name; tied weights have an entry for each of their names."""
    named = model.named_parameters(remove_duplicate=False)
    return {_base_name(name): weight for name, weight in named if not is_adapter_parameter(name)}


def _base_name(key: str) -> str:
    return re.sub(r"\.(base_layer|original_module)\.", ".", key)


def _problems(given: Shapes, expected: Shapes, copies: set[str]) -> str:
    found = []
    if missing := sorted(expected.keys() - given.keys()):
        found.append(f"{len(missing)} weights are missing, such as {missing[0]}")
    if unexpected := sorted(given.keys() - expected.keys() - copies):
        found.append(f"{len(unexpected)} weights are unexpected, such as {unexpected[0]}")
    if mismatched := sorted(k for k in given.keys() & expected.keys() if given[k] != expected[k]):
        first = mismatched[0]
        found.append(
            f"{len(mismatched)} weights have another shape, such as {first}: {list(given[first])} "
            f"in the file, but {list(expected[first])} by its configuration in this base"
        )
    return "; ".join(found)


def _check_copies(
    adapter: AdapterFolder, own: dict[str, "Tensor"], copies: dict[str, "Tensor"]
) -> None:
    """Check that base weights which PEFT saved with the adapter are the base's own.

    PEFT saves the embeddings where it guesses that they might have been resized.
    """
    import torch

    for key, copied in copies.items():
        base = own[_base_name(key)].detach().cpu()
        if base.shape != copied.shape or not torch.equal(base, copied.to(base.dtype)):
            raise UserError(
                f"{adapter.source} contains its own {_base_name(key)}, which differs from the "
                "base's and would replace it for every adapter; train it with this module in "
                "modules_to_save"
            )


def _unfit(adapter: AdapterFolder, model: "PreTrainedModel", problem: str) -> UserError:
    made_for = adapter.config.base_model_name_or_path
    return UserError(
        f"the adapter {adapter.source} does not fit {_named(model)}: {problem}; load the base "
        f"that it was made for ({made_for or 'its configuration does not name it'})"
    )


def _named(model: "PreTrainedModel") -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__


def _another_base(adapter: AdapterFolder, made_for: str, base: BaseSource) -> UserError:
    return UserError(
        f"the adapter {adapter.source} was made for {made_for}, but the base is {base.reference} "
        f"({base.fingerprint}); load the base that it was made for (`predict` takes another "
        "one with any_base)"
    )


def _commit_of(revision: str | None) -> str | None:
    return f"commit:{revision}" if revision and _COMMIT.fullmatch(revision) else None
