"""Step 1's work: a base model in memory, in the dtype and quantization that the settings name."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import Quantization, Task
from tasks.engine.base.config_file import check_quantization, explain
from tasks.engine.base.devices import base_device
from tasks.engine.base.memory import release_memory
from tasks.engine.base.new_tokens import add_embeddings, add_tokens, token_ids
from tasks.engine.base.task_traits import traits_of
from tasks.engine.base.tokenizer_files import (
    blame_file,
    check_generation_file,
    check_tokenizer_files,
)
from tasks.engine.base.upstream_progress import shown_as
from tasks.engine.base.warm_base import note_pristine, take_warm
from tasks.engine.base.weight_files import check_complete, check_weights
from tasks.engine.reading import reading
from tasks.errors import UserError
from tasks.records import BaseModelRecord, BaseSource

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_HEAD_SEED = 0
"""Of the head that a task adds to a base: the same base and labels always make the same model."""


def _auto_class(task: Task) -> Any:  # noqa: ANN401 - an Auto class has no common type
    import transformers

    return getattr(transformers, traits_of(task).auto_class)


def load_tokenizer(
    location: str,
    revision: str | None,
    chat_template: str | None = None,
    new_tokens: tuple[str, ...] = (),
) -> "PreTrainedTokenizerBase":
    """Load the base's tokenizer as `read_tokenizer` does, cached while its files are unchanged.

    Args:
        location: the base's folder or Hub id.
        revision: of a Hub id.
        chat_template: used instead of the tokenizer's own, if given.
        new_tokens: added to it.

    Raises:
        UserError: as `read_tokenizer`, or it has a new token already.
    """
    folder = Path(location)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    states = ((file.name, file.stat()) for file in files if file.is_file())
    known = tuple((name, one.st_size, one.st_mtime_ns) for name, one in states)
    return _tokenizer(location, revision, known, chat_template, new_tokens)


def tokenizer_of(base: BaseSource, chat_template: str | None = None) -> "PreTrainedTokenizerBase":
    """Load a base's tokenizer, with the tokens that its settings add; see `load_tokenizer`."""
    new_tokens = base.settings.new_tokens
    return load_tokenizer(base.location, base.revision, chat_template, new_tokens)


def new_token_ids(base: BaseSource) -> list[int]:
    """Return the numbers of the tokens that a base's settings add, sorted."""
    new_tokens = base.settings.new_tokens
    return token_ids(tokenizer_of(base), new_tokens) if new_tokens else []


@lru_cache(maxsize=4)
def _tokenizer(
    location: str,
    revision: str | None,
    files: tuple[tuple[str, int, int], ...],  # noqa: ARG001 - part of the cache's key
    chat_template: str | None,
    new_tokens: tuple[str, ...],
) -> "PreTrainedTokenizerBase":
    from transformers import AutoConfig

    tokenizer = read_tokenizer(location, revision, "the base model")
    add_tokens(tokenizer, new_tokens)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    with _reading_config(location):
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
    pad_with_known(tokenizer, getattr(config.get_text_config(), "vocab_size", None))
    return tokenizer


def pad_with_known(tokenizer: "PreTrainedTokenizerBase", num_embeddings: int | None) -> None:
    """Pad with the end token if the model has no embedding for the padding token.

    Padding is masked in attention, but its embedding is looked up all the same.
    """
    if num_embeddings and (tokenizer.pad_token_id or 0) >= num_embeddings:
        tokenizer.pad_token = tokenizer.eos_token


def read_tokenizer(location: str, revision: str | None, whose: str) -> "PreTrainedTokenizerBase":
    """Load a tokenizer, with the end token as padding token if it has none.

    Args:
        location: the folder or Hub id that it is saved in.
        revision: of a Hub id.
        whose: the tokenizer's owner, in messages.

    Raises:
        UserError: there is no tokenizer, it has no fast version (only those return character
            offsets), or it has neither a padding nor an end token.
    """
    from transformers import AutoTokenizer

    folder = Path(location)
    check_tokenizer_files(folder)
    problem = f"{whose} {location!r} has no usable tokenizer"
    with reading(problem, partial(blame_file, folder)):
        # Unset, transformers 5.23 asks whoever sits at a terminal, and runs it on a `y`.
        tokenizer = AutoTokenizer.from_pretrained(
            location, revision=revision, trust_remote_code=False
        )
    if not tokenizer.is_fast:
        raise UserError(
            f"the tokenizer of {whose} {location!r} has no fast version; adapterflow needs the "
            "character offsets that only fast tokenizers return, so use a base model with a "
            "tokenizer.json"
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer of {whose} {location!r} has neither a padding nor an end token, and "
            "one of them is needed to pad texts to the same length; set pad_token or eos_token in "
            "its tokenizer_config.json to one of its tokens"
        )
    with reading(problem):
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.decode(
            tokenizer("a")["input_ids"], skip_special_tokens=True
        )  # fails late otherwise
    return tokenizer


@lru_cache(maxsize=4)
def end_ids(location: str, revision: str | None) -> tuple[int, ...]:
    """Return the ids of the tokens at which the base stops generating, by its configuration.

    The tokenizer's end token is not always among them.
    """
    from transformers import AutoConfig, GenerationConfig

    check_generation_file(Path(location))
    with _reading_config(location):
        try:
            config = GenerationConfig.from_pretrained(location, revision=revision or "main")
        except OSError:  # no generation_config.json; transformers falls back in the same way
            base = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=False)
            config = GenerationConfig.from_model_config(base)
    given = config.eos_token_id
    ends = given if isinstance(given, list) else [given]
    return tuple(sorted({int(end) for end in ends if end is not None}))


def load_config(source: BaseSource) -> "PretrainedConfig":
    """Load the base's configuration only, with the classes and padding token that the task needs.

    Raises:
        UserError: transformers does not know the architecture, or it needs remote code; or the
            task needs classes and there are none.
    """
    from transformers import AutoConfig

    with _reading_config(source.location):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source.location, revision=source.revision, trust_remote_code=False
        )
    check_quantization(Path(source.location), getattr(config, "quantization_config", None))
    if not traits_of(source.settings.task).generates:
        _name_classes(config, source)
    return config


def _name_classes(config: "PretrainedConfig", source: BaseSource) -> None:
    """Write the classes and the padding token into the configuration.

    A decoder with a classification head pools the last token that is not padding, so it has to
    know the padding token.

    Raises:
        UserError: there are no classes.
    """
    labels = source.labels
    if not labels:
        raise UserError(
            f"base_model.labels is empty, but task {source.settings.task.value} needs the "
            "classes; list them in the order of the model's outputs"
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    tokenizer = load_tokenizer(source.location, source.revision)
    config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _reading_config(location: str, problem: str = "") -> AbstractContextManager[None]:
    """Return the block in which transformers reads and uses a base's configuration."""
    problem = problem or f"transformers cannot read the configuration of {location!r}"
    return reading(problem, partial(explain, Path(location)))


def load_skeleton(source: BaseSource) -> "PreTrainedModel":
    """Build the base without weights (on the meta device), to inspect its modules and sizes.

    Raises:
        UserError: the architecture has no model for the task.
    """
    import torch

    config = load_config(source)
    task = source.settings.task
    whose = f"{source.location!r} ({config.model_type})"
    problem = f"no model for task {task.value!r} can be made from {whose}"
    with _reading_config(source.location, problem), torch.device("meta"):
        skeleton: PreTrainedModel = _auto_class(task).from_config(config)
        if new := new_token_ids(source):
            add_embeddings(skeleton, new)
    return skeleton


@lru_cache(maxsize=4)
def check_local_weights(source: BaseSource) -> None:
    """Check the weights of a local base by their headers, once; see `check_weights`."""
    as_saved = source.settings.model_copy(update={"new_tokens": ()})
    check_weights(source, load_skeleton(source.model_copy(update={"settings": as_saved})))


def mixed_precision(model: "PreTrainedModel") -> AbstractContextManager[None]:
    """Autocast to the base's dtype as training does, if that is half precision.

    The adapter's weights and fully trained modules (`modules_to_save`) are float32; without
    autocast they would fail on half-precision inputs.
    """
    import torch

    dtype = compute_dtype(model)
    if dtype not in (torch.bfloat16, torch.float16):
        return nullcontext()
    return torch.autocast(model.device.type, dtype=dtype)


def compute_dtype(model: "PreTrainedModel") -> "torch.dtype":
    """Return the type that products are computed in, that of the base as it was loaded."""
    # Not `model.dtype` alone: PEFT prepares a quantized base for training by casting all weights
    # that are not quantized to float32, and the configuration still has the dtype of loading.
    configured: Any = model.config.dtype or model.dtype  # typed as if it might be a text
    found: torch.dtype = min((configured, model.dtype), key=lambda dtype: dtype.itemsize)
    return found


def load_base(source: BaseSource) -> "PreTrainedModel":
    """Load the base model onto the device, frozen.

    In a process that keeps bases warm it may be the one that an earlier user gave back, proven to
    be as it was loaded.

    Raises:
        UserError: bitsandbytes cannot quantize it, its weights cannot be read or are incomplete,
            or the task needs classes and there are none.
        PassingError: the Hub cannot be reached.
        AdapterflowError: the process or the GPU ran out of memory.
    """
    if (warm := take_warm(source)) is not None:
        return warm
    release_memory()  # the memory of a discarded model, before this one is loaded
    model = _load(source)
    note_pristine(source, model)
    return model


def _load(source: BaseSource) -> "PreTrainedModel":
    import torch

    settings = source.settings
    dtype: torch.dtype = getattr(torch, source.dtype)
    check_local_weights(source)
    problem = f"the base model {source.location!r} cannot be loaded"
    with (
        _reading_config(source.location, problem),
        seeded(_HEAD_SEED),
        shown_as("loaded weight"),
    ):
        model, info = _auto_class(settings.task).from_pretrained(
            source.location,
            revision=source.revision,
            config=load_config(source),
            dtype=dtype,
            quantization_config=_quantization_config(source, dtype),
            device_map={"": base_device()},
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    check_complete(source, model, info)
    model.requires_grad_(requires_grad=False)
    if new := new_token_ids(source):
        add_embeddings(model, new)
    if settings.quantization is Quantization.NF4:
        _keep_layout(model)
    return model  # type: ignore[no-any-return]


def _keep_layout(model: "PreTrainedModel") -> None:
    """Keep 4-bit weights in their layout.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 changes the layout in an evaluation's forward pass
    and misreads it in the next backward pass: every gradient from then on would be wrong.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random numbers from the seed alone, and restore the generators' state afterwards."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _quantization_config(source: BaseSource, dtype: "torch.dtype") -> Any:  # noqa: ANN401
    from transformers import BitsAndBytesConfig

    settings = source.settings
    if settings.quantization is Quantization.NONE:
        return None
    # A head trains fully, so it can't be quantized. With None, transformers skips the output layer.
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
    """Return the record of the loaded model: which one it is, its parameters and its bytes."""
    return BaseModelRecord(
        **dict(source),
        architecture=type(model).__name__,
        num_parameters=model.num_parameters(),
        num_bytes=model.get_memory_footprint(),
    )
