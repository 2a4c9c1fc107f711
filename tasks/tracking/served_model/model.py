"""The model: it turns a request's rows into jobs, and computes the answers to a batch of them."""

import logging
import math
import threading
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from .adapter_files import chat_options, fully_trained, is_plain
from .adapters import load_adapter, name_adapters
from .answers import read_answer
from .base import add_embeddings, find_base, load_base
from .jobs import Decoding, Job, JobQueue
from .prompts import RenderedPrompt, rendered
from .request_errors import RequestError, refused, said
from .rows import rows_of, text_of
from .template_trial import check_template
from .tokenizers import end_tokens, load_tokenizers, undoubled
from .words import first_tokens, tags_of, words_of

log = logging.getLogger("adapterflow")

_SHOWN_ROWS = 5


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
        self.tokenizers = load_tokenizers(folders, base, revision)
        for name, template in self.config["adapters"].items():
            if template == "chat":  # before the base's weights are loaded
                check_template(self.tokenizers[name])
        self.model = load_base(base, revision, self.config, fully_trained(folders.values()))
        for folder in folders.values():
            add_embeddings(self.model, folder)
        self.num_embeddings = self.model.get_input_embeddings().weight.shape[0]
        self.labels = self.config.get("labels", [])
        self.tags_words = self.config.get("auto_class") == "AutoModelForTokenClassification"
        self.is_seq2seq = self.model.config.is_encoder_decoder
        self.inner, self.ends = {}, {}
        self.chats: dict[str, dict[str, Any] | None] = {}
        for number, (name, template) in enumerate(self.config["adapters"].items()):
            folder, tokenizer = context.artifacts[name], self.tokenizers[name]
            # Prompts must be rendered as in training.
            options = chat_options(folder)
            is_chat = template == "chat" and tokenizer.chat_template is not None
            self.chats[name] = options if is_chat else None
            # Decoders continue the last position, so they need padding on the left. Encoders count
            # positions from the first token.
            in_front = not (self.labels or self.is_seq2seq)
            tokenizer.padding_side = "left" if in_front else "right"
            if (tokenizer.pad_token_id or 0) >= self.num_embeddings:  # masked, but embedded
                tokenizer.pad_token = tokenizer.eos_token
            self.ends[name] = end_tokens(self.model, tokenizer)
            # MLflow allows adapter names that torch does not allow for modules.
            self.inner[name] = f"adapter_{number}"
            load_adapter(self.model, folder, self.inner[name], base)
        # transformers passes the output layer a non-contiguous slice, for which torch 2.13 copies
        # the weight once per row: that costs a second per batch.
        if head := self.model.get_output_embeddings():
            head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        self.model.eval()
        self._active = ""
        self._mixable = {name for name in self.tokenizers if is_plain(context.artifacts[name])}
        self._names: list[str] | None = None
        name_adapters(self.model, lambda: self._names)
        self.queue = JobQueue(self._answer, self.config["batch_size"])
        self._tokenizing = threading.Lock()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, ARG002
        """Return one answer per row: a list of str, or of label (or tags) and probability.

        Raises:
            RequestError: a row has no question (the message names each such row), the adapter is
                unknown, or a limit is exceeded; or, with status 500, the model failed.
        """
        try:
            jobs = self._jobs(model_input, *self._decoding(**(params or {})))
            self.queue.answer_all(jobs)
        except MlflowException:
            raise
        except Exception as error:
            # Of an error that is not its own, MLflow's server would return the stack trace.
            log.exception("a request failed")
            raise RequestError(
                f"the model failed: {said(error)}; the server's log has the details",
                error_code=INTERNAL_ERROR,
            ) from error
        return [job.answer for job in jobs]

    def _jobs(self, table: Any, adapter: str, decoding: Decoding) -> list[Job]:  # noqa: ANN401
        """Return a job per row of a request; all rows are refused if one has no question."""
        jobs, problems = [], []
        columns = {"prompt", "messages"}
        if self.labels:
            columns = {"tokens"} if self.tags_words else {"text"}
        for number, row in enumerate(rows_of(table, columns, self.config["max_rows"]), start=1):
            try:
                jobs.append(self._job(row, adapter, decoding))
            except RequestError as error:
                problems.append(f"row {number}: {error}")
            except Exception as error:  # noqa: BLE001 - a row may hold anything
                problems.append(f"row {number} can't be read: {said(error)}")
        if problems:
            more = len(problems) - _SHOWN_ROWS
            shown = problems[:_SHOWN_ROWS] + [f"and {more} more rows"] * (more > 0)
            raise refused("; ".join(shown))
        return jobs

    def _decoding(
        self, adapter: str = "", max_new_tokens: int = 128, temperature: float = 0.0
    ) -> tuple[str, Decoding]:
        names = list(self.tokenizers)
        if adapter and adapter not in names:
            raise refused(f"there is no adapter {adapter!r}; possible: {', '.join(names)}")
        most = self.config["max_new_tokens"]
        if not 0 < int(max_new_tokens) <= most:
            raise refused(f"max_new_tokens is {max_new_tokens}; possible are 1 to {most}")
        if not 0 <= float(temperature) < math.inf:
            raise refused(f"temperature is {temperature}; possible is 0 or more")
        adapter = adapter or self.config["default_adapter"]
        alone = None if adapter in self._mixable else adapter
        ends = self.ends[adapter]
        return adapter, Decoding(int(max_new_tokens), float(temperature), alone, ends)

    def _job(self, row: dict[str, Any], adapter: str, decoding: Decoding) -> Job:
        tokenizer = self.tokenizers[adapter]
        words = words_of(row) if self.tags_words else []
        if self.labels:
            asked = RenderedPrompt(" ".join(words) or text_of(row.get("text"), "text"))
        else:
            ends = tokenizer.convert_ids_to_tokens(list(self.ends[adapter]))
            asked = rendered(tokenizer, row, self.chats[adapter], ends)
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
            tokens = undoubled(tokenizer, asked.text, tokens)
        if max(tokens, default=0) >= self.num_embeddings:
            unknown = tokenizer.convert_ids_to_tokens(max(tokens))
            raise refused(
                f"the prompt contains the token {unknown!r} ({max(tokens)}); the base has "
                f"embeddings for tokens 0 to {self.num_embeddings - 1} only"
            )
        most = self._longest_prompt(tokenizer, decoding)
        if not 0 < len(tokens) <= most:
            raise refused(f"the prompt has {len(tokens)} tokens; possible are 1 to {most}")
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

    def _answer(self, jobs: list[Job]) -> list[Any]:
        """Return the answers to jobs with equal decoding options."""
        import torch
        from transformers import GenerationConfig

        self._switch([job.adapter for job in jobs])
        tokenizer = self.tokenizers[jobs[0].adapter]  # all have the same vocabulary
        decoding = jobs[0].decoding
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
            return [tags_of(self.labels, job.words, *line) for job, *line in lines]
        return [
            {"label": self.labels[number], "probability": share}
            for number, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _sampling(temperature: float) -> dict[str, Any]:
    return {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
