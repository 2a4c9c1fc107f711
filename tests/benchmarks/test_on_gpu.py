"""The benchmark for a GPU, in its form for a CPU: what it checks, compares, and survives."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import pytest
import torch
from exact_training import attention_of_lengths

from benchmarks.harness.processes import environment
from benchmarks.on_gpu.curves import EQUAL_WITHIN, apart
from benchmarks.on_gpu.exactness import CHECKS
from benchmarks.on_gpu.messages import Item, Place, Results, State
from benchmarks.on_gpu.older_torch import repeating_heads
from benchmarks.on_gpu.pack import keep_one_cuda
from benchmarks.on_gpu.plan import CARD, checks, trainings
from benchmarks.on_gpu.report import is_equal
from benchmarks.on_gpu.running import START_LIMIT, Clock, Runner
from benchmarks.on_gpu.shapes import SHAPES, num_linear_weights
from tasks.engine.kernels import adapter_layers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def place(tokenizer: "PreTrainedTokenizerFast", tmp_path: Path) -> Place:
    """Return where a worker works, with the tiny tokenizer."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return Place(tokenizer=tmp_path / "tokenizer", folder=tmp_path)


def without_tracking(folder: Path) -> str:
    """Return a PYTHONPATH on which neither Prefect nor MLflow can be imported."""
    for name in ("prefect", "mlflow"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not there')")
    return str(folder)


@pytest.mark.slow
def test_without_a_gpu_everything_is_checked_and_compared_on_a_tiny_base(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command needs neither Prefect nor MLflow; all is exact, and all tools learn alike."""
    (tmp_path / "blocked").mkdir()
    monkeypatch.setenv("PYTHONPATH", without_tracking(tmp_path / "blocked"))
    command = [sys.executable, "-m", "benchmarks.on_gpu", "--seconds=3000"]
    options = [f"--packed={place.folder}", f"--output={tmp_path / 'results'}"]
    done = subprocess.run(
        [*command, *options], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "no Nvidia GPU here" in done.stderr
    results = Results.model_validate_json((tmp_path / "results" / "results.json").read_text())
    wrong = (State.FAILED, State.ERROR, State.LEFT_OUT)
    assert not [one for one in results.findings if one.state in wrong], done.stdout
    measured = {one.item.name: one.figures for one in results.findings if one.figures}
    assert {"ours", "trainer"} <= set(measured)
    for figures in measured.values():
        assert min(figures.tokens_per_second, figures.peak_memory_mb) > 0
        assert is_equal(figures, measured["trainer"])
        assert figures.losses[-1] < figures.losses[0] - 1
    assert "| adapterflow |" in (tmp_path / "results" / "results.md").read_text()


@pytest.mark.slow
def test_a_process_that_hangs_costs_one_line(place: Place) -> None:
    """The item in which it hung is an error, and the next one is measured by another process."""
    runner = Runner(place, environment(1, place.folder / "caches"), Clock(600))
    # No process loads torch in time for it: as if it hung.
    hanging = CARD.model_copy(update={"limit_seconds": 0.1 - START_LIMIT})
    states = [one.state for one in runner.run([hanging, CARD])]
    assert states == [State.ERROR, State.MEASURED]


def test_what_the_time_does_not_suffice_for_is_told(place: Place) -> None:
    """At the end of the time no process is started, and every item is a line all the same."""
    runner = Runner(place, {}, Clock(0))
    parts = [[CARD, *checks(list(CHECKS), on_gpu=True)], *trainings()]
    findings = [finding for part in parts for finding in runner.run(part)]
    assert len(findings) == sum(map(len, parts))
    assert {one.state for one in findings} <= {State.LEFT_OUT, State.ABSENT}
    assert not list(place.folder.glob("worker-*"))


def test_a_library_that_is_not_there_is_a_line(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs no process."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    [finding] = Runner(place, {}, Clock(600)).run([qlora()])
    assert (finding.state, finding.reason) == (
        State.ABSENT,
        "trl and liger_kernel and bitsandbytes not installed",
    )


def qlora() -> Item:
    """Return an item that needs every library."""
    return next(
        item
        for part in trainings()
        for item in part
        if (item.method, item.name) == ("QLoRA", "trl-liger")
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_gradient_does_not_pass(
    dtype: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter layer whose gradient is a tenth too large is found, also beside rounding."""
    check = CHECKS[f"adapter layers, {dtype}"]
    right = check(place)
    assert right.difference <= right.tolerance
    backward = adapter_layers._AdaptedLinear.backward

    def wrong(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return backward(ctx, 1.1 * gradient)  # type: ignore[no-any-return]

    monkeypatch.setattr(adapter_layers._AdaptedLinear, "backward", staticmethod(wrong))
    found = check(place)
    assert found.difference > found.tolerance


def test_losses_that_fall_less_are_not_equal_work() -> None:
    """A training on half of the work ends elsewhere; another order of rows ends near by."""
    reference = [10.0, 8.0, 6.0, 5.0, 4.5, 4.2, 4.1, 4.0]
    assert apart([10.1, 8.2, 5.7, 5.2, 4.4, 4.3, 4.2, 4.1], reference) < EQUAL_WITHIN
    assert apart([10.0, 9.0, 8.0, 7.5, 7.2, 7.1, 7.0, 6.9], reference) > EQUAL_WITHIN


@pytest.mark.parametrize(
    ("shape", "parameters"), [("135m", 134_515_008), ("1b", 1_235_814_400), ("8b", 8_030_261_248)]
)
def test_bases_have_the_sizes_of_the_models_that_they_are_named_after(
    shape: str, parameters: int, tokenizer: "PreTrainedTokenizerFast"
) -> None:
    """The linear layers that are counted, the embeddings and the norms make up all parameters."""
    config = SHAPES[shape].config(tokenizer)
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    norms = config.hidden_size * (2 * config.num_hidden_layers + 1)
    assert num_linear_weights(config) + embeddings + norms == parameters


def test_keys_are_repeated_for_a_torch_that_wants_as_many_as_queries() -> None:
    """The result is that of an attention that takes fewer heads of keys."""
    query, key, value = torch.randn(7, 4, 8), torch.randn(7, 2, 8), torch.randn(7, 2, 8)
    ends = torch.tensor([0, 3, 7], dtype=torch.int32)
    lengths: tuple[Any, ...] = (ends, ends, 4, 4)
    how: dict[str, Any] = {"scale": 0.3, "window_size": (-1, 0)}

    def strict(query: torch.Tensor, key: torch.Tensor, *others: Any, **how: Any) -> Any:  # noqa: ANN401
        assert query.shape[1] == key.shape[1]
        return attention_of_lengths(query, key, *others, **how, enable_gqa=True)

    expected = attention_of_lengths(query, key, value, *lengths, **how, enable_gqa=True)
    given = repeating_heads(strict)(query, key, value, *lengths, **how, enable_gqa=True)
    torch.testing.assert_close(given, expected)


def test_a_wheel_keeps_the_library_for_one_cuda(tmp_path: Path) -> None:
    """The others are neither in it nor listed in it; all other files stay."""
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    kept = ["bitsandbytes/nn.py", "bitsandbytes/libbitsandbytes_cpu.so"]
    libraries = [f"bitsandbytes/libbitsandbytes_{one}.so" for one in ("cuda124", "rocm70")]
    names = [*kept, "bitsandbytes/libbitsandbytes_cuda130.so", *libraries]
    record = "bitsandbytes-1.dist-info/RECORD"
    with ZipFile(wheel, "w") as made:
        for name in names:
            made.writestr(name, name)
        made.writestr(record, "".join(f"{name},sha256=x,1\n" for name in [*names, record]))
    keep_one_cuda(wheel, "13.0")
    with ZipFile(wheel) as smaller:
        listed = [line.split(",")[0] for line in smaller.read(record).decode().splitlines()]
        assert smaller.namelist() == listed == [*names[:3], record]
