"""Scores of lm-evaluation-harness on the model in memory: right ones, and no other trace."""

import logging
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from harness_tasks import harness_settings, own_task
from tiny_models import tiny_adapter

from tasks.config import BaseModelSettings, Task
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.data.tokens.tokenization import IGNORED, TokenizedRow
from tasks.engine.objectives.registry import objective_of
from tasks.engine.scoring.evaluation import row_losses
from tasks.engine.scoring.harness import score_on_harness
from tasks.engine.scoring.harness_library import check_installed
from tasks.engine.scoring.harness_tasks import check_guards, harness_sha256, open_tasks
from tasks.errors import UserError

pytest.importorskip("lm_eval")

ROOT = Path(__file__).parents[4]
WORDS = ("card", "order", "transfer", "France", "fox", "dog")
ROWS = [
    {"question": f"The {word} is", "answer": f" {word}", "choices": [f" {word}", " lazy"]}
    for word in WORDS
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a task of one answer a row, and one of two choices."""
    place = own_task(tmp_path_factory.mktemp("tasks"), "words", ROWS)
    return own_task(place, "choices", ROWS, **CHOICE)


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterSet:
    """Load two different adapters on a base."""
    place = tmp_path_factory.mktemp("adapters")
    base = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "float32"})
    loaded = AdapterSet.on(base)
    loaded.load(tiny_adapter(tiny_base, place / "one", seed=1), "one")
    loaded.load(tiny_adapter(tiny_base, place / "two", seed=2), "two")
    return loaded


def scored(adapters: AdapterSet, name: str, folder: Path, **settings: object) -> dict[str, float]:
    """Return a model's scores on both tasks."""
    opened = open_tasks(harness_settings(folder, "words", "choices", **settings))
    found = score_on_harness(adapters, name, "one", opened, "")
    return {one.name: one.value for one in found.scores}


def losses(adapters: AdapterSet, name: str, pairs: list[tuple[str, str]]) -> list[float]:
    """Return our own negative log-likelihood of each continuation."""
    encode = adapters.tokenizer.encode
    rows = []
    for question, answer in pairs:
        prompt, ids = encode(question), encode(question + answer)
        rows.append(TokenizedRow(ids, [IGNORED] * len(prompt) + ids[len(prompt) :]))
    with adapters.using(None if name == "base" else name) as model:
        found = row_losses(objective_of(Task.CAUSAL_LM), model, rows, 0, 4)
    return [nll for nll, _ in found]


@pytest.mark.parametrize("name", ["base", "one"])
def test_the_scores_are_those_of_our_own_losses(
    name: str, adapters: AdapterSet, folder: Path
) -> None:
    """Perplexity and accuracy follow from the losses that rows have with our own code."""
    found = scored(adapters, name, folder)
    right = losses(adapters, name, [(f"The {w} is", f" {w}") for w in WORDS])
    wrong = losses(adapters, name, [(f"The {w} is", " lazy") for w in WORDS])
    assert math.log(found["words/perplexity"]) == pytest.approx(sum(right) / len(right), rel=1e-4)
    chosen = [a < b for a, b in zip(right, wrong, strict=True)]
    assert found["choices/acc"] == pytest.approx(sum(chosen) / len(chosen))


def test_each_model_has_its_own_scores(adapters: AdapterSet, folder: Path) -> None:
    """Base and adapters differ, and each is scored the same again, whichever came before."""
    first = {name: scored(adapters, name, folder) for name in ("base", "one", "two")}
    assert len({one["words/perplexity"] for one in first.values()}) == len(first)
    again = {name: scored(adapters, name, folder) for name in ("two", "base", "one")}
    assert again == first


def test_it_leaves_no_trace_in_the_process(
    adapters: AdapterSet,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Random states, variables, tokenizer and modes are as before, and nothing is printed."""
    import numpy as np
    import torch

    def state() -> list[object]:
        model, tokenizer = adapters.model, adapters.adapters["one"].tokenizer
        return [
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002 - the one that it seeds
            torch.get_rng_state().tolist(),
            dict(os.environ),
            (tokenizer.pad_token, tokenizer.padding_side),
            [module.training for module in model.modules()],
            "tie_weights" in vars(model),
            logging.getLogger("lm_eval").handlers,
        ]

    before = state()
    scored(adapters, "one", folder)
    assert state() == before
    assert not caplog.messages
    assert capfd.readouterr() == ("", "")


ALONE = """
import sys
import tasks.engine
from harness_tasks import harness_settings
from tasks.config import BaseModelSettings
from tasks.engine.adapters import AdapterSet
from tasks.engine.scoring import open_tasks, score_on_harness
from tasks.engine.scoring.harness_library import import_harness
base, adapter, folder = sys.argv[1:]
adapters = AdapterSet.on(BaseModelSettings.model_validate({"source": base, "dtype": "float32"}))
adapters.load(adapter, "one")
assert "lm_eval" not in sys.modules
used = []
sys.addaudithook(lambda event, _: used.append(event) if event in EVENTS else None)
import_harness()
opened = open_tasks(harness_settings(folder, "words"))
assert score_on_harness(adapters, "one", "one", opened, "").scores[0].stderr
print(sorted(set(used)))
"""
EVENTS = ("socket.getaddrinfo", "socket.connect", "subprocess.Popen", "os.system", "os.fork")


@pytest.mark.slow  # a process of its own: some 20 s
def test_it_asks_nobody_and_starts_nothing(folder: Path, tiny_base: Path, tmp_path: Path) -> None:
    """A local task needs no network, even where there is one, and no process for a bootstrap."""
    adapter = tiny_adapter(tiny_base, tmp_path / "adapter")
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hub")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
    code = ALONE.replace("EVENTS", repr(EVENTS))
    command = [sys.executable, "-c", code, str(tiny_base), str(adapter), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"


def test_few_shot_examples_are_the_same_for_all_models(adapters: AdapterSet, folder: Path) -> None:
    """They are drawn anew for each model, by the same seed, and are part of the prompt."""
    alone = scored(adapters, "one", folder)
    opened = open_tasks(harness_settings(folder, "words", "choices", num_fewshot=2))
    first, second = (score_on_harness(adapters, "one", "one", opened, "") for _ in range(2))
    assert first.scores == second.scores
    assert {task.num_fewshot for task in first.tasks} == {2}
    assert {one.name: one.value for one in first.scores} != alone


def test_a_chat_template_is_that_of_the_adapter(adapters: AdapterSet, folder: Path) -> None:
    """Where it is asked for, prompts are messages, which score otherwise."""
    assert scored(adapters, "one", folder, apply_chat_template=True) != scored(
        adapters, "one", folder
    )


READS_ALL = pytest.mark.slow
"""The harness's own 14,000 tasks are read, too: some 20 s."""
BROKEN: dict[str, dict[str, object]] = {
    "no_rows": {"dataset_kwargs": {"data_files": {"test": "/gone/rows.jsonl"}}},
    "bad_template": {"doc_to_text": "{{nothing}}"},
    "runs_code": {"unsafe_code": True},
    "on_the_hub": {"dataset_path": "nobody/has-this", "dataset_kwargs": {}},
}


@pytest.mark.parametrize(
    ("settings", "guard", "message"),
    [
        pytest.param(
            {"tasks": ["wrods"]},
            None,
            r"names 'wrods', and .* no such task; did you mean words\?; tasks in .*: .*words; "
            r"no task: odd\.yaml",
            marks=READS_ALL,
        ),
        ({"tasks": ["no_rows"]}, None, r"the task no_rows .* can't be loaded: .*/gone/rows\.jsonl"),
        ({"tasks": ["bad_template"]}, None, r"the task bad_template .* 'nothing' is undefined"),
        ({"tasks": ["runs_code"]}, None, r"the task runs_code .* runs code that the model writes"),
        ({"tasks": ["on_the_hub"]}, None, r"the task on_the_hub .* in the cache of datasets"),
        ({"num_fewshot": 99}, None, r"the task words .* can't be loaded: .*[Ss]ample larger"),
        pytest.param(
            {"tasks": ["pair", "words"]},
            None,
            r"words has the task words, as another one of",
            marks=READS_ALL,
        ),
        ({"include_path": "/gone"}, None, r"include_path /gone does not exist; give the folder"),
        ({}, "words/acc_nrom", r"the score 'words/acc_nrom'; .* measures words/acc, words/perp"),
        ({}, "words/perplxity", r"\(did you mean words/perplexity\?\)"),
        ({}, "choices/acc", r"names the score 'choices/acc'"),
        ({"tasks": ["unsure"]}, "unsure/own", r"does not say whether more of it is better; state"),
    ],
)
def test_what_cannot_work_is_one_message(
    settings: dict[str, object], guard: str | None, message: str, folder: Path, tmp_path: Path
) -> None:
    """Before anything is trained: tasks, their rows and prompts, the folder and the guards."""
    own_task(tmp_path, "words", ROWS)
    for name, broken in BROKEN.items():
        own_task(tmp_path, name, ROWS, **broken)
    unsure = {"metric": "own", "aggregation": "mean", "higher_is_better": None}
    own_task(tmp_path, "unsure", ROWS, process_results="none", metric_list=[unsure])
    (tmp_path / "pair.yaml").write_text("group: pair\ntask: [words]\n")
    (tmp_path / "odd.yaml").write_text("- 1\n")
    given = {"tasks": ["words"], **settings}
    names = [str(name) for name in given.pop("tasks")]  # type: ignore[attr-defined]
    guards = [guard] if guard else []
    with pytest.raises(UserError, match=message):
        check_guards(open_tasks(harness_settings(tmp_path, *names, **given)), guards)


def test_without_the_package_the_command_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message names the extra; nothing is imported for that."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'adapterflow\[harness\]'"):
        check_installed(harness_settings(folder, "words"))


@READS_ALL
def test_scores_of_groups_are_known_before(adapters: AdapterSet, tmp_path: Path) -> None:
    """What can be guarded is what is measured: of tasks with filters, of tags, and of groups."""
    filters = [{"name": "first", "filter": [{"function": "take_first"}]}]
    own_task(tmp_path, "words", ROWS, tag="mine")
    own_task(tmp_path, "filtered", ROWS, tag="mine", filter_list=filters)
    own_task(tmp_path, "choices", ROWS, **CHOICE)
    group = "group: pair\ntask: [choices]\naggregate_metric_list: [{metric: acc}]\n"
    (tmp_path / "pair.yaml").write_text(group)
    opened = open_tasks(harness_settings(tmp_path, "mine", "pair"))
    found = score_on_harness(adapters, "one", "one", opened, "")
    assert {one.name: one.higher_is_better for one in found.scores} == opened.higher_is_better
    assert {"filtered/acc/first", "words/acc", "pair/acc"} <= opened.higher_is_better.keys()
    assert opened.members == {"mine": ["filtered", "words"], "pair": ["choices"]}


def test_what_the_tasks_are_made_of_identifies_them(tmp_path: Path) -> None:
    """Rows, settings and tasks count; where the folder is, and the size of batches, do not."""
    here, there = (own_task(tmp_path / name, "words", []) for name in ("here", "there"))
    (there / "words.yaml").write_bytes((here / "words.yaml").read_bytes())
    same = [harness_settings(here, "words"), harness_settings(there, "words", batch_size=1)]
    assert len({harness_sha256(one) for one in same}) == 1
    assert harness_sha256(harness_settings(here, "words", limit=1)) != harness_sha256(same[0])
    (there / "words.jsonl").write_text("{}\n")
    assert harness_sha256(same[1]) != harness_sha256(same[0])
