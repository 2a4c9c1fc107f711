"""Questions that are typed or piped: each gets the answers that `predict` gives."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from batch_predictions import Predicting, jsonl, read
from command_line_runs import run_in_process
from served_answers import as_chat, greedy_answers
from tiny_models import CHAT_TEMPLATE, tiny_adapter, tiny_bert, tiny_tokenizer

ADAPTERFLOW = Path(sys.executable).with_name("adapterflow")
QUESTIONS = ["What is 1 plus 1?", "My card was declined.", "Bonjour, o\u00f9 est la gare ?"]
CHAT = {"chat_template_kwargs": {"day": "Monday"}, "system_in_user": True}


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Save two adapters; the second one records how its conversations are rendered."""
    root = tmp_path_factory.mktemp("adapters")
    found = {name: tiny_adapter(tiny_base, root / name, seed=n) for n, name in enumerate("ab")}
    base = {"reference": str(tiny_base), "dtype": "float32"}
    for name, chat in (("a", {}), ("b", CHAT)):
        manifest = {"base_model": base, "template": "chat", "chat": chat}
        (found[name] / "manifest.json").write_text(json.dumps(manifest))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ day }}" + CHAT_TEMPLATE
    tokenizer.save_pretrained(found["b"])
    return found


def give(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """Make these bytes what stands on stdin, which is no terminal."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


def lines(questions: Sequence[str]) -> bytes:
    """Return what is piped: a question a line."""
    return "".join(f"{one}\n" for one in questions).encode()


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_answers_are_those_of_predict(  # noqa: PLR0913 - fixtures
    system: str | None,
    tiny_base: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each adapter answers with its own template, its variables and its place of the system."""
    optional = {"system": system} if system else {}
    rows = [{"prompt": one, "adapter": name, **optional} for one in QUESTIONS for name in adapters]
    Predicting(tiny_base, adapters, tmp_path)(jsonl(tmp_path, rows), max_new_tokens=8)
    wanted = [
        (row["prompt"], row["adapter"], row["answer"]) for row in read(tmp_path / "answers.jsonl")
    ]
    assert len({answer for *_, answer in wanted}) > len(QUESTIONS)

    give(monkeypatch, lines(QUESTIONS))
    named = [f"{name}={folder}" for name, folder in adapters.items()]
    given = [*named, "--max-new-tokens=8", "--json", *(["--system", system] if system else [])]
    status, out, err = run_in_process(capsys, monkeypatch, "try", *given)
    assert status == 0, err
    objects = [json.loads(line) for line in out.splitlines()]
    assert [list(one["answers"]) for one in objects] == [["base", "a", "b"]] * len(QUESTIONS)
    assert wanted == [
        (one["question"], name, one["answers"][name]["answer"])
        for one in objects
        for name in adapters
    ]
    opening = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    prompts = [opening + as_chat(one) for one in QUESTIONS]
    of_base = [one["answers"]["base"]["answer"] for one in objects]
    assert of_base == greedy_answers(tiny_base, None, prompts)


def test_a_chat_continues(
    tiny_base: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third question is answered as the end of a conversation with the earlier answers."""
    give(monkeypatch, lines(QUESTIONS))
    command = ("try", adapters["b"], "--max-new-tokens=6", "--json", "--chat")
    status, out, err = run_in_process(capsys, monkeypatch, *command)
    assert status == 0, err
    answers = [json.loads(x)["answers"][str(adapters["b"])]["answer"] for x in out.splitlines()]

    turns = [
        {"role": role, "content": text}
        for pair in zip(QUESTIONS, answers, strict=True)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    rows = [{"messages": turns[:end]} for end in (1, 3, 5)]
    Predicting(tiny_base, {"b": adapters["b"]}, tmp_path)(jsonl(tmp_path, rows))
    assert [row["answer"] for row in read(tmp_path / "answers.jsonl")] == answers


def test_each_line_gets_one_line(
    adapters: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A line that can't be answered gets an empty one, and its reason on stderr."""
    give(monkeypatch, b"Bonjour\r\n\n\xff\nlast")
    status, out, err = run_in_process(
        capsys, monkeypatch, "try", adapters["a"], "--max-new-tokens=30"
    )
    assert status == 0, err
    assert [bool(line) for line in out.split("\n")] == [True, False, False, True, False]
    assert "error: row 2: prompt is empty" in err
    assert "error: row 3: not UTF-8 text" in err


CLASSIFIERS: dict[str, tuple[str, Callable[[str], dict[str, object]]]] = {
    "sequence-classification": ("SEQ_CLS", lambda line: {"text": line}),
    "token-classification": ("TOKEN_CLS", lambda line: {"tokens": line.split()}),
}


def classifier(folder: Path, task: str) -> Path:
    """Save an adapter with two classes, with its base beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    base = tiny_bert(folder / "base")
    auto: Any = {
        "sequence-classification": AutoModelForSequenceClassification,
        "token-classification": AutoModelForTokenClassification,
    }[task]
    lora = LoraConfig(task_type=CLASSIFIERS[task][0], init_lora_weights=False)
    get_peft_model(auto.from_pretrained(base, num_labels=2), lora).save_pretrained(folder / "own")
    recorded = {"reference": str(base), "dtype": "float32", "task": task, "labels": ["no", "yes"]}
    (folder / "own" / "manifest.json").write_text(json.dumps({"base_model": recorded}))
    return folder / "own"


@pytest.mark.parametrize("task", CLASSIFIERS)
def test_a_classifier_answers_without_its_base(
    task: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The class and its probability are those of `predict`; there is nothing to converse about."""
    adapter = classifier(tmp_path, task)
    rows = [CLASSIFIERS[task][1](one) for one in QUESTIONS]
    Predicting(tmp_path / "base", {"one": adapter}, tmp_path)(jsonl(tmp_path, rows))
    answered = read(tmp_path / "answers.jsonl")

    give(monkeypatch, lines(QUESTIONS))
    status, out, err = run_in_process(capsys, monkeypatch, "try", f"one={adapter}", "--json")
    assert status == 0, err
    answers = [json.loads(line)["answers"] for line in out.splitlines()]
    assert [list(one) for one in answers] == [["one"]] * len(QUESTIONS)
    for one, wanted in zip(answers, answered, strict=True):
        assert one["one"]["answer"] == wanted["answer"]
        assert one["one"]["probability"] == pytest.approx(wanted["probability"])

    status, _, err = run_in_process(capsys, monkeypatch, "try", adapter, "--chat")
    assert status == 2
    assert "leave out --system and --chat" in err


MISTAKES: dict[str, tuple[Sequence[str], str]] = {
    "none": ([], "Missing argument"),
    "two on a line": (["{a}", "{b}"], "give one adapter, or --json"),
    "one name": (["x={a}", "x={b}", "--json"], "'x' is given twice"),
    "one adapter": (["{a}", "{a}", "--json"], "is given twice"),
    "the base's name": (["base={a}"], "choose another name"),
    "no adapter": (["{a}/../none"], "none"),
    "blank system": (["{a}", "--system= "], "--system is empty"),
    "no base": (["{a}", "--base-model=/none"], "/none"),
    "no place for a system": (["{strict}", "--system=x"], "data.system_in_user"),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_message(  # noqa: PLR0913 - fixtures
    case: tuple[Sequence[str], str],
    tiny_base: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends with status 2 before a question is read."""
    words, message = case
    strict = tiny_adapter(tiny_base, tmp_path / "strict")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(strict)
    given = [one.format(**adapters, strict=strict) for one in words]
    give(monkeypatch, lines(QUESTIONS))
    status, out, err = run_in_process(capsys, monkeypatch, "try", *given)
    assert (status, out) == (2, ""), err
    assert message in err
    assert sys.stdin.read() == lines(QUESTIONS).decode()


@pytest.mark.slow
def test_a_pipe_needs_no_server(adapters: dict[str, Path], tmp_path: Path) -> None:
    """A new process answers, and leaves nothing in the home that a flow would."""
    done = subprocess.run(
        [ADAPTERFLOW, "try", adapters["a"], "--max-new-tokens=6"],
        input=lines(QUESTIONS),
        env={**os.environ, "ADAPTERFLOW_HOME": str(tmp_path / "home")},
        capture_output=True,
        check=True,
    )
    assert len(done.stdout.decode().split("\n")) == len(QUESTIONS) + 1
    assert done.stderr == b"loading ...\n"
    assert not (tmp_path / "home").exists()


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self._shown = ""
        self.process, self._file = pty.fork()
        if self.process == 0:
            os.environ["TERM"] = "dumb"
            os.execv(ADAPTERFLOW, ["adapterflow", "try", *map(str, arguments)])  # noqa: S606

    def type(self, keys: str) -> None:
        """Type keys; ETX is Ctrl-C and EOT Ctrl-D."""
        os.write(self._file, keys.encode())

    def until(self, text: str) -> str:
        """Return what is shown up to and including a text, within two minutes."""
        end = time.monotonic() + 120
        while text not in self._shown:
            is_readable, _, _ = select.select([self._file], [], [], max(0, end - time.monotonic()))
            assert is_readable, self._shown
            self._shown += os.read(self._file, 4096).decode(errors="replace")
        before, _, self._shown = self._shown.partition(text)
        return before + text

    def status(self) -> int:
        """Return the exit status, once the command has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def kill(self) -> None:
        """End what a failed test left."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


@pytest.mark.slow
def test_a_terminal_shows_base_and_adapter(adapters: dict[str, Path]) -> None:
    """The base answers, then the adapter; Ctrl-C stops that and keeps the prompt, Ctrl-D ends."""
    terminal = Terminal(f"tickets={adapters['a']}", "--max-new-tokens=400")
    try:
        terminal.until("Ctrl-D ends.\r\n> ")
        terminal.type("\n")
        terminal.until("\r\n> ")
        terminal.type("My card was declined.\n")
        terminal.until("declined.\r\n[base]\r\n")
        from_base = terminal.until("\r\n[tickets]\r\n")
        from_adapter = terminal.until("\r\n> ")
        assert len({*from_base, *from_adapter}) > 1
        assert "\x1b" not in from_base + from_adapter

        terminal.type("Where is it?\n")
        terminal.until("Where is it?\r\n[base]\r\n")
        terminal.type("\x03")
        assert "tickets" not in terminal.until("stopped\r\n> ")
    except BaseException:
        terminal.kill()
        raise
    terminal.type("\x04")
    assert terminal.status() == 0
