"""The six steps by name, for a redo from one of them."""

from enum import StrEnum


class StepName(StrEnum):
    """The six steps in order."""

    LOAD_BASE_MODEL = "load_base_model"
    CONFIGURE_LORA = "configure_lora"
    INJECT_ADAPTER = "inject_adapter"
    TRAIN_ADAPTER = "train_adapter"
    SAVE_ADAPTER = "save_adapter"
    LOAD_ADAPTER = "load_adapter"

    def and_after(self) -> list[str]:
        """Return the names of this step and those after it."""
        names = list(StepName)
        return [str(name) for name in names[names.index(self) :]]
