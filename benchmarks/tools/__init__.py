"""The tools that are compared. Each is a module here with `run(job: Job) -> Outcome`.

A new one is such a module and a line in `TOOLS`. One whose dependencies do not go with ours lives
in a virtual environment of its own, which its line names.
"""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Tool:
    """A way to train: a module of this folder, with options of its own."""

    module: str
    title: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""
    """A library, beside ours, that must be installed."""
    venv: str = ""
    """A virtual environment in the checkout, other than the one that runs this."""

    @property
    def is_ours(self) -> bool:
        """Tell whether it is what this project makes."""
        return self.module in ("ours", "command")

    @property
    def python(self) -> Path:
        """Give the interpreter."""
        return _CHECKOUT / self.venv / "bin" / "python" if self.venv else Path(sys.executable)

    def why_not(self) -> str:
        """Say what is missing; empty where the tool can run."""
        if self.venv:
            return "" if self.python.exists() else f"there is no {self.venv}; see the README"
        missing = self.needs and importlib.util.find_spec(self.needs) is None
        return f"{self.needs} is not installed (pip install '.[bench]')" if missing else ""


DOCUMENTED = "trl"
"""What all ratios are to."""

_TRL_TRIED: dict[str, dict[str, Any]] = {
    "float32-base": {"model_init_kwargs": {"dtype": "float32"}},
    "no-checkpointing": {"gradient_checkpointing": False},
    "grouped": {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"},
    "padding-free": {"gradient_checkpointing": False, "padding_free": True, "max_length": None},
    "padding-free-checkpointing": {"padding_free": True, "max_length": None},
    "packed": {
        "gradient_checkpointing": False,
        "packing": True,
        "max_length": 1024,
        "per_device_train_batch_size": 1,
    },
    "eager": {
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "eager"},
    },
    "worker": {"gradient_checkpointing": False, "dataloader_num_workers": 1},
    "compiled": {"gradient_checkpointing": False, "torch_compile": True},
    "accumulated": {
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
    },
}
"""Tried to find out how far TRL goes; see the README for what came of it."""

TOOLS = {
    "ours": Tool("ours", "adapterflow"),
    "ours-saving": Tool(
        "ours", "adapterflow, saving memory", {"base_model": {"gradient_checkpointing": True}}
    ),
    "command": Tool("command", "adapterflow train"),
    "trainer": Tool("plain_trainer", "Trainer + PEFT"),
    DOCUMENTED: Tool("trl_sft", "TRL as documented", needs="trl"),
    "trl-tuned": Tool("trl_sft", "TRL tuned", {"gradient_checkpointing": False}, needs="trl"),
    "llama-factory": Tool("llama_factory", "LLaMA-Factory", venv=".venv-llamafactory"),
    **{
        f"trl-{name}": Tool("trl_sft", f"TRL, {name}", options, needs="trl")
        for name, options in _TRL_TRIED.items()
    },
}
"""The order is that of tables and pictures."""

COMPARED = ("ours", "command", "trainer", DOCUMENTED, "trl-tuned")
"""Unless others are named."""
