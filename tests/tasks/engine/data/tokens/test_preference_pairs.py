"""Pairs as tokens: two rows of a conversation; what can't be compared is dropped and counted."""

from pathlib import Path
from typing import Any

import pytest
from preference_pairs import JUDGED, ROWS, prepared_pairs, write_rows

from tasks.config import BaseModelSettings, DataSettings, LearningObjective
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.tokens.changed_rows import changes
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.data.tokens.tokenization import IGNORED
from tasks.engine.objectives.causal_lm import CausalLM
from tasks.engine.preparation import first_row
from tasks.engine.scoring.exact_match import read_answered
from tasks.errors import UserError

LONG = {"prompt": "The fox is", "chosen": " a fox" * 20 + " red", "rejected": " a fox" * 20 + " b"}


def settings(base: Path) -> BaseModelSettings:
    """Return the settings of a base in float32."""
    return BaseModelSettings.model_validate({"source": str(base), "dtype": "float32"})


def prepared_rows(
    base: Path,
    folder: Path,
    rows: list[dict[str, Any]],
    objective: LearningObjective = LearningObjective.DPO,
    **changes: object,
) -> PreparedData:
    """Prepare pairs of a file, none of them held out."""
    train = write_rows(folder / "rows.jsonl", rows)
    return prepared_pairs(settings(base), folder, 0, objective, train=train, **changes)


def test_the_tokens_are_those_of_trl(tiny_base: Path, tmp_path: Path) -> None:
    """Of texts, prompt and answers with their end tokens are just the tokens that TRL makes."""
    trl = pytest.importorskip("trl", reason="TRL comes with the extra `bench`")
    from datasets import Dataset

    data = prepared_rows(tiny_base, tmp_path, ROWS)
    tokenizer = data.renderer.tokenizer
    trainer = trl.DPOTrainer.__new__(trl.DPOTrainer)
    trainer._tokenizer = tokenizer
    args = trl.DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=None)
    theirs = trainer._prepare_dataset(Dataset.from_list(ROWS), tokenizer, args, "train")
    for number, row in enumerate(theirs):
        for place, name in ((2 * number, "chosen_ids"), (2 * number + 1, "rejected_ids")):
            ours = data.train.rows[place]
            assert ours.input_ids == row["prompt_ids"] + row[name]
            assert [label for label in ours.labels if label != IGNORED] == row[name]


def test_a_pair_is_one_row_and_one_conversation(tiny_base: Path, tmp_path: Path) -> None:
    """Counts are of pairs; the file has both rows in turn, and the example with both answers."""
    data = prepared_rows(tiny_base, tmp_path, ROWS)
    split = data.record.train
    assert (split.num_rows, split.num_examples, len(data.train.rows)) == (10, 10, 20)
    rows = list(data.train.rows)
    assert [row.conversation for row in rows] == [number // 2 for number in range(20)]
    assert split.num_chosen_tokens == sum(row.num_trained_tokens for row in rows[::2])
    assert split.num_trained_tokens == sum(row.num_trained_tokens for row in rows)
    assert split.answer_lengths == (
        split.num_chosen_tokens / 10,
        (split.num_trained_tokens - split.num_chosen_tokens) / 10,
    )
    for number, row in enumerate(ROWS):
        example = data.train.examples[2 * number]
        assert example == data.train.examples[2 * number + 1]
        answers = [example.answer, example.as_rejected.answer]
        assert answers == [row["chosen"], row["rejected"]]


def test_what_can_not_be_compared_is_dropped_and_counted(tiny_base: Path, tmp_path: Path) -> None:
    """Equal, empty, equal as truncated, truncated away, or of weight 0: each has its count."""
    fine = ROWS[0]
    rows = [
        fine,
        fine | {"rejected": fine["chosen"]},
        fine | {"chosen": " "},
        LONG,
        fine | {"prompt": "fox " * 60},
        fine | {"weight": 0},
    ]
    data = prepared_rows(tiny_base, tmp_path, rows, max_length=40, on_lost_answer="drop")
    split = data.record.train
    assert (split.num_rows, split.num_equal_pairs, split.num_empty_pairs) == (1, 2, 1)
    assert (split.num_dropped_rows, split.num_untrained_rows) == (1, 1)
    told = " ".join(changes(data.record))
    assert "2 training pairs are dropped, as chosen and rejected are the same" in told
    assert "1 training pairs are dropped, as one of their answers is empty" in told


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], LONG], r"row 2: chosen and rejected differ only beyond 40 tokens"),
        ([ROWS[0] | {"prompt": "fox " * 60}], r"row 1: the answer lies entirely beyond"),
    ],
)
def test_what_can_not_be_compared_is_refused(
    tiny_base: Path, tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    """Otherwise the first such pair is an error that names its row."""
    with pytest.raises(UserError, match=message):
        prepared_rows(tiny_base, tmp_path, rows, max_length=40)


def test_no_pair_left_is_an_error(tiny_base: Path, tmp_path: Path) -> None:
    """A training of nothing does not begin."""
    with pytest.raises(UserError, match="no pair has two different answers within 40 tokens"):
        prepared_rows(tiny_base, tmp_path, [LONG], max_length=40, on_lost_answer="drop")


def test_both_answers_are_shown(tiny_base: Path, tmp_path: Path) -> None:
    """What is learned of the first pair is marked in both of its answers."""
    file = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": "Hi", "chosen": "yes", "rejected": "no"}]
    )
    shown = first_row(DataSettings(train=file), settings(tiny_base), LearningObjective.DPO)
    assert "assistant\n⟦yes<|im_end|>⟧" in shown.text
    assert shown.text.endswith("\n\nrejected: ⟦no<|im_end|>⟧")


def test_pairs_that_contradict_each_other_are_odd(tmp_path: Path) -> None:
    """The same prompt may have several pairs, but none prefers what another one rejects."""
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    turned = {"prompt": "a", "chosen": "c", "rejected": "b"}
    rows = [row, row | {"chosen": "d"}, turned, row]
    given = DataSettings(train=write_rows(tmp_path / "rows.jsonl", rows), eval_fraction=0)
    sets = read_examples(given, 0, objective=LearningObjective.DPO)
    found = {one.kind: [place.row for place in one.first] for one in sets.odd}
    assert found == {"reversed": [1, 3, 4], "duplicate": [4]}


def test_the_chosen_answer_is_the_expected_one(tmp_path: Path) -> None:
    """A comparison of adapters may be on pairs."""
    file = tmp_path / "pairs.jsonl"
    write_rows(file, ROWS)
    answered = read_answered(file, CausalLM())
    assert [one.answer for one in answered.examples] == [row["chosen"] for row in ROWS]


def test_judged_rows_are_counted_by_their_labels(tiny_base: Path, tmp_path: Path) -> None:
    """The token file keeps each label; the mean lengths are those of either kind."""
    rows = [*JUDGED[:3], JUDGED[4]]
    data = prepared_rows(tiny_base, tmp_path, rows, objective=LearningObjective.KTO)
    split = data.record.train
    labels = [one.is_desirable for one in data.train.examples]
    assert sorted(map(str, labels)) == ["False", "True", "True", "True"]
    sizes = [row.num_trained_tokens for row in data.train.rows]
    good = [size for size, label in zip(sizes, labels, strict=True) if label]
    assert (split.num_rows, split.num_desirable_rows, split.num_chosen_tokens) == (4, 3, sum(good))
    assert split.answer_lengths == (sum(good) / 3, sum(sizes) - sum(good))
    assert data.record.rows_per_item == 1
    assert data.record.shown[0].text.endswith(("label: true", "label: false"))


@pytest.mark.parametrize(("first", "given"), [(0, "true"), (1, "false")])
def test_judged_rows_need_both_labels(
    tiny_base: Path, tmp_path: Path, first: int, given: str
) -> None:
    """Answers that are all good, or all bad, are refused before a weight is loaded."""
    rows = JUDGED[first::2]
    with pytest.raises(UserError, match=f"all 5 training rows have the label {given}, but"):
        prepared_rows(tiny_base, tmp_path, rows, objective=LearningObjective.KTO)


def test_an_answer_that_is_good_and_bad_is_odd(tmp_path: Path) -> None:
    """Several answers to a prompt are not, whatever their labels."""
    row = {"prompt": "a", "completion": "b", "label": True}
    rows = [row, row | {"completion": "c", "label": False}, row | {"label": False}]
    given = DataSettings(train=write_rows(tmp_path / "rows.jsonl", rows), eval_fraction=0)
    sets = read_examples(given, 0, objective=LearningObjective.KTO)
    found = {one.kind: [place.row for place in one.first] for one in sets.odd}
    assert found == {"disputed": [1, 3]}


def test_desirable_answers_are_the_expected_ones(tmp_path: Path) -> None:
    """Samples and comparisons of adapters are on prompts whose answer is known to be good."""
    file = tmp_path / "judged.jsonl"
    write_rows(file, JUDGED)
    answered = read_answered(file, CausalLM())
    assert [one.answer for one in answered.examples] == [row["chosen"] for row in ROWS[:5]]
    write_rows(file, JUDGED[1::2])
    with pytest.raises(UserError, match="has no desirable answers"):
        read_answered(file, CausalLM())
