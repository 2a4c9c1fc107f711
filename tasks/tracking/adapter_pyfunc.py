"""The model that MLflow loads and serves: adapters on a base that is found where it is stored.

This file is stored with each logged adapter, and with it the engine's `siblings.py`. They run
wherever that is loaded, so they import nothing else of this project. Another location of the base
is set by `mlflow.pyfunc.load_model(uri, model_config={"base_model": "…"})`.
"""

import hashlib
import importlib.util
import json
import logging
import math
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow.models
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

log = logging.getLogger("adapterflow")

# bitsandbytes 0.50 warns that the package `kernels` is missing; it would fetch code from the Hub.
_bitsandbytes = logging.getLogger("bitsandbytes.backends.cpu.ops")
# Once: MLflow runs this file for each model anew, and a filter would keep all of it in memory.
if not _bitsandbytes.filters:
    _bitsandbytes.addFilter(lambda record: "kernels-community" not in str(record.msg))

_SHOWN_ROWS = 5


@dataclass(frozen=True)
class Decoding:
    """How a prompt is answered; prompts with equal options can share a batch."""

    max_new_tokens: int
    temperature: float
    adapter: str | None
    """None if the rows of a batch may have different adapters."""
    ends: tuple[int, ...]
    """Tokens that end an answer."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as text, and what its chat template writes around the content of an answer."""

    text: str
    is_chat: bool = False
    before: str = ""
    after: str = ""


@dataclass(eq=False)
class Job:
    """One prompt that waits for its answer."""

    prompt: list[int]
    """The prompt's tokens."""
    adapter: str
    decoding: Decoding
    asked: RenderedPrompt = field(default_factory=lambda: RenderedPrompt(""))
    words: list[int | None] = field(default_factory=list)
    """The first token of each word, for token classification."""
    answer: str | dict[str, Any] | None = None
    error: Exception | None = None
    is_done: threading.Event = field(default_factory=threading.Event)


class RequestError(MlflowException):
    """A request without an answer: a server returns its status and its message, and nothing else.

    MLflow's server (3.17) replaces `message` by one that begins with all of the request's data.
    """

    def serialize_as_json(self) -> str:
        """Return the body of the server's response."""
        self.message = str(self)
        body: str = super().serialize_as_json()  # type: ignore[no-untyped-call]
        return body


class AdapterModel(PythonModel):
    """Answers the rows of a table, by its column `prompt` (text) or `messages` (a conversation).

    For sequence classification the column is `text`, and an answer is a label with its probability.
    For token classification the column is `tokens`, a list of words, and an answer is a list of as
    many tags, with the probability of the least certain one.

    The param `adapter` selects one of the stored adapters, all of which are in memory, on one base.
    Concurrent requests are batched together, each row with its adapter.

    In bfloat16 and float16 an answer may depend on the other rows of its batch. To prevent that,
    set `dtype` to float32 or `batch_size` to 1 by `model_config` (for a server, as JSON in the
    environment variable SERVING_MODEL_CONFIG).
    """

    # Without this, mlflow 3.17 warns about missing type hints on `predict` at each load; with type
    # hints it would drop the signature's params.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Load base, adapters and tokenizers.

        Raises:
            ValueError: the base is not found, an adapter's weights do not fit it exactly, or
                `batch_size` is less than 1.
        """
        self.config = dict(context.model_config)
        if self.config["batch_size"] < 1:
            raise ValueError(f"batch_size is {self.config['batch_size']}; it must be 1 or more")
        base, revision = find_base(self.config)
        folders = {name: Path(context.artifacts[name]) for name in self.config["adapters"]}
        self.tokenizers = _load_tokenizers(folders, base, revision)
        for name, template in self.config["adapters"].items():
            if template == "chat":  # before the base's weights are loaded
                _check_template(self.tokenizers[name])
        self.model = _load_base(base, revision, self.config, _fully_trained(folders.values()))
        for folder in folders.values():
            _add_embeddings(self.model, folder)
        self.num_embeddings = self.model.get_input_embeddings().weight.shape[0]
        self.labels = self.config.get("labels", [])
        self.tags_words = self.config.get("auto_class") == "AutoModelForTokenClassification"
        self.is_seq2seq = self.model.config.is_encoder_decoder
        self.chats, self.inner, self.ends = {}, {}, {}
        self.chat_options: dict[str, dict[str, Any]] = {}
        for number, (name, template) in enumerate(self.config["adapters"].items()):
            folder, tokenizer = context.artifacts[name], self.tokenizers[name]
            # Prompts must be rendered as in training.
            self.chats[name] = template == "chat" and tokenizer.chat_template is not None
            self.chat_options[name] = _chat_options(folder)
            # Decoders continue the last position, so they need padding on the left. Encoders count
            # positions from the first token.
            in_front = not (self.labels or self.is_seq2seq)
            tokenizer.padding_side = "left" if in_front else "right"
            if (tokenizer.pad_token_id or 0) >= self.num_embeddings:  # masked, but embedded
                tokenizer.pad_token = tokenizer.eos_token
            self.ends[name] = _end_tokens(self.model, tokenizer)
            # MLflow allows adapter names that torch does not allow for modules.
            self.inner[name] = f"adapter_{number}"
            _load_adapter(self.model, folder, self.inner[name], base)
        # transformers passes the output layer a non-contiguous slice, for which torch 2.13 copies
        # the weight once per row: that costs a second per batch.
        if head := self.model.get_output_embeddings():
            head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        self.model.eval()
        self._active = ""
        self._mixable = {name for name in self.tokenizers if _is_plain(context.artifacts[name])}
        self._names: list[str] | None = None
        _name_adapters(self.model, lambda: self._names)
        self._waiting: deque[Job] = deque()
        self._queue, self._computing = threading.Lock(), threading.Lock()
        self._tokenizing = threading.Lock()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, ARG002
        """Return one answer per row: a list of str, or of label (or tags) and probability.

        Raises:
            RequestError: a row has no question (the message names each such row), the adapter is
                unknown, or a limit is exceeded; or, with status 500, the model failed.
        """
        try:
            jobs = self._jobs(model_input, *self._decoding(**(params or {})))
            self._answer_all(jobs)
        except MlflowException:
            raise
        except Exception as error:
            # Of an error that is not its own, MLflow's server would return the stack trace.
            log.exception("a request failed")
            raise RequestError(
                f"the model failed: {_said(error)}; the server's log has the details",
                error_code=INTERNAL_ERROR,
            ) from error
        return [job.answer for job in jobs]

    def _jobs(self, table: Any, adapter: str, decoding: Decoding) -> list[Job]:  # noqa: ANN401
        """Return a job per row of a request; all rows are refused if one has no question."""
        jobs, problems = [], []
        for number, row in enumerate(self._rows(table), start=1):
            try:
                jobs.append(self._job(row, adapter, decoding))
            except RequestError as error:
                problems.append(f"row {number}: {error}")
            except Exception as error:  # noqa: BLE001 - a row may hold anything
                problems.append(f"row {number} can't be read: {_said(error)}")
        if problems:
            more = len(problems) - _SHOWN_ROWS
            shown = problems[:_SHOWN_ROWS] + [f"and {more} more rows"] * (more > 0)
            raise _refused("; ".join(shown))
        return jobs

    def _rows(self, table: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        # mlflow drops columns that the signature does not name, which may leave none.
        columns = {"prompt", "messages"}
        if self.labels:
            columns = {"tokens"} if self.tags_words else {"text"}
        if not columns & set(table.columns):
            raise _refused(f"the table needs a column {' or '.join(sorted(columns))}")
        rows: list[dict[str, Any]] = table.to_dict(orient="records")
        for name in {"prompt", "text"} & columns:
            # mlflow 3.17 makes one row of a request that is a column of texts, as {"prompt": […]}.
            if len(rows) == 1 and isinstance(texts := rows[0].get(name), list):
                rows = [{name: text} for text in texts]
        if not rows:
            raise _refused("the request has no rows")
        if len(rows) > self.config["max_rows"]:
            raise _refused(f"{len(rows)} rows in one request; at most {self.config['max_rows']}")
        return rows

    def _decoding(
        self, adapter: str = "", max_new_tokens: int = 128, temperature: float = 0.0
    ) -> tuple[str, Decoding]:
        names = list(self.tokenizers)
        if adapter and adapter not in names:
            raise _refused(f"there is no adapter {adapter!r}; possible: {', '.join(names)}")
        most = self.config["max_new_tokens"]
        if not 0 < int(max_new_tokens) <= most:
            raise _refused(f"max_new_tokens is {max_new_tokens}; possible are 1 to {most}")
        if not 0 <= float(temperature) < math.inf:
            raise _refused(f"temperature is {temperature}; possible is 0 or more")
        adapter = adapter or self.config["default_adapter"]
        alone = None if adapter in self._mixable else adapter
        ends = self.ends[adapter]
        return adapter, Decoding(int(max_new_tokens), float(temperature), alone, ends)

    def _job(self, row: dict[str, Any], adapter: str, decoding: Decoding) -> Job:
        tokenizer, is_chat = self.tokenizers[adapter], self.chats[adapter]
        words = _words_of(row) if self.tags_words else []
        if self.labels:
            asked = RenderedPrompt(" ".join(words) or _text(row.get("text"), "text"))
        else:
            ends = tokenizer.convert_ids_to_tokens(list(self.ends[adapter]))
            asked = _rendered(tokenizer, row, self.chat_options[adapter] if is_chat else None, ends)
        if self.is_seq2seq and not self.labels:  # an encoder's input ends with the tokenizer's end
            asked = RenderedPrompt(asked.text.rstrip())
        # Fast tokenizers keep the padding as state between calls, and are not thread-safe.
        with self._tokenizing:
            # The chat template has already written the special tokens.
            encoded = tokenizer(
                asked.text,
                add_special_tokens=not asked.is_chat,
                return_offsets_mapping=self.tags_words,
            )
        tokens: list[int] = encoded["input_ids"]
        if not asked.is_chat:
            tokens = _undoubled(tokenizer, asked.text, tokens)
        if max(tokens, default=0) >= self.num_embeddings:
            unknown = tokenizer.convert_ids_to_tokens(max(tokens))
            raise _refused(
                f"the prompt contains the token {unknown!r} ({max(tokens)}); the base has "
                f"embeddings for tokens 0 to {self.num_embeddings - 1} only"
            )
        most = self._longest_prompt(tokenizer, decoding)
        if not 0 < len(tokens) <= most:
            raise _refused(f"the prompt has {len(tokens)} tokens; possible are 1 to {most}")
        firsts = first_tokens(words, encoded["offset_mapping"]) if words else []
        return Job(tokens, adapter, decoding, asked, firsts)

    def _longest_prompt(self, tokenizer: Any, decoding: Decoding) -> int:  # noqa: ANN401
        most: int = self.config["max_prompt_tokens"]
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if self.labels:
            # Some encoders reserve positions, such as RoBERTa; their tokenizers know the true
            # limit.
            return int(min(most, positions or most, tokenizer.model_max_length))
        return min(most, (positions or most) - decoding.max_new_tokens)

    def _answer_all(self, jobs: list[Job]) -> None:
        """Wait until these are answered; the thread that gets the lock computes for all of them."""
        with self._queue:
            self._waiting.extend(jobs)
        try:
            for job in jobs:
                self._wait_for(job)
        finally:  # the rest of a failed request need not be computed
            with self._queue:
                self._waiting = deque(one for one in self._waiting if one not in jobs)

    def _wait_for(self, job: Job) -> None:
        while not job.is_done.is_set():
            with self._computing:
                # Another request may have answered it in the meantime.
                if not job.is_done.is_set():
                    self._answer_batch(self._take())
        if job.error:
            raise job.error

    def _take(self) -> list[Job]:
        """Take the job that has waited longest, and others with equal decoding options."""
        with self._queue:
            decoding = self._waiting[0].decoding
            batch = [job for job in self._waiting if job.decoding == decoding]
            batch = batch[: self.config["batch_size"]]
            for job in batch:
                self._waiting.remove(job)
        return batch

    def _answer_batch(self, batch: list[Job]) -> None:
        try:
            answers = self._answer(batch, batch[0].decoding)
            for job, answer in zip(batch, answers, strict=True):
                job.answer = answer
        except Exception as error:  # noqa: BLE001 - each of the requests raises it
            for job in batch:
                job.error = error
        finally:
            for job in batch:
                job.is_done.set()

    def _answer(self, jobs: list[Job], decoding: Decoding) -> list[Any]:
        import torch
        from transformers import GenerationConfig

        self._switch([job.adapter for job in jobs])
        tokenizer = self.tokenizers[jobs[0].adapter]  # all have the same vocabulary
        prompts = {"input_ids": [job.prompt for job in jobs]}
        batch = tokenizer.pad(prompts, return_tensors="pt").to(self.model.device)
        if self.labels:
            return self._classify(batch, jobs)
        # As in the sample answers of step 6. What is unset here, generate() takes from the base.
        how = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=list(decoding.ends) or None,
            pad_token_id=tokenizer.pad_token_id,
            **_sampling(decoding.temperature),
        )
        with torch.inference_mode():
            tokens = self.model.generate(**batch, generation_config=how, tokenizer=tokenizer)
        new_tokens = tokens if self.is_seq2seq else tokens[:, batch["input_ids"].shape[1] :]
        return [
            read_answer(self.tokenizers[job.adapter], job.asked, ids.tolist())
            for job, ids in zip(jobs, new_tokens, strict=True)
        ]

    def _switch(self, adapters: list[str]) -> None:
        """Activate one adapter for the next batch, or one per row, which is slower."""
        from peft.functional import set_adapter

        # Also if several answer: activating one of them switches off the fully trained modules of
        # any other adapter.
        if self._active not in adapters:
            self._active = adapters[0]
            set_adapter(self.model, self.inner[self._active], inference_mode=True)
        is_mixed = len(set(adapters)) > 1
        self._names = [self.inner[name] for name in adapters] if is_mixed else None

    def _classify(self, batch: Any, jobs: list[Job]) -> list[dict[str, Any]]:  # noqa: ANN401
        import torch

        with torch.inference_mode():
            logits = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
        best = logits.float().softmax(dim=-1).max(dim=-1)
        if self.tags_words:
            lines = zip(jobs, best.indices.tolist(), best.values.tolist(), strict=True)
            return [self._tags(job.words, *line) for job, *line in lines]
        return [
            {"label": self.labels[number], "probability": share}
            for number, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _tags(
        self, words: list[int | None], numbers: list[int], shares: list[float]
    ) -> dict[str, Any]:
        seen = [place for place in words if place is not None]
        tags = ["?" if place is None else self.labels[numbers[place]] for place in words]
        return {"tags": tags, "probability": min((shares[place] for place in seen), default=0.0)}


def first_tokens(words: list[str], offsets: list[tuple[int, int]]) -> list[int | None]:
    """Return each word's first token in a text, as in training; None for a word without one."""
    firsts: list[int | None] = [None] * len(words)
    word, start = 0, 0
    for place, (begins, ends) in enumerate(offsets):
        while word < len(words) and start + len(words[word]) <= begins:
            start += len(words[word]) + 1
            word += 1
        if word < len(words) and start < ends and begins < ends and firsts[word] is None:
            firsts[word] = place
    return firsts


def _refused(message: str) -> RequestError:
    """Return an error that a server turns into status 400 with this message."""
    return RequestError(message, error_code=INVALID_PARAMETER_VALUE)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error!s:.200}"


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


def _fully_trained(folders: Iterable[Path]) -> list[str]:
    """Return the names of the modules that some adapter trained fully."""
    configs = [_adapter_config(folder) for folder in folders]
    return sorted({name for one in configs for name in one.get("modules_to_save") or ()})


def _load_base(base: str, revision: str | None, config: dict[str, Any], full: list[str]) -> Any:  # noqa: ANN401
    import torch
    import transformers

    labels = config.get("labels")
    dtype = getattr(torch, config["dtype"].removeprefix("torch."))
    quantization = _quantization(config["quantization"], dtype, full if labels else None)
    # The new output layer gets its weights from the adapters.
    classes = {"id2label": dict(enumerate(labels)), "num_labels": len(labels)} if labels else {}
    auto_class = getattr(transformers, config.get("auto_class", "AutoModelForCausalLM"))
    with _reading(f"the base model {base!r}"):
        model: Any = auto_class.from_pretrained(
            base,
            revision=revision,
            trust_remote_code=False,
            dtype=dtype,
            quantization_config=quantization,
            **classes,
        )
    if labels:  # decoders classify at the last token that is not padding
        pad = _load_tokenizer(base, base, revision).pad_token_id
        model.config.get_text_config().pad_token_id = pad
    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = next((kind for kind, is_there in gpus.items() if is_there), "cpu")
    # bitsandbytes moves the weights itself.
    return model if quantization or device == "cpu" else model.to(device)


def _add_embeddings(model: Any, folder: Path) -> None:  # noqa: ANN401
    """Add rows to the model for the tokens that an adapter trained, if it has none for them.

    The adapter contains their values. Another token without a row, such as one for padding, gets
    the mean of the others, as in training: transformers would fill it with random numbers.
    """
    import torch

    trained = _adapter_config(folder).get("trainable_token_indices") or {}
    ids = [one for rows in trained.values() for one in rows] if trained else []
    num_rows = model.get_input_embeddings().weight.shape[0]
    if not ids or max(ids) < num_rows:
        return
    model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            end.weight[num_rows:] = end.weight[:num_rows].float().mean(dim=0).to(end.weight.dtype)


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


def _load_adapter(model: Any, folder: str, name: str, base: str) -> None:  # noqa: ANN401
    is_lora = _adapter_config(Path(folder)).get("peft_type") == "LORA"
    wrong = (_load_lora if is_lora else _load_other)(model, folder, name)
    if wrong:
        raise ValueError(
            f"the adapter in {folder} was trained on another base than {base!r}: {len(wrong)} "
            f"weights are missing, unexpected or of another shape, such as {min(wrong)}"
        )


def _stored_siblings() -> ModuleType:
    """Return the module that is stored with this file: it adds adapters in a time that stays equal.

    MLflow has its folder on `sys.path`, but each model of a process has to get its own.
    """
    here = Path(__file__)
    stored = here.parent / "code" / "siblings.py"
    in_project = here.parent.parent / "engine" / "adapters" / "siblings.py"
    file = stored if stored.exists() else in_project
    spec = importlib.util.spec_from_file_location(f"{__name__}_siblings", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} can't be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


siblings: Any = _stored_siblings()


def _load_lora(model: Any, folder: str, name: str) -> list[str]:  # noqa: ANN401
    """Load a LoRA adapter; return the weights that do not fit."""
    from peft import PeftConfig

    given, saved = _adapter_config(Path(folder)), _weights(folder)
    weights = {key.removeprefix("base_model.model."): weight for key, weight in saved.items()}
    if sibling := siblings.sibling_of(model, given, weights):
        config = PeftConfig.from_pretrained(folder)
        return list(siblings.add_sibling(model, sibling, name, config, weights))
    wrong = _load_lora_by_transformers(model, folder, name, saved)
    if not wrong:
        siblings.remember(model, name, given)
    return wrong


def _load_lora_by_transformers(
    model: Any,  # noqa: ANN401
    folder: str,
    name: str,
    weights: dict[str, Any],
) -> list[str]:
    """Load a LoRA adapter that has no sibling; return the weights that do not fit."""
    # transformers 5.23 warns that all other adapters' weights are newly initialized.
    log = logging.getLogger("transformers.integrations.peft")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with _reading(f"the adapter in {folder}"):
            info = model.load_adapter(folder, adapter_name=name, adapter_state_dict=weights)
    finally:
        log.setLevel(level)
    # Weights that do not fit are only logged by transformers, and stay random.
    own = re.compile(rf"\.(lora_\w+|trainable_tokens_\w+|modules_to_save)\.{re.escape(name)}(\.|$)")
    absent = {key for key in map(str, info.missing_keys) if own.search(key)}
    # With tied embeddings, the output layer's rows of new tokens are the input's: the same object.
    named = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameter) for key, parameter in named.items() if key not in absent}
    missing = [key for key in absent if key not in named or id(named[key]) not in loaded]
    return [*missing, *map(str, info.unexpected_keys), *map(str, info.mismatched_keys)]


def _load_other(model: Any, folder: str, name: str) -> list[str]:  # noqa: ANN401
    """Load an adapter of another method than LoRA; return the weights that do not fit.

    `load_adapter` of transformers 5.23 takes the indices that some methods save for unexpected.
    """
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict

    with _reading(f"the adapter in {folder}"):
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = False
        model.requires_grad_(requires_grad=False)
        model.add_adapter(config, adapter_name=name)
        for parameter in model.parameters():
            if parameter.requires_grad:  # has the base's dtype, and would round what is loaded
                parameter.data = parameter.data.float()
        model.requires_grad_(requires_grad=False)
        saved = _weights(folder).items()
        given = {key.removeprefix("base_model.model."): weight for key, weight in saved}
        own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        there = {key: weight.shape for key, weight in own.items()}
        here = {key: weight.shape for key, weight in given.items()}
        if wrong := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
            return wrong
        set_peft_model_state_dict(model, given, adapter_name=name)
    return []


def _weights(folder: str) -> dict[str, Any]:
    """Read an adapter's weights; transformers expects `.weight` in DoRA's keys, PEFT omits it."""
    from safetensors.torch import load_file

    with _reading(f"the weights of the adapter in {folder}"):
        weights = load_file(Path(folder) / "adapter_model.safetensors")
    return {re.sub(r"\.lora_magnitude_vector$", r"\g<0>.weight", k): w for k, w in weights.items()}


def _is_plain(folder: str) -> bool:
    """Return whether PEFT can apply the adapter to single rows of a batch."""
    config = _adapter_config(Path(folder))
    others = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")
    is_lora = config.get("peft_type") == "LORA"
    return is_lora and config.get("bias", "none") == "none" and not any(map(config.get, others))


def _name_adapters(model: Any, names: Callable[[], list[str] | None]) -> None:  # noqa: ANN401
    """Pass each row's adapter to the LoRA layers, if `names()` returns names.

    PEFT's own `adapter_names` argument exists only on a PeftModel, which this model is not.
    """
    from peft.tuners.lora import LoraLayer

    def add_names(_: Any, inputs: Any, keywords: dict[str, Any]) -> Any:  # noqa: ANN401
        given = names()
        return None if given is None else (inputs, {**keywords, "adapter_names": given})

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_pre_hook(add_names, with_kwargs=True)


def _load_tokenizers(folders: dict[str, Path], base: str, revision: str | None) -> dict[str, Any]:
    """Return each adapter's tokenizer: one object for adapters with equal files, or without any."""
    found: dict[str, Any] = {}
    kinds = {name: _tokenizer_sha256(folder) for name, folder in folders.items()}
    for name, kind in kinds.items():
        if kind not in found:
            found[kind] = _load_tokenizer(str(folders[name]), base, revision)
    return {name: found[kind] for name, kind in kinds.items()}


def _tokenizer_sha256(folder: Path) -> str:
    """Return a hash of what may be a tokenizer's file in an adapter's folder; empty without one."""
    if not (folder / "tokenizer_config.json").exists():
        return ""
    found = hashlib.sha256()
    for file in sorted(one for one in folder.iterdir() if one.is_file()):
        if not file.name.startswith("adapter_"):
            with file.open("rb") as opened:
                found.update(hashlib.file_digest(opened, "sha256").digest())
            found.update(file.name.encode())
    return found.hexdigest()


def _load_tokenizer(folder: str, base: str, revision: str | None) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    if (Path(folder) / "tokenizer_config.json").exists():
        base, revision = folder, None
    with _reading(f"the tokenizer of {base!r}"):
        tokenizer = AutoTokenizer.from_pretrained(base, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _adapter_config(folder: Path) -> dict[str, Any]:
    with _reading(f"the configuration of the adapter in {folder}"):
        return dict(json.loads((folder / "adapter_config.json").read_text()))


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a file into a ValueError that names it."""
    try:
        yield
    except (OSError, ValueError, MemoryError):  # these name it, or are about the machine
        raise
    except Exception as error:
        raise ValueError(f"{what} can't be read: {type(error).__name__}: {error}") from error


_TRIAL = """
import contextlib, json, os, signal, sys
from transformers.utils.chat_template_utils import render_jinja_template

asked = json.load(sys.stdin)
with contextlib.suppress(ImportError, OSError, ValueError):
    import resource
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
signal.alarm(5)
for turns in asked["conversations"]:
    try:
        (text,), _ = render_jinja_template([turns], **asked["options"])
    except MemoryError:
        sys.exit("takes more than 1 GB of memory")
    except Exception:
        continue
    if len(text) > 4_000_000:
        sys.exit(f"writes {len(text):,} characters for a short conversation")
"""
"""Renders short conversations within limits of time and memory, in a process of its own."""
_TRIAL_SECONDS = 120  # with the imports
_TRIED = "ADAPTERFLOW_TRIED_TEMPLATES"
"""The variable with the sha256 of what was tried: MLflow executes this file anew for each model."""


def _check_template(tokenizer: Any) -> None:  # noqa: ANN401
    """Check that the chat template ends: it is a program, and nothing interrupts one in here.

    Raises:
        ValueError: it takes too much time or memory, or writes too much.
    """
    if tokenizer.chat_template is None:
        return
    question = {"role": "user", "content": "What is the capital of France?"}
    conversations = [[question], [question, {"role": "assistant", "content": "Paris."}, question]]
    options = {**tokenizer.special_tokens_map, "chat_template": tokenizer.get_chat_template()}
    options["add_generation_prompt"] = True
    asked = json.dumps({"conversations": conversations, "options": options}, default=str)
    key = hashlib.sha256(asked.encode()).hexdigest()
    if key in os.environ.get(_TRIED, ""):
        return
    command = [sys.executable, "-P", "-c", _TRIAL]
    done = subprocess.run(  # noqa: S603 - our own program
        command, input=asked, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=False
    )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or "does not end within 5 s"
        raise ValueError(f"the chat template of {tokenizer.name_or_path} {reason}")
    os.environ[_TRIED] = f"{os.environ.get(_TRIED, '')} {key}"


def _text(given: Any, name: str, *, may_be_blank: bool = False) -> str:  # noqa: ANN401
    """Return a text that a row must have.

    Raises:
        RequestError: it is missing, something else, or blank.
    """
    if not isinstance(given, str):
        raise _refused(f"{name} is {_shown(given)}; it must be text")
    if not may_be_blank and not given.strip():
        raise _refused(f"{name} is empty; it must contain text")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise _refused(
            f"{name} contains half of a surrogate pair, which is not a character"
        ) from error
    return given


def _shown(given: Any) -> str:  # noqa: ANN401
    text = json.dumps(given, default=str)
    return text if len(text) <= 80 else f"{text[:80]}… ({len(text):,} characters)"  # noqa: PLR2004


def _words_of(row: dict[str, Any]) -> list[str]:
    words = _parsed(row.get("tokens"))
    plain = isinstance(words, list) and all(isinstance(word, str) and word for word in words)
    if not plain or not words or any(map(str.isspace, "".join(words))):
        raise _refused(f"tokens is {_shown(words)}; it must be a list of words")
    return [_text(word, "a token") for word in words]


def _parsed(cell: Any) -> Any:  # noqa: ANN401
    """Return a list that may have come as JSON, or as an array of a Parquet file."""
    try:
        cell = json.loads(cell, object_pairs_hook=_unique) if isinstance(cell, str) else cell
    except (ValueError, RecursionError):
        return cell
    return cell.tolist() if hasattr(cell, "tolist") else cell


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("an object has a key twice")
    return dict(pairs)


def _chat_options(folder: str) -> dict[str, Any]:
    """Return what an adapter's chat template is given beside messages, by its manifest."""
    manifest = Path(folder) / "manifest.json"
    options = json.loads(manifest.read_text()).get("chat") if manifest.is_file() else None
    return options or {}


def _rendered(
    tokenizer: Any,  # noqa: ANN401
    row: dict[str, Any],
    chat: dict[str, Any] | None,
    ends: list[str],
) -> RenderedPrompt:
    """Render a row's prompt or messages as the text that the answer continues.

    Args:
        tokenizer: of the adapter.
        row: the prompt or messages, and any tools.
        chat: what the chat template is given; None without a chat template.
        ends: the texts of tokens that stop generation.

    Raises:
        RequestError: there is no question, or not one question.
    """
    messages, prompt = _cell(row, "messages"), _cell(row, "prompt")
    if (messages is None) == (prompt is None):
        given = "neither" if prompt is None else "both"
        raise _refused(f"a row needs `prompt`, a text, or `messages`; this one has {given}")
    if prompt is not None:
        turns = [{"role": "user", "content": _text(prompt, "prompt")}]
    elif chat is None:
        raise _refused("the adapter was trained without a chat template; give `prompt`")
    else:
        turns = _turns(messages, ends)
    if chat is None:
        return RenderedPrompt(turns[0]["content"])
    return ask(tokenizer, turns, _tools_of(row), chat)


def _cell(row: dict[str, Any], name: str) -> Any:  # noqa: ANN401
    """Return a row's value; None if there is none, as an empty cell of a table is NaN."""
    given = row.get(name)
    return None if isinstance(given, float) and math.isnan(given) else given


def _tools_of(row: dict[str, Any]) -> list[Any] | None:
    """Return the tools that a row names, as a list or as JSON; None without any."""
    tools = _parsed(_cell(row, "tools"))
    if tools is None or tools == "":
        return None
    if not isinstance(tools, list):
        raise _refused(f"tools must be a list of tools: {_shown(tools)}")
    return [_whole_tool(tool) for tool in tools] or None


def _whole_tool(tool: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a tool as `{"type": "function", "function": …}`, as in training."""
    tool = _parsed(tool)
    if not isinstance(tool, dict):
        raise _refused(f"tools must be a list of tools, but one is {_shown(tool)}")
    if "function" in tool and "type" in tool:
        return dict(tool)
    inner = {key: value for key, value in tool.items() if key != "type"}
    return {"type": "function", "function": tool.get("function", inner)}


def ask(
    tokenizer: Any,  # noqa: ANN401
    turns: list[dict[str, Any]],
    tools: list[Any] | None = None,
    chat: dict[str, Any] | None = None,
) -> RenderedPrompt:
    """Render a conversation by its chat template, and find what that writes around an answer.

    Args:
        tokenizer: with the chat template of the training.
        turns: the messages.
        tools: that the assistant may call.
        chat: `chat` in the adapter's manifest: the template's variables, and its form of messages.

    Raises:
        RequestError: the template refuses the conversation, or writes an answer more than once.
    """
    chat = chat or {}

    def render(*more: dict[str, Any], opened: bool = False) -> str:
        form = chat.get("message_form", {})
        return str(
            tokenizer.apply_chat_template(
                [_in_form(turn, form) for turn in (*turns, *more)],
                tools=tools,
                tokenize=False,
                add_generation_prompt=opened,
                **chat.get("chat_template_kwargs", {}),
            )
        )

    if chat.get("system_in_user"):
        turns = _system_in_user(turns)
    try:
        text = render(opened=True)
    except Exception as error:  # a template is a program: it may raise anything
        raise _refused(f"the chat template refuses the messages: {error!s:.200}") from error
    mark = "\ue000answer\ue001"  # private-use characters, which no template handles
    try:
        marked, asked = render({"role": "assistant", "content": mark}), render()
    except Exception:  # noqa: BLE001
        marked = asked = ""
    head, found, after = marked.rpartition(mark)
    if not found:
        return RenderedPrompt(text, is_chat=True)
    if mark in head:
        raise _refused("the chat template writes an answer more than once; it can't be read")
    before = head.removeprefix(text) if head.startswith(text) else _reopened(text, head, asked)
    return RenderedPrompt(text, is_chat=True, before=before, after=after)


def _reopened(opened: str, head: str, asked: str) -> str:
    """Return what precedes an answer's content where it is opened otherwise than it is asked for.

    Args:
        opened: the messages, and the generation prompt.
        head: the messages, and what precedes the content of an existing answer.
        asked: the messages alone.
    """
    if not opened.startswith(asked):
        return ""
    if not head.startswith(asked):  # an answer changes the messages before it, as with gpt-oss
        prompt = opened[len(asked) :]
        place = head.rfind(prompt) if prompt.strip() else -1
        return head[place + len(prompt) :] if place >= 0 else ""
    piece = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|\w+|.", re.DOTALL)
    pieces = (piece.findall(text[len(asked) :]) for text in (opened, head))
    same = takewhile(lambda pair: pair[0] == pair[1], zip(*pieces, strict=False))
    start = len(asked) + sum(len(one) for one, _ in same)
    return "" if opened[start:].strip() and head[start:].strip() else head[start:]


def _system_in_user(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put each system message at the beginning of the user's next message, as in training."""
    put, waiting = [], []
    for turn in turns:
        if turn["role"] in ("system", "user") and not isinstance(turn.get("content"), str):
            raise _refused(f"the content of a {turn['role']} message must be text: {_shown(turn)}")
        if turn["role"] == "system":
            waiting += [turn["content"]] if turn["content"].strip() else []
        elif turn["role"] == "user" and waiting:
            put.append({**turn, "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            put.append(turn)
    if waiting:
        raise _refused("no user message follows the system message, which is put into it")
    return put


def _in_form(turn: dict[str, Any], form: dict[str, bool]) -> dict[str, Any]:
    """Return a message in the form that the chat template takes, as in training."""
    turn = dict(turn)
    if calls := turn.get("tool_calls"):
        turn["tool_calls"] = [
            _call_in_form(call, as_text=form.get("has_text_arguments", False)) for call in calls
        ]
        if not turn.get("content"):
            turn["content"] = "" if form.get("has_empty_content", True) else None
    if form.get("has_parts") and isinstance(turn.get("content"), str):
        turn["content"] = [{"type": "text", "text": turn["content"]}]
    return turn


def _call_in_form(call: Any, *, as_text: bool) -> Any:  # noqa: ANN401
    """Return a tool call whose arguments are JSON text, or the object that the text stands for."""
    function = dict(call.get("function", {}))
    arguments = function.get("arguments", {})
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError as error:
        raise _refused(f"the arguments of a tool call are not JSON: {_shown(arguments)}") from error
    if not as_text:
        function["arguments"] = given
    elif not isinstance(arguments, str):
        function["arguments"] = json.dumps(given, ensure_ascii=False)
    return {**call, "type": call.get("type", "function"), "function": function}


def read_answer(tokenizer: Any, asked: RenderedPrompt, tokens: list[int]) -> str:  # noqa: ANN401
    """Return the content of an answer, without special tokens and the template's text around it."""
    if not asked.is_chat:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))
    text = str(tokenizer.decode(tokens, skip_special_tokens=False))
    added = (str(one.content) for one in tokenizer.added_tokens_decoder.values() if one.special)
    specials = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, specials)) or "(?!)")
    response = _response(tokenizer, text, asked.text)
    if response is not None:
        return special.sub("", response)
    if text.startswith(asked.before):
        text = text.removeprefix(asked.before)
    elif (opening := asked.before.strip()) and text.lstrip().startswith(opening):
        text = text.lstrip().removeprefix(opening).lstrip()
    closing = asked.after.strip()
    if mark := special.search(closing):
        # A base that was not trained to stop continues with further turns.
        text = text.partition(mark.group())[0]
        closing = closing[: mark.start()].rstrip()
    text = special.sub("", text)
    return text.removesuffix(asked.after if text.endswith(asked.after) else closing)


def _response(tokenizer: Any, text: str, prompt: str) -> str | None:  # noqa: ANN401
    """Return the content as parsed by the tokenizer's response template; None without one."""
    if getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        content = tokenizer.parse_response(text, prefix=prompt).get("content")
    except Exception:  # noqa: BLE001 - a model's output need not match the template
        return None
    return content if isinstance(content, str) and content else None


def _undoubled(tokenizer: Any, text: str, tokens: list[int]) -> list[int]:  # noqa: ANN401
    """Remove special tokens that the tokenizer added although the text has them already."""
    if tokens[:1] != tokens[1:2] and tokens[-1:] != tokens[-2:-1]:
        return tokens
    own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    if own and own[0] in special and tokens[:2] == [own[0], own[0]] and own[:2] != tokens[:2]:
        tokens = tokens[1:]
    if own and own[-1] in special and tokens[-2:] == [own[-1]] * 2 and own[-2:] != tokens[-2:]:
        tokens = tokens[:-1]
    return tokens


def _turns(messages: Any, ends: list[str]) -> list[dict[str, Any]]:  # noqa: ANN401
    """Return a conversation to answer; an answer that it ends in, as held-out rows do, is left out.

    Raises:
        RequestError: it is not a list of messages, or asks nothing.
    """
    turns = _parsed(messages)
    if not turns or not isinstance(turns, list) or not all(map(_is_turn, turns)):
        given = _shown(messages)
        raise _refused(f"messages must be a list of objects with role and content: {given}")
    turns = list(map(_as_trained, turns))
    if turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    turns = [
        turn | {"content": _content(turn, number, ends)} for number, turn in enumerate(turns, 1)
    ]
    if not turns or not (turns[-1]["role"] == "tool" or _asks(turns[-1])):
        raise _refused("messages ends without a question: the last message to answer is empty")
    return turns


def _asks(turn: dict[str, Any]) -> bool:
    return bool((turn["content"] or "").strip() or turn.get("tool_calls"))


def _is_turn(given: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(given, dict)
        and isinstance(given.get("role"), str)
        and ("content" in given or bool(given.get("tool_calls") or given.get("function_call")))
    )


def _content(turn: dict[str, Any], number: int, ends: list[str]) -> Any:  # noqa: ANN401
    content, is_answer = turn.get("content"), turn["role"] == "assistant"
    if is_answer and turn.get("tool_calls") and not content:
        return content
    content = _text(content, f"the content of message {number}", may_be_blank=True)
    # As in training: the template writes the end of an answer.
    end = next((one for one in ends if is_answer and content.rstrip().endswith(one)), "")
    return content.rstrip().removesuffix(end) if end else content


_ROLES = {
    "developer": "system",
    "human": "user",
    **dict.fromkeys(("gpt", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("function", "observation", "function_response", "tool_response"), "tool"),
    "ipython": "tool",
}
_REASONING = ("reasoning_content", "reasoning", "thinking")


def _as_trained(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a message in the one form that the rows of a training are read into.

    Clients write a text as parts, other names of roles, and OpenAI's former `function_call`.
    """
    turn = {**turn, "role": _ROLES.get(turn["role"], turn["role"])}
    if isinstance(content := _with_list(turn.get("content")), list):
        turn["content"] = "".join(map(_text_of_part, content))
    if (call := turn.pop("function_call", None)) and not turn.get("tool_calls"):
        turn["tool_calls"] = [{"type": "function", "function": call}]
    if reasoning := next((turn[key] for key in _REASONING if turn.get(key)), None):
        turn |= {"reasoning_content": reasoning, "thinking": reasoning}
    return turn


def _with_list(content: Any) -> Any:  # noqa: ANN401
    """Return a content whose parts, if it has any, are a list and not an array of a table."""
    return content.tolist() if hasattr(content, "tolist") else content


def _text_of_part(part: Any) -> str:  # noqa: ANN401
    text = part.get("text", part.get("value")) if isinstance(part, dict) else None
    if not isinstance(text, str) or part.get("type") != "text":
        raise _refused(f"only parts of the type text are supported, with a text: {_shown(part)}")
    return text


def _sampling(temperature: float) -> dict[str, Any]:
    return {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Return all tokens that end an answer: the base's and the tokenizer's."""
    own = model.generation_config.eos_token_id if model.can_generate() else None
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return tuple(sorted(end for end in ends if end is not None))


mlflow.models.set_model(AdapterModel())
