"""Find the base of the adapters, check that it is the one they were trained on, and load it."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

from .adapter_files import adapter_config
from .reading import reading
from .tokenizers import load_tokenizer

# bitsandbytes 0.50 warns that the package `kernels` is missing; it would fetch code from the Hub.
_bitsandbytes = logging.getLogger("bitsandbytes.backends.cpu.ops")
# Once: this package is imported anew for each model, and a filter would keep all of it in memory.
if not _bitsandbytes.filters:
    _bitsandbytes.addFilter(lambda record: "kernels-community" not in str(record.msg))


def find_base(config: dict[str, Any]) -> tuple[str, str | None]:
    """Return the base's folder or Hub id, and the revision of a Hub id.

    That is `base_model` if it is set, else the location in training if it exists, else the Hub id.
    """
    if config["base_model"]:
        _check_fingerprint(str(config["base_model"]), config)
        return str(config["base_model"]), config["base_revision"]
    location, reference = config["recorded_location"], config["recorded_reference"]
    if Path(location).exists():
        _check_fingerprint(location, config)
        return location, None
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", reference):
        return reference, config["recorded_revision"]
    raise ValueError(
        f"the base model is not at {location}, and {reference!r} is not a Hub id; set its folder "
        'or Hub id: mlflow.pyfunc.load_model(uri, model_config={"base_model": "…"})'
    )


def _check_fingerprint(location: str, config: dict[str, Any]) -> None:
    """Check that a folder's weights are those that the adapters were trained on.

    Raises:
        ValueError: they differ.
    """
    wanted = config.get("base_fingerprint") or ""
    files = [*Path(location).glob("*.safetensors"), *Path(location).glob("pytorch_model*.bin")]
    if not wanted.startswith("sha256:") or not files:
        return
    found = hashlib.sha256()
    for file in sorted(files):
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    if f"sha256:{found.hexdigest()}" != wanted:
        raise ValueError(
            f"the base at {location} is not the one that the adapters were trained on: its "
            f"fingerprint is sha256:{found.hexdigest()}, expected {wanted}; set base_model to the "
            'right one, or model_config={"base_fingerprint": ""} to use this one anyway'
        )


def load_base(base: str, revision: str | None, config: dict[str, Any], full: list[str]) -> Any:  # noqa: ANN401
    """Load the base for inference, on a GPU if there is one.

    Args:
        base: its folder or Hub id.
        revision: of a Hub id.
        config: the model's settings.
        full: the modules that an adapter trained fully; in a quantized classifier they stay whole.

    Raises:
        ValueError: a file of it can't be read.
    """
    import torch
    import transformers

    labels = config.get("labels")
    dtype = getattr(torch, config["dtype"].removeprefix("torch."))
    quantization = _quantization(config["quantization"], dtype, full if labels else None)
    # The new output layer gets its weights from the adapters.
    classes = {"id2label": dict(enumerate(labels)), "num_labels": len(labels)} if labels else {}
    auto_class = getattr(transformers, config.get("auto_class", "AutoModelForCausalLM"))
    with reading(f"the base model {base!r}"):
        model: Any = auto_class.from_pretrained(
            base,
            revision=revision,
            trust_remote_code=False,
            dtype=dtype,
            quantization_config=quantization,
            **classes,
        )
    if labels:  # decoders classify at the last token that is not padding
        pad = load_tokenizer(base, base, revision).pad_token_id
        model.config.get_text_config().pad_token_id = pad
    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = next((kind for kind, is_there in gpus.items() if is_there), "cpu")
    # bitsandbytes moves the weights itself.
    return model if quantization or device == "cpu" else model.to(device)


def _quantization(name: str, dtype: Any, without: list[str] | None) -> Any:  # noqa: ANN401
    from transformers import BitsAndBytesConfig

    if name == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=without,
        )
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=without)
    return None


def add_embeddings(model: Any, folder: Path) -> None:  # noqa: ANN401
    """Add rows to the model for the tokens that an adapter trained, if it has none for them.

    The adapter contains their values. Another token without a row, such as one for padding, gets
    the mean of the others, as in training: transformers would fill it with random numbers.
    """
    import torch

    trained = adapter_config(folder).get("trainable_token_indices") or {}
    ids = [one for rows in trained.values() for one in rows] if trained else []
    num_rows = model.get_input_embeddings().weight.shape[0]
    if not ids or max(ids) < num_rows:
        return
    model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            end.weight[num_rows:] = end.weight[:num_rows].float().mean(dim=0).to(end.weight.dtype)
