"""A configuration is read whole or refused with a message that says what to write instead."""

import math
import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from starting_points import starting_configuration

from tasks.config import (
    AdapterSettings,
    ApprovalSettings,
    BaseModelSettings,
    DataSettings,
    PredictBatchConfig,
    RetrainAdapterConfig,
    RowFormat,
    TrackingSettings,
    TrainAdapterConfig,
)
from tasks.config.mistakes import section_of, sections
from tasks.config.reading import is_hub_dataset, read_config
from tasks.config.section import Section
from tasks.errors import UserError

SMALLEST = "base_model: {source: org/base}\ndata: {train: org/rows}\n"


def written(folder: Path, text: str) -> Path:
    """Write a configuration file."""
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_not_set_has_its_default(tmp_path: Path) -> None:
    """Base and data are enough; an empty section stands for its defaults."""
    config = read_config(written(tmp_path, SMALLEST + "lora:\n  # r: 4\n"))
    assert config == TrainAdapterConfig(
        base_model=BaseModelSettings(source="org/base"), data=DataSettings(train="org/rows")
    )


@pytest.mark.parametrize("number", ["2e-4", "2.0e-4", "0.0002", "2E-4", ".2e-3"])
def test_numbers_are_read_as_people_write_them(tmp_path: Path, number: str) -> None:
    """A learning rate without a decimal point is a number, in the file as in an override."""
    path = written(tmp_path, SMALLEST + f"training: {{learning_rate: {number}}}\n")
    assert read_config(path).training.learning_rate == pytest.approx(2e-4)
    overridden = read_config(path, [f"training.weight_decay={number}"])
    assert overridden.training.weight_decay == pytest.approx(2e-4)


def test_norwegian_is_a_language(tmp_path: Path) -> None:
    """Where a text is wanted, `no` and `1e5` are texts; `true` and `yes` are truth values."""
    text = SMALLEST + "output: {language: [no, 1e5]}\nlora: {use_dora: true, use_rslora: yes}\n"
    config = read_config(written(tmp_path, text))
    assert config.output.language == ["no", "1e5"]
    assert config.lora.use_dora
    assert config.lora.use_rslora


def test_later_overrides_win(tmp_path: Path) -> None:
    """An override replaces one setting and leaves its neighbours."""
    path = written(tmp_path, SMALLEST + "lora: {r: 4, lora_alpha: 8}\n")
    config = read_config(
        path, ["lora.r=8", "lora.r=32", "lora.target_modules=[q_proj]", "tracking.tags.team=a=b"]
    )
    assert (config.lora.r, config.lora.lora_alpha) == (32, 8)
    assert config.lora.target_modules == ["q_proj"]
    assert config.tracking.tags == {"team": "a=b"}


def test_paths_are_relative_to_who_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's paths start at its folder, an override's at the working directory."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "rows.jsonl").touch()
    (there / "base").symlink_to(here)
    monkeypatch.chdir(here)
    path = written(there, "base_model: {source: base}\ndata: {train: rows.jsonl}\n")
    config = read_config(Path(os.path.relpath(path)), ["data.eval=rows.jsonl"])
    assert Path(config.data.sources[0].path).samefile(there / "rows.jsonl")
    assert config.data.eval == str(here / "rows.jsonl")
    assert config.base_model.source.endswith("base")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("org/name", True), ("org/rows.jsonl", False), ("a/b/c", False), ("name", False)],
)
def test_a_hub_id_is_told_from_a_path(source: str, *, expected: bool) -> None:
    """Only `org/name` that looks like no data file can be on the Hub."""
    assert is_hub_dataset(source) is expected


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("lora: {rank: 8}", r"lora\.rank is not a setting; did you mean lora\.r\? settings of "),
        ("learning_rate: 1", r"did you mean training\.learning_rate\? settings: base_model, data"),
        ("training: {epochs: 1}", r"did you mean training\.num_train_epochs\?"),
        ("training: {lr: 1}", r"training\.lr .*; did you mean training\.learning_rate\? settings"),
        ("training: {per_device_train_batch_size: 1}", r"did you mean training\.batch_size\?"),
        ("training: {bf16: true}", r"training\.bf16 is not a setting; settings of training: "),
        (f"lora: {{adapter_name: {'x' * 101}}}", r"adapter name x+… has 101 letters; at most 100"),
        ("lora: {modle: a}", r"lora\.modle is not a setting; settings of lora: "),
        ("lora.r: 8", r"lora\.r is not a key of a file; write it as r, indented below lora"),
        ("other.name: 1", r"other\.name is not a setting; settings: base_model, data"),
        ("training: {batch_size: 0}", r"batch_size is 0; it must be greater than or equal to 1"),
        ("lora: {bias: some}", r"lora\.bias is 'some'; it must be 'none', 'all' or 'lora_only'"),
        ("lora: {target_modules: [q, 1]}", r"lora\.target_modules\.1 is 1; .*string"),
        ("lora: {target_modules: 1}", r"target_modules is 1; it must be a valid string or .*list"),
        ("tracking: {run_name: 1}", r"run_name is 1; .* \(put it in quotes\)"),
        ("lora: 3", r"lora is 3; it must be a mapping of adapter_name, from, method"),
        ("lora: {form: a}", r"lora\.form is not a setting; did you mean lora\.from\?"),
        ("lora: {from_: a}", r"lora\.from_ is not a setting; did you mean lora\.from\?"),
        ("lora: {from: 1}", r"lora\.from is 1; it must be a valid string"),
        ("lora: {from: a, init_lora_weights: pissa}", r"lora: init_lora_weights is pissa, which"),
        ("seed: null", r"seed is null; it must be a valid integer"),
        ("seed: 1\nseed: 2", r"line 4, column 1: seed is given twice"),
        ("lora: [1", r"run\.yaml is not valid YAML: line 4"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, addition: str, message: str) -> None:
    """A message gives the dotted path, what was given and what is possible."""
    with pytest.raises(UserError, match=message) as caught:
        read_config(written(tmp_path, f"{SMALLEST}{addition}\n"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train", "type", "keys", "pop", "forward", "_modules", "items"])
def test_an_adapter_is_not_named_as_an_attribute(tmp_path: Path, name: str) -> None:
    """A name that torch's containers refuse is refused wherever an adapter is named."""
    message = f"an adapter can't be named '{name}', an attribute of the torch containers"
    with pytest.raises(UserError, match=f"lora.adapter_name: {message}"):
        read_config(written(tmp_path, SMALLEST + f"lora: {{adapter_name: {name}}}\n"))
    with pytest.raises(ValueError, match=message):
        AdapterSettings(source="org/adapter", name=name)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """Missing, unknown and contradictory settings come in one message, one a line."""
    text = "data: {train: a, eval: b, eval_split: c}\nlora: {rank: 1, r: 0}\n"
    with pytest.raises(UserError, match="has 4 mistakes") as caught:
        read_config(written(tmp_path, text))
    lines = str(caught.value).splitlines()[1:]
    assert [line.split()[1].rstrip(":") for line in lines] == [
        "base_model.source",
        "data",
        "lora.r",
        "lora.rank",
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "text\n", "\x00"])
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """Only a mapping of settings is a configuration."""
    with pytest.raises(UserError, match=r"run\.yaml (is|contains)"):
        read_config(written(tmp_path, text))


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    """A slip in the file's name is answered with the right one; a folder is not a file."""
    written(tmp_path, SMALLEST)
    with pytest.raises(UserError, match=r"run\.yml does not exist; did you mean .*run\.yaml\?"):
        read_config(tmp_path / "run.yml")
    with pytest.raises(UserError, match="is a folder"):
        read_config(tmp_path)
    (tmp_path / "run.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(UserError, match="UTF-8"):
        read_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("override", ["lora.r", "=3", "lora..r=3", "lora.r=[", "lora.rank=8"])
def test_a_wrong_override_is_quoted(tmp_path: Path, override: str) -> None:
    """What is no `key.path=value`, or sets nothing known, is shown as it was given."""
    with pytest.raises(UserError) as caught:
        read_config(written(tmp_path, SMALLEST), [override])
    assert override in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "no", "1e5", "ä: #'\"b " + "long " * 20 + "1"])
def test_the_starting_point_holds_defaults(tmp_path: Path, name: str) -> None:
    """It reads back as what was given plus defaults, whatever the path and wherever it is saved."""
    data = tmp_path / name / "rows.jsonl"
    data.parent.mkdir()
    data.write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    text = starting_configuration(data, "org/1e5")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    assert read_config(written(folder, text)) == TrainAdapterConfig(
        base_model=BaseModelSettings(source="org/1e5"),
        data=DataSettings(train=str(data)),
        tracking=TrackingSettings(experiment="rows"),
    )
    assert f"read as {RowFormat.INSTRUCTION}" in text


def test_every_commented_setting_is_ready_to_use(tmp_path: Path) -> None:
    """With each `# name: default` uncommented, the configuration is still the same."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a"}\n', encoding="utf-8")
    text = starting_configuration(data, "org/base")
    config = read_config(written(tmp_path, text))
    uncommented = re.sub(r"(?m)^(  )?# (?=[a-z_]+: )", r"\1", text)
    assert len(re.findall(r"(?m)^  \w+: ", uncommented)) > 25
    assert read_config(written(tmp_path, uncommented)) == config
    assert "\n  # " not in uncommented
    assert len(text.splitlines()) < 80


def test_the_starting_point_names_columns(tmp_path: Path) -> None:
    """Columns that look like a question and its answer are proposed as prompt and completion."""
    data = tmp_path / "faq.csv"
    data.write_text("id,question,answer\n1,a,b\n", encoding="utf-8")
    text = starting_configuration(data, "org/base")
    columns = read_config(written(tmp_path, text)).data.columns
    assert columns == {"prompt": "question", "completion": "answer"}
    assert f"read as {RowFormat.PROMPT_COMPLETION} (prompt from question" in text
    assert "not used: id (1 rows)" in text


def test_all_tokens_or_the_last_answer(tmp_path: Path) -> None:
    """`loss_on: all` trains on every turn, which contradicts `turns: last`."""
    overrides = ["data.loss_on=all", "data.turns=last"]
    with pytest.raises(UserError, match="turns is last, but loss_on is all"):
        read_config(written(tmp_path, SMALLEST), overrides)


@pytest.mark.parametrize(
    ("row", "base", "message"),
    [
        ('{"text": "b", "images": ["c"]}', "org/base", "row 1: there is a column images"),
        ('{"a": "b"}', "org/base", "columns a"),
        ('{"text": "b"}', "", r"base_model\.source is ''"),
    ],
)
def test_no_starting_point_without_data_and_base(
    tmp_path: Path, row: str, base: str, message: str
) -> None:
    """Data that could not be trained on are refused before a configuration is written."""
    data = tmp_path / "rows.jsonl"
    data.write_text(row, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        starting_configuration(data, base)


SECTIONS = [
    section
    for config in (TrainAdapterConfig, RetrainAdapterConfig, PredictBatchConfig)
    for section in (config, *(section_of(config, name) or config for name in sections(config)))
]


@pytest.mark.parametrize("section", [*dict.fromkeys(SECTIONS), ApprovalSettings])
def test_every_number_is_bounded_and_no_truth_value(section: type[Section]) -> None:
    """What would fail deep inside, or silently count as 1, is refused by each numeric setting."""
    numbers = [name for name, one in section.model_fields.items() if "int" in str(one.annotation)
               or "float" in str(one.annotation)]  # fmt: skip
    for name in numbers:
        is_mapping = "dict" in str(section.model_fields[name].annotation)
        for value in (True, 10**30, 10.0**300, math.inf, math.nan, "1e999", "9" * 5000):
            with pytest.raises(ValidationError) as caught:
                section.model_validate({name: {"loss": value} if is_mapping else value})
            assert any(name in error["loc"] for error in caught.value.errors()), (name, value)


def test_chat_template_is_a_file_beside_the_configuration(tmp_path: Path) -> None:
    """Its path is relative to the configuration's folder, and never a Hub id."""
    text = SMALLEST.replace("org/rows", "org/rows, chat_template: templates/own.jinja")
    config = read_config(written(tmp_path, text))
    assert config.data.chat_template == str(tmp_path / "templates" / "own.jinja")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "chat_template_kwargs: {tools: []}",
            "chat_template_kwargs sets tools, which adapterflow itself",
        ),
        ("template: plain, system_in_user: true", "system_in_user would not take effect"),
        ("template: plain, chat_template: a.jinja", "chat_template would not take effect"),
    ],
)
def test_settings_of_chat_templates_that_cannot_work_are_refused(
    tmp_path: Path, settings: str, message: str
) -> None:
    """What adapterflow gives a template itself cannot be set, and plain text has no template."""
    with pytest.raises(UserError, match=message):
        read_config(written(tmp_path, SMALLEST.replace("org/rows", f"org/rows, {settings}")))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("models:/tickets@champion", "models:/tickets@champion"),
        ("org/adapter", "org/adapter"),
        ("org/adapter@v1", "org/adapter@v1"),
        ("./a", "{folder}/a"),
        ("outputs/run/adapters/default", "{folder}/outputs/run/adapters/default"),
    ],
)
def test_an_adapter_to_begin_with_is_located(tmp_path: Path, given: str, expected: str) -> None:
    """Paths are relative to the file; addresses and Hub ids, with a revision, stay as they are."""
    config = read_config(written(tmp_path, f"{SMALLEST}lora: {{from: '{given}'}}\n"))
    assert config.lora.from_ == expected.format(folder=tmp_path)
    unchanged = read_config(written(tmp_path, SMALLEST), [f"lora.from={given}"]).lora.from_
    assert unchanged == (expected.format(folder=Path.cwd()))


def test_what_a_source_determines_stays_unset(tmp_path: Path) -> None:
    """Written and read again, as Prefect does, a configuration has set what the user set."""
    given = SMALLEST + "lora: {from: org/adapter, use_dora: false, r: null}\n"
    config = read_config(written(tmp_path, given))
    again = type(config).model_validate(config.model_dump(mode="json"))
    assert again.lora.chosen == config.lora.chosen == {"from_", "use_dora"}
    assert again == config
    assert config.model_dump(mode="json")["lora"]["from"] == "org/adapter"
    assert "from" in type(config).model_json_schema()["$defs"]["LoraSettings"]["properties"]


def test_replay_needs_an_adapter_to_begin_with(tmp_path: Path) -> None:
    """A fresh adapter has learned from no rows."""
    file = written(tmp_path, SMALLEST)
    with pytest.raises(UserError, match=r"data\.replay 0\.2 is a share .* and lora\.from is not"):
        read_config(file, ["data.replay=0.2"])
    config = read_config(file, ["data.replay=0.2", "lora.from=models:/tickets/3"])
    assert config.data.replay == 0.2
