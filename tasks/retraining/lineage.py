"""What an adapter was made from, as tags of its version: enough to make it again."""

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from tasks.records import (
    BaseSource,
    CheckedRecord,
    DataRecord,
    RunRecord,
    SavedRecord,
    SourceRecord,
    VersionRecord,
)
from tasks.runtime import home
from tasks.runtime.code_identity import code_sha256

DATA, EVAL = "lineage.data_sha256", "lineage.eval_data_sha256"
TOKENS, BASE, CODE = "lineage.tokens_sha256", "lineage.base_sha256", "lineage.code_sha256"
FINGERPRINT, CONFIGURATION = "lineage.base_fingerprint", "lineage.configuration_sha256"
ADAPTER = "lineage.adapter_sha256"
CHAT_TEMPLATE = "lineage.chat_template_sha256"
SOURCE = "lineage.began_as_sha256"
"""Of the adapter that a version began as."""
OWN_ROWS = "lineage.own_rows_sha256"
"""Of the training rows that are not replayed."""
TASK, CLASSES = "lineage.task", "lineage.classes_sha256"
DTYPE, QUANTIZATION = "lineage.base_dtype", "lineage.base_quantization"


def identity(
    data: DataRecord,
    base_fingerprint: str,
    configuration_sha256: str,
    source: SourceRecord | None,
) -> dict[str, str]:
    """Return the tags that are equal for two versions made from the same inputs."""
    return {
        DATA: data.train.sha256,
        OWN_ROWS: data.train.own_sha256,
        SOURCE: source.weights.sha256 if source else "none",
        EVAL: data.eval.sha256 if data.eval else "none",
        TOKENS: " ".join(file.sha256 for file in data.tokens),
        CHAT_TEMPLATE: _sha256(data.chat_template) if data.chat_template else "none",
        BASE: data.base_sha256,
        CODE: code_sha256(),
        FINGERPRINT: base_fingerprint,
        CONFIGURATION: configuration_sha256,
    }


def of_own_rows(made_of: dict[str, str]) -> dict[str, str]:
    """Return those of the tags of `identity` that do not depend on what a version began as."""
    others = {DATA, TOKENS, SOURCE}
    return {name: value for name, value in made_of.items() if name not in others}


def lineage(
    data: DataRecord, saved: SavedRecord, checked: CheckedRecord, run: RunRecord
) -> dict[str, str]:
    """Return all tags of a version's lineage."""
    fingerprint, configuration = checked.base_fingerprint, checked.configuration_sha256
    return identity(data, fingerprint, configuration, checked.source) | {
        **_began_as(checked.source),
        **answers(saved.base),
        **loaded_as(saved.base),
        "lineage.base": saved.base.reference,
        "lineage.base_revision": saved.base.revision or "none",
        "lineage.held_out_sha256": checked.held_out.sha256,
        **{f"{DATA}.{part.name}": part.sha256 for part in data.train.parts},
        ADAPTER: saved.weights.sha256,
        "lineage.packages_sha256": _sha256(package_versions()),
        "lineage.hardware": hardware(),
        "lineage.prefect_flow_run_id": run.flow_run_id,
        **_commit(home.CHECKOUT),
    }


def _began_as(source: SourceRecord | None) -> dict[str, str]:
    if source is None:
        return {}
    learned = source.learned.sha256 if source.learned else "unknown"
    return {"lineage.began_as": source.reference, "lineage.began_as_data_sha256": learned}


def answers(base: BaseSource) -> dict[str, str]:
    """Return the tags of the kind of answers; versions that differ in them can't be compared."""
    classes = "\0".join(base.labels)
    return {TASK: base.settings.task.value, CLASSES: _sha256(classes)}


def loaded_as(base: BaseSource) -> dict[str, str]:
    """Return the tags of how a base is loaded; loaded differently, an adapter scores worse."""
    return {DTYPE: base.dtype, QUANTIZATION: base.settings.quantization.value}


def loaded_otherwise(version: VersionRecord, base: BaseSource) -> str | None:
    """Return a warning if the base was loaded differently in a version's training."""
    here = loaded_as(base)
    then = {key: version.tags.get(key, value) for key, value in here.items()}
    if then == here:
        return None
    return (
        f"{version.uri} was trained on the base in {then[DTYPE]} with quantization "
        f"{then[QUANTIZATION]}, and is scored on it in {here[DTYPE]} with quantization "
        f"{here[QUANTIZATION]}, which may lower its scores"
    )


def package_versions() -> str:
    """Return all installed packages with their versions, as a constraints file."""
    found = {(one.name.lower(), one.version) for one in metadata.distributions() if one.name}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found))


def hardware() -> str:
    """Describe the processor, its cores, and the GPU if there is one."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in facts.splitlines() if "model name" in line]
    processor = next(iter(names), platform.processor() or platform.machine())
    torch = sys.modules.get("torch")
    gpu = ""
    if torch and torch.cuda.is_available():
        gpu = f", {torch.cuda.get_device_name()}"
    elif torch and torch.backends.mps.is_available():
        gpu = ", its GPU (mps)"
    return f"{processor}, {os.cpu_count()} cores{gpu}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _commit(checkout: Path) -> dict[str, str]:
    """Return the tags of the checkout's commit, and of whether files differ from it."""
    commit, changes = _git(checkout, "rev-parse", "HEAD"), _git(checkout, "status", "--porcelain")
    is_dirty = "unknown" if changes is None else str(bool(changes)).lower()
    return {"lineage.git_commit": commit or "unknown", "lineage.git_dirty": is_dirty}


def _git(checkout: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(checkout), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603 - git's own words
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        return None
    return done.stdout.strip()
