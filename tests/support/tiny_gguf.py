"""A base as a GGUF file in float32, so that a tiny model can be put into llama.cpp."""

import json
from pathlib import Path

import gguf
from transformers import AutoConfig, AutoModelForCausalLM


def gguf_base(folder: Path, file: Path, architecture: str) -> Path:
    """Write the model in `folder`, which has its parts in the order of transformers, to `file`."""
    config = AutoConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(config.vocab_size)
    _write_vocabulary(writer, folder, config.vocab_size)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for key, tensor in state.items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert name, key
        if name.startswith("output.") and config.tie_word_embeddings:
            continue
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        split = heads.get(name.split(".")[-2]) if architecture == "llama" else None
        value = tensor.float().numpy()
        if split:  # llama.cpp rotates neighbours, transformers a head's two halves
            order = value.reshape(split, 2, width // 2, -1).swapaxes(1, 2)
            value = order.reshape(value.shape)
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokens += [f"[unused{number}]" for number in range(len(tokens), size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(value=False)
