"""Tiny models for tests: a random Llama with its tokenizer, and an adapter for it.

Both are deterministic and need no network. The model answers nonsense, but always the same.
"""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, TURN = "<s>", "<|im_end|>", "<pad>", "<|im_start|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? The capital of France is Paris.",
    "A user writes a question, and the assistant answers the question.",
    "My card was declined and the transfer is still pending; please help me with the order.",
)


def tiny_tokenizer(
    *, vocab_size: int = 400, chat_template: bool = True
) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer, so that every text round-trips; it adds no BOS itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[TURN],
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat_template else None
    return tokenizer


def tiny_llama(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden_size: int = 32,
    chat_template: bool = True,
) -> Path:
    """Save a random float32 Llama and its tokenizer to `folder`, which is returned.

    Its assistant turns end in EOS; equal arguments give equal bytes. For 4-bit weights on the CPU
    bitsandbytes 0.50 wants a `hidden_size` that is a multiple of 64.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(chat_template=chat_template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        # The usual 0.02 makes all logits of so small a model almost equal.
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reciting_llama(folder: Path, tokenizer: "PreTrainedTokenizerFast", tokens: list[int]) -> Path:
    """Save a Llama that follows each of the tokens, all of them different, by the next one.

    Its one layer adds nothing; the output layer knows what follows what. A model that has learned
    its rows perfectly, without a training.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    assert len(set(tokens)) == len(tokens)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            weight.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), 512))
        model.lm_head.weight.zero_()
        for token, following in itertools.pairwise(tokens):
            model.lm_head.weight[following, token] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_bert(folder: Path, *, hidden_size: int = 32) -> Path:
    """Save a random float32 BERT without an output layer, and the tokenizer, as encoders come."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer(chat_template=False)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_t5(folder: Path) -> Path:
    """Save a random float32 T5 and a tokenizer that ends every text, as T5's does."""
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = tiny_tokenizer(chat_template=False)
    ended = TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, int(tokenizer.eos_token_id))]
    )
    tokenizer.backend_tokenizer.post_processor = ended
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.decoder_start_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MIXTURES: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {"num_experts": 4, "head_dim": 8},
    "olmoe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
}
"""Mixtures of experts by transformers' `model_type`, with what they need beside the sizes."""


def tiny_mixture(kind: str, folder: Path, *, hidden_size: int = 32, **changes: object) -> Path:
    """Save a random float32 mixture of experts of one of `MIXTURES`, and the tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = tiny_tokenizer()
    sizes: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "moe_intermediate_size": hidden_size // 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(kind, **sizes | MIXTURES[kind] | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_adapter(base: Path, folder: Path, *, seed: int = 1, r: int = 4) -> Path:
    """Save a LoRA adapter with random weights, which change every answer, for the base there."""
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    targets = ["q_proj", "v_proj", "up_proj"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(
            LoraConfig(r=r, lora_alpha=8 * r, target_modules=targets, init_lora_weights=False)
        )
    model.save_pretrained(folder)
    return folder
