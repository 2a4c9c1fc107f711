"""What README and `docs/` say is so: links, commands, settings, configurations and Python."""

import ast
import importlib
import json
import re
from pathlib import Path

import click
import pytest
from command_line_runs import run_in_process
from documents import (
    PAGES,
    ROOT,
    Block,
    anchors,
    arguments_of,
    blocks,
    commands,
    inline_code,
    links,
)

from docs import generate_configuration
from flows.cli.main import cli
from flows.server.deployment_parameters import CONFIGURATIONS
from tasks.config import (
    PredictBatchConfig,
    RetrainAdapterConfig,
    TrainAdapterConfig,
    TrainVariantsConfig,
)
from tasks.config.mistakes import section_of, sections
from tasks.config.reading import read_settings
from tasks.config.section import Section, settings_in

README = ROOT / "README.md"
NAMES: dict[type[Section], str] = {
    TrainAdapterConfig: "train",
    TrainVariantsConfig: "variants",
    RetrainAdapterConfig: "retrain",
    PredictBatchConfig: "predict",
}
_PATH = re.compile(r"(?:tasks|flows|docs|tests|deployments|benchmarks)/[\w./-]+")
_SETTING = re.compile(r"([a-z_]+)\.([a-z_]+)(?:: .*)?")


def page_id(page: Path) -> str:
    """Name a page in pytest's list."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_relative_link_and_anchor_resolves(page: Path) -> None:
    """A link leads to a file of the repository, and its anchor to a heading there."""
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_path_named_exists(page: Path) -> None:
    """A path of the repository between backticks is there, or is a folder that runs write."""
    for code in inline_code(page):
        if _PATH.fullmatch(code) and not code.startswith("benchmarks/results"):
            assert (ROOT / code).exists(), code


def parse(arguments: list[str]) -> None:
    """Parse a command line as `adapterflow` would, without running it."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group):
        found = command.get_command(context, arguments[0])
        assert found, f"there is no command {arguments[0]}"
        command, arguments = found, arguments[1:]
    command.make_context(command.name, arguments)


@pytest.mark.parametrize("block", [x for x in blocks("console") if commands(x)], ids=str)
def test_every_command_shown_parses(block: Block) -> None:
    """Each `adapterflow …` of a block has a verb and options that exist."""
    for arguments in commands(block):
        parse(arguments)


def test_every_command_named_in_passing_exists() -> None:
    """Between backticks, too, `adapterflow` is followed by a verb that exists, or by nothing."""
    for page in PAGES:
        for code in inline_code(page):
            if arguments := arguments_of(code.replace("…", "x")):
                assert arguments[0].startswith("-") or arguments[0] in cli.commands, code


def test_every_make_target_named_exists() -> None:
    """`make NAME` on any page is a target of the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {match for page in PAGES for match in re.findall(r"\bmake ([\w-]+)", code_of(page))}
    assert named <= targets


def code_of(page: Path) -> str:
    """Return all that is code on a page."""
    shown = [block.text for block in blocks("console") if block.page == page]
    return "\n".join([*inline_code(page), *shown])


def configuration_of(keys: set[str]) -> type[Section]:
    """Return the command that a configuration is for, by its sections."""
    if "adapters" in keys:
        return PredictBatchConfig
    if "variants" in keys:
        return TrainVariantsConfig
    return RetrainAdapterConfig if "evaluation" in keys else TrainAdapterConfig


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_every_configuration_shown_is_valid(block: Block, tmp_path: Path) -> None:
    """A YAML block can be given to its command as it stands."""
    file = tmp_path / "shown.yaml"
    file.write_text(block.text)
    keys = set(re.findall(r"^(\w+):", block.text, re.MULTILINE))
    read_settings(configuration_of(keys), file)


@pytest.mark.parametrize("page", [x for x in PAGES if x.name != "CHANGELOG.md"], ids=page_id)
def test_every_setting_named_exists(page: Path) -> None:
    """`section.setting` between backticks is one of a configuration."""
    for code in inline_code(page):
        match = _SETTING.fullmatch(code)
        if match and match[1] in sections(RetrainAdapterConfig):
            section = section_of(RetrainAdapterConfig, match[1])
            assert section
            assert match[2] in settings_in(section), code


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_every_json_line_shown_is_json(block: Block) -> None:
    """Rows can be copied from a page."""
    assert [json.loads(line) for line in block.text.splitlines()]


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_python_block_compiles_and_imports(block: Block) -> None:
    """What a Python block imports of this project is there."""
    for node in ast.walk(ast.parse(block.text, str(block))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("tasks", "flows")):
            module = importlib.import_module(str(node.module))
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []


def test_the_six_steps_in_python_run(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two blocks of the page run one after the other, on a tiny base."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i} plus {i}?", "completion": str(2 * i)} for i in range(12)]
    Path("my_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = [block.text for block in blocks("python") if block.page.name == "use-from-python.md"]
    for text in shown[:2]:
        code = text.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_base))
        exec(compile(code, "use-from-python.md", "exec"), {})  # noqa: S102 - our own page
    assert Path("my-run/adapter/adapter_model.safetensors").exists()


def test_the_message_in_the_readme_is_the_one_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The mistake in README ends with the status and the message that README gives."""
    message = next(x.text for x in blocks("text") if x.page == README and "error:" in x.text)
    (tmp_path / "adapterflow.yaml").write_text(
        "base_model: {source: org/model}\ndata: {train: my_rows.jsonl}\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["train", "adapterflow.yaml", "--set", "inference.sample_row=20"]
    status, _, error = run_in_process(capsys, monkeypatch, *command)
    assert (status, error) == (2, message)


def test_the_readme_is_read_in_five_minutes() -> None:
    """README has at most 220 lines."""
    assert len(README.read_text().splitlines()) <= 220


def test_the_page_of_settings_is_current() -> None:
    """`docs/configuration.md` is what its generator writes."""
    current = generate_configuration.PAGE.read_text()
    assert generate_configuration.page(current) == current


@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_every_setting_has_a_row_or_a_table(config: type[Section]) -> None:
    """A command's chapter, or that of the command whose settings it inherits, has all settings."""
    inherited = settings_in(config.__mro__[1])
    chapters = generate_configuration.PAGE.read_text().split("\n## ")
    own = next(one for one in chapters if f"`adapterflow {NAMES[config]}" in one[:99])
    for name in settings_in(config).keys() - inherited.keys():
        assert f"| `{name}` |" in own or f"### {name}\n" in own, name


def test_pictures_are_small() -> None:
    """A picture of the documentation has less than 200 kB."""
    pictures = list((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert [one.name for one in pictures if one.stat().st_size >= 200_000] == []
