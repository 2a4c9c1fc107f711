"""Step 5: the adapter's folder is complete or absent, and gives back what was trained."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from engine_steps import (
    configured,
    injected,
    loaded,
    logits,
    qwen2_base,
    save_here,
    train_here,
    trained,
)
from tiny_models import tiny_llama

from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine.adapters import saving
from tasks.engine.adapters.activation import switch_adapter
from tasks.engine.adapters.injection import inject, probe_logits
from tasks.engine.adapters.loading import load_adapter
from tasks.errors import VerificationError
from tasks.records import SavedRecord

FILES = {"adapter_model.safetensors", "adapter_config.json", "README.md", "manifest.json"}

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
VARIANTS: list[dict[str, object]] = [
    {},
    {"use_rslora": True, "target_modules": "all-linear"},
    {"use_dora": True},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "norm"]},
    {"target_modules": ["embed_tokens", "lm_head"]},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal"},
]
ALTERING: list[dict[str, object]] = [
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "pissa", "use_rslora": True},
    {"init_lora_weights": "pissa", "use_dora": True},
    {"init_lora_weights": "pissa", "modules_to_save": ["lm_head"]},
    {"init_lora_weights": "pissa", "target_modules": ["embed_tokens", "q_proj"]},
]


def settings(given: dict[str, object]) -> LoraSettings:
    """Return LoRA settings."""
    return LoraSettings.model_validate({"r": 4} | given)


def on_a_fresh_base(saved: SavedRecord) -> torch.Tensor:
    """Return the logits of a fresh base with the saved adapter."""
    fresh = loaded(Path(saved.base.location), saved.base.settings)[0]
    load_adapter(fresh, saved.folder)
    return logits(fresh)


def test_the_folder_holds_four_files(tiny_base: Path, tmp_path: Path) -> None:
    """The folder holds the adapter, its configuration, its card and its manifest, no base."""
    saved = save_here(*trained(tiny_base, tmp_path), tmp_path)

    assert {path.name for path in saved.folder.iterdir()} == FILES
    assert [path.name for path in saved.folder.parent.iterdir()] == ["default"]
    assert saved.is_intact()


def test_the_configuration_finds_its_base(tiny_base: Path, tmp_path: Path) -> None:
    """`adapter_config.json` names the base by its Hub id and is made for inference."""
    known = BaseModelSettings.model_validate(
        {"source": str(tiny_base), "dtype": "float32", "hub_id": "org/base"}
    )
    saved = save_here(*trained(tiny_base, tmp_path, None, known), tmp_path)
    config = json.loads((saved.folder / "adapter_config.json").read_text())

    assert config["base_model_name_or_path"] == "org/base"
    assert config["inference_mode"] is True
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert sorted(config["target_modules"]) == LINEAR
    assert saved.warnings == ()


def test_a_revision_is_written_down(tiny_base: Path, tmp_path: Path) -> None:
    """The commit of a base from the Hub is in `adapter_config.json` and in the manifest."""
    model, record = trained(tiny_base, tmp_path)
    lora = record.injected.lora
    lora = lora.model_copy(update={"base": lora.base.model_copy(update={"revision": "c0ffee"})})
    injected = record.injected.model_copy(update={"lora": lora})
    saved = save_here(model, record.model_copy(update={"injected": injected}), tmp_path).folder

    assert json.loads((saved / "adapter_config.json").read_text())["revision"] == "c0ffee"
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["base_model"]["revision"] == "c0ffee"


def test_a_local_base_is_remarked(tiny_base: Path, tmp_path: Path) -> None:
    """A base known by its path only is reported with what to set."""
    saved = save_here(*trained(tiny_base, tmp_path), tmp_path)
    assert "set base_model.hub_id" in saved.warnings[0]


def test_the_manifest_covers_all_files(tiny_base: Path, tmp_path: Path) -> None:
    """The manifest has the sha256 of every other file."""
    folder = save_here(*trained(tiny_base, tmp_path), tmp_path).folder
    manifest = json.loads((folder / "manifest.json").read_text())

    assert manifest["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in FILES - {"manifest.json"}
    }


def test_an_interrupted_save_leaves_the_old_adapter(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that dies before its manifest leaves none behind, and the older folder whole."""
    model, record = trained(tiny_base, tmp_path)
    saved = save_here(model, record, tmp_path)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            save_here(model, record, tmp_path)
    assert saved.is_intact()
    manifests = [*(tmp_path / "adapters").rglob("manifest.json")]
    assert manifests == [saved.folder / "manifest.json"]

    again = save_here(model, record, tmp_path)
    assert again.weights == saved.weights
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == ["default"]


def test_the_size_adds_up(tiny_base: Path, tmp_path: Path) -> None:
    """The file is its header and four bytes for each adapter parameter."""
    model, record = trained(tiny_base, tmp_path, settings({"target_modules": "all-linear"}))
    saved = save_here(model, record, tmp_path)

    assert saved.num_adapter_parameters == record.injected.num_trainable_parameters
    assert saved.adapter_bytes == 4 * saved.num_adapter_parameters
    assert saved.weights.size_bytes == saved.header_bytes + saved.adapter_bytes


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_a_saved_adapter_gives_equal_logits(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """On a fresh base the saved adapter answers as the trained model, bit for bit."""
    model, record = trained(tiny_base, tmp_path, settings(given))
    saved = save_here(model, record, tmp_path)

    assert not torch.equal(logits(model), logits(loaded(tiny_base)[0]))
    assert torch.equal(on_a_fresh_base(saved), logits(model))
    assert saved.round_trip_logit_difference == 0


@pytest.mark.parametrize(
    "given", [one for one in VARIANTS if one.get("init_lora_weights") != "orthogonal"], ids=str
)
def test_the_round_trip_is_exact_on_a_half_precision_base(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """What was trained in float32 on a bfloat16 base is not rounded where it matters.

    Modules that were trained fully are: a norm or an embedding as a plain bfloat16 model has them.
    """
    half = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "bfloat16"})
    saved = save_here(*trained(tiny_base, tmp_path, settings(given), half), tmp_path)
    is_rounded = given == {"modules_to_save": ["embed_tokens", "norm"]}
    assert is_rounded or saved.round_trip_logit_difference == 0


@pytest.mark.parametrize("given", ALTERING, ids=str)
def test_an_altered_base_is_not_needed(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """PiSSA is saved as plain LoRA of twice the rank for the unaltered base."""
    model, record = trained(tiny_base, tmp_path, settings(given))
    saved = save_here(model, record, tmp_path)
    config = json.loads((saved.folder / "adapter_config.json").read_text())

    assert (config["r"], config["init_lora_weights"]) == (8, True)
    assert torch.allclose(on_a_fresh_base(saved), logits(model), atol=1e-4)
    assert not torch.allclose(logits(model), logits(loaded(tiny_base)[0]), atol=1e-2)


@pytest.mark.parametrize(
    "given", [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_biases_and_tied_heads_come_back(tmp_path: Path, given: dict[str, object]) -> None:
    """Trained biases, and an output layer that was tied to the embeddings, are saved along."""
    model, record = trained(qwen2_base(tmp_path / "base"), tmp_path, settings(given))
    saved = save_here(model, record, tmp_path)
    assert torch.equal(on_a_fresh_base(saved), logits(model))


@pytest.mark.parametrize("given", [{}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_a_half_precision_base_comes_back(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """A float32 adapter trained on a bfloat16 base is saved in float32 and fits that base."""
    half = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "bfloat16"})
    saved = save_here(*trained(tiny_base, tmp_path, settings(given), half), tmp_path)

    assert saved.adapter_bytes == 4 * saved.num_adapter_parameters
    assert on_a_fresh_base(saved).isfinite().all()


@pytest.mark.parametrize("given", VARIANTS[2:4], ids=str)
def test_peft_reads_what_was_saved(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    """The folder is PEFT's own format: its loader gives the same logits."""
    from peft import PeftModel

    model, record = trained(tiny_base, tmp_path, settings(given))
    saved = save_here(model, record, tmp_path)
    other = PeftModel.from_pretrained(loaded(tiny_base)[0], str(saved.folder))
    assert torch.equal(logits(other), logits(model))


def test_an_adapter_that_comes_back_different_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """What does not answer like the trained model is not put in place."""
    model, record = trained(tiny_base, tmp_path)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 1.5
    files = saving.files_to_save(model, record, saving.Prompting("chat"), "card")
    with pytest.raises(VerificationError, match="saved adapter on a fresh base: logits differ"):
        saving.save_adapter(files, tmp_path / "out", trained_logits(tiny_base), None)
    assert not (tmp_path / "out").exists()


def trained_logits(base: Path) -> torch.Tensor:
    """Return a base's logits, which no trained adapter has."""
    from tasks.engine.adapters.injection import probe_logits

    return probe_logits(loaded(base)[0])


@pytest.mark.parametrize("active", [["first"], ["second"], ["first", "second"]], ids=str)
def test_several_adapters_have_a_folder_each(
    tiny_base: Path, tmp_path: Path, active: list[str]
) -> None:
    """Whichever are active, each of a model's adapters is read by its name."""
    model, first = injected(tiny_base, tmp_path, settings({"adapter_name": "first"}))
    base = first.lora.base
    other = configured(base, settings({"adapter_name": "second", "r": 8, "lora_alpha": 4}))
    records = [train_here(model, first, tmp_path / "1")]
    second = inject(model, other, tmp_path / "second.safetensors")
    records.append(train_here(model, second, tmp_path / "2"))

    model.set_adapter(active)
    files = [
        saving.files_to_save(model, record, saving.Prompting("chat"), "") for record in records
    ]
    for one, r in zip(files, (4, 8), strict=True):
        switch_adapter(model, one.name)
        saved = saving.save_adapter(one, tmp_path / one.name, probe_logits(model), None)
        assert torch.equal(on_a_fresh_base(saved), logits(model))
        assert json.loads(saved.config.path.read_text())["r"] == r


def test_the_card_has_the_facts(tiny_base: Path, tmp_path: Path) -> None:
    """The model card's metadata and table say what was trained on what, and how it did."""
    model, record = trained(tiny_base, tmp_path)
    card = (save_here(model, record, tmp_path).folder / "README.md").read_text()
    _, metadata, body = card.split("---\n", 2)

    assert yaml.safe_load(metadata) == {
        "base_model": str(tiny_base),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "adapterflow"],
        "license": "apache-2.0",
    }
    for fact in (
        record.injected.lora.base.fingerprint,
        "| rank, alpha, dropout | 4, 8, 0 |",
        f"| adapted layers | {', '.join(LINEAR)} |",
        "| training rows | 8 (",
        "| held-out rows | 2 |",
        "| optimizer steps | 4 |",
        f"| held-out loss | {record.eval_loss:.4f} |",
    ):
        assert fact in body


@pytest.mark.parametrize("packing", ["4bit", "8bit"])
def test_an_adapter_for_a_packed_base_comes_back_exactly(packing: str, tmp_path: Path) -> None:
    """A fresh packed base, made ready as for training, gives the trained model's very logits."""
    base = tiny_llama(tmp_path / "base", hidden_size=64)
    settings = BaseModelSettings.model_validate(
        {"source": str(base), "dtype": "bfloat16", "quantization": packing}
    )
    model, record = trained(base, tmp_path, base_settings=settings)
    assert save_here(model, record, tmp_path).round_trip_logit_difference == 0
