"""Step 1's work: a base model in memory, with the type and packing that the settings ask for."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import Quantization, Task
from tasks.engine.base.memory import give_back
from tasks.engine.base.task_traits import traits_of
from tasks.engine.failures import failure
from tasks.errors import UserError
from tasks.records import BaseModelRecord, BaseSource

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_HEAD_SEED = 0
"""Of layers that the task adds to a base: with its labels it is one definite model."""


def _auto_class(task: Task) -> Any:  # noqa: ANN401 - an Auto class has no common type
    import transformers

    return getattr(transformers, traits_of(task).auto_class)


def load_tokenizer(location: str, revision: str | None) -> "PreTrainedTokenizerBase":
    """Load the base's tokenizer as `read_tokenizer` does; once, while its files stay the same."""
    folder = Path(location)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    states = ((file.name, file.stat()) for file in files if file.is_file())
    return _tokenizer(
        location, revision, tuple((name, one.st_size, one.st_mtime_ns) for name, one in states)
    )


@lru_cache(maxsize=4)
def _tokenizer(
    location: str,
    revision: str | None,
    files: tuple[tuple[str, int, int], ...],  # noqa: ARG001 - part of what it is found by
) -> "PreTrainedTokenizerBase":
    from transformers import AutoConfig

    tokenizer = read_tokenizer(location, revision, "the base model")
    config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    pad_with_known(tokenizer, getattr(config.get_text_config(), "vocab_size", None))
    return tokenizer


def pad_with_known(tokenizer: "PreTrainedTokenizerBase", num_embeddings: int | None) -> None:
    """Pad with the end token where the model has no embedding for the padding token.

    What is padded is masked, but looked up all the same.
    """
    if num_embeddings and (tokenizer.pad_token_id or 0) >= num_embeddings:
        tokenizer.pad_token = tokenizer.eos_token


def read_tokenizer(location: str, revision: str | None, whose: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer, with a padding token (the end token where it has none).

    Args:
        location: the folder or Hub id that it is saved in.
        revision: of a Hub id.
        whose: it is, in messages.

    Raises:
        UserError: there is none, a slow one that cannot tell where tokens begin, or one with
            nothing to pad with.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        message = f"{whose} {location!r} has no usable tokenizer: {error}"
        raise failure(error, message) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {whose} {location!r} has no fast version, which is needed here"
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer of {whose} {location!r} has neither a padding nor an end token, of "
            "which one is needed to put texts of unlike length in a batch; name one of its tokens "
            "pad_token or eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@lru_cache(maxsize=4)
def end_ids(location: str, revision: str | None) -> tuple[int, ...]:
    """Return the tokens at which a base stops by itself, beside its tokenizer's end token."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(location, revision=revision or "main")
    except OSError:  # as when the model itself is loaded
        config = GenerationConfig.from_model_config(
            AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
        )
    given = config.eos_token_id
    ends = given if isinstance(given, list) else [given]
    return tuple(sorted({int(end) for end in ends if end is not None}))


def load_config(source: BaseSource) -> "PretrainedConfig":
    """Load the base's configuration only, with what the task adds to it.

    Raises:
        UserError: transformers does not know the architecture, or its code is not in transformers;
            or the task's classes are not known.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        message = f"transformers cannot read the configuration of {source.location!r}: {reason}"
        raise failure(error, message) from error
    if not traits_of(source.settings.task).generates:
        _name_classes(config, source)
    return config


def _name_classes(config: "PretrainedConfig", source: BaseSource) -> None:
    """Write the classes into the configuration, and the padding token.

    Decoders with a classification head look for the last token that is not padding.

    Raises:
        UserError: no classes are known.
    """
    labels = source.labels
    if not labels:
        raise UserError(
            f"base_model.labels is empty, but task {source.settings.task.value} needs the "
            "classes; name them in the order of the model's outputs"
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    tokenizer = load_tokenizer(source.location, source.revision)
    config.get_text_config().pad_token_id = tokenizer.pad_token_id


def load_skeleton(source: BaseSource) -> "PreTrainedModel":
    """Build the base without weights (on the meta device), to look at its modules and sizes.

    Raises:
        UserError: the architecture has no model for the task.
    """
    import torch

    config = load_config(source)
    task = source.settings.task
    try:
        with torch.device("meta"):
            return _auto_class(task).from_config(config)  # type: ignore[no-any-return]
    except ValueError as error:
        raise UserError(
            f"{source.location!r} ({config.model_type}) has no model for task {task.value!r}"
        ) from error


def device() -> "torch.device":
    """Give the device that models live on: the first GPU, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(model: "PreTrainedModel") -> AbstractContextManager[None]:
    """Compute as training does: what is float32 on a half-precision base multiplies in its type.

    Without it the float32 copy of a module that trains whole meets half-precision inputs. The type
    is the one that the base was loaded in: PEFT prepares a packed base for training by making all
    that is not packed float32.
    """
    import torch

    dtype = model.config.dtype or model.dtype
    if dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    return torch.autocast(model.device.type, dtype=dtype)


def load_base(source: BaseSource) -> "PreTrainedModel":
    """Load the base model onto the device, all of it frozen.

    Raises:
        UserError: bitsandbytes cannot pack it, its weights cannot be read or are incomplete, or
            the task's classes are not known.
        PassingError: the Hub can't be reached.
        AdapterflowError: the memory does not suffice.
    """
    import torch
    from safetensors import SafetensorError

    settings = source.settings
    dtype: torch.dtype = getattr(torch, source.dtype)
    give_back()  # a model that was thrown away, before this one takes its place
    try:
        with seeded(_HEAD_SEED):
            model, info = _auto_class(settings.task).from_pretrained(
                source.location,
                revision=source.revision,
                config=load_config(source),
                dtype=dtype,
                quantization_config=_quantization_config(source, dtype),
                device_map={"": device()},
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        message = f"the base model {source.location!r} cannot be loaded: {error}"
        raise failure(error, message) from error
    head = traits_of(settings.task).head_modules(model)
    missing = sorted(key for key in info["missing_keys"] if key.partition(".")[0] not in head)
    if missing:
        # transformers only logs it, and goes on with random numbers in their place.
        raise UserError(
            f"the base model {source.location!r} lacks {len(missing)} weights of "
            f"{type(model).__name__}, such as {missing[0]}"
        )
    model.requires_grad_(requires_grad=False)
    if settings.quantization is Quantization.NF4:
        _keep_layout(model)
    return model  # type: ignore[no-any-return]


def _keep_layout(model: "PreTrainedModel") -> None:
    """Keep 4-bit weights in one layout.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks them in an evaluation's forward pass and
    reads them wrongly in the next backward pass: every gradient after it would be wrong.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw new weights from the seed alone, whatever was drawn before."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _quantization_config(source: BaseSource, dtype: "torch.dtype") -> Any:  # noqa: ANN401
    from transformers import BitsAndBytesConfig

    settings = source.settings
    if settings.quantization is Quantization.NONE:
        return None
    # What trains whole can't be packed. Unless told, transformers leaves out the output layer.
    skipped = traits_of(settings.task).head_modules(load_skeleton(source)) or None
    if settings.quantization is Quantization.NF4:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)


def describe_base(source: BaseSource, model: "PreTrainedModel") -> BaseModelRecord:
    """Record the loaded model: which one it is, and its size in parameters and bytes."""
    return BaseModelRecord(
        **dict(source),
        architecture=type(model).__name__,
        num_parameters=model.num_parameters(),
        num_bytes=model.get_memory_footprint(),
    )
