"""The model that MLflow loads and serves: a base found where it is kept, with adapters on it.

This file is stored with each logged adapter and runs wherever that is loaded, so it imports
nothing of this project. `mlflow.pyfunc.load_model(uri, model_config={"base_model": "…"})` names
another place of the base.
"""

import hashlib
import json
import logging
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow.models
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext


@dataclass(frozen=True)
class Way:
    """How a prompt is answered; prompts of one way are answered in one batch."""

    max_new_tokens: int
    temperature: float
    adapter: str | None
    """None where each row of a batch may have its own."""
    ends: tuple[int, ...]
    """Tokens that end an answer."""


@dataclass(frozen=True)
class Asked:
    """A prompt as a text, and what its chat template writes around the content of an answer."""

    text: str
    is_chat: bool = False
    before: str = ""
    after: str = ""


@dataclass(eq=False)
class Job:
    """One prompt on its way to an answer."""

    prompt: list[int]
    """Its tokens."""
    adapter: str
    way: Way
    asked: Asked = field(default_factory=lambda: Asked(""))
    words: list[int | None] = field(default_factory=list)
    """The first token of each word, where words are tagged."""
    answer: str | dict[str, Any] | None = None
    error: Exception | None = None
    is_done: threading.Event = field(default_factory=threading.Event)


class AdapterModel(PythonModel):
    """Answers the rows of a table: its column `prompt` (text), or `messages` (a chat).

    Where the adapters classify, the column is `text`, and an answer a label and its probability;
    where they tag words, it is `tokens`, a list, and an answer as many tags and the probability of
    the least sure one.

    The param `adapter` names which of the stored adapters answers; all of them are in memory, on
    one base. Requests may come at once: what waits is answered together, each row by its adapter.

    In bfloat16 and float16 an answer may depend on which others it is computed with. Where it must
    not, set `dtype` to float32, or `batch_size` to 1, by `model_config` (of a server: by the
    environment's SERVING_MODEL_CONFIG, as JSON).
    """

    # Without it mlflow 3.17 asks for type hints on `predict` whenever this is loaded; with them it
    # would drop the signature's params.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Load base, adapters and tokenizers.

        Raises:
            ValueError: The base is not found, or an adapter's weights do not fit it exactly, or
                no row could be computed.
        """
        self.config = dict(context.model_config)
        if self.config["batch_size"] < 1:
            raise ValueError(f"batch_size is {self.config['batch_size']}; it must be 1 or more")
        base, revision = find_base(self.config)
        folders = {name: Path(context.artifacts[name]) for name in self.config["adapters"]}
        self.model = _load_base(base, revision, self.config, _whole_modules(folders.values()))
        self.num_embeddings = self.model.get_input_embeddings().weight.shape[0]
        self.labels = self.config.get("labels", [])
        self.tags_words = self.config.get("auto_class") == "AutoModelForTokenClassification"
        self.writes_anew = self.model.config.is_encoder_decoder
        self.tokenizers, self.chats, self.inner, self.ends = {}, {}, {}, {}
        for number, (name, template) in enumerate(self.config["adapters"].items()):
            folder = context.artifacts[name]
            tokenizer = _load_tokenizer(folder, base, revision)
            # Prompts are written as they were in training.
            self.chats[name] = template == "chat" and tokenizer.chat_template is not None
            # Answers begin where prompts end. Encoders count positions from the first token on.
            in_front = not (self.labels or self.writes_anew)
            tokenizer.padding_side = "left" if in_front else "right"
            if (tokenizer.pad_token_id or 0) >= self.num_embeddings:  # masked, but looked up
                tokenizer.pad_token = tokenizer.eos_token
            self.tokenizers[name] = tokenizer
            self.ends[name] = _end_tokens(self.model, tokenizer)
            # Modules can't have every name that MLflow allows.
            self.inner[name] = f"adapter_{number}"
            _load_adapter(self.model, folder, self.inner[name], base)
        # transformers hands the output layer a slice with gaps, for which torch 2.13 copies its
        # weight once a row: a second a batch.
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
        """Give one answer a row: a list of str, or of label (or tags) and probability.

        Raises:
            MlflowException: A row asks nothing, there is no such adapter, or a limit is passed.
        """
        adapter, way = self._way(**(params or {}))
        # mlflow drops columns that the signature does not name, which may leave none.
        columns = {"prompt", "messages"}
        if self.labels:
            columns = {"tokens"} if self.tags_words else {"text"}
        if not columns & set(model_input.columns):
            raise _refused(f"the table needs a column {' or '.join(sorted(columns))}")
        rows = model_input.to_dict(orient="records")
        if len(rows) > self.config["max_rows"]:
            raise _refused(f"{len(rows)} rows at once; at most {self.config['max_rows']}")
        jobs = [self._job(row, adapter, way) for row in rows]
        self._answer_all(jobs)
        return [job.answer for job in jobs]

    def _way(
        self, adapter: str = "", max_new_tokens: int = 128, temperature: float = 0.0
    ) -> tuple[str, Way]:
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
        return adapter, Way(int(max_new_tokens), float(temperature), alone, self.ends[adapter])

    def _job(self, row: dict[str, Any], adapter: str, way: Way) -> Job:
        tokenizer, is_chat = self.tokenizers[adapter], self.chats[adapter]
        words = _words_of(row) if self.tags_words else []
        if self.labels:
            asked = Asked(" ".join(words) or _text_of(row))
        else:
            asked = _asked(tokenizer, row, is_chat)
        if self.writes_anew and not self.labels:  # an encoder's text ends as its tokenizer ends it
            asked = Asked(asked.text.rstrip())
        # A tokenizer keeps how it pads between calls: two threads at once would disturb each other.
        with self._tokenizing:
            # The chat template wrote the special tokens already.
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
                f"the prompt has the token {unknown!r} ({max(tokens)}); the base has embeddings "
                f"for tokens 0 to {self.num_embeddings - 1} only"
            )
        most = self._longest_prompt(tokenizer, way)
        if not 0 < len(tokens) <= most:
            raise _refused(f"the prompt has {len(tokens)} tokens; possible are 1 to {most}")
        firsts = first_tokens(words, encoded["offset_mapping"]) if words else []
        return Job(tokens, adapter, way, asked, firsts)

    def _longest_prompt(self, tokenizer: Any, way: Way) -> int:  # noqa: ANN401
        most: int = self.config["max_prompt_tokens"]
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if self.labels:
            # Some encoders have positions that no token may take, which their tokenizers know.
            return int(min(most, positions or most, tokenizer.model_max_length))
        return min(most, (positions or most) - way.max_new_tokens)

    def _answer_all(self, jobs: list[Job]) -> None:
        """Wait until these are answered; whichever request comes first computes for all."""
        with self._queue:
            self._waiting.extend(jobs)
        try:
            for job in jobs:
                self._wait_for(job)
        finally:  # of a request that failed nothing more is computed
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
        """Take the one that has waited longest, and others of its way."""
        with self._queue:
            way = self._waiting[0].way
            batch = [job for job in self._waiting if job.way == way]
            batch = batch[: self.config["batch_size"]]
            for job in batch:
                self._waiting.remove(job)
        return batch

    def _answer_batch(self, batch: list[Job]) -> None:
        try:
            answers = self._answer(batch, batch[0].way)
            for job, answer in zip(batch, answers, strict=True):
                job.answer = answer
        except Exception as error:  # noqa: BLE001 - each of the requests raises it
            for job in batch:
                job.error = error
        finally:
            for job in batch:
                job.is_done.set()

    def _answer(self, jobs: list[Job], way: Way) -> list[Any]:
        import torch
        from transformers import GenerationConfig

        self._switch([job.adapter for job in jobs])
        tokenizer = self.tokenizers[jobs[0].adapter]  # of one vocabulary, as all of them
        prompts = {"input_ids": [job.prompt for job in jobs]}
        batch = tokenizer.pad(prompts, return_tensors="pt").to(self.model.device)
        if self.labels:
            return self._classify(batch, jobs)
        # As in training's sample answers: what is unset here, generate() takes from the base.
        how = GenerationConfig(
            max_new_tokens=way.max_new_tokens,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            eos_token_id=list(way.ends) or None,
            pad_token_id=tokenizer.pad_token_id,
            **_sampling(way.temperature),
        )
        with torch.inference_mode():
            tokens = self.model.generate(**batch, generation_config=how)
        new_tokens = tokens if self.writes_anew else tokens[:, batch["input_ids"].shape[1] :]
        return [
            read_answer(self.tokenizers[job.adapter], job.asked, ids.tolist()).strip()
            for job, ids in zip(jobs, new_tokens, strict=True)
        ]

    def _switch(self, adapters: list[str]) -> None:
        """Let each row of the next batch have its adapter; one for all is the faster way."""
        from peft.functional import set_adapter

        # Also of several: what another adapter trained whole is then the base's own for these.
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
    """Give the first token of each word of a text, as in training; None where it has none."""
    firsts: list[int | None] = [None] * len(words)
    word, start = 0, 0
    for place, (begins, ends) in enumerate(offsets):
        while word < len(words) and start + len(words[word]) <= begins:
            start += len(words[word]) + 1
            word += 1
        if word < len(words) and start < ends and begins < ends and firsts[word] is None:
            firsts[word] = place
    return firsts


def _refused(message: str) -> MlflowException:
    """Give the error that a server answers with status 400 and this message."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def find_base(config: dict[str, Any]) -> tuple[str, str | None]:
    """Give the base's folder or Hub id, and the revision of a Hub id.

    First `base_model` if it is set, then the place it was trained from, then its public name.
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
        f"the base model is not at {location}, and {reference!r} is no Hub id; name its folder or "
        'Hub id: mlflow.pyfunc.load_model(uri, model_config={"base_model": "…"})'
    )


def _check_fingerprint(location: str, config: dict[str, Any]) -> None:
    """Check that a folder's weights are those that the adapters were trained on.

    Raises:
        ValueError: they are not.
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
            f"the base at {location} is not the one that the adapters were trained on: its weights "
            f"have the sha256 {found.hexdigest()}, and {wanted} is wanted; name the right one as "
            'base_model, or set model_config={"base_fingerprint": ""} to take this one all the same'
        )


def _whole_modules(folders: Iterable[Path]) -> list[str]:
    """Name the modules that some adapter trained whole."""
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    return sorted({name for one in configs for name in one.get("modules_to_save") or ()})


def _load_base(base: str, revision: str | None, config: dict[str, Any], whole: list[str]) -> Any:  # noqa: ANN401
    import torch
    import transformers

    labels = config.get("labels")
    dtype = getattr(torch, config["dtype"].removeprefix("torch."))
    packed = _quantization(config["quantization"], dtype, whole if labels else None)
    # The output layer for these is the adapters' own.
    classes = {"id2label": dict(enumerate(labels)), "num_labels": len(labels)} if labels else {}
    auto_class = getattr(transformers, config.get("auto_class", "AutoModelForCausalLM"))
    model: Any = auto_class.from_pretrained(
        base, revision=revision, dtype=dtype, quantization_config=packed, **classes
    )
    if labels:  # decoders look for the last token that is not this one
        pad = _load_tokenizer(base, base, revision).pad_token_id
        model.config.get_text_config().pad_token_id = pad
    # bitsandbytes places its weights itself.
    return model if packed or not torch.cuda.is_available() else model.to("cuda")


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
    # transformers 5.23 reports all other adapters' weights as newly initialised.
    log = logging.getLogger("transformers.integrations.peft")
    level = log.level
    log.setLevel(logging.ERROR)
    info = model.load_adapter(folder, adapter_name=name, adapter_state_dict=_weights(folder))
    log.setLevel(level)
    # What does not fit is only logged, too, and goes on with random weights.
    own = re.compile(rf"\.(lora_\w+|modules_to_save)\.{re.escape(name)}(\.|$)")
    missing = [key for key in map(str, info.missing_keys) if own.search(key)]
    wrong = [*missing, *info.unexpected_keys, *info.mismatched_keys]
    if wrong:
        raise ValueError(
            f"the adapter in {folder} was made for another base than {base!r}: {len(wrong)} "
            f"weights are missing, unexpected or of another shape, such as {min(map(str, wrong))}"
        )


def _weights(folder: str) -> dict[str, Any]:
    """Read an adapter's weights; PEFT leaves out the end of DoRA's keys, transformers wants it."""
    from safetensors.torch import load_file

    weights = load_file(Path(folder) / "adapter_model.safetensors")
    return {re.sub(r"\.lora_magnitude_vector$", r"\g<0>.weight", k): w for k, w in weights.items()}


def _is_plain(folder: str) -> bool:
    """Tell whether PEFT can compute the adapter for some rows of a batch only."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    others = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")
    return config.get("bias", "none") == "none" and not any(map(config.get, others))


def _name_adapters(model: Any, names: Callable[[], list[str] | None]) -> None:  # noqa: ANN401
    """Have the adapter layers told each row's adapter, where there are names."""
    from peft.tuners.lora import LoraLayer

    def told(_: Any, inputs: Any, more: dict[str, Any]) -> Any:  # noqa: ANN401
        given = names()
        return None if given is None else (inputs, {**more, "adapter_names": given})

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_pre_hook(told, with_kwargs=True)


def _load_tokenizer(folder: str, base: str, revision: str | None) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    if (Path(folder) / "tokenizer_config.json").exists():
        base, revision = folder, None
    tokenizer = AutoTokenizer.from_pretrained(base, revision=revision)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _text_of(row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise _refused(f"a row needs `text`; this one is {row!r:.200}")
    return text


def _words_of(row: dict[str, Any]) -> list[str]:
    words: Any = row.get("tokens")
    words = words.tolist() if hasattr(words, "tolist") else words
    plain = isinstance(words, list) and all(isinstance(word, str) and word for word in words)
    if not plain or not words or any(map(str.isspace, "".join(words))):
        raise _refused(f"a row needs `tokens`, a list of words; this one is {row!r:.200}")
    return list(words)


def _asked(tokenizer: Any, row: dict[str, Any], chat: bool) -> Asked:  # noqa: ANN401, FBT001
    """Write a row's prompt or messages as the text that the answer continues."""
    messages, prompt = row.get("messages"), row.get("prompt")
    # An empty cell of a table is NaN.
    if not isinstance(prompt, str) and (messages is None or isinstance(messages, float)):
        raise _refused(f"a row needs `prompt`, a text, or `messages`; this one is {row!r:.200}")
    if not chat:
        if not isinstance(prompt, str):
            raise _refused("the adapter was trained without a chat template: give `prompt`")
        return Asked(prompt)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _turns(messages)
    return ask(tokenizer, turns)


def ask(tokenizer: Any, turns: list[dict[str, Any]]) -> Asked:  # noqa: ANN401
    """Write a conversation as its chat template does, and see what that writes around an answer.

    Raises:
        MlflowException: The template refuses the conversation.
    """
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program: it may raise anything
        raise _refused(f"the chat template refuses the messages: {error}") from error
    mark = "\ue000answer\ue001"  # characters for private use, which no template knows
    try:
        marked: str = tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": mark}], tokenize=False
        )
    except Exception:  # noqa: BLE001
        marked = ""
    head, found, after = marked.rpartition(mark)
    if not found:
        return Asked(text, is_chat=True)
    before = head.removeprefix(text) if head.startswith(text) else ""
    return Asked(text, is_chat=True, before=before, after=after)


def read_answer(tokenizer: Any, asked: Asked, tokens: list[int]) -> str:  # noqa: ANN401
    """Return the content of an answer, without special tokens and what the template writes."""
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
        # A base that was not taught to stop goes on with turns of its own.
        text = text.partition(mark.group())[0]
        closing = closing[: mark.start()].rstrip()
    return special.sub("", text).removesuffix(asked.after).removesuffix(closing)


def _response(tokenizer: Any, text: str, prompt: str) -> str | None:  # noqa: ANN401
    """Return the content as the tokenizer's response template reads it, if it has one."""
    if getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        content = tokenizer.parse_response(text, prefix=prompt).get("content")
    except Exception:  # noqa: BLE001 - what a model writes need not be of the template's form
        return None
    return content if isinstance(content, str) and content else None


def _undoubled(tokenizer: Any, text: str, tokens: list[int]) -> list[int]:  # noqa: ANN401
    """Leave out a special token that the tokenizer adds where the text has it already."""
    if tokens[:1] != tokens[1:2] and tokens[-1:] != tokens[-2:-1]:
        return tokens
    own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    if own and own[0] in special and tokens[:2] == [own[0], own[0]] and own[:2] != tokens[:2]:
        tokens = tokens[1:]
    if own and own[-1] in special and tokens[-2:] == [own[-1]] * 2 and own[-2:] != tokens[-2:]:
        tokens = tokens[:-1]
    return tokens


def _turns(messages: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    try:
        turns = list(json.loads(messages) if isinstance(messages, str) else messages)
        if turns and all({"role", "content"} <= turn.keys() for turn in turns):
            return turns
    except (ValueError, TypeError, AttributeError):
        pass
    raise _refused(f"messages must be a list of objects with role and content: {messages!r:.200}")


def _sampling(temperature: float) -> dict[str, Any]:
    return {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:  # noqa: ANN401
    """Give every token that may end an answer: the base's own and the tokenizer's."""
    own = model.generation_config.eos_token_id if model.can_generate() else None
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
    return tuple(sorted(end for end in ends if end is not None))


mlflow.models.set_model(AdapterModel())
