"""The task of putting a text into one of several classes.

The base has no output layer for the classes. One is made from a fixed seed, so that a base and its
labels are one definite model, and it trains whole beside the adapter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.config import Batching, DataSettings, RowFormat, TrainingSettings
from tasks.engine.base_models import load_config, load_tokenizer, mixed_precision
from tasks.engine.base_sources import BaseSource
from tasks.engine.batching import Batch, Batches, Part, Row, as_batch, cut
from tasks.engine.examples import Split
from tasks.engine.model_task import Answer
from tasks.engine.rendering import Renderer
from tasks.engine.row_formats import Example
from tasks.engine.tokenization import TokenizedRow, TokenizedSplit
from tasks.errors import UserError
from tasks.records import BaseModelRecord, SplitRecord, TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engine.batch_choice import BatchingChoice
    from tasks.engine.prepared_data import PreparedData


class ClassifiedRow(TokenizedRow):
    """One row; `labels` holds its class alone, as the number of the model's output."""

    @property
    def num_trained_tokens(self) -> int:
        """Count the labels that a loss falls on: the row's class."""
        return len(self.labels)


@dataclass(frozen=True)
class LabelledBatches:
    """Each row a line, padded behind to the longest of its part."""

    pad_token_id: int
    max_tokens: int
    name: str = "padded"

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows.

        Of each part `input_ids` and `attention_mask` are int64 [lines, sequence], `labels` int64
        [lines].
        """

        def length(row: Row) -> int:
            return len(row["input_ids"])

        parts = cut(rows, self.max_tokens, length, lambda part: len(part) * length(part[0]))
        return as_batch([self._part(part) for part in parts])

    def _part(self, rows: Sequence[Row]) -> Part:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids = [torch.tensor(row["input_ids"]) for row in rows]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
            "labels": torch.tensor([row["labels"][0] for row in rows]),
        }


@dataclass(frozen=True)
class SequenceClassification:
    """A model with one output a class; see `ModelTask`."""

    auto_class: str = "AutoModelForSequenceClassification"
    peft_task_type: str = "SEQ_CLS"
    pipeline_tag: str = "text-classification"
    row_formats: tuple[RowFormat, ...] = (RowFormat.LABELLED,)
    generates: bool = False

    def complete_config(
        self, config: "PretrainedConfig", source: BaseSource | BaseModelRecord
    ) -> None:
        """Name the classes, and the token that does not count: decoders look for the last other.

        Raises:
            UserError: no classes are known.
        """
        labels = source.settings.labels
        if not labels:
            raise UserError(
                "base_model.labels is empty, but task sequence-classification needs the classes; "
                "name them in the order of the model's outputs"
            )
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
        tokenizer = load_tokenizer(source.location, source.revision)
        config.get_text_config().pad_token_id = tokenizer.pad_token_id

    def head_modules(self, model: "PreTrainedModel") -> list[str]:
        """Name what stands beside the base model proper and has weights."""
        return [
            name
            for name, child in model.named_children()
            if name != model.base_model_prefix and next(child.parameters(), None) is not None
        ]

    def tokenize(
        self,
        split: Split,
        renderer: Renderer,
        settings: DataSettings,
        base: BaseSource | BaseModelRecord,
        on_progress: Callable[[int, int], None] | None,  # noqa: ARG002 - done at once
    ) -> TokenizedSplit:
        """Give each text's tokens, cut at the end where they are too many, and its class."""
        tokenizer = renderer.tokenizer
        limit = min(settings.max_length, longest_input(tokenizer, load_config(base)))
        texts = [example.text or "" for example in split.examples]
        ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        full = [i for i, one in enumerate(ids) if len(one) == limit]
        whole = tokenizer([texts[i] for i in full])["input_ids"] if full else []
        number = {label: index for index, label in enumerate(base.settings.labels)}
        rows: list[TokenizedRow] = [
            ClassifiedRow(list(one), [number[example.answer]])
            for one, example in zip(ids, split.examples, strict=True)
        ]
        record = SplitRecord(
            source=split.source,
            sha256=split.sha256,
            num_rows=len(rows),
            num_tokens=sum(len(row.input_ids) for row in rows),
            num_trained_tokens=len(rows),
            longest_tokens=max(len(row.input_ids) for row in rows),
            num_shortened_answers=0,
            num_shortened_texts=sum(len(one) > limit for one in whole),
            num_untrained_answers=0,
            num_dropped_rows=0,
        )
        return TokenizedSplit(rows, list(split.examples), record)

    def choose_batching(
        self,
        settings: TrainingSettings,
        data: "PreparedData",  # noqa: ARG002
        model: "PreTrainedModel",
    ) -> "BatchingChoice":
        """Pad the rows: packed ones would not have one output each.

        Raises:
            UserError: another way was asked for.
        """
        from tasks.engine.batch_choice import BatchingChoice, most_tokens, unfused_layers

        if settings.batching not in (Batching.AUTO, Batching.PADDED):
            raise UserError(
                f"training.batching is {settings.batching.value}, but rows that are classified "
                "can only be padded; use auto"
            )
        remarks = tuple(unfused_layers(model))
        return BatchingChoice(Batching.PADDED, most_tokens(settings), remarks=remarks)

    def make_batches(self, plan: TrainingPlan, pad_token_id: int) -> Batches:
        """Give the way of batching that was chosen."""
        return LabelledBatches(pad_token_id, plan.batch_tokens)

    def loss(
        self,
        model: "PreTrainedModel",
        part: Part,
        plan: TrainingPlan,  # noqa: ARG002
    ) -> tuple["Tensor", "Tensor"]:
        """Give the cross entropy of the rows' classes, and the likeliest ones."""
        from torch.nn.functional import cross_entropy

        with mixed_precision(model):
            logits = model(**_inputs(part)).logits.float()
        return cross_entropy(logits, part["labels"], reduction="sum"), logits.argmax(dim=-1)

    def metrics(self, expected: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
        """Give the share of rows that are right, and the mean of the classes' F1.

        A class counts that some row has, or is put into.
        """
        from sklearn.metrics import accuracy_score, f1_score

        return {
            "accuracy": float(accuracy_score(expected, predicted)),
            "macro_f1": float(f1_score(expected, predicted, average="macro", zero_division=0)),
        }

    def prompt(self, renderer: Renderer, example: Example) -> str:  # noqa: ARG002
        """Give the text.

        Raises:
            UserError: the row has other columns.
        """
        if example.text is None:
            raise UserError(
                f"row {example.row}: what is classified is the column text, which is missing"
            )
        return example.text

    def answer(  # noqa: PLR0913 - the signature of all tasks
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[str],
        *,
        max_new_tokens: int,  # noqa: ARG002 - nothing is generated
        batch_size: int,
        adds_special_tokens: bool,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Give each text's likeliest class and its probability; too long a text is cut."""
        import torch

        limit = longest_input(tokenizer, model.config)
        names: Any = model.config.id2label
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers: dict[int, Answer] = {}
        model.eval()
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            inputs = tokenizer(
                [prompts[index] for index in indices],
                return_tensors="pt",
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=limit,
                add_special_tokens=adds_special_tokens,
            ).to(model.device)
            with torch.inference_mode(), mixed_precision(model):
                logits = model(**_inputs(inputs)).logits
            best = logits.float().softmax(dim=-1).max(dim=-1)
            for index, share, number in zip(
                indices, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                answers[index] = Answer(names[number], share)
            if on_progress:
                on_progress(len(indices))
        return [answers[index] for index in range(len(prompts))]


def longest_input(tokenizer: "PreTrainedTokenizerBase", config: "PretrainedConfig") -> int:
    """Give the most tokens of a row that tokenizer and model were made for."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)


def _inputs(given: Any) -> dict[str, "Tensor"]:  # noqa: ANN401 - a part, or what a tokenizer gives
    """Leave out token types: their default is what a single text has."""
    return {name: given[name] for name in ("input_ids", "attention_mask")}
