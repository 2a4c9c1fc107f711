"""Batch inference that was stopped: answers stay, and no others are mixed in with them."""

import json
import shutil
import time
from pathlib import Path

import pytest
from batch_predictions import Predicting, base_settings, jsonl, read, routed
from tiny_models import tiny_adapter, tiny_tokenizer

from tasks.engine.base.base_models import end_ids
from tasks.errors import UnwritableError, UserError


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save two adapters that answer differently."""
    root = tmp_path_factory.mktemp("adapters")
    return {name: tiny_adapter(tiny_base, root / name, seed=n) for n, name in enumerate("ab")}


@pytest.fixture
def predict(tiny_base: Path, adapters: dict[str, Path], tmp_path: Path) -> Predicting:
    """Return the task."""
    return Predicting(tiny_base, adapters, tmp_path)


def stop_at(row: int, predict: Predicting, source: Path) -> Path:
    """Stop at the chunk that begins with this row, which cannot be kept; return the folder."""
    folder = predict.folder / ".answers.jsonl.partial"
    obstacle = folder / f"chunk-{row:09d}.jsonl"
    obstacle.mkdir(parents=True)
    with pytest.raises(UnwritableError, match="Is a directory"):
        predict(source)
    obstacle.rmdir()
    return folder


def test_what_was_answered_stays_answered(predict: Predicting, tmp_path: Path) -> None:
    """After a stop the complete chunks are taken as they are, and only the others are answered."""
    source, output = jsonl(tmp_path, routed()), tmp_path / "answers.jsonl"
    predict(source)
    uninterrupted = read(output)
    output.unlink()
    chunks = stop_at(8, predict, source)
    assert not output.exists()

    for kept in sorted(chunks.glob("chunk-*.jsonl")):
        rows = [{**row, "answer": "kept"} for row in read(kept)]
        kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert predict(source, batch_size=2).num_rows == 9
    answers = [row["answer"] for row in read(output)]
    assert answers == [*["kept"] * 8, uninterrupted[8]["answer"]]


def test_other_settings_do_not_go_on(predict: Predicting, tmp_path: Path) -> None:
    """Answers of another length are not mixed in: the folder of the earlier try is named."""
    source = jsonl(tmp_path, routed())
    stop_at(4, predict, source)
    with pytest.raises(UserError, match="different max_new_tokens"):
        predict(source, max_new_tokens=5)
    with pytest.raises(UserError, match="different input"):
        predict(jsonl(tmp_path, [*routed(), {"prompt": "x", "adapter": "a"}]))


def test_answers_to_yesterdays_prompts_do_not_go_on(
    tiny_base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """A template that writes the time makes other prompts of the same rows."""
    own = {name: Path(shutil.copytree(f, tmp_path / name)) for name, f in adapters.items()}
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%H:%M:%S') }}" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(own["a"])
    predict, source = Predicting(tiny_base, own, tmp_path), jsonl(tmp_path, routed())
    stop_at(4, predict, source)
    time.sleep(1)
    with pytest.raises(UserError, match="different prompts"):
        predict(source)


def test_another_base_or_adapter_does_not_go_on(
    tiny_base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """Nor does one of other packing, scale or prompts, although its weights are the same."""
    own = {name: Path(shutil.copytree(f, tmp_path / name)) for name, f in adapters.items()}
    predict, source = Predicting(tiny_base, own, tmp_path), jsonl(tmp_path, routed())
    stop_at(4, predict, source)
    packed = base_settings(tiny_base).model_copy(update={"quantization": "8bit"})
    with pytest.raises(UserError, match="different base_model"):
        predict(source, base_model=packed)
    file = own["a"] / "adapter_config.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "lora_alpha": 1}))
    with pytest.raises(UserError, match="different adapters"):
        predict(source)
    file.write_text(before)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(own["b"])
    with pytest.raises(UserError, match="different adapters"):
        predict(source)


@pytest.mark.parametrize(
    ("name", "change"),
    [("config.json", {"rms_norm_eps": 0.5}), ("generation_config.json", {"eos_token_id": [2, 3]})],
)
def test_a_base_that_is_configured_otherwise_does_not_go_on(
    name: str,
    change: dict[str, object],
    tiny_base: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
) -> None:
    """The same weights compute something else, or stop elsewhere."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    predict, source = Predicting(base, adapters, tmp_path), jsonl(tmp_path, routed())
    stop_at(4, predict, source)
    end_ids.cache_clear()  # as in another process
    given = json.loads((base / name).read_text())
    (base / name).write_text(json.dumps({**given, **change}))
    with pytest.raises(UserError, match="different base_model"):
        predict(source)
