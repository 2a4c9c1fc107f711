"""PEFT's other methods: each that can be used goes through the six steps, the rest is refused."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_steps import LABELS, injected, loaded, logits, prepared, save_here, train_here
from engine_steps import training as short_training
from peft import PeftModel, PeftType
from peft_methods import ALONE, LAYERS, NOT_MERGED, OTHERS, SMALL, TARGETS, settings
from tiny_models import tiny_bert, tiny_llama
from transformers import AutoModelForCausalLM

from tasks import engine
from tasks.config import BaseModelSettings, Dtype, InferenceSettings, LoraSettings, Quantization
from tasks.engine.adapters import (
    AdapterSet,
    Combination,
    adapter_state,
    combine,
    methods,
    resolve_lora,
    write_gguf,
)
from tasks.engine.adapters.folders import find_adapter
from tasks.engine.adapters.injection import reinject
from tasks.engine.adapters.lora import to_json
from tasks.engine.adapters.merging import export_merged
from tasks.engine.adapters.saving import write_files
from tasks.engine.base.sources import find_base
from tasks.engine.training.callbacks import TrainingProgress
from tasks.errors import UserError
from tasks.tracking.served_model.adapters import load_adapter

if TYPE_CHECKING:
    from tasks.records import InjectedRecord, TrainedRecord


class Killed(Exception):  # noqa: N818 - not an error of ours
    """What a training run dies of."""


def kill_at_first_step(now: TrainingProgress) -> None:
    """End the training once its first step is done."""
    if now.step == 1 and not now.metrics:
        raise Killed


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a Llama of one layer."""
    return tiny_llama(tmp_path_factory.mktemp("base"), layers=1, hidden_size=64)


def killed_and_resumed(record: "InjectedRecord", folder: Path) -> "TrainedRecord":
    """Train until an interruption after one step, and on from there in a model built anew."""
    plan = short_training(max_steps=2, eval_steps=None, checkpoint_minutes=0)
    location = Path(record.lora.base.location)
    for on_progress in (kill_at_first_step, None):
        model = loaded(location, record.lora.base.settings)[0]
        reinject(model, record)
        try:
            return train_here(model, record, folder, plan, on_progress)
        except Killed:
            continue
    raise AssertionError


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_goes_through_the_six_steps(base: Path, tmp_path: Path, method: str) -> None:
    """It trains alone, resumes to the same bytes, and plain PEFT loads what was saved."""
    model, record = injected(base, tmp_path, settings(method))
    before = {name: w.clone() for name, w in adapter_state.base_weights(model)}
    plan = short_training(max_steps=2, eval_steps=None, checkpoint_minutes=0)
    trained = train_here(model, record, tmp_path / "whole", plan)
    after = dict(adapter_state.base_weights(model))
    assert trained.adapter_change > 0
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = killed_and_resumed(record, tmp_path / "cut")
    assert again.weights.sha256 == trained.weights.sha256

    saved = save_here(model, trained, tmp_path)
    expected = logits(model)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), saved.folder)
    assert torch.equal(logits(plain), expected)
    fresh = loaded(base)[0]
    data = prepared(record.lora.base, tmp_path).record
    sampling = InferenceSettings(sample_rows=1, max_new_tokens=2)
    engine.load_adapter(fresh, saved, data, sampling)
    assert torch.equal(logits(fresh), expected)


def random_adapter(base: Path, folder: Path, method: str, seed: int = 1) -> Path:
    """Save an adapter of a method with random weights."""
    given = {"target_modules": TARGETS.get(method, LAYERS), "task_type": "CAUSAL_LM"}
    config = methods.find_method(method).config_class(**given, **SMALL.get(method, {}))
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    folder.mkdir()
    write_files(folder, adapter_state.read_adapter(model, "default"), to_json(config))
    return folder


def plain_logits(base: Path, folder: Path) -> torch.Tensor:
    """Return the logits of a base with an adapter, or alone, as plain PEFT has them."""
    model = AutoModelForCausalLM.from_pretrained(base)
    return logits(PeftModel.from_pretrained(model, folder))


def of(base: Path) -> BaseModelSettings:
    """Return the settings of the base."""
    return BaseModelSettings.model_validate({"source": str(base), "dtype": "float32"})


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_s_adapters_are_switched_merged_and_served(
    base: Path, tmp_path: Path, method: str
) -> None:
    """Two on one base answer as alone, a merged one as before, and MLflow's model too."""
    folders = [random_adapter(base, tmp_path / str(seed), method, seed) for seed in (1, 2)]
    alone = [plain_logits(base, folder) for folder in folders]
    several = AdapterSet.on(of(base))
    unchanged = logits(several.model)
    several.load(folders[0], "first")
    if method in ALONE:
        with pytest.raises(UserError, match=r"can't share a base: .* PEFT can load one at a time"):
            several.load(folders[1], "second")
    else:
        several.load(folders[1], "second")
        assert torch.equal(logits(several.model), alone[1])
    several.switch("first")
    assert torch.equal(logits(several.model), alone[0])
    several.disable()
    assert torch.equal(logits(several.model), unchanged)

    served = AutoModelForCausalLM.from_pretrained(base)
    load_adapter(served, str(folders[0]), "adapter_0", str(base))
    assert torch.equal(logits(served), alone[0])

    adapter = find_adapter(folders[0])
    with pytest.raises(UserError, match=f"is {method}, but a GGUF adapter can only be LoRA"):
        write_gguf(adapter, of(base), tmp_path / "adapter.gguf")
    if method in NOT_MERGED:
        with pytest.raises(UserError, match=f"PEFT can't merge .*{method}"):
            export_merged(adapter, of(base), tmp_path / "merged")
        return
    export_merged(adapter, of(base), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), alone[0], atol=1e-4)


@pytest.mark.parametrize("method", OTHERS)
def test_packed_rows_train_a_method_as_padded_ones_do(
    base: Path, tmp_path: Path, method: str
) -> None:
    """No layer sees what else is in the batch: losses after steps of either kind are equal."""
    model, record = injected(base, tmp_path, settings(method))
    curves = []
    for batching in ("padded", "packed"):
        write = adapter_state.load_weights(record.initial_weights.path)
        adapter_state.write_adapter(model, "default", write)
        plan = short_training(max_steps=3, eval_steps=None, batching=batching, batch_size=8)
        curve = train_here(model, record, tmp_path / batching, plan).loss_curve
        curves.append([point.train_loss for point in curve if point.train_loss is not None])
    assert len(curves[0]) == 3
    assert curves[0][2] != pytest.approx(curves[0][0], rel=1e-3)
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.parametrize("method", OTHERS)
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(
    base: Path, tmp_path: Path, method: str
) -> None:
    """What comes before a token, and nothing else, decides what a method computes for it."""
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), random_adapter(base, tmp_path / "a", method)
    ).eval()
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        together, first = model(input_ids=ids).logits, model(input_ids=ids[:1, :6]).logits
    assert torch.allclose(together[:1, :6], first, atol=1e-4)


QUANTIZED = [name for name in OTHERS if methods.find_method(name).takes_quantized_layers]


@pytest.mark.parametrize("method", QUANTIZED)
def test_a_method_with_quantized_layers_trains_on_them(
    base: Path, tmp_path: Path, method: str
) -> None:
    """On a base in 4 bits it trains, and answers the same when it is loaded again."""
    quantized = of(base).model_copy(update={"quantization": Quantization.NF4})
    model, record = injected(base, tmp_path, settings(method), quantized)
    trained = train_here(model, record, tmp_path, short_training(max_steps=2, eval_steps=None))
    save_here(model, trained, tmp_path)  # compares the logits on a fresh base
    assert trained.adapter_change > 0


def test_a_classifier_is_trained_by_another_method(tmp_path: Path) -> None:
    """The new output layer trains fully beside it, and comes back with it."""
    given = {"source": str(tiny_bert(tmp_path / "bert")), "dtype": "float32", "labels": LABELS}
    bert = BaseModelSettings.model_validate(given | {"task": "sequence-classification"})
    model, record = injected(tmp_path / "bert", tmp_path, LoraSettings(method="ia3"), bert)
    trained = train_here(model, record, tmp_path, short_training(max_steps=2, eval_steps=None))
    saved = save_here(model, trained, tmp_path)  # compares the logits on a fresh base
    keys = find_adapter(saved.folder).shapes
    assert any("ia3_l" in key for key in keys)
    assert any("classifier" in key for key in keys)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"method": "lohra"}, "PEFT does not have; did you mean (lora|loha)"),
    "prompts": ({"method": "prompt_tuning"}, "it puts virtual tokens .*; possible: .*ia3"),
    "shared": ({"method": "vera"}, "its layers share weights"),
    "calls": ({"method": "adalora"}, "a call after every optimizer step"),
    "a batch's": ({"method": "lily"}, "averages over all tokens of a batch"),
    "LoRA's options": ({"options": {"r": 4}}, r"lora.options \(r\) are for methods other than"),
    "LoRA's alone": (
        {"method": "ia3", "lora_alpha": 8},
        "lora.lora_alpha is a setting of LoRA, which ia3 does not have; .* feedforward_modules",
    ),
    "LoRA's rank": ({"method": "road", "r": 8}, "lora.r is a setting of LoRA"),
    "DoRA": ({"method": "loha", "use_dora": True}, "lora.use_dora is a setting of LoRA"),
    "twice": ({"method": "loha", "r": 8, "options": {"r": 4}}, "lora.r and lora.options.r"),
    "a typo": ({"method": "loha", "options": {"alhpa": 4}}, "did you mean alpha"),
    "a text": ({"method": "loha", "options": {"alpha": "4"}}, 'alpha is "4"; it must be a valid i'),
    "elsewhere": ({"method": "loha", "options": {"target_modules": ["a"]}}, "lora.target_modules"),
    "no calls": ({"method": "adamss", "options": {"use_asa": True}}, "use_asa needs a call after"),
    "contradiction": ({"method": "oft", "r": 8}, "PEFT .* oft"),
    "too large": ({"method": "miss", "r": 4096}, "PEFT can't adapt LlamaForCausalLM by miss"),
    "nothing": ({"method": "loha", "target_modules": ["q_prj"]}, "match nothing .*: down_proj"),
    "no layer": (
        {"method": "loha", "target_modules": ["q_proj", "input_layernorm"]},
        "PEFT can't adapt|select no layer",
    ),
    "no such layer": (
        {"method": "loha", "target_modules": ["q_proj"], "options": {"layers_to_transform": [7]}},
        "PEFT can't adapt .* by loha|select no layer",
    ),
    "pattern of targets": (
        {"method": "loha", "target_modules": r".*\.q_proj"},
        "regular expression .* for LoRA only, .* loha; list the names",
    ),
    "no pattern": (
        {"method": "loha", "options": {"exclude_modules": "("}},
        "no regular expression",
    ),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_work_is_refused_before_the_weights(
    base: Path, given: dict[str, Any], message: str
) -> None:
    """A method or option that can't work is refused by the skeleton, with what is possible."""
    with pytest.raises(UserError, match=message) as caught:
        resolve_lora(LoraSettings.model_validate(given), find_base(of(base)))
    assert "\n" not in str(caught.value)


def test_a_quantized_base_takes_methods_that_peft_has_layers_for(base: Path) -> None:
    """Others would compute with packed weights."""
    quantized = of(base).model_copy(update={"quantization": Quantization.NF4})
    with pytest.raises(UserError, match=r"quantized layers by boft; .* ia3, lora"):
        resolve_lora(settings("boft"), find_base(quantized))


def test_a_method_for_float32_is_refused_in_half_precision(base: Path) -> None:
    """OSF's forward would fail in training."""
    half = of(base).model_copy(update={"dtype": Dtype.BFLOAT16})
    with pytest.raises(UserError, match=r"compute osf in float32 only; set base_model\.dtype"):
        resolve_lora(settings("osf"), find_base(half))


def test_a_setting_of_lora_is_taken_where_the_method_has_it(base: Path) -> None:
    """`r` is LoHa's own, too; what is not set remains as PEFT has it."""
    found = resolve_lora(settings("loha", r=3), find_base(of(base))).peft_config.to_json()
    assert (found["r"], found["alpha"], found["peft_type"]) == (3, 8, "LOHA")
    plain = resolve_lora(settings("loha"), find_base(of(base))).peft_config.to_json()
    assert plain["r"] == 8


def test_a_method_has_its_own_targets(base: Path) -> None:
    """`auto` is what PEFT has for the method and architecture, with all that depends on it."""
    found = resolve_lora(LoraSettings(method="ia3"), find_base(of(base)))
    config = found.peft_config.to_json()
    assert found.matches.per_target == {"down_proj": 1, "k_proj": 1, "v_proj": 1}
    assert config["feedforward_modules"] == ["down_proj"]


def test_where_a_method_starts_is_recorded(base: Path, tmp_path: Path) -> None:
    """FourierFT starts at random, IA³ at the base."""
    starts = {
        method: injected(base, tmp_path / method, settings(method))[1]
        for method in ("fourierft", "ia3")
    }
    assert not starts["fourierft"].starts_at_base
    assert starts["fourierft"].logit_difference > 0.1
    assert starts["ia3"].starts_at_base


def test_adapters_of_two_methods_are_not_put_on_one_base(base: Path, tmp_path: Path) -> None:
    """PEFT would nest their layers; the first one still answers."""
    folders = [random_adapter(base, tmp_path / name, name) for name in ("ia3", "loha")]
    several = AdapterSet.on(of(base))
    several.load(folders[0], "first")
    with pytest.raises(UserError, match=r"first \(ia3\), second \(loha\) can't share a base"):
        several.load(folders[1], "second")
    assert torch.equal(logits(several.model), plain_logits(base, folders[0]))


def test_only_lora_is_combined(base: Path, tmp_path: Path) -> None:
    """Sums of other methods' weights are not sums of what they do."""
    adapters = [find_adapter(random_adapter(base, tmp_path / str(n), "ia3", n)) for n in (1, 2)]
    with pytest.raises(UserError, match=r"is ia3, but .* LoRA; merge it into its base"):
        combine(adapters, [1.0, 1.0], of(base), tmp_path / "sum", Combination())


def test_every_method_of_peft_is_usable_or_refused_for_a_reason() -> None:
    """The table of reasons names methods that PEFT has, and no reason that it says itself."""
    known = {kind.value.lower() for kind in PeftType}
    assert set(methods.all_methods()) == known
    assert set(methods._UNUSABLE) <= known
    refused = known - set(methods.usable_methods())
    assert len(refused) == 19  # of PEFT 0.21; look at what is new, and change the number
