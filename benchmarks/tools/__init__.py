"""The tools that are compared. Each is a module here with `run(job: Job) -> Outcome`.

A new tool is such a module and an entry in `TOOLS`. A tool whose dependencies conflict with
adapterflow's has a virtual environment of its own, which its entry names.
"""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Tool:
    """A tool to train with: a module of this folder and its options."""

    module: str
    title: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: str = ""
    """A library that must be installed in addition."""
    learns: tuple[str, ...] = ("sft",)
    """The objectives that it can train for."""
    venv: str = ""
    """A separate virtual environment in the checkout to run the tool in."""

    @property
    def is_ours(self) -> bool:
        """Return whether this is adapterflow."""
        return self.module in ("ours", "command")

    @property
    def python(self) -> Path:
        """Return the path of the interpreter."""
        return _CHECKOUT / self.venv / "bin" / "python" if self.venv else Path(sys.executable)

    def why_not(self) -> str:
        """Describe what is missing; empty if the tool can run."""
        if self.venv:
            return "" if self.python.exists() else f"{self.venv} does not exist; see docs/speed.md"
        missing = self.needs and importlib.util.find_spec(self.needs) is None
        return f"{self.needs} is not installed (pip install '.[bench]')" if missing else ""


DOCUMENTED, DOCUMENTED_DPO = "trl", "trl-dpo"
"""The tools that ratios are relative to: of single answers, and of pairs."""
_BOTH = ("sft", "dpo")

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
"""Options tried to find TRL's best; docs/speed.md has the results."""

TOOLS = {
    "ours": Tool("ours", "adapterflow", learns=_BOTH),
    "ours-saving": Tool(
        "ours", "adapterflow, saving memory", {"base_model": {"gradient_checkpointing": True}}
    ),
    "command": Tool("command", "adapterflow train", learns=_BOTH),
    "trainer": Tool("plain_trainer", "Trainer + PEFT"),
    DOCUMENTED: Tool("trl_sft", "TRL as documented", needs="trl"),
    "trl-tuned": Tool("trl_sft", "TRL tuned", {"gradient_checkpointing": False}, needs="trl"),
    DOCUMENTED_DPO: Tool("trl_dpo", "TRL as documented", needs="trl", learns=("dpo",)),
    "trl-dpo-tuned": Tool(
        "trl_dpo", "TRL tuned", {"gradient_checkpointing": False}, needs="trl", learns=("dpo",)
    ),
    "llama-factory": Tool("llama_factory", "LLaMA-Factory", venv=".venv-llamafactory"),
    **{
        f"trl-{name}": Tool("trl_sft", f"TRL, {name}", options, needs="trl")
        for name, options in _TRL_TRIED.items()
    },
}
"""In the order of tables and charts."""

COMPARED = (
    *("ours", "command", "trainer", DOCUMENTED, "trl-tuned"),
    *(DOCUMENTED_DPO, "trl-dpo-tuned"),
)
"""The tools to compare by default."""
