"""Labels stand on the answers' tokens and on no others; what is cut or lost is counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_models import tiny_tokenizer
from tokenizers import processors

from tasks.config import BaseModelSettings, DataSettings, LossOn, OnLostAnswer, Template
from tasks.engine.base.base_models import describe_base, load_base
from tasks.engine.base.sources import find_base
from tasks.engine.data.rendering.rendering import Renderer
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.splits.mixing import Split
from tasks.engine.data.tokens.tokenization import (
    IGNORED,
    TokenizedRow,
    TokenizedSplit,
    tokenize_split,
)
from tasks.engine.preparation import open_data, prepare_data
from tasks.errors import UserError
from tasks.records import DataRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TALK = Example(
    3,
    (
        Message("user", "Where is Paris?"),
        Message("assistant", "In France."),
        Message("user", "And the fox?"),
        Message("assistant", "Over the dog."),
    ),
)


def qa(prompt: str, completion: str, row: int = 1) -> Example:
    """Make an example of one question."""
    return Example(row, (Message("user", prompt), Message("assistant", completion)))


def tokenized(
    tokenizer: "PreTrainedTokenizerFast",
    examples: Sequence[Example],
    template: Template = Template.CHAT,
    **settings: object,
) -> TokenizedSplit:
    """Tokenise examples; plain completions continue their prompts."""
    renderer = Renderer(tokenizer, template, separator="")
    chosen = DataSettings.model_validate({"train": "rows.jsonl"} | settings)
    split = Split("rows.jsonl", "0" * 64, tuple(examples))
    return TokenizedSplit.of(split, tokenize_split(split, renderer, chosen))


def trained_text(tokenizer: "PreTrainedTokenizerFast", row: TokenizedRow) -> str:
    """Decode the labelled tokens."""
    return str(tokenizer.decode([label for label in row.labels if label != IGNORED]))


def test_assistant_turns_and_nothing_else_are_labelled(
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """Labels are the tokens of each answer with its end token, without the line break after it."""
    [row] = tokenized(tokenizer, [TALK]).rows

    assert trained_text(tokenizer, row) == "In France.<|im_end|>Over the dog.<|im_end|>"
    for token, label in zip(row.input_ids, row.labels, strict=True):
        assert label in (token, IGNORED)
    assert str(tokenizer.decode(row.input_ids)).endswith("<|im_end|>\n")


@pytest.mark.parametrize(
    "answer", ["😀 né 你好 👩‍👩‍👧", "  indented\n\n\tcode ", "<s>a<|im_start|>b"]
)
@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("template", [Template.CHAT, Template.PLAIN])
def test_answers_of_any_characters_are_labelled_whole(
    tokenizer: "PreTrainedTokenizerFast",
    answer: str,
    trim_offsets: bool,  # noqa: FBT001 - a parameter
    template: Template,
) -> None:
    """Characters of many tokens, white space and special tokens within an answer are learned.

    Some tokenizers (GPT-NeoX's) report a space as an empty span.
    """
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)

    [row] = tokenized(tokenizer, [qa("😀?", answer)], template).rows

    assert trained_text(tokenizer, row) == f"{answer}<|im_end|>"


def test_word_that_begins_in_the_prompt_is_learned(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Where the prompt's last space is part of the answer's first token, that token is trained on.

    Otherwise a one-word completion would teach nothing but its end.
    """
    assert len(tokenizer.tokenize(" Paris")) < len(tokenizer.tokenize("Paris")) + 1

    [row] = tokenized(tokenizer, [qa("The capital is ", "Paris")], Template.PLAIN).rows

    assert trained_text(tokenizer, row).strip() == "Paris<|im_end|>"


@pytest.mark.parametrize(
    ("template", "num_bos"), [(Template.PLAIN, 1), (Template.CHAT, 0)], ids=["plain", "chat"]
)
def test_beginning_that_the_tokenizer_adds_is_not_learned(
    tokenizer: "PreTrainedTokenizerFast", template: Template, num_bos: int
) -> None:
    """A plain row gets the tokenizer's BOS, unlabelled; a chat template writes its own."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )

    [row] = tokenized(tokenizer, [qa("a", "b")], template).rows

    assert row.input_ids.count(1) == num_bos
    assert trained_text(tokenizer, row) == "b<|im_end|>"


@pytest.mark.parametrize("ended", ["", "<|im_end|>", "<|im_end|>\n"])
def test_special_tokens_that_a_text_has_are_not_doubled(
    tokenizer: "PreTrainedTokenizerFast", ended: str
) -> None:
    """A finished prompt as `text` keeps one beginning and one end, whoever wrote them."""
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|im_end|>", special_tokens=[("<s>", 1), ("<|im_end|>", 2)]
    )
    finished = Example(1, (), f"<s>The quick fox{ended}")

    [row] = tokenized(tokenizer, [finished], Template.PLAIN).rows

    assert tokenizer.decode(row.input_ids) == "<s>The quick fox<|im_end|>"
    assert trained_text(tokenizer, row) == "<s>The quick fox<|im_end|>"


def test_mistake_in_a_row_names_its_source(tokenizer: "PreTrainedTokenizerFast") -> None:
    """What a template refuses is found by file and row."""
    tokenizer.chat_template = "{{ raise_exception('no') }}"

    with pytest.raises(UserError, match=r"rows\.jsonl, row 3: the chat template refuses"):
        tokenized(tokenizer, [TALK])


def test_text_row_is_learned_whole(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Every token of a `text` row has a label, and each but the first a loss."""
    [row] = tokenized(tokenizer, [Example(1, (), "The quick fox")], Template.PLAIN).rows

    assert row.labels == row.input_ids == tokenizer("The quick fox<|im_end|>")["input_ids"]
    assert row.num_trained_tokens == len(row.input_ids) - 1


def test_loss_on_all_labels_the_prompt_too(tokenizer: "PreTrainedTokenizerFast") -> None:
    """`loss_on: all` trains on every token of a talk."""
    split = tokenized(tokenizer, [TALK], loss_on=LossOn.ALL)

    assert split.rows[0].labels == split.rows[0].input_ids
    assert split.record.num_trained_tokens == split.record.num_tokens - 1


def test_completion_is_labelled_by_default(tokenizer: "PreTrainedTokenizerFast") -> None:
    """A prompt and its completion are one text, of which the completion and its end are learned."""
    [row] = tokenized(tokenizer, [qa("2+2", "=4")], Template.PLAIN).rows

    assert tokenizer.decode(row.input_ids) == "2+2=4<|im_end|>"
    assert trained_text(tokenizer, row) == "=4<|im_end|>"


def test_rewritten_answers_have_rows_of_their_own(tokenizer: "PreTrainedTokenizerFast") -> None:
    """An earlier answer that the template changes later is learned in its own context."""
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']",
        "('' if loop.last or message['role'] == 'user' else '~') + message['content']",
    )

    split = tokenized(tokenizer, [TALK, TALK])

    assert [trained_text(tokenizer, row) for row in split.rows] == 2 * [
        "In France.<|im_end|>",
        "Over the dog.<|im_end|>",
    ]
    assert (split.record.num_examples, split.record.num_rows) == (2, 4)
    assert list(split.examples) == 4 * [TALK]


def test_shortened_answer_is_kept_and_counted(tokenizer: "PreTrainedTokenizerFast") -> None:
    """A row that is cut within its answer trains on the rest of it."""
    whole = tokenized(tokenizer, [TALK]).rows[0]
    length = len(whole.input_ids) - 4

    split = tokenized(tokenizer, [TALK, qa("a", "b")], max_length=length)

    assert split.rows[0] == TokenizedRow(whole.input_ids[:length], whole.labels[:length])
    assert (split.record.num_shortened_answers, split.record.num_dropped_rows) == (1, 0)
    assert split.record.longest_tokens == length


def test_cut_after_the_answer_shortens_nothing(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Losing only the line break after the last answer is no shortened answer."""
    length = len(tokenized(tokenizer, [TALK]).rows[0].input_ids)

    split = tokenized(tokenizer, [TALK], max_length=length - 1)

    assert split.record.num_shortened_answers == 0


def test_lost_answer_names_row_and_length(tokenizer: "PreTrainedTokenizerFast") -> None:
    """A row whose answer is cut away stops the run; its advice, followed, works."""
    long = qa("The quick brown fox " * 5, "b", row=12)
    length = len(tokenized(tokenizer, [long]).rows[0].input_ids)

    with pytest.raises(UserError, match=rf"rows\.jsonl, row 12.*raise max_length to {length},"):
        tokenized(tokenizer, [long], max_length=10)

    kept = tokenized(tokenizer, [long], max_length=length)
    assert kept.record.num_shortened_answers == 0


@pytest.mark.parametrize("template", [Template.CHAT, Template.PLAIN])
def test_rows_of_which_nothing_is_trained_are_dropped_where_asked(
    tokenizer: "PreTrainedTokenizerFast", template: Template
) -> None:
    """`on_lost_answer: drop` leaves them out, and counts them apart from truncated rows."""
    off = Example(1, (Message("user", "a"), Message("assistant", "b", is_trained=False)))
    drop = OnLostAnswer.DROP

    split = tokenized(tokenizer, [off, qa("c", "d", row=2)], template, on_lost_answer=drop)

    assert [one.row for one in split.examples] == [2]
    assert (split.record.num_untrained_rows, split.record.num_dropped_rows) == (1, 0)
    with pytest.raises(UserError, match="no row has an answer that is trained on"):
        tokenized(tokenizer, [off], template, on_lost_answer=drop)


def test_lost_answers_are_dropped_where_asked(tokenizer: "PreTrainedTokenizerFast") -> None:
    """`on_lost_answer: drop` leaves such rows out, counts them, and fails when none is left."""
    short, long = qa("a", "b", row=1), qa("The quick brown fox " * 5, "b", row=2)
    drop = OnLostAnswer.DROP

    split = tokenized(tokenizer, [long, short], max_length=24, on_lost_answer=drop)

    assert split.examples == [short]
    assert (split.record.num_rows, split.record.num_dropped_rows) == (1, 1)
    with pytest.raises(UserError, match="no row has an answer within 24 tokens"):
        tokenized(tokenizer, [long], max_length=24, on_lost_answer=drop)


def test_first_token_has_no_loss() -> None:
    """A label on the first token is not counted: nothing precedes it to predict it from."""
    assert TokenizedRow([5, 6], [5, 6]).num_trained_tokens == 1
    assert TokenizedRow([5, 6], [5, IGNORED]).num_trained_tokens == 0


def test_progress_counts_rows(tiny_base: Path, tmp_path: Path) -> None:
    """Progress reports of every row, up to all of them."""
    seen: list[tuple[int, int]] = []
    write_rows(tmp_path / "rows.jsonl", 3)
    settings = DataSettings(train=str(tmp_path / "rows.jsonl"), eval_fraction=0)
    source = find_base(BaseModelSettings(source=str(tiny_base)))

    prepare_data(
        read_examples(settings, 0),
        settings,
        0,
        source,
        tmp_path / "tokens",
        lambda done, total: seen.append((done, total)),
    )

    assert seen == [(1, 3), (2, 3), (3, 3)]


def write_rows(file: Path, count: int, completion: str = "b") -> None:
    """Write prompt and completion rows."""
    rows = [{"prompt": f"question {number}", "completion": completion} for number in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepared(base: Path, file: Path, **settings: object) -> DataRecord:
    """Prepare the rows of a file for a base."""
    chosen = DataSettings.model_validate({"train": str(file)} | settings)
    source = find_base(BaseModelSettings(source=str(base)))
    sets = read_examples(chosen, 0)
    return prepare_data(sets, chosen, 0, source, file.parent / "tokens").record


@pytest.mark.parametrize("format_", ["prompt-completion", "instruction"])
def test_only_completions_join_their_prompts(tiny_base: Path, tmp_path: Path, format_: str) -> None:
    """In plain text a completion goes on where its prompt ends; an output is a new paragraph."""
    names = format_.split("-") if "-" in format_ else ["instruction", "output"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({names[0]: "2+2", names[1]: "=4"}) + "\n")
    settings = DataSettings(train=str(file), template=Template.PLAIN)
    source = find_base(BaseModelSettings(source=str(tiny_base)))

    data = prepare_data(read_examples(settings, 0), settings, 0, source, tmp_path / "tokens")

    text = data.renderer.tokenizer.decode(data.train.rows[0].input_ids)
    assert text == ("2+2=4<|im_end|>" if "-" in format_ else "2+2\n\n=4<|im_end|>")


def test_chat_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    """`template: chat` without a chat template is refused before any model is loaded."""
    base = tmp_path / "base"
    tiny_tokenizer(chat_template=False).save_pretrained(base)
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (base / "model.safetensors").write_bytes(b"never read")
    write_rows(tmp_path / "rows.jsonl", 3)

    with pytest.raises(UserError, match="no chat template; use auto or plain"):
        prepared(base, tmp_path / "rows.jsonl", template="chat")


def test_tokens_outlive_the_users_file(tiny_base: Path, tmp_path: Path) -> None:
    """A later step gets the same rows from the record alone, also once the data is gone."""
    write_rows(tmp_path / "rows.jsonl", 8)
    settings = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "float32"})
    base = describe_base(find_base(settings), load_base(find_base(settings)))
    record = prepared(tiny_base, tmp_path / "rows.jsonl", eval_fraction=0.25)
    (tmp_path / "rows.jsonl").unlink()

    again = open_data(record, base)

    assert again.eval is not None
    assert (len(again.train.rows), len(again.eval.rows)) == (6, 2)
    record.tokens[1].path.write_bytes(b"spoiled")
    with pytest.raises(UserError, match=r"eval\.arrow is missing or has changed"):
        open_data(record, base)
