"""Export adapters: alone, merged into their base, as GGUF, to the Hub, or combined."""

from collections.abc import Sequence
from pathlib import Path

from tasks.config import Dtype
from tasks.config.hub_ids import is_hub_id
from tasks.config.reading import adapter_here
from tasks.engine.adapters import (
    METHODS,
    Combination,
    combine,
    copy_adapter,
    export_merged,
    write_gguf,
)
from tasks.engine.base import check_push, find_base, push_adapter, tokenizer_of
from tasks.engine.scoring import exact_match_on
from tasks.errors import UserError
from tasks.inference.adapters_on_base import base_of, found_adapters
from tasks.records import CombinedRecord, GgufRecord, MergedRecord

_BATCH_SIZE = 16


def export_adapter(source: str, folder: Path) -> None:
    """Copy an adapter's own files to a new folder.

    Raises:
        UserError: the adapter does not exist, or the folder already does.
    """
    with found_adapters([adapter_here(source)]) as (adapter,):
        copy_adapter(adapter, folder)


def push_to_hub(source: str, repo_id: str, *, private: bool) -> tuple[str, Sequence[str]]:
    """Push an adapter to the Hub; return the commit's URL, and warnings for those who will use it.

    Args:
        source: the adapter.
        repo_id: the repository on the Hub, which is created if it does not exist.
        private: make the repository private if it is created.

    Raises:
        UserError: the adapter does not exist, the id is invalid, or there is no valid token.
        AdapterflowError: the Hub refused, or can't be reached.
    """
    if not is_hub_id(repo_id):
        raise UserError(f"{repo_id!r} is not a Hub id; write it as ORG/NAME")
    with found_adapters([adapter_here(source)]) as (adapter,):
        check_push(repo_id)
        base, warnings = adapter.config.base_model_name_or_path, []
        if not base or Path(base).is_absolute():
            where = f"by its local path {base}" if base else "not at all"
            warnings.append(f"adapter_config.json names the base {where}: others won't find it")
        if not (adapter.path / "README.md").is_file():
            warnings.append("there is no README.md: the repository has no model card")
        return push_adapter(adapter.path, repo_id, private=private), warnings


def merge_adapter(  # noqa: PLR0913 - the options of the command
    source: str,
    folder: Path,
    base_model: str | None,
    dtype: str,
    rows: Path | None,
    max_new_tokens: int,
) -> MergedRecord:
    """Merge an adapter into its base, and write the model to a folder; see `export_merged`."""
    with found_adapters([adapter_here(source)]) as (adapter,):
        base = base_of(adapter, base_model)
        score = None
        if rows:
            found = find_base(base)
            tokenizer = tokenizer_of(found)
            score = exact_match_on(
                rows,
                adapter,
                tokenizer,
                task=base.task,
                max_new_tokens=max_new_tokens,
                batch_size=_BATCH_SIZE,
            )
        return export_merged(adapter, base, folder, Dtype(dtype), score)


def adapter_as_gguf(source: str, file: Path, base_model: str | None) -> GgufRecord:
    """Write an adapter as one GGUF file; see `write_gguf`."""
    with found_adapters([adapter_here(source)]) as (adapter,):
        return write_gguf(adapter, base_of(adapter, base_model), file)


def combine_adapters(
    weighted: Sequence[tuple[str, float]],
    folder: Path,
    base_model: str | None,
    how: Combination,
) -> CombinedRecord:
    """Combine several adapters into one; see `combine`.

    Args:
        weighted: the adapters with their weights.
        folder: the new adapter's folder.
        base_model: their base, if not the one that the first names.
        how: the method.

    Raises:
        UserError: fewer than two adapters are given, the method is unknown, or it takes no rank.
    """
    if how.method not in METHODS:
        raise UserError(f"--method {how.method!r} is unknown; possible: {', '.join(METHODS)}")
    if how.rank is not None and how.method != "svd":
        raise UserError(
            f"--rank is for --method svd only, and {how.method} sets the rank itself; remove --rank"
        )
    if len(weighted) <= 1:
        raise UserError("give two or more adapters to combine")
    wanted = [adapter_here(source) for source, _ in weighted]
    with found_adapters(wanted) as adapters:
        base = base_of(adapters[0], base_model)
        return combine(adapters, [weight for _, weight in weighted], base, folder, how)


def combined_lines(record: CombinedRecord) -> str:
    """Describe the result of a combination."""
    size = f"rank {record.r}, {record.num_adapter_parameters:,} parameters"
    again = f"reloaded, its logits differ by {record.round_trip_logit_difference:.3g}"
    lines = [
        *record.warnings,
        f"{record.folder}: {len(record.weights)} adapters by {record.method}, {size}",
        f"it changes the base's logits by up to {record.logit_effect:.3g}; {again}",
    ]
    return "\n".join(lines)


def gguf_lines(record: GgufRecord) -> str:
    """Describe a GGUF file, and how to serve it."""
    size = f"{record.file.size_bytes / 1e6:.1f} MB, {record.num_adapter_parameters:,} parameters"
    lines = [
        *record.warnings,
        f"{record.file.path}: {size}, for {record.base_model} ({record.architecture}) as GGUF",
        f"serve it with: llama-server --model BASE.gguf --lora {record.file.path}",
    ]
    return "\n".join(lines)


def merged_lines(record: MergedRecord) -> str:
    """Describe the result of a merge."""
    untied = ", the output layer untied from the embeddings" if record.is_untied else ""
    share = record.logit_difference / record.largest_logit
    within = f"{record.logit_difference:.3g} ({share:.4%} of the largest)"
    lines = [
        *record.warnings,
        f"{record.folder}: {record.num_parameters:,} parameters in {record.dtype}{untied}",
        f"logits equal those of base with adapter within {within}; allowed: {record.tolerance:.3g}",
    ]
    if record.score is not None:
        lines.append(f"exact matches: {record.score:.1%}, as by base with adapter")
    if gap := record.quantized_gap:
        scored = "" if gap.score is None else f", exact matches: {gap.score:.1%}"
        lines.append(
            f"compared with the adapter on its base in {gap.quantization}: logits within "
            f"{gap.logit_difference:.3g}, same next token at {gap.same_next_token:.0%}"
            f"{scored}"
        )
    return "\n".join(lines)
