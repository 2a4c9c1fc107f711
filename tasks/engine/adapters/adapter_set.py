"""Many adapters on one base: loaded by name, and switched without reloading anything.

The base is in memory once. With all adapters disabled its logits are its own, bit for bit; with one
active they are that adapter's, no matter which were active before.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Self

from tasks.config import BaseModelSettings, Template
from tasks.config.adapter_name import check_adapter_name
from tasks.engine.adapters.activation import disable_adapters, switch_adapter
from tasks.engine.adapters.compatibility import check_base, check_tokenizer, template_of
from tasks.engine.adapters.folders import AdapterFolder, find_adapter
from tasks.engine.adapters.loading import load_folder, unload_adapter
from tasks.engine.base import find_base, limits_in, load_base, pad_with_known, tokenizer_of
from tasks.errors import UserError
from tasks.records import BaseSource, ChatOptions, FileRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter of the set: where it is from, and how its prompts are written."""

    name: str
    source: str
    sha256: str
    """Of its weights file."""
    config_sha256: str
    """Of its configuration file."""
    template: Template
    """How its prompts are written: `chat` or `plain`."""
    chat: ChatOptions
    """What the chat template is given beside a conversation."""
    tokenizer: "PreTrainedTokenizerBase"
    warnings: tuple[str, ...]
    """Warnings about what could not be checked."""


class AdapterSet:
    """One base in memory and any number of named adapters on it, of which at most one is active.

    Args:
        model: the loaded base.
        tokenizer: the base's.
        base: which base it is.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        base: BaseSource,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.base = base
        self.limits = limits_in(model)
        self._loaded: dict[str, LoadedAdapter] = {}
        self._active: str | None = None

    @classmethod
    def on(cls, settings: BaseModelSettings) -> Self:
        """Load the base that the settings name, without adapters.

        Raises:
            UserError: there is no such base, or it cannot be loaded.
        """
        source = find_base(settings)
        return cls(load_base(source), tokenizer_of(source), source)

    @property
    def adapters(self) -> Mapping[str, LoadedAdapter]:
        """The loaded adapters by name, in the order of loading."""
        return MappingProxyType(self._loaded)

    @property
    def active(self) -> str | None:
        """The active adapter's name; None while all are disabled."""
        return self._active

    def load(
        self,
        source: str | Path | AdapterFolder,
        name: str = "default",
        *,
        revision: str | None = None,
        template: Template = Template.AUTO,
        any_base: bool = False,
    ) -> LoadedAdapter:
        """Load an adapter in addition to those of the set, and switch to it.

        Args:
            source: its folder or Hub id; `tasks.tracking` downloads one from MLflow to a folder.
            name: letters, digits, `_` and `-`.
            revision: branch, tag or commit of a Hub id.
            template: how its prompts are written; `auto` is as in training.
            any_base: whether an adapter made for another base may be loaded if its shapes fit.

        Raises:
            UserError: there is no such adapter, its name is taken, or it does not fit this base;
                the set is unchanged.
        """
        try:
            check_adapter_name(name)
        except ValueError as error:
            raise UserError(str(error)) from None
        folder = source if isinstance(source, AdapterFolder) else find_adapter(source, revision)
        loaded = self._checked(folder, name, template, any_base=any_base)
        try:
            load_folder(self.model, folder, name)
        except BaseException:
            self._activate(self._active)
            raise
        self._loaded[name] = loaded
        self._active = name
        return loaded

    def switch(self, name: str) -> None:
        """Make an adapter the active one.

        Raises:
            UserError: there is none of that name.
        """
        self._require(name)
        self._activate(name)

    def disable(self) -> None:
        """Disable all adapters, so that the base answers."""
        self._activate(None)

    def unload(self, name: str) -> None:
        """Remove an adapter from memory; if it was the active one, the base answers.

        Raises:
            UserError: there is none of that name.
        """
        self._require(name)
        unload_adapter(self.model, name)
        del self._loaded[name]
        self._activate(None if self._active == name else self._active)

    @contextmanager
    def using(self, name: str | None) -> Iterator["PreTrainedModel"]:
        """Activate an adapter for a while, then restore which one was active.

        Args:
            name: of the adapter; None for the base.

        Raises:
            UserError: there is none of that name.
        """
        before = self._active
        if name is None:
            self.disable()
        else:
            self.switch(name)
        try:
            yield self.model
        finally:
            self._activate(before)

    def _checked(
        self, folder: AdapterFolder, name: str, template: Template, *, any_base: bool
    ) -> LoadedAdapter:
        checked = check_adapter(folder, self.base, self.tokenizer, template, any_base=any_base)
        pad_with_known(checked.tokenizer, self.limits.num_embeddings)
        return LoadedAdapter(
            name=name,
            source=folder.source,
            sha256=FileRecord.of(folder.weights_file).sha256,
            config_sha256=FileRecord.of(folder.config_file).sha256,
            chat=ChatOptions.in_manifest(folder.manifest),
            **checked._asdict(),
        )

    def _require(self, name: str) -> None:
        if name not in self._loaded:
            known = ", ".join(self._loaded) or "none"
            raise UserError(f"there is no adapter {name!r}; loaded: {known}")

    def _activate(self, name: str | None) -> None:
        if name is not None:
            switch_adapter(self.model, name)
        elif getattr(self.model, "peft_config", None):
            disable_adapters(self.model)
        self._active = name


class CheckedAdapter(NamedTuple):
    """What the checks of an adapter found; see `LoadedAdapter`."""

    template: Template
    tokenizer: "PreTrainedTokenizerBase"
    warnings: tuple[str, ...]


def check_adapter(
    folder: AdapterFolder,
    base: BaseSource,
    tokenizer: "PreTrainedTokenizerBase",
    template: Template,
    *,
    any_base: bool,
) -> CheckedAdapter:
    """Check all that can be checked about an adapter without the weights of the base.

    Args:
        folder: the adapter.
        base: that it is to be loaded on.
        tokenizer: the base's.
        template: how its prompts are to be written.
        any_base: whether it may have been made for another base.

    Raises:
        UserError: it was made for another base, or can't share one with others.
    """
    check_shareable(folder)
    try:
        warnings = check_base(folder, base)
    except UserError as mistake:
        if not any_base:
            raise
        warnings = (str(mistake),)
    own = check_tokenizer(folder, tokenizer)
    return CheckedAdapter(template_of(folder, own, template), own, warnings)


def check_shareable(folder: AdapterFolder) -> None:
    """Check that an adapter changes nothing while another one or none is active.

    Raises:
        UserError: it trained biases of the base.
    """
    bias = getattr(folder.config, "bias", None) or "none"
    if bias == "none":
        return
    raise UserError(
        f"{folder.source} trained biases of the base (bias={bias!r}), so it can't share a base "
        "with other adapters; merge it with `adapterflow export --merged`, or load it alone"
    )
