"""An adapter that begins as another one: checked, proven equal to it, and trained further."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import (
    LABELS,
    configured,
    gpt2_base,
    injected,
    loaded,
    logits,
    prepared,
    qwen2_base,
    save_here,
    train_here,
    trained,
    training,
)
from hub_stand_in import HubStandIn, point_clients_at
from peft import LoHaConfig, PeftModel, get_peft_model
from plain_adapters import lora_folder
from pydantic import ValidationError
from tiny_models import tiny_bert, tiny_llama, tiny_mixture
from transformers import AutoModelForCausalLM

from tasks import engine
from tasks.config import BaseModelSettings, LoraSettings
from tasks.engine.adapters import (
    adapter_state,
    check_source_tokenizer,
    find_source,
    keep_source,
    prompted_otherwise,
    reinject,
    resolve_lora,
)
from tasks.engine.adapters.injection import probe_logits
from tasks.engine.base import find_base, push_adapter, tokenizer_of
from tasks.errors import UserError, VerificationError
from tasks.records import LoraRecord

SOURCES: list[dict[str, Any]] = [
    {},
    {"r": 4, "lora_alpha": 32, "use_rslora": True, "target_modules": "all-linear"},
    {"use_dora": True, "target_modules": ["q_proj", "v_proj"]},
    {"modules_to_save": ["lm_head"], "lora_dropout": 0.5},
    {"target_modules": r".*\.1\.self_attn\.(q|k)_proj"},
    {"rank_pattern": {"q_proj": 3}, "target_modules": ["q_proj", "o_proj"]},
    {"layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
    {"target_modules": ["embed_tokens", "q_proj"]},
    {"init_lora_weights": "orthogonal"},
]


def starting(source: Path | str, **given: object) -> LoraSettings:
    """Return the settings of an adapter that begins as another one."""
    return LoraSettings.model_validate({"from": str(source)} | given)


@pytest.mark.parametrize("config", SOURCES, ids=str)
def test_it_begins_at_the_answers_of_an_adapter_by_plain_peft(
    tiny_base: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    """The model's logits are those of PEFT's own model; only the adapter trains."""
    source = lora_folder(tiny_base, tmp_path / "source", **config)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    theirs = logits(PeftModel.from_pretrained(base, source))
    model, record = injected(tiny_base, tmp_path, starting(source))

    assert torch.allclose(logits(model), theirs, atol=1e-6)
    assert record.source_logit_difference == 0
    assert not record.starts_at_base
    given = json.loads((source / "adapter_config.json").read_text())
    has = record.lora.peft_config.to_json()
    same = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern")
    assert {name: has[name] for name in same} == {name: given[name] for name in same}


@pytest.mark.parametrize("save", [gpt2_base, qwen2_base])
def test_other_architectures_are_continued(tmp_path: Path, save: Any) -> None:  # noqa: ANN401
    """GPT-2 (Conv1D) and Qwen2 (tied embeddings) begin as their source, too."""
    base = save(tmp_path / "base")
    source = lora_folder(base, tmp_path / "source", target_modules="all-linear")
    _, record = injected(base, tmp_path, starting(source))
    assert record.source_logit_difference == 0


def test_a_training_goes_on_where_the_first_ended(tiny_base: Path, tmp_path: Path) -> None:
    """What was trained, saved and continued has the trained logits, and is saved as any other."""
    model, record = trained(tiny_base, tmp_path / "first")
    saved = save_here(model, record, tmp_path / "first")
    before = logits(model)
    model, again = injected(tiny_base, tmp_path / "second", starting(saved.folder))
    assert torch.equal(logits(model), before)
    assert again.initial_weights.sha256 == record.weights.sha256

    then = train_here(model, again, tmp_path / "second")
    assert then.adapter_change > 0
    assert save_here(model, then, tmp_path / "second").round_trip_logit_difference == 0


class Killed(Exception):  # noqa: N818 - not an error of ours
    """What a training dies of."""


def test_a_killed_training_ends_as_if_it_had_not_been(tiny_base: Path, tmp_path: Path) -> None:
    """Rebuilt from its record and killed in the middle, it ends with the same bits."""
    source = lora_folder(tiny_base, tmp_path / "source", lora_dropout=0.3)
    model, record = injected(tiny_base, tmp_path, starting(source))
    settings = training(checkpoint_minutes=0)
    uncut = train_here(model, record, tmp_path / "uncut", settings)

    def rebuilt() -> Any:  # noqa: ANN401 - a model
        again, _ = loaded(tiny_base)
        reinject(again, record)
        return again

    def dies(now: Any) -> None:  # noqa: ANN401 - a step of the training
        if now.step == 2 and not now.metrics:
            raise Killed

    with pytest.raises(Killed):
        train_here(rebuilt(), record, tmp_path / "cut", settings, dies)
    resumed = train_here(rebuilt(), record, tmp_path / "cut", settings)
    assert resumed.weights.sha256 == uncut.weights.sha256
    assert resumed.loss_curve == uncut.loss_curve


def test_an_adapter_on_the_hub_is_pinned_by_its_commit(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `main` means is looked up once; a revision can be given behind the id."""
    with HubStandIn(tmp_path / "hub") as hub:
        point_clients_at(hub, monkeypatch)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        source = lora_folder(tiny_base, tmp_path / "source")
        url = push_adapter(source, "org/adapter", private=False)
        commit = url.rpartition("/")[2]
        for given in ("org/adapter", f"org/adapter@{commit}"):
            found = find_source(given)
            assert found.reference == found.public_reference == f"org/adapter@{commit}"
        with pytest.raises(UserError, match="has no revision 'v9'"):
            find_source("org/adapter@v9")


def test_a_half_precision_base_is_continued(tiny_base: Path, tmp_path: Path) -> None:
    """Weights saved in bfloat16 train in float32, from the same answers."""
    source = lora_folder(tiny_base, tmp_path / "source")
    file = source / "adapter_model.safetensors"
    weights = {k: v.bfloat16() for k, v in adapter_state.load_weights(file).items()}
    adapter_state.save_weights(weights, file)
    half = BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": "bfloat16"})
    model, record = injected(tiny_base, tmp_path, starting(source), half)
    assert record.source_logit_difference == 0
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_another_method_is_continued(tiny_base: Path, tmp_path: Path) -> None:
    """Of any method, the configuration is the source's, and so are the answers."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    config = LoHaConfig(r=3, alpha=5, target_modules=["q_proj", "v_proj"], init_weights=False)
    theirs = get_peft_model(base, config)
    theirs.save_pretrained(tmp_path / "source")
    model, record = injected(tiny_base, tmp_path, starting(tmp_path / "source"))
    assert torch.allclose(logits(model), logits(theirs), atol=1e-6)
    assert record.lora.peft_config.to_json()["alpha"] == 5

    fits = {"method": "loha", "options": {"r": 3}, "target_modules": ["v_proj", "q_proj"]}
    configured(record.lora.base, starting(tmp_path / "source", **fits))
    with pytest.raises(UserError, match="alpha is 8, and it has 5"):
        configured(record.lora.base, starting(tmp_path / "source", options={"alpha": 8}))
    other = starting(tmp_path / "source", method="loha", target_modules=["q_proj"])
    with pytest.raises(UserError, match=r"target_modules do not select model.*v_proj"):
        configured(record.lora.base, other)


@pytest.fixture(scope="module")
def source(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an adapter of rank 2 on two kinds of layers."""
    folder = tmp_path_factory.mktemp("source") / "adapter"
    return lora_folder(
        tiny_base, folder, r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True
    )


def resolved(source: Path, base: Path, **given: object) -> Any:  # noqa: ANN401 - the record
    """Resolve the settings for the tiny base."""
    found = find_base(BaseModelSettings(source=str(base)))
    return resolve_lora(starting(source, **given), found)


@pytest.mark.parametrize(
    "given",
    [
        {"r": 2, "lora_alpha": 8, "use_rslora": True},
        {"r": None, "target_modules": "auto", "rank_pattern": {}},
        {"target_modules": [f"self_attn.{one}_proj" for one in "qv"]},
        {"target_modules": r".*self_attn\.[qv]_proj"},
        {"method": "lora", "use_dora": False, "modules_to_save": [], "bias": "none"},
    ],
    ids=str,
)
def test_what_is_set_as_the_source_has_it_fits(
    tiny_base: Path, source: Path, given: dict[str, object]
) -> None:
    """Layers are compared as they are selected, not by how that is written."""
    assert (
        resolved(source, tiny_base, **given).peft_config == resolved(source, tiny_base).peft_config
    )


def test_dropout_is_no_part_of_the_source(tiny_base: Path, source: Path) -> None:
    """It changes no answer, so that it can be chosen anew."""
    assert resolved(source, tiny_base, lora_dropout=0.25).peft_config.lora_dropout == 0.25


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"r": 4}, "r is 4, and it has 2"),
        ({"lora_alpha": 4}, r"lora_alpha is 4\.0, and it has 8"),
        ({"use_rslora": False}, "use_rslora is false, and it has true"),
        ({"use_dora": True}, "use_dora is true, and it has false"),
        ({"method": "ia3"}, "method is ia3, and it is lora"),
        ({"target_modules": ["q_proj"]}, r"do not select model\.layers\.0\.self_attn\.v_proj"),
        (
            {"target_modules": "all-linear"},
            r"select model\.layers\.0\.mlp\.down_proj, .* not adapt",
        ),
        ({"layers_to_transform": 0}, r"do not select model\.layers\.1\.self_attn\.q_proj"),
        ({"rank_pattern": {"q_proj": 1}}, r"rank_pattern give model.*r=1.*and it has r=2"),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save is \["lm_head"\], and it has \[\]'),
        ({"r": 4, "use_dora": True}, "r is 4.*; use_dora is true|use_dora is true.*; r is 4"),
    ],
    ids=str,
)
def test_what_is_set_otherwise_is_told_before_weights_load(
    tiny_base: Path, source: Path, given: dict[str, object], message: str
) -> None:
    """The message has what was set, what the source has, and what to do."""
    with pytest.raises(UserError, match=message) as mistake:
        resolved(source, tiny_base, **given)
    assert "remove these settings" in str(mistake.value)


def test_a_fresh_start_and_a_source_exclude_each_other(source: Path) -> None:
    """An initialization is for a fresh adapter."""
    with pytest.raises(ValidationError, match="pissa, which says how a fresh adapter begins"):
        starting(source, init_lora_weights="pissa")


def edited(source: Path, folder: Path, **changes: object) -> Path:
    """Copy an adapter with another configuration."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "pissa"}, "initialized by pissa, which changes the base's weights"),
        ({"init_lora_weights": "olora"}, "initialized by olora, which changes the base's weights"),
        ({"bias": "all"}, "trained biases of the base"),
        ({"r": 3}, "8 weights have another shape"),
        ({"base_model_name_or_path": "org/b", "revision": "0" * 40}, None),
        ({"trainable_token_indices": [399]}, r"base_model\.new_tokens \[\] add"),
    ],
    ids=str,
)
def test_a_source_that_nothing_can_begin_with_is_told(
    tiny_base: Path, source: Path, tmp_path: Path, changes: dict[str, object], message: str | None
) -> None:
    """One that altered the base's weights is not apart from it; another base is a warning or error.

    A local base has no name to be compared by, so that a name alone is a warning.
    """
    folder = edited(source, tmp_path / "edited", **changes)
    if message is None:
        assert "may be another base" in resolved(folder, tiny_base).warnings[0]
        return
    with pytest.raises(UserError, match=message):
        resolved(folder, tiny_base)


def test_a_plain_lora_made_of_pissa_is_continued(tiny_base: Path, tmp_path: Path) -> None:
    """Saved by this program, it is a LoRA of twice the rank for the original base."""
    settings = LoraSettings.model_validate({"r": 2, "init_lora_weights": "pissa"})
    model, record = trained(tiny_base, tmp_path / "first", settings)
    saved = save_here(model, record, tmp_path / "first")
    again, begun = injected(tiny_base, tmp_path / "second", starting(saved.folder))
    assert begun.source_logit_difference == 0
    assert torch.allclose(logits(again), logits(model), atol=1e-4)
    assert begun.lora.peft_config.to_json()["r"] == 4


def test_the_copy_is_what_counts(tiny_base: Path, source: Path, tmp_path: Path) -> None:
    """The run has a copy of the source's files; a source that changes later changes nothing."""
    original = edited(source, tmp_path / "edited")
    (original / "optimizer.pt").write_bytes(b"0" * 1000)
    found = keep_source(find_source(str(original)), tmp_path / "run" / "source")
    names = {one.name for one in found.folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    (original / "adapter_model.safetensors").unlink()
    assert found.is_intact()
    assert found.reference == str(original)
    (found.folder / "adapter_config.json").write_text("{}")
    assert not found.is_intact()


def test_other_weights_than_the_sources_fail_the_proof(
    tiny_base: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that differs between the two is found by the logits."""
    model, base = loaded(tiny_base)
    record = engine.configure_lora(starting(source), base, 0)
    write = adapter_state.write_adapter

    def spoiled(model: Any, name: str, weights: dict[str, torch.Tensor]) -> None:  # noqa: ANN401
        write(model, name, {k: v * 1.01 for k, v in weights.items()})

    monkeypatch.setattr(adapter_state, "write_adapter", spoiled)
    with pytest.raises(VerificationError, match="beside that one: logits differ by"):
        engine.inject_adapter(model, record, tmp_path / "initial.safetensors")


def test_the_base_is_left_as_it_was(tiny_base: Path, source: Path, tmp_path: Path) -> None:
    """With the adapter disabled, not a bit of the base's answers is another."""
    before = probe_logits(loaded(tiny_base)[0])
    model, record = injected(tiny_base, tmp_path, starting(source))
    assert torch.equal(probe_logits(model, adapters=False), before)
    assert isinstance(record.lora, LoraRecord)
    assert list(model.peft_config) == ["default"]


def test_another_way_to_write_prompts_is_told(tiny_base: Path, tmp_path: Path) -> None:
    """Another chat template is refused, as tokens would be others; plain prompts are a warning."""
    model, record = trained(tiny_base, tmp_path)
    folder = save_here(model, record, tmp_path).folder  # says that it was trained on chats
    base = find_base(BaseModelSettings(source=str(tiny_base)))
    found = find_source(str(folder))
    check_source_tokenizer(found, tokenizer_of(base))
    with pytest.raises(UserError, match="was trained with another chat template"):
        check_source_tokenizer(found, tokenizer_of(base, "{{ messages[0]['content'] }}"))
    data = prepared(record.injected.lora.base, tmp_path).record
    assert data.template == "plain"
    (warning,) = prompted_otherwise(found, data)
    assert (
        "trained on prompts by the template chat, and is continued on prompts by plain" in warning
    )
    chat = data.model_copy(update={"template": "chat"})
    assert [*prompted_otherwise(found, chat)] == []
    options = chat.settings.model_copy(update={"system_in_user": True})
    (warning,) = prompted_otherwise(found, chat.model_copy(update={"settings": options}))
    assert "other chat options" in warning


def test_an_adapter_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """Its manifest has the sha256 of the weights that it was trained on."""
    model, record = trained(tiny_base, tmp_path)
    folder = save_here(model, record, tmp_path).folder
    other = tiny_llama(tmp_path / "other", seed=7)
    with pytest.raises(UserError, match=r"but the base is .*other"):
        resolved(folder, other)


def test_a_source_for_other_classes_is_refused(tmp_path: Path) -> None:
    """Classes are those of the source, in their order; its head trains on."""
    base = tiny_bert(tmp_path / "bert")
    settings = {"source": str(base), "task": "sequence-classification", "dtype": "float32"}
    labelled = BaseModelSettings.model_validate(settings | {"labels": LABELS})
    lora = LoraSettings.model_validate({"r": 2, "target_modules": "all-linear"})
    model, record = trained(base, tmp_path / "first", lora, labelled)
    folder = save_here(model, record, tmp_path / "first").folder
    _, again = injected(base, tmp_path / "second", starting(folder, r=2), labelled)
    assert again.source_logit_difference == 0
    wrong = BaseModelSettings.model_validate(settings | {"labels": ["a", "b", "c"]})
    with pytest.raises(UserError, match="was made for animal, money, place"):
        resolve_lora(starting(folder), find_base(wrong))


def test_experts_are_continued(tmp_path: Path) -> None:
    """Parameters are adapted as the source adapts them, with ranks of their own."""
    base = tiny_mixture("mixtral", tmp_path / "base")
    everything = {"r": 4, "target_modules": "all-linear"}
    model, record = trained(base, tmp_path / "first", LoraSettings.model_validate(everything))
    folder = save_here(model, record, tmp_path / "first").folder
    before = logits(model)
    again, begun = injected(base, tmp_path / "second", starting(folder, **everything))
    assert torch.equal(logits(again), before)
    assert begun.lora.adapted == record.injected.lora.adapted
    with pytest.raises(UserError, match=r"target_modules do not select .*self_attn\.k_proj"):
        configured(begun.lora.base, starting(folder, target_modules=["q_proj"]))


def test_new_tokens_are_continued(tiny_base: Path, tmp_path: Path) -> None:
    """Their rows train on; without just these tokens, the source is refused with what to set."""
    settings = {"source": str(tiny_base), "dtype": "float32"}
    with_tokens = BaseModelSettings.model_validate(settings | {"new_tokens": ["<part>"]})
    lora = LoraSettings(r=4, target_modules=["q_proj"])
    model, record = trained(tiny_base, tmp_path / "first", lora, with_tokens)
    folder = save_here(model, record, tmp_path / "first").folder
    before = logits(model)
    again, begun = injected(tiny_base, tmp_path / "second", starting(folder), with_tokens)
    assert torch.equal(logits(again), before)
    assert begun.num_trainable_parameters == record.injected.num_trainable_parameters
    with pytest.raises(UserError, match=r'set base_model\.new_tokens to \["<part>"\]'):
        resolve_lora(starting(folder), find_base(BaseModelSettings.model_validate(settings)))
