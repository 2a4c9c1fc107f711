"""Step 6's work: a saved adapter on a fresh base, strictly."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.engine.adapter_state import is_adapter_parameter
from tasks.errors import UserError, VerificationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_adapter(
    model: "PreTrainedModel",
    source: str | Path,
    name: str = "default",
    *,
    revision: str | None = None,
) -> None:
    """Load a saved adapter into a base and activate it; all weights stay frozen.

    PEFT only logs what it could not place; here that is an error, since the model would answer as
    if nothing had been trained. After an error the model is not usable.

    Args:
        model: the base, which may have other adapters already.
        source: the adapter's folder or Hub id.
        name: under which the model knows the adapter.
        revision: branch, tag or commit of a Hub id.

    Raises:
        UserError: there is no adapter there, the name is taken, or the adapter is for another base.
    """
    from safetensors import SafetensorError

    if name in getattr(model, "peft_config", {}):
        raise UserError(f"the model already has an adapter {name!r}; load under another name")
    _check_folder(source)
    hub = {"revision": revision} if revision else {}
    try:
        with _without_report():
            info = model.load_adapter(str(source), adapter_name=name, adapter_kwargs=hub)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unusable(source, model, str(error).splitlines()[0]) from error
    problem = _problem(info, name)
    if problem:
        raise _unusable(source, model, problem)
    switch_adapter(model, name)


def load_with_base(
    source: str | Path,
    *,
    revision: str | None = None,
    **arguments: Any,  # noqa: ANN401 - whatever from_pretrained takes
) -> "PreTrainedModel":
    """Load an adapter's folder or Hub id as a model: the base is found through its configuration.

    transformers 5.23 does as much when `from_pretrained` is given an adapter, but it takes the
    base at `main`, whatever revision the adapter was trained on.

    Args:
        source: the adapter's folder or Hub id.
        revision: branch, tag or commit of a Hub id.
        arguments: for the base's `from_pretrained`, such as `dtype`.

    Raises:
        UserError: there is no adapter there, or its base is not at hand.
    """
    from peft import PeftConfig
    from transformers import AutoModelForCausalLM

    _check_folder(source)
    try:
        config = PeftConfig.from_pretrained(str(source), revision=revision)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            config.base_model_name_or_path, revision=config.revision, **arguments
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be loaded with its base: {error}") from error
    model.requires_grad_(requires_grad=False)
    load_adapter(model, source, revision=revision)
    return model


def switch_adapter(model: "PreTrainedModel", name: str) -> None:
    """Make one of the loaded adapters the only active one; nothing becomes trainable.

    Raises:
        UserError: the model has no adapter of that name.
    """
    names = list(getattr(model, "peft_config", {}))
    if name not in names:
        raise UserError(f"the model has no adapter {name!r}; it has {', '.join(names) or 'none'}")
    with _same_trainable(model):
        model.enable_adapters()
        _set_modules_to_save(model, enabled=True)
        model.set_adapter(name)


def enable_adapters(model: "PreTrainedModel") -> None:
    """Switch the adapters on again, with what they trained whole; nothing becomes trainable."""
    with _same_trainable(model):
        model.enable_adapters()
        _set_modules_to_save(model, enabled=True)


def disable_adapters(model: "PreTrainedModel") -> None:
    """Switch all adapters off: the model answers as its base (unless biases trained along)."""
    model.disable_adapters()
    _set_modules_to_save(model, enabled=False)


@contextmanager
def adapters_disabled(model: "PreTrainedModel") -> Iterator[None]:
    """Give the base's answers for a while."""
    disable_adapters(model)
    try:
        yield
    finally:
        enable_adapters(model)


@contextmanager
def _same_trainable(model: "PreTrainedModel") -> Iterator[None]:
    """Undo that PEFT makes the adapters trainable that it activates."""
    trains = {key for key, p in model.named_parameters() if p.requires_grad}
    yield
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trains)


def _set_modules_to_save(model: "PreTrainedModel", *, enabled: bool) -> None:
    # transformers 5.23 disables these wrappers along with the adapters and never enables them.
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.enable_adapters(enabled)


def _check_folder(source: str | Path) -> None:
    folder = Path(source)
    looks_local = folder.is_absolute() or str(source).startswith((".", "~")) or folder.exists()
    if not looks_local and str(source).count("/") == 1:
        return
    if not (folder / "adapter_config.json").is_file():
        what = "has no adapter_config.json" if folder.is_dir() else "is no folder"
        raise UserError(f"{source} {what}; give an adapter's folder or Hub id (org/name)")


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers 5.23 from reporting all other adapters' weights as newly initialised."""
    log = logging.getLogger("transformers.integrations.peft")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _problem(info: Any, name: str) -> str | None:  # noqa: ANN401 - transformers' loading info
    found = {
        kind: sorted(getattr(info, f"{kind}_keys", None) or ())
        for kind in ("missing", "unexpected", "mismatched")
    }
    # transformers 5.23 counts as missing whatever has the adapter's name or `lora` in its key.
    found["missing"] = [key for key in found["missing"] if is_adapter_parameter(key, name)]
    said = [f"{len(keys)} {kind} keys, such as {keys[0]}" for kind, keys in found.items() if keys]
    return "; ".join(said) or None


def _unusable(source: str | Path, model: "PreTrainedModel", problem: str) -> UserError:
    base = getattr(model, "name_or_path", "") or type(model).__name__
    return UserError(
        f"the adapter {source} does not fit {base}: {problem}; load the base that "
        "adapter_config.json names (base_model_name_or_path, revision)"
    )


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
    if difference > tolerance * largest:
        raise VerificationError(f"{what}: logits differ by {difference:.3g} of {largest:.3g}")
