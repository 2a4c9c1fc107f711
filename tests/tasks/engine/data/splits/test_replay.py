"""Rows that an earlier adapter learned from: found again, known to be the same, and drawn."""

import json
from pathlib import Path

import pytest

from tasks.config import DataSettings, LearningObjective, Task
from tasks.engine.data.splits import ExampleSets, read_examples
from tasks.errors import UserError
from tasks.records import LearnedData, SplitRecord


def written(file: Path, word: str, count: int = 20) -> Path:
    """Write rows that ask for one word."""
    rows = ({"prompt": f"{word} {n}", "completion": str(n)} for n in range(count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def learned_from(settings: DataSettings, sets: ExampleSets, seed: int = 0) -> LearnedData:
    """Return what a run records of the rows that it trained on."""
    own = [part.sha256 for part in sets.train.by_source if not part.is_replayed]
    return LearnedData(
        settings=settings,
        seed=seed,
        task=Task.CAUSAL_LM,
        objective=sets.objective,
        labels=sets.labels,
        sources=tuple(own),
        replayed=sets.replayed,
    )


def prompts(sets: ExampleSets) -> list[str]:
    """Return what the training rows ask, in order."""
    return [one.prompt_messages[0].content for one in sets.train.examples]


@pytest.fixture
def first(tmp_path: Path) -> LearnedData:
    """Return what a training on 15 of 20 rows learned."""
    settings = DataSettings(train=str(written(tmp_path / "a.jsonl", "a")), eval_fraction=0.25)
    return learned_from(settings, read_examples(settings, 3), 3)


def second(folder: Path, replay: float, **given: object) -> DataSettings:
    """Configure a training on 8 other rows."""
    file = written(folder / "b.jsonl", "b", 8)
    return DataSettings.model_validate(
        {"train": str(file), "eval_fraction": 0, "replay": replay} | given
    )


@pytest.mark.parametrize(("replay", "count"), [(0.2, 3), (1.0, 15), (0.001, 1)])
def test_a_share_of_the_rows_is_replayed(
    first: LearnedData, tmp_path: Path, replay: float, count: int
) -> None:
    """They are some of those trained on, none of those held out, and counted apart."""
    settings = second(tmp_path, replay)
    sets = read_examples(settings, 0, learned=first)
    trained = set(prompts(read_examples(first.settings, 3)))
    replayed = [one for one in prompts(sets) if one.startswith("a")]
    assert len(replayed) == len(set(replayed)) == count
    assert set(replayed) <= trained
    assert len(prompts(sets)) == 8 + count
    own, other = sets.train.parts
    assert (own.is_replayed, other.is_replayed) == (False, True)
    assert other.name == "replayed-a"
    assert own.sha256 == read_examples(settings, 0).train.sha256


def test_the_seed_draws_them(first: LearnedData, tmp_path: Path) -> None:
    """Equal seeds give equal rows in an equal order, others give others."""
    settings = second(tmp_path, 0.4)
    found = [read_examples(settings, seed, learned=first) for seed in (1, 1, 2)]
    assert found[0].train == found[1].train
    drawn = [{one for one in prompts(sets) if one.startswith("a")} for sets in found]
    assert drawn[0] == drawn[1] != drawn[2]


def test_rows_of_all_earlier_trainings_are_replayed(first: LearnedData, tmp_path: Path) -> None:
    """A third training replays its share of the second's rows and of all that the first had."""
    settings = second(tmp_path, 0.4)
    learned = learned_from(settings, read_examples(settings, 0, learned=first))
    again = LearnedData.model_validate_json(learned.model_dump_json())
    file = str(written(tmp_path / "c.jsonl", "c", 4))
    found = {}
    for share in (1.0, 0.2):
        third = DataSettings(train=file, eval_fraction=0, replay=share)
        sets = read_examples(third, 0, learned=again)
        kinds = [one[0] for one in prompts(sets)]
        found[share] = {kind: kinds.count(kind) for kind in "abc"}
        assert [one.name for one in sets.train.parts] == ["c", "replayed-b", "replayed-a"]
        assert len(set(prompts(sets))) == len(prompts(sets))
    assert found == {1.0: {"a": 15, "b": 8, "c": 4}, 0.2: {"a": 3, "b": 2, "c": 4}}


def test_rows_that_are_not_as_they_were_are_told(first: LearnedData, tmp_path: Path) -> None:
    """A file that grew, or is gone, is one message with what to do."""
    settings = second(tmp_path, 0.5)
    file = tmp_path / "a.jsonl"
    kept = file.read_text()
    file.write_text(kept + '{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl has other rows than the adapter .* remove"):
        read_examples(settings, 0, learned=first)
    file.unlink()
    with pytest.raises(UserError, match=r"can't be read again: .*a\.jsonl.* restore them"):
        read_examples(settings, 0, learned=first)


def test_rows_held_out_elsewhere_are_not_needed(tmp_path: Path) -> None:
    """What was held out in a file of its own is not replayed, so that it may be gone."""
    held_out = written(tmp_path / "held-out.jsonl", "h")
    settings = DataSettings(train=str(written(tmp_path / "a.jsonl", "a")), eval=str(held_out))
    learned = learned_from(settings, read_examples(settings, 0))
    held_out.unlink()
    sets = read_examples(second(tmp_path, 1.0), 0, learned=learned)
    assert len(prompts(sets)) == 28


def test_another_task_is_told(first: LearnedData, tmp_path: Path) -> None:
    """Rows of one task are none of another."""
    other = first.model_copy(update={"task": Task.SEQ2SEQ})
    with pytest.raises(UserError, match="learned seq2seq from its rows"):
        read_examples(second(tmp_path, 0.5), 0, learned=other)


def test_own_rows_are_known_beside_replayed_ones() -> None:
    """The hash of a run's own rows is that of the same rows without any that are replayed."""
    numbers = dict.fromkeys(("num_rows", "num_tokens", "num_trained_tokens", "longest_tokens"), 1)

    def split(sha256: str, **given: object) -> SplitRecord:
        return SplitRecord.model_validate({"source": "", "sha256": sha256, **numbers, **given})

    old = split("o", is_replayed=True)
    assert split("m", parts=(split("x"), old)).own_sha256 == split("x").own_sha256 == "x"
    two = split("m", parts=(split("x"), split("y"), old))
    assert two.own_sha256 == split("n", parts=(split("x"), split("y"))).own_sha256


def test_pairs_are_replayed_beside_pairs(tmp_path: Path, first: LearnedData) -> None:
    """Also for another objective of pairs; single answers are refused there."""
    files = [tmp_path / name for name in ("old.jsonl", "new.jsonl")]
    for file in files:
        rows = ({"prompt": f"{file.stem} {n}", "chosen": "a", "rejected": "b"} for n in range(9))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = DataSettings(train=str(files[0]), eval_fraction=0)
    learned = learned_from(old, read_examples(old, 0, objective=LearningObjective.DPO))
    new = DataSettings(train=str(files[1]), eval_fraction=0, replay=0.3)
    sets = read_examples(new, 0, objective=LearningObjective.SIMPO, learned=learned)
    assert sorted(one.startswith("old") for one in prompts(sets)) == [False] * 9 + [True] * 3
    with pytest.raises(UserError, match="learned by objective sft, from other rows than those of"):
        read_examples(new, 0, objective=LearningObjective.DPO, learned=first)
