"""A base's weight files, checked by their headers before a weight is read.

transformers (5.23) finds a wrong weight only while it loads, logs a table of keys, and raises an
error that names neither file nor weight.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.engine.base.config_file import CONFIG_FILE
from tasks.engine.base.task_traits import traits_of
from tasks.engine.excerpts import excerpt, shown
from tasks.engine.reading import check_file, is_file_name, json_object, reading
from tasks.engine.tensor_files import TensorEntry, read_header
from tasks.errors import UserError
from tasks.records import BaseSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Headers = Mapping[Path, Mapping[str, TensorEntry]]

_SAFETENSORS, _PICKLED = "model.safetensors", "pytorch_model.bin"


def weight_files(folder: Path) -> list[Path]:
    """Return all weight files in a base's folder, after checking those that are loaded.

    Raises:
        UserError: there is none that transformers would load, one of them is missing, empty or not
            a file, or an index does not say which they are.
    """
    found = sorted((*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")))
    for file in dict.fromkeys((*loaded_files(folder), *found)):
        check_file(file, f"the weights file {file}")
    return found


def loaded_files(folder: Path) -> list[Path]:
    """Return the files that transformers 5.23 loads: the first kind there is, one file or an index.

    Raises:
        UserError: there are none, or an index does not say which they are.
    """
    explicit = json_object(folder / CONFIG_FILE).get("transformers_weights")
    for name in (explicit,) if explicit else (_SAFETENSORS, _PICKLED):
        if name.endswith(".index.json"):
            return _indexed(folder, folder / name)
        index = folder / f"{name}.index.json"
        if os.path.lexists(folder / name):
            return [folder / name]
        if os.path.lexists(index):
            return _indexed(folder, index)
    has = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise UserError(
        f"base_model.source {folder} has no weights ({_SAFETENSORS}, or {_SAFETENSORS}.index.json "
        f"with the files that it names); it contains {has}"
    )


def _indexed(folder: Path, index: Path) -> list[Path]:
    given = json_object(index)
    places = given.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(
            f"{index}: weight_map is {shown(places)}; it must be an object with the file of each "
            "weight"
        )
    for weight, place in places.items():
        if not is_file_name(place) or not place.endswith((".safetensors", ".bin")):
            raise UserError(
                f"{index}: weight_map has {shown(place)} for {excerpt(weight)}; it must be the "
                "name of a file of weights (.safetensors, .bin) beside the index"
            )
    if not isinstance(given.get("metadata"), dict):  # transformers 5.23 fails without
        found = shown(given.get("metadata"))
        raise UserError(f"{index}: metadata is {found}; it must be an object, as in {{…}}")
    return [folder / place for place in sorted(set(places.values()))]


def read_headers(folder: Path) -> Headers:
    """Return the headers of the safetensors files that are loaded, by file.

    Raises:
        UserError: one of them is missing or truncated.
    """
    safe = [file for file in loaded_files(folder) if file.suffix == ".safetensors"]
    return {file: read_header(file, f"the weights file {file}") for file in safe}


def check_weights(source: BaseSource, skeleton: "PreTrainedModel") -> None:
    """Check by their headers that a local base's weights are those of the model in config.json.

    Weights of a Hub id, pickled and quantized ones are only checked when they are loaded.

    Args:
        source: the base.
        skeleton: the model on the meta device; it is changed.

    Raises:
        UserError: a file is truncated; a weight is missing, of another shape, or not a
            floating-point number.
    """
    folder = Path(source.location)
    headers = read_headers(folder) if folder.is_absolute() else {}
    if not headers or getattr(skeleton.config, "quantization_config", None):
        return
    _check_dtypes(headers, skeleton)
    _check_shapes(source, headers, skeleton)


def _check_dtypes(headers: Headers, skeleton: "PreTrainedModel") -> None:
    # Integers are the codes of a quantized base, but config.json names no quantization: taken as
    # weights, they mean nothing.
    ours = skeleton.state_dict()
    for file, header in headers.items():
        for key, entry in header.items():
            if key in ours and ours[key].is_floating_point() and not entry.is_floating:
                raise UserError(
                    f"{file}: {key} is {entry.dtype}; a weight must be a floating-point number "
                    "(F32, BF16, F16), so give the base as it was trained"
                )


def _check_shapes(source: BaseSource, headers: Headers, skeleton: "PreTrainedModel") -> None:
    """Load weights without values: transformers alone knows how it renames, joins, splits them."""
    import torch

    weights = {
        key: torch.empty(entry.shape, dtype=skeleton.dtype, device="meta")
        for header in headers.values()
        for key, entry in header.items()
    }
    problem = f"the weights of {source.location} can't be those of its config.json"
    with reading(problem), without_report():
        made: Any = type(skeleton).from_pretrained(
            None,
            config=skeleton.config,
            state_dict=weights,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, info = made
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise UserError(
            f"{len(mismatched)} weights of the base model {source.location!r} have another shape "
            f"than config.json says, such as {key}: {list(found)} in the file, {list(expected)} by "
            "config.json; give the config.json that the model was saved with"
        )
    check_complete(source, model, info)


def check_complete(
    source: BaseSource, model: "PreTrainedModel", info: Mapping[str, Iterable[str]]
) -> None:
    """Check that a base has all of its weights, by transformers' loading info.

    transformers only logs missing weights, and initializes them at random.

    Raises:
        UserError: weights are missing beside those of the head that the task adds.
    """
    head = traits_of(source.settings.task).head_modules(model)
    missing = sorted(key for key in info["missing_keys"] if key.partition(".")[0] not in head)
    if missing:
        raise UserError(
            f"the base model {source.location!r} lacks {len(missing)} weights of "
            f"{type(model).__name__}, such as {missing[0]}; download it again, or set "
            "base_model.task to the task that it was saved for"
        )


@contextmanager
def without_report() -> Iterator[None]:
    """Silence transformers' tables of keys; what is in them becomes one message."""
    from transformers.utils import logging as upstream

    # Not its level: transformers 5.23 logs more at a higher one.
    log, shows_bars = (
        logging.getLogger("transformers.modeling_utils"),
        upstream.is_progress_bar_enabled(),
    )
    log.disabled = True
    upstream.disable_progress_bar()
    try:
        yield
    finally:
        log.disabled = False
        if shows_bars:
            upstream.enable_progress_bar()
