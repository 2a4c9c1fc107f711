"""Step 2: every LoRA choice is written out, and what cannot work is refused by name."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_steps import configured, gpt2_base, loaded, qwen2_base
from peft import LoraConfig

from tasks.config import BaseModelSettings, LoraInit, LoraSettings, TrainAdapterConfig
from tasks.engine.adapters import lora, resolve_lora
from tasks.engine.adapters.injection import adapted_layers
from tasks.engine.base.base_models import load_skeleton
from tasks.engine.base.sources import find_base
from tasks.errors import UserError
from tasks.records import LoraConfigRecord, LoraRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LLAMA_LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def skeleton(folder: Path) -> "PreTrainedModel":
    """Build the model in a folder without its weights."""
    return load_skeleton(find_base(BaseModelSettings(source=str(folder))))


def settings(**given: object) -> LoraSettings:
    """Return LoRA settings."""
    return LoraSettings.model_validate(given)


def resolve(folder: Path, **given: object) -> LoraConfigRecord:
    """Resolve settings for the model in a folder."""
    model = skeleton(folder)
    return lora.resolve_config(settings(**given), lora.select(settings(**given), model), model)


def refusal(folder: Path, **given: object) -> str:
    """Return the message with which settings are refused."""
    with pytest.raises(UserError) as caught:
        resolve(folder, **given)
    return str(caught.value)


def described(folder: Path, **given: object) -> LoraRecord:
    """Return step 2's record."""
    return configured(loaded(folder)[1], settings(**given))


def test_alpha_is_twice_the_rank(tiny_base: Path) -> None:
    """Alpha is 2r for every rank, unless it is set."""
    assert [resolve(tiny_base, r=r).lora_alpha for r in (1, 8, 48)] == [2, 16, 96]
    assert resolve(tiny_base, r=8, lora_alpha=8.5).lora_alpha == 8.5


@pytest.mark.parametrize(
    ("wanted", "resolved"),
    [
        ("auto", LLAMA_LINEAR),
        ("peft-default", ["q_proj", "v_proj"]),
        ("all-linear", LLAMA_LINEAR),
        (["up_proj", "q_proj"], ["q_proj", "up_proj"]),
        ("o_proj", ["o_proj"]),
    ],
)
def test_targets_are_written_out(
    tiny_base: Path, wanted: str | list[str], resolved: list[str]
) -> None:
    """The record names every adapted layer, however it was asked for."""
    record = described(tiny_base, target_modules=wanted)

    assert list(record.peft_config.target_modules) == resolved
    assert record.matches.per_target == dict.fromkeys(resolved, 2)
    assert record.matches.per_layer == {"0": len(resolved), "1": len(resolved)}


def test_where_peft_has_no_default_is_an_error(tmp_path: Path) -> None:
    """`peft-default` is never silently something else."""
    from engine_steps import random_base
    from transformers import OlmoConfig

    config = OlmoConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=2,
    )
    base = random_base(config, tmp_path)
    message = refusal(base, target_modules="peft-default")
    assert message.endswith(
        "PEFT has no default targets of lora for olmo; use auto or all-linear, or list the names "
        "of layers"
    )
    loha = LoraSettings(method="loha", target_modules="peft-default")
    with pytest.raises(UserError, match="PEFT has no default targets of loha for olmo"):
        resolve_lora(loha, find_base(BaseModelSettings(source=str(base))))


def test_all_linear_leaves_out_the_output_layer(tiny_base: Path, tmp_path: Path) -> None:
    """`all-linear` never adapts the layer that gives the logits, tied to the embeddings or not."""
    for folder in (tiny_base, qwen2_base(tmp_path / "qwen2")):
        assert resolve(folder, target_modules="all-linear").target_modules == tuple(LLAMA_LINEAR)


def test_gpt2_is_adapted_in_its_conv1d(tmp_path: Path) -> None:
    """GPT-2's linear layers are found although they are no `nn.Linear`."""
    folder = gpt2_base(tmp_path)

    assert resolve(folder, target_modules="peft-default").target_modules == ("c_attn",)
    everything = described(folder, target_modules="all-linear")
    # c_proj is one name for two layers: the attention's and the feed-forward's.
    assert everything.matches.per_target == {"c_attn": 2, "c_fc": 2, "c_proj": 4}


def test_gemma_is_adapted_in_all_linear_layers(tmp_path: Path) -> None:
    """A Gemma, whose heads are wider than its hidden size, is counted right."""
    from engine_steps import random_base
    from transformers import Gemma2Config

    config = Gemma2Config(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    record = described(random_base(config, tmp_path), r=8, target_modules=["q_proj"])
    assert record.num_trainable_parameters == 2 * 8 * (32 + 4 * 16)


def test_a_part_of_a_name_selects_one_layer(tiny_base: Path) -> None:
    """A dotted name narrows the choice down to the layers that it ends."""
    record = described(tiny_base, target_modules=["layers.1.self_attn.q_proj"])
    assert record.matches.per_layer == {"1": 1}


def test_one_name_that_matches_nothing_is_an_error(tiny_base: Path) -> None:
    """A misspelt name is refused even beside good ones, with the nearest and all possible names."""
    message = refusal(tiny_base, target_modules=["q_proj", "v_prj"])

    assert "['v_prj'] match nothing in LlamaForCausalLM; did you mean v_proj?" in message
    assert message.endswith(", ".join(LLAMA_LINEAR))


def test_a_misspelt_keyword_is_told(tiny_base: Path) -> None:
    """It is read as a layer's name, and the message has the keywords beside the names."""
    message = refusal(tiny_base, target_modules="peft_default")
    assert "did you mean peft-default?" in message
    assert "possible: auto, all-linear, peft-default, down_proj" in message


@pytest.mark.parametrize("name", ["self_attn", "input_layernorm", "proj", ""])
def test_what_lora_cannot_adapt_is_an_error(tiny_base: Path, name: str) -> None:
    """A block, a norm and a mere part of a name are no targets."""
    assert "match nothing" in refusal(tiny_base, target_modules=[name])


def test_no_target_is_an_error(tiny_base: Path) -> None:
    """An empty list of targets is refused."""
    assert "target_modules" in refusal(tiny_base, target_modules=[])


def test_modules_to_save_must_exist(tiny_base: Path) -> None:
    """A misspelt module to train whole is refused with the nearest name."""
    assert "did you mean lm_head?" in refusal(tiny_base, modules_to_save=["lm_heads"])
    assert resolve(tiny_base, modules_to_save=["lm_head"]).modules_to_save == ("lm_head",)


def test_a_module_is_adapted_or_trained_whole(tiny_base: Path) -> None:
    """A name in both lists is refused, and so is one whose module holds an adapted layer."""
    for name in ("q_proj", "self_attn", "model"):
        message = refusal(tiny_base, target_modules=["q_proj"], modules_to_save=[name])
        assert f"['{name}'] contain layers that target_modules adapts" in message


def test_an_odd_rank_cannot_be_orthogonal(tiny_base: Path) -> None:
    """PEFT's orthogonal matrices want an even rank; an odd one is refused by its number."""
    assert "lora.r is 5" in refusal(tiny_base, r=5, init_lora_weights="orthogonal")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("init", ["pissa", "orthogonal"])
def test_a_start_that_rounding_spoils_needs_float32(tiny_base: Path, init: str, dtype: str) -> None:
    """It is refused before the training, after which the adapter would be another one."""
    base = find_base(BaseModelSettings.model_validate({"source": str(tiny_base), "dtype": dtype}))
    with pytest.raises(UserError, match=f"{init}, wh.*weights are {dtype}; set base_model.dtype"):
        resolve_lora(LoraSettings.model_validate({"init_lora_weights": init}), base)
    resolve_lora(LoraSettings(init_lora_weights=LoraInit.GAUSSIAN), base)


def test_a_packed_base_cannot_be_rewritten() -> None:
    """PiSSA alters the base's weights, so that a quantized base is refused."""
    given = {"base_model": {"source": "org/base", "quantization": "4bit"}, "data": {"train": "x"}}
    with pytest.raises(
        ValueError, match=r"lora\.init_lora_weights pissa changes the base's weights"
    ):
        TrainAdapterConfig.model_validate(given | {"lora": {"init_lora_weights": "pissa"}})


def test_an_unusual_rank_is_remarked(tiny_base: Path) -> None:
    """A rank outside 8 to 64 is allowed and reported with its number; one inside is not."""

    def said(r: int) -> list[str]:
        return [s for s in described(tiny_base, r=r).warnings if "rank" in s]

    assert said(7) == ["rank 7 is outside the usual 8 to 64"]
    assert said(65) == ["rank 65 is outside the usual 8 to 64"]
    assert said(8) == said(64) == []


def test_a_large_share_is_remarked(tiny_base: Path) -> None:
    """More than one per cent trainable is reported with the share; less is not."""
    config = resolve(tiny_base)
    assert lora.describe_unusual(config, 10, 990) == ()
    assert lora.describe_unusual(config, 25, 975) == (
        "2.50% of all parameters are trainable, above the usual 1 %",
    )


def test_a_count_is_what_the_paper_says(tiny_base: Path) -> None:
    """Each adapted layer of shape [out, in] adds r·(in + out) parameters."""
    model, base = loaded(tiny_base)
    record = configured(base, settings(r=8, target_modules=["up_proj"]))
    out_features, in_features = model.get_parameter("model.layers.0.mlp.up_proj.weight").shape

    assert record.num_trainable_parameters == 2 * 8 * (in_features + out_features)
    assert record.num_total_parameters == base.num_parameters + record.num_trainable_parameters


def test_a_count_needs_no_memory(tiny_base: Path) -> None:
    """What has no room anywhere is counted, so that it can be refused."""
    config = resolve(tiny_base, target_modules=["up_proj"]).model_copy(update={"r": 10**12})
    assert lora.count_trainable(config, skeleton(tiny_base)) == 2 * 10**12 * (32 + 64)


SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def small(**config: Any) -> "PreTrainedModel":  # noqa: ANN401 - as the architecture has it
    """Build a model of an architecture without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALL | config))  # type: ignore[no-any-return]


def unreached(model: "PreTrainedModel", **given: object) -> tuple[str, ...]:
    """Return the warnings about what settings leave frozen."""
    selection = lora.select(settings(**given), model)
    config = lora.resolve_config(settings(**given), selection, model)
    return lora.describe_unreached(settings(**given), config, selection, model)


@pytest.mark.parametrize(("wanted", "given"), [("auto", {}), (["q_proj"], {})], ids=str)
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_that_stay_frozen_are_remarked(
    kind: str, wanted: str | list[str], given: dict[str, object]
) -> None:
    """If no expert is adapted, the share of the fused experts and their names are reported."""
    model = small(model_type=kind, num_experts=4, num_local_experts=4, moe_intermediate_size=64)
    experts = sum(
        p.numel() for n, p in model.named_parameters() if "experts." in n and "bias" not in n
    )

    (warning,) = unreached(model, target_modules=wanted, **given)
    share = f"{experts / model.num_parameters():.0%}"
    assert warning.startswith(f"{share} of the base's weights are in experts, which stay frozen: ")
    assert "gate_up_proj, down_proj (" in warning
    assert "router" not in warning.lower()


@pytest.mark.parametrize("kind", ["nemotron_h", "llama4_text"])
def test_experts_that_auto_leaves_out_are_not_taken_by_a_dense_layer_s_name(kind: str) -> None:
    """In some mixtures an expert's parameter has the name of a dense layer, such as `down_proj`."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind]())
    everything = lora.select(settings(target_modules="all-linear"), model)
    assert any("experts" in name for name in everything.adapted)
    dense = lora.select(settings(), model)
    assert any(name.endswith("down_proj") for name in dense.adapted)
    assert not dense.target_parameters
    lora.resolve_config(settings(), dense, model)


def test_a_dense_model_has_nothing_out_of_reach(tiny_base: Path) -> None:
    """Embeddings, norms and the output layer are no news, for no choice of targets."""
    for wanted in ("auto", "all-linear", ["q_proj"]):
        assert unreached(skeleton(tiny_base), target_modules=wanted) == ()


def test_layers_that_all_linear_passes_over_are_remarked() -> None:
    """Convolutions that could be adapted by name are reported with their share."""
    from transformers import SqueezeBertConfig, SqueezeBertForSequenceClassification

    with torch.device("meta"):
        model = SqueezeBertForSequenceClassification(SqueezeBertConfig(num_hidden_layers=1))
    (warning,) = unreached(model, target_modules="all-linear")
    assert (
        "all-linear does not include; to adapt them, name them in lora.target_modules: " in warning
    )
    assert "query" in warning


@pytest.mark.parametrize("name", ["weight", "lm_head"])
def test_an_adapter_is_not_named_as_what_trains_beside_it(tiny_base: Path, name: str) -> None:
    """PEFT would mistake the adapter for a module of `modules_to_save` or its weight."""
    message = refusal(tiny_base, adapter_name=name, modules_to_save=["lm_head"])
    assert f"lora.adapter_name '{name}' is also the name of a module" in message
    resolve(tiny_base, adapter_name=name)


@pytest.mark.parametrize("kind", ["mamba2", "mamba", "deepseek_v3", "falcon_h1"])
def test_all_layers_are_those_that_peft_takes(kind: str) -> None:
    """No name is chosen that PEFT refuses, or takes for an expert: what is chosen is adapted."""
    model = small(model_type=kind, num_heads=8, head_dim=8, first_k_dense_replace=1)
    given = settings(r=4, target_modules="all-linear")
    selection = lora.select(given, model)
    config = lora.resolve_config(given, selection, model)
    lora.count_trainable(config, model)

    assert "out_proj" not in selection.reached
    assert "gate_proj" not in selection.reached or kind == "falcon_h1"
    assert min(map(len, selection.reached.values())) > 0
    assert adapted_layers(model, "default").keys() == {*selection.adapted}


def test_what_peft_refuses_is_refused_before_the_weights() -> None:
    """PEFT's own refusal is a user's mistake, with its reason."""
    given, model = settings(target_modules=["conv1d"]), small(model_type="jamba")
    config = lora.resolve_config(given, lora.select(given, model), model)
    with pytest.raises(
        UserError, match="PEFT can't adapt JambaForCausalLM with these settings of lora"
    ):
        lora.count_trainable(config, small(model_type="jamba"))


VARIANTS = [
    {"use_rslora": True},
    {"use_dora": True},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": "orthogonal"},
    {"modules_to_save": ["lm_head"]},
    {"lora_dropout": 0.1, "lora_alpha": 3.5},
]


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_a_configuration_survives_json(tiny_base: Path, given: dict[str, object]) -> None:
    """The configuration in the record, read back from JSON, is the one that was resolved."""
    record = described(tiny_base, **given)
    again = LoraRecord.model_validate_json(record.model_dump_json())

    assert again.peft_config == resolve(tiny_base, **given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rank_pattern": {"q_proj": 2}, "layers_to_transform": [1]},
        {"init_lora_weights": "gaussian", "lora_alpha": 8.5, "use_rslora": True, "bias": "all"},
        {"modules_to_save": ["lm_head"], "trainable_token_indices": [3], "lora_bias": True},
    ],
    ids=str,
)
def test_no_field_of_peft_is_lost(given: dict[str, object]) -> None:
    """What PEFT's configuration has beyond the declared fields is in the record, and is built."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["v_proj", "q_proj"], **given)
    record = LoraConfigRecord.model_validate(lora.to_json(config))
    again = LoraConfigRecord.model_validate_json(record.model_dump_json())
    assert lora.build_config(again) == config


@pytest.mark.parametrize("given", VARIANTS[:6], ids=str)
def test_a_choice_reaches_the_configuration(tiny_base: Path, given: dict[str, object]) -> None:
    """Each variant that is set is in PEFT's configuration, and is not there otherwise."""
    ((name, value),) = given.items()

    assert resolve(tiny_base, **given).to_json()[name] == value
    assert resolve(tiny_base).to_json()[name] != value


def test_a_skeleton_costs_no_memory(tiny_base: Path) -> None:
    """Configuring needs no weights: every tensor of the skeleton is on the meta device."""
    assert {p.device for p in skeleton(tiny_base).parameters()} == {torch.device("meta")}
