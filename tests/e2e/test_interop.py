"""Others' programs read our adapters, and ours reads others'; logits are equal both ways."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from engine_steps import logits, save_here, trained
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from plain_adapters import lora_folder
from tiny_models import tiny_bert, tiny_t5
from transformers import AutoModelForCausalLM

from tasks.config import BaseModelSettings, Dtype, LoraSettings
from tasks.engine.adapters.adapter_set import AdapterSet
from tasks.engine.adapters.folders import find_adapter
from tasks.inference.adapters_on_base import base_of

OURS: list[dict[str, object]] = [
    {},
    {"target_modules": "all-linear", "use_rslora": True},
    {"use_dora": True},
    {"modules_to_save": ["lm_head"]},
    {"target_modules": ["embed_tokens", "lm_head"]},
    {"init_lora_weights": "pissa"},
]
THEIRS: list[dict[str, Any]] = [
    {},
    {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3},
    {"target_modules": r".*\.layers\.1\..*(q|v)_proj"},
    {"rank_pattern": {"layers.0.self_attn.q_proj": 5}, "alpha_pattern": {"q_proj": 7}},
    {"layers_to_transform": [1]},
    {"use_dora": True},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens", "norm"]},
    {"target_modules": ["embed_tokens", "up_proj"]},
    {"lora_bias": True},
]


@pytest.fixture(scope="module")
def adapters(tiny_base: Path) -> AdapterSet:
    """Load the base once for all of others' adapters."""
    settings = {"source": str(tiny_base), "dtype": "float32"}
    return AdapterSet.on(BaseModelSettings.model_validate(settings))


@pytest.mark.parametrize("settings", OURS, ids=str)
def test_plain_peft_and_plain_transformers_read_ours(
    tiny_base: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    """PEFT, its Auto class, and transformers' two ways give the logits of the training's end."""
    wanted = LoraSettings.model_validate({"r": 4} | settings)
    model, record = trained(tiny_base, tmp_path, wanted)
    saved = save_here(model, record, tmp_path)
    live = logits(model)
    on_base = AutoModelForCausalLM.from_pretrained(tiny_base)
    on_base.load_adapter(str(saved.folder))
    readers = {
        "peft": PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_base), saved.folder
        ),
        "peft, with the base": AutoPeftModelForCausalLM.from_pretrained(saved.folder),
        "transformers": on_base,
        "transformers, with the base": AutoModelForCausalLM.from_pretrained(saved.folder),
    }
    # An adapter that altered its base adds up the same terms in another order.
    atol = 1e-4 * live.abs().max().item() if "init_lora_weights" in settings else 0
    for reader in readers.values():
        torch.testing.assert_close(logits(reader), live, rtol=0, atol=atol)


@pytest.mark.parametrize("config", THEIRS, ids=str)
def test_plain_peft_s_adapters_load_here(
    tiny_base: Path, tmp_path: Path, adapters: AdapterSet, config: dict[str, Any]
) -> None:
    """An adapter that plain PEFT made and saved gives PEFT's logits here, bit for bit."""
    folder = lora_folder(tiny_base, tmp_path / "theirs", **config)
    expected = logits(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)
    )
    adapters.load(folder, "theirs")
    try:
        assert torch.equal(logits(adapters.model), expected)
    finally:
        adapters.unload("theirs")
    assert torch.equal(
        logits(adapters.model), logits(AutoModelForCausalLM.from_pretrained(tiny_base))
    )


@pytest.mark.parametrize(
    ("make", "auto_class", "task_type", "targets"),
    [
        (tiny_bert, "AutoModelForSequenceClassification", "SEQ_CLS", ["query"]),
        (tiny_bert, "AutoModelForTokenClassification", "TOKEN_CLS", ["query"]),
        (tiny_t5, "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM", ["q"]),
    ],
    ids=["classifier", "tagger", "seq2seq"],
)
def test_plain_peft_s_adapters_tell_their_task(
    tmp_path: Path,
    make: Callable[[Path], Path],
    auto_class: str,
    task_type: str,
    targets: list[str],
) -> None:
    """Without a manifest the base is loaded for what PEFT says, with as many classes as it has."""
    base = make(tmp_path / "base")
    more = {} if make is tiny_t5 else {"num_labels": 3}
    torch.manual_seed(0)
    model: Any = getattr(transformers, auto_class).from_pretrained(base, **more)
    config = LoraConfig(r=2, target_modules=targets, task_type=task_type, init_lora_weights=False)
    theirs = get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    found = find_adapter(tmp_path / "adapter")
    adapters = AdapterSet.on(base_of(found).model_copy(update={"dtype": Dtype.FLOAT32}))
    adapters.load(found)
    given = {"input_ids": torch.tensor([[5, 6, 7]])}
    if make is tiny_t5:
        given["decoder_input_ids"] = given["input_ids"]
    with torch.no_grad(), adapters.using("default") as ours:
        assert torch.equal(ours(**given).logits, theirs(**given).logits)


def test_an_adapter_that_trl_trained_loads_here(
    tiny_base: Path, tmp_path: Path, adapters: AdapterSet
) -> None:
    """What SFTTrainer saved, tokenizer included, gives PEFT's logits here, bit for bit."""
    trl = pytest.importorskip("trl", reason="TRL comes with the extra `bench`")
    chats = [
        [
            {"role": "user", "content": f"{n} plus {n}?"},
            {"role": "assistant", "content": str(2 * n)},
        ]
        for n in range(8)
    ]
    settings = {"max_steps": 2, "learning_rate": 1e-2, "report_to": [], "use_cpu": True}
    trainer = trl.SFTTrainer(
        str(tiny_base),
        args=trl.SFTConfig(output_dir=str(tmp_path / "run"), bf16=False, **settings),
        train_dataset=Dataset.from_list([{"messages": chat} for chat in chats]),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    folder = tmp_path / "theirs"
    trainer.save_model(str(folder))
    plain = AutoModelForCausalLM.from_pretrained(tiny_base)
    expected = logits(PeftModel.from_pretrained(plain, folder))
    adapters.load(folder, "theirs")
    try:
        assert torch.equal(logits(adapters.model), expected)
    finally:
        adapters.unload("theirs")
    assert not torch.equal(logits(adapters.model), expected)
