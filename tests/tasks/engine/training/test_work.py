"""What a training step computes is counted, so that a technique that is lost is noticed.

The rows are the demo's, the model is tiny. The counts depend on nothing but versions of libraries.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from counted_steps import DemoSteps, Work

from benchmarks.harness.techniques import TECHNIQUES
from tasks.engine.batching import loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SEEN = Work(flops=1_206_393_856, num_kernels=6102, largest_logits=12_606, kept_bytes=6_556_472)
"""Of 16 rows with 4,887 tokens in four steps. What is less may be written here."""
MARGIN = 0.01


@pytest.fixture(scope="module")
def trained(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[DemoSteps, Work]]:
    """Train on rows of the demo, with chunks of 32 labels, of which a step has some 300."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_CHUNK_LOGITS", 32 * 400)
        yield DemoSteps.made(tiny_base, tmp_path_factory.mktemp("work"), patch)


def test_a_training_computes_no_more_than_it_did(trained: tuple[DemoSteps, Work]) -> None:
    """The pipeline's own training step has no more FLOPs, kernels, logits and memory than seen."""
    steps, work = trained
    assert not work.exceeding(SEEN, MARGIN), work
    assert steps.num_tokens == 4887


def test_a_training_computes_about_half_of_what_transformers_does(
    trained: tuple[DemoSteps, Work],
) -> None:
    """On the same padded rows, transformers and PEFT take 2.1 times the FLOPs."""
    steps, work = trained
    plain = steps.of_transformers()
    assert plain.flops / work.flops == pytest.approx(2.08, abs=0.02)
    assert plain.largest_logits > 30 * work.largest_logits
    assert plain.kept_bytes > 2 * work.kept_bytes


@contextmanager
def gradient_of_embeddings(model: "PreTrainedModel") -> Iterator[None]:
    """Have the layers below the first adapter differentiated, as `enable_input_require_grads`."""
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _module, _inputs, output: output.requires_grad_()
    )
    try:
        yield
    finally:
        hook.remove()


def without(name: str) -> Callable[[DemoSteps], Work]:
    """Return what counts the steps without one of the engine's techniques."""
    return lambda steps: steps.of_engine(TECHNIQUES[name].without(steps.engine()))


LOST: dict[str, tuple[Callable[[DemoSteps], Work], str]] = {
    "shared prefix": (without("shared-prefix"), "flops"),
    "packed rows": (without("packing"), "flops"),
    "logits only where there is a label": (without("labels-only"), "flops"),
    "chunked loss": (without("chunked-loss"), "largest_logits"),
    "fused adapter layers": (without("fused-adapters"), "kept_bytes"),
    "lean layers": (without("lean-layers"), "kept_bytes"),
    "last feed-forward layer only where there is a label": (without("last-layer"), "flops"),
    "tiled attention": (without("tiled-attention"), "flops"),
    "no gradient below the adapter": (
        lambda steps: steps.of_engine(steps.engine(), gradient_of_embeddings),
        "flops",
    ),
}


@pytest.mark.parametrize(("lost", "what"), LOST.values(), ids=LOST)
def test_a_lost_technique_is_noticed(
    trained: tuple[DemoSteps, Work], lost: Callable[[DemoSteps], Work], what: str
) -> None:
    """Without any one of them something is computed or kept beyond the margin."""
    steps, work = trained
    assert what in lost(steps).exceeding(work, MARGIN)
