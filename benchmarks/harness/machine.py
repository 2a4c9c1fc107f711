"""The machine that was measured on: processor, cores, memory, versions, commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from benchmarks.harness.messages import Message

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "trl")
_PRODUCTS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


class Machine(Message):
    """The machine and what is installed on it."""

    processor: str
    instructions: list[str]
    """The instruction sets that matter for matrix products."""
    num_cores: int
    memory_gb: float
    system: str
    python: str
    versions: dict[str, str]
    commit: str

    def __str__(self) -> str:
        """Return all of it in one line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        instructions = ", ".join(self.instructions) or "no instructions of note"
        return (
            f"{self.processor} ({instructions}), {self.num_cores} cores, {self.memory_gb:.0f} GB, "
            f"{self.system}, Python {self.python}, {versions}; commit {self.commit}"
        )


def describe() -> Machine:
    """Describe this machine."""
    facts = _facts(Path("/proc/cpuinfo"))
    flags = facts.get("flags", "").split()
    return Machine(
        processor=facts.get("model name", platform.processor()),
        instructions=[name for name in _PRODUCTS if name in flags],
        num_cores=os.cpu_count() or 1,
        memory_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions={name: version for name in _LIBRARIES if (version := _version(name))},
        commit=_commit(),
    )


def _facts(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    pairs = (line.partition(":") for line in file.read_text().splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    command = ("git", "describe", "--always", "--dirty")
    try:
        done = subprocess.run(  # noqa: S603 - a constant
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
