"""New tokens go the whole way: into rows, embeddings, the adapter's folder, and every use of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine_steps import ROWS, configured, injected, loaded, qwen2_base, save_here, train_here
from engine_steps import training as short_training
from peft import PeftModel
from pydantic import ValidationError
from tiny_models import tiny_llama, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tasks import engine
from tasks.config import AdapterSettings, BaseModelSettings, DataSettings, LoraSettings
from tasks.engine.adapters import adapter_state, check_tokenizer, write_gguf
from tasks.engine.adapters.folders import find_adapter
from tasks.engine.adapters.loading import _not_loaded
from tasks.engine.adapters.merging import export_merged
from tasks.engine.base import base_sha256, find_base, load_skeleton, tokenizer_of
from tasks.errors import UserError
from tasks.inference.adapters_on_base import base_of, load_adapters
from tasks.tracking.served_model.adapters import load_adapter
from tasks.tracking.served_model.base import add_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.records import TrainedRecord

NEW = ("<part>", "<total>")
LORA = LoraSettings(r=4, target_modules=["q_proj"])


def padded_llama(folder: Path) -> Path:
    """Save a Llama whose embeddings have 12 rows more than its tokenizer has tokens."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 12,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def padded_apart(folder: Path) -> Path:
    """Save a Llama without a row for its tokenizer's padding token, which is never looked up."""
    tiny_llama(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<|pad apart|>"})
    tokenizer.save_pretrained(folder)
    return folder


BASES: dict[str, Callable[[Path], Path]] = {
    "untied llama": tiny_llama,
    "tied qwen2": qwen2_base,
    "llama with rows to spare": padded_llama,
    "llama without a row for padding": padded_apart,
}


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a base."""
    return BASES[request.param](tmp_path_factory.mktemp("base") / "base")


def of(base: Path, *tokens: str) -> BaseModelSettings:
    """Return the settings of a base with new tokens."""
    given = {"source": str(base), "dtype": "float32", "new_tokens": tokens or NEW}
    return BaseModelSettings.model_validate(given)


def trained(base: Path, folder: Path) -> tuple["PreTrainedModel", "TrainedRecord"]:
    """Take an adapter through steps 1 to 4, on rows of which each has both tokens."""
    model, record = injected(base, folder, LORA, of(base))
    rows = [
        {"prompt": f"<part>{row['prompt']}", "completion": f"{row['completion']}<total>"}
        for row in ROWS
    ]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings.model_validate(
        {"train": str(file), "template": "plain", "eval_fraction": 0}
    )
    data = engine.prepare_data(settings, of(base), 0, folder / "tokens").record
    plan = short_training(max_steps=3, eval_steps=None)
    return model, engine.train_adapter(model, record, data, plan, folder / "checkpoints")


def ids_of(tokenizer: Any) -> list[int]:  # noqa: ANN401 - transformers' or ours
    """Return the numbers of the new tokens."""
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in NEW]


def test_a_new_token_goes_the_whole_way(base: Path, tmp_path: Path) -> None:
    """Trained on both sides, saved with its tokenizer, and the same in PEFT, merged and served."""
    model, record = trained(base, tmp_path)
    tokenizer = tokenizer_of(find_base(of(base)))
    new = ids_of(tokenizer)
    initial = adapter_state.load_weights(record.injected.initial_weights.path)
    now = adapter_state.read_adapter(model, "default")
    rows = [key for key in now if "trainable_tokens" in key]
    is_tied = bool(model.config.tie_word_embeddings)
    assert len(rows) == (1 if is_tied else 2)
    assert all((initial[key] != now[key]).any(dim=1).all() for key in rows)

    saved = save_here(model, record, tmp_path)
    adapter = find_adapter(saved.folder)
    expected = logits_at(model, new)
    assert base_of(adapter).new_tokens == NEW
    own = AutoTokenizer.from_pretrained(saved.folder)
    assert ids_of(own) == new
    assert own.decode(own("<part>a<total>")["input_ids"]) == "<part>a<total>"

    plain: Any = AutoModelForCausalLM.from_pretrained(base)
    known = [*range(plain.get_input_embeddings().weight.shape[0]), *new]
    if plain.get_input_embeddings().weight.shape[0] < len(own):
        plain.resize_token_embeddings(len(own), mean_resizing=False)
    in_peft = logits_at(PeftModel.from_pretrained(plain, saved.folder), new)
    assert torch.equal(in_peft[..., known], expected[..., known])

    # As `predict` and `try` do.
    wanted = AdapterSettings(source=str(saved.folder))
    used = load_adapters(None, [wanted], [adapter])
    used.unload(wanted.name)
    used.load(adapter, wanted.name)
    with used.using(wanted.name) as fresh:
        assert torch.equal(logits_at(fresh, new), expected)
    with used.using(None) as fresh:
        assert not torch.equal(logits_at(fresh, new), expected)

    served = AutoModelForCausalLM.from_pretrained(base)
    add_embeddings(served, saved.folder)
    load_adapter(served, str(saved.folder), "adapter_0", str(base))
    assert torch.equal(logits_at(served, new), expected)

    export_merged(adapter, base_of(adapter), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits_at(merged, new), expected, atol=1e-4)
    assert ids_of(AutoTokenizer.from_pretrained(tmp_path / "merged")) == new


def logits_at(model: "PreTrainedModel", new: list[int]) -> torch.Tensor:
    """Return logits for a text with new tokens."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.tensor([[5, new[0], 9, new[1], 7]])).logits
    return found


def test_new_rows_are_the_mean_of_the_others(base: Path) -> None:
    """They start in the middle, the same each time, and the rest of the base is as it was."""
    plain = loaded(base, of(base).model_copy(update={"new_tokens": ()}))[0]
    model = loaded(base, of(base))[0]
    new = ids_of(tokenizer_of(find_base(of(base))))
    for name in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(plain, name)().weight, getattr(model, name)().weight
        old = min(*new, before.shape[0])
        assert torch.equal(after[:old], before[:old])
        assert torch.allclose(after[new], before[:old].mean(dim=0).expand(2, -1))
    is_tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert is_tied == bool(plain.config.tie_word_embeddings)
    assert model.config.vocab_size == max(plain.config.vocab_size, max(new) + 1)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_base_with_new_rows_is_the_same_each_time(base: Path) -> None:
    """No row is random: a resumed run and a fresh base for the adapter have the same weights."""
    first, second = (adapter_state.base_checksum(loaded(base, of(base))[0]) for _ in range(2))
    assert first == second


def test_the_count_knows_the_new_rows(base: Path, tmp_path: Path) -> None:
    """What step 2 counts without weights is what step 3 finds."""
    record = injected(base, tmp_path, LORA, of(base))[1]
    assert record.lora.num_trainable_parameters == record.num_trainable_parameters


def test_tokens_are_made_anew_for_other_new_tokens(base: Path) -> None:
    """Kept token files are found by the new tokens, too."""
    sources = [find_base(of(base, *tokens)) for tokens in (NEW, NEW[:1], ("<other>",))]
    assert len({base_sha256(source) for source in sources}) == 3


def test_only_the_same_parameter_counts_as_loaded(base: Path, tmp_path: Path) -> None:
    """A missing alias is known by identity: another parameter of such a name is missing."""
    model = injected(base, tmp_path, LORA, of(base))[0]
    named = dict(model.named_parameters(remove_duplicate=False))
    rows = [key for key in named if "trainable_tokens_delta" in key]
    output = {key for key in rows if "lm_head" in key}
    expected = [] if model.config.tie_word_embeddings else sorted(output)
    assert len(rows) == 2
    assert _not_loaded(model, output) == expected
    assert _not_loaded(model, set(rows)) == sorted(rows)


WRONG: dict[str, tuple[list[str], str]] = {
    "empty": ([""], "is empty"),
    "whitespace": ([" <part>"], "' <part>' contains whitespace"),
    "whitespace within": (["<a part>"], "contains whitespace"),
    "twice": (["<part>", "<part>"], "'<part>' is given twice"),
}


@pytest.mark.parametrize(("tokens", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_no_token_is_refused(tokens: list[str], message: str) -> None:
    """Each mistake has its message."""
    with pytest.raises(ValidationError, match=message):
        BaseModelSettings(source="base", new_tokens=tuple(tokens))


def test_new_tokens_are_for_generated_text() -> None:
    """A classifier's are refused."""
    given = {"source": "base", "new_tokens": ["<a>"], "task": "sequence-classification"}
    with pytest.raises(ValidationError, match="for causal-lm only"):
        BaseModelSettings.model_validate(given)


def test_what_the_base_cannot_take_is_refused_before_its_weights(
    tiny_base: Path, tmp_path: Path
) -> None:
    """A token that it has, a method that can't train rows; and GGUF by name."""
    with pytest.raises(UserError, match=r'"<\|im_end\|>" is a token of the base already'):
        load_skeleton(find_base(of(tiny_base, "<|im_end|>")))
    record = loaded(tiny_base, of(tiny_base))[1]
    with pytest.raises(UserError, match=r"new_tokens are trained with lora\.method lora only"):
        configured(record, LoraSettings(method="ia3"))
    with pytest.raises(UserError, match=r"adapt lm_head, of which base_model\.new_tokens train"):
        configured(record, LoraSettings(target_modules=["q_proj", "lm_head"]))
    model, state = trained(tiny_base, tmp_path)
    adapter = find_adapter(save_here(model, state, tmp_path).folder)
    plain = tokenizer_of(find_base(of(tiny_base).model_copy(update={"new_tokens": ()})))
    with pytest.raises(UserError, match=r"set base_model.new_tokens to .*: <part>, <total>"):
        check_tokenizer(adapter, plain)
    with pytest.raises(UserError, match=r"a GGUF adapter can't contain.*use export --merged"):
        write_gguf(adapter, base_of(adapter), tmp_path / "a.gguf")


def test_two_adapters_of_which_one_has_new_tokens_are_refused_as_such(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Whichever is first, nobody is sent to set another base, which would be refused, too."""
    adapters = {}
    for name, settings in (("plain", None), ("tokens", of(tiny_base))):
        folder = tmp_path / name
        model, record = injected(tiny_base, folder, LORA, settings)
        short = train_here(model, record, folder, short_training(max_steps=1, eval_steps=None))
        adapters[name] = find_adapter(save_here(model, short, folder).folder)
    for names in (("plain", "tokens"), ("tokens", "plain")):
        wanted = [AdapterSettings(source=str(adapters[one].path), name=one) for one in names]
        with pytest.raises(UserError, match=r"tokens trained single tokens.*export --merged"):
            load_adapters(None, wanted, [adapters[one] for one in names])
