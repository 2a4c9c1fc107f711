"""A mixture's experts are adapted as PEFT adapts them, through all six steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from engine_steps import injected, logits, prepared, save_here, train_here, training
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import MIXTURES, tiny_mixture
from transformers import AutoModelForCausalLM

from tasks import engine
from tasks.config import (
    AdapterSettings,
    BaseModelSettings,
    InferenceSettings,
    LoraSettings,
)
from tasks.engine.adapters import (
    AdapterSet,
    Combination,
    combine,
    export_merged,
    find_adapter,
    resolve_lora,
    write_gguf,
)
from tasks.engine.adapters.adapter_state import load_weights
from tasks.engine.adapters.injection import reinject
from tasks.engine.base import find_base, load_base
from tasks.engine.kernels import fused_adapter_layers, lean_layers
from tasks.engine.training.callbacks import TrainingProgress
from tasks.errors import UserError
from tasks.inference.adapters_on_base import check_adapters
from tasks.records import AdaptedLayer, ResolvedLora

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QWEN = ["gate_proj", "up_proj", "down_proj"]
OLD_NAMES = {"mixtral": ["w1", "w2", "w3"], "qwen3_moe": QWEN, "olmoe": QWEN}
"""By those that PEFT converts: Qwen2-MoE's shared expert has the same names, gpt-oss has none."""


@pytest.fixture(scope="module", params=MIXTURES)
def kind(request: pytest.FixtureRequest) -> str:
    """Return a mixture's `model_type`."""
    return str(request.param)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders in which mixtures are saved on demand."""
    folder = tmp_path_factory.mktemp("mixtures")
    return {name: folder / name for name in MIXTURES}


@pytest.fixture
def base(kind: str, mixtures: dict[str, Path]) -> Path:
    """Return the folder of a mixture."""
    return saved(kind, mixtures)


@pytest.fixture
def mixtral(mixtures: dict[str, Path]) -> Path:
    """Return the folder of a Mixtral."""
    return saved("mixtral", mixtures)


def saved(kind: str, mixtures: dict[str, Path]) -> Path:
    """Save a mixture, once."""
    return mixtures[kind] if mixtures[kind].exists() else tiny_mixture(kind, mixtures[kind])


def settings(base: Path, **changes: object) -> BaseModelSettings:
    """Return settings of a base."""
    given = {"source": str(base), "dtype": "float32"} | changes
    return BaseModelSettings.model_validate(given)


def resolved(base: Path, **given: object) -> ResolvedLora:
    """Resolve settings of LoRA for a base, without its weights."""
    return resolve_lora(LoraSettings.model_validate({"r": 4} | given), find_base(settings(base)))


def plain(base: Path) -> "PreTrainedModel":
    """Load a base with transformers alone."""
    return AutoModelForCausalLM.from_pretrained(base)


@pytest.mark.slow
def test_experts_go_through_all_six_steps(base: Path, tmp_path: Path) -> None:
    """Trained, resumed, saved, loaded by PEFT, switched and merged, the logits stay the same."""
    everything = LoraSettings(r=4, target_modules="all-linear")
    model, record = injected(base, tmp_path, everything)
    assert record.logit_difference == 0
    whole = train_here(model, record, tmp_path, training(max_steps=3))
    live = logits(model)
    fresh, final = load_weights(record.initial_weights.path), load_weights(whole.weights.path)
    moved = [key for key in final if ".experts." in key and not final[key].equal(fresh[key])]
    assert len(moved) == 2 * 2 * 2  # A and B of two parameters in two layers

    again = load_base(record.lora.base)
    reinject(again, record)
    stopped = training(max_steps=3, checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        train_here(again, record, tmp_path / "cut", stopped, stop_at(2))
    again = load_base(record.lora.base)
    reinject(again, record)
    resumed = train_here(again, record, tmp_path / "cut", stopped)
    assert resumed.weights.sha256 == whole.weights.sha256

    one = save_here(model, whole, tmp_path)
    assert one.round_trip_logit_difference == 0
    assert logits(PeftModel.from_pretrained(plain(base), one.folder)).equal(live)
    data = prepared(record.lora.base, tmp_path).record
    engine.load_adapter(load_base(record.lora.base), one, data, InferenceSettings(sample_rows=1))

    other = another(base, one.folder, tmp_path / "other")
    adapters = AdapterSet.on(settings(base))
    unchanged = logits(adapters.model)
    adapters.load(one.folder, "one")
    adapters.load(other, "other")
    second = logits(PeftModel.from_pretrained(plain(base), other))
    for name, expected in (("one", live), ("other", second), ("one", live), (None, unchanged)):
        with adapters.using(name) as switched:
            assert logits(switched).equal(expected)
    adapters.unload("one")
    with adapters.using("other") as switched:
        assert logits(switched).equal(second)
    adapters.unload("other")
    assert adapters.model.state_dict().keys() == plain(base).state_dict().keys()
    adapters.load(one.folder, "again")
    assert logits(adapters.model).equal(live)

    merged = export_merged(find_adapter(one.folder), settings(base), tmp_path / "merged")
    assert merged.logit_difference < 1e-6 * max(1.0, merged.largest_logit)


def stop_at(step: int) -> Callable[[TrainingProgress], None]:
    """Return a listener that interrupts the training once a step is done."""

    def on_progress(now: TrainingProgress) -> None:
        if now.step == step and not now.metrics:
            raise KeyboardInterrupt

    return on_progress


def another(base: Path, like: Path, folder: Path) -> Path:
    """Save an adapter with random weights on the same parameters, of another rank."""
    given = json.loads((like / "adapter_config.json").read_text())
    config = LoraConfig(
        r=2,
        target_modules=given["target_modules"],
        target_parameters=given["target_parameters"],
        init_lora_weights=False,
    )
    torch.manual_seed(5)
    get_peft_model(plain(base), config).save_pretrained(folder)
    return folder


def by_peft(base: Path, targets: str | list[str]) -> dict[str, tuple[int, ...]]:
    """Return what plain PEFT trains for these targets of a base, without its routers."""
    model = get_peft_model(plain(base), LoraConfig(r=4, target_modules=targets))
    trained = ((n, tuple(p.shape)) for n, p in model.named_parameters() if p.requires_grad)
    return {name: shape for name, shape in trained if ".gate." not in name}


def by_us(base: Path, targets: str | list[str]) -> dict[str, tuple[int, ...]]:
    """Return what plain PEFT trains with our resolved configuration."""
    config = resolved(base, target_modules=targets).peft_config.to_json()
    model = get_peft_model(plain(base), LoraConfig(**config))
    trained = ((n, tuple(p.shape)) for n, p in model.named_parameters() if p.requires_grad)
    return dict(trained)


@pytest.mark.parametrize("name", OLD_NAMES)
def test_experts_are_adapted_as_by_peft(name: str, mixtures: dict[str, Path]) -> None:
    """`all-linear` and the names of transformers 4 train what they train in PEFT, but no router."""
    base = saved(name, mixtures)
    for targets in ("all-linear", ["q_proj", *OLD_NAMES[name]]):
        ours = by_us(base, targets)
        assert ours == by_peft(base, targets)
        assert resolved(base, target_modules=targets).num_trainable_parameters == sum(
            torch.Size(shape).numel() for shape in ours.values()
        )


@pytest.mark.parametrize(
    ("targets", "expected"),
    [("all-linear", 15_392 - 2 * 4 * (32 + 4)), (["q_proj", "w1", "w2", "w3"], 13_824)],
    ids=str,
)
def test_a_mixtral_has_as_many_parameters_as_in_peft(
    mixtral: Path, targets: str | list[str], expected: int
) -> None:
    """The numbers of PEFT 0.21 for this base, without those of the routers."""
    assert resolved(mixtral, target_modules=targets).num_trainable_parameters == expected


def test_experts_are_one_name(base: Path, kind: str) -> None:
    """`experts` selects every expert of every architecture, and no other layer."""
    record = resolved(base, target_modules="experts")
    experts = [n for n, _ in plain(base).named_parameters() if n.endswith(("up_proj", "down_proj"))]
    assert {*record.adapted} == {name for name in experts if ".experts." in name}
    assert record.peft_config.target_modules == ()
    if kind in OLD_NAMES:
        former = resolved(base, target_modules=OLD_NAMES[kind])
        assert former.peft_config == record.peft_config


def test_a_fused_matrix_has_the_rank_of_its_parts(mixtral: Path) -> None:
    """Two fused layers share a matrix of twice the rank, with the scale of each of them."""
    name = "model.layers.1.mlp.experts.gate_up_proj"
    for rslora, alpha in ((False, 16), (True, 8 * 2**0.5)):
        given = {"target_modules": "experts", "use_rslora": rslora}
        assert resolved(mixtral, **given).adapted[name] == AdaptedLayer(r=8, lora_alpha=alpha)
    own = resolved(mixtral, target_modules=["gate_up_proj"])
    assert own.adapted[name] == AdaptedLayer(r=4, lora_alpha=8)
    given = {"target_modules": "experts", "rank_pattern": {"layers.1.*gate_up_proj": 3}}
    ranks = resolved(mixtral, **given).adapted
    assert [ranks[name].r, ranks[name.replace("1", "0")].r] == [3, 8]


def test_routers_are_frozen_unless_they_are_named(mixtral: Path) -> None:
    """Choosing experts notes that the routers stay frozen; their name adapts them."""
    (note,) = resolved(mixtral, target_modules="all-linear").notes
    assert note.startswith("the routers (gate) stay frozen")
    named = resolved(mixtral, target_modules=["experts", "gate"])
    assert {n for n in named.adapted if "gate.weight" in n} == {
        f"model.layers.{layer}.mlp.gate.weight" for layer in (0, 1)
    }
    assert not named.notes


def test_half_of_a_fused_matrix_is_refused(mixtral: Path) -> None:
    """What was fused is adapted together, and the message names the missing part."""
    with pytest.raises(UserError, match="has w1 but not w3: they are fused into one parameter"):
        resolved(mixtral, target_modules=["w1", "w2"])


def test_a_shared_expert_is_a_layer_of_its_own(mixtures: dict[str, Path]) -> None:
    """Qwen2-MoE's dense shared expert is adapted by a name that the fused experts had, too."""
    base = saved("qwen2_moe", mixtures)
    alone = resolved(base, target_modules=["gate_proj"])
    assert {name.split(".")[-2] for name in alone.adapted} == {"shared_expert"}
    assert "experts, which stay frozen" in alone.warnings[0]
    both = resolved(base, target_modules=QWEN)
    assert {name.split(".")[-2] for name in both.adapted} == {"shared_expert", "experts"}


def test_a_dense_layer_that_peft_takes_for_an_expert_is_named(tmp_path: Path) -> None:
    """Qwen3-MoE's dense layer is out of reach of its name, and adapted by its weights' names."""
    base = tiny_mixture("qwen3_moe", tmp_path, mlp_only_layers=[0])
    record = resolved(base, target_modules="all-linear")
    (warning,) = [one for one in record.warnings if "whatever lora.target_modules" in one]
    names = ["down_proj.weight", "gate_proj.weight", "up_proj.weight"]
    assert warning.endswith(f"name them in lora.target_parameters: {', '.join(names)}")
    reached = resolved(base, target_modules="all-linear", target_parameters=names)
    assert len(reached.adapted) == len(record.adapted) + 3
    assert not [one for one in reached.warnings if "frozen" in one]


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "dropout": ({"lora_dropout": 0.1}, "lora.lora_dropout is 0.1.*set lora_dropout to 0"),
    "DoRA": ({"use_dora": True}, "lora.use_dora is true.*set use_dora to false"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa.*to default or gaussian"),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, "init_lora_weights is orthogonal"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("targets", ["all-linear", "experts"])
def test_what_peft_can_not_do_with_experts_is_refused(
    mixtral: Path, targets: str, given: dict[str, object], message: str
) -> None:
    """It is refused by the settings' names, with what to do, before a weight is loaded."""
    with pytest.raises(UserError, match=message) as caught:
        resolved(mixtral, target_modules=targets, **given)
    assert "experts.down_proj, experts.gate_up_proj" in str(caught.value)
    assert resolved(mixtral, target_modules=["q_proj"], **given).adapted


def test_auto_leaves_experts_out(mixtures: dict[str, Path]) -> None:
    """They are adapted where they are named or by `all-linear`, and a warning has their share."""
    base = saved("qwen3_moe", mixtures)
    record = resolved(base)
    assert not any("experts" in name for name in record.adapted)
    assert "% of the base's weights are in experts" in record.warnings[0]
    everything = resolved(base, target_modules="all-linear")
    assert any("experts" in name for name in everything.adapted)


def test_a_configuration_file_is_enough(mixtral: Path, tmp_path: Path) -> None:
    """Experts are counted on the meta device, for a base without any weights."""
    (tmp_path / "config.json").write_text((mixtral / "config.json").read_text())
    given = {"r": 4, "target_modules": "all-linear"}
    source = find_base(settings(mixtral))
    skeleton = source.model_copy(update={"location": str(tmp_path)})
    assert resolve_lora(LoraSettings.model_validate(given), skeleton) == resolved(mixtral, **given)


@pytest.fixture(scope="module")
def adapters(
    mixtures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Save adapters of a Mixtral's experts by plain PEFT."""
    base, folder = saved("mixtral", mixtures), tmp_path_factory.mktemp("adapters")
    targets = {
        "both": ["experts.gate_up_proj", "experts.down_proj"],
        "both, named otherwise": ["gate_up_proj", "down_proj"],
        "one": ["experts.down_proj"],
    }
    for name, parameters in targets.items():
        torch.manual_seed(len(name))
        config = LoraConfig(
            r=2,
            target_modules=[],
            target_parameters=parameters,
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(plain(base), config)
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in targets}


def test_adapters_of_other_parameters_are_refused_before_the_base_is_loaded(
    mixtral: Path, adapters: dict[str, Path]
) -> None:
    """PEFT wants all adapters of a base to adapt the same parameters, and the message says so."""
    wanted = [AdapterSettings(source=str(adapters[n]), name=n[:3]) for n in ("both", "one")]
    folders = [find_adapter(one.source) for one in wanted]
    with pytest.raises(UserError, match=r"adapters bot and one can't share a base.*gate_up_proj"):
        check_adapters(settings(mixtral), wanted, folders)
    both = AdapterSet.on(settings(mixtral))
    both.load(adapters["both"], "both")
    before = logits(both.model)
    with pytest.raises(UserError, match="can't share a base"):
        both.load(adapters["one"], "one")
    assert logits(both.model).equal(before)


def test_the_same_parameters_may_be_named_otherwise(
    mixtral: Path, adapters: dict[str, Path]
) -> None:
    """What counts is which parameters are adapted, not how the configuration names them."""
    together = AdapterSet.on(settings(mixtral))
    for number, name in enumerate(("both", "both, named otherwise")):
        together.load(adapters[name], f"a{number}")
        expected = logits(PeftModel.from_pretrained(plain(mixtral), adapters[name]))
        assert logits(together.model).equal(expected)


def test_experts_can_not_be_combined_or_written_as_gguf(
    mixtral: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """What PEFT and llama.cpp can't do with an expert's parameter is refused by its name."""
    folder = find_adapter(adapters["both"])
    with pytest.raises(UserError, match="has target_parameters, but only plain LoRA"):
        combine([folder, folder], [1, 1], settings(mixtral), tmp_path / "sum", Combination())
    with pytest.raises(UserError, match=r"adapts parameters \(experts.down_proj, experts.gate"):
        write_gguf(folder, settings(mixtral), tmp_path / "adapter.gguf")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_experts_have_peft_s_gradients(mixtral: Path, *, checkpointing: bool) -> None:
    """Beside our faster layers, and with recomputed activations, every gradient is PEFT's own."""
    model = plain(mixtral)
    model.requires_grad_(requires_grad=False)
    config = resolved(mixtral, target_modules="all-linear").peft_config.to_json()
    torch.manual_seed(3)
    model.add_adapter(LoraConfig(**config | {"init_lora_weights": False}))
    model.train()
    ids = torch.arange(24).reshape(2, 12)

    def gradients() -> dict[str, torch.Tensor]:
        model(input_ids=ids, labels=ids).loss.backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    expected = gradients()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with lean_layers(model), fused_adapter_layers(model):
        found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
