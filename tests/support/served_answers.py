"""What a served adapter has to answer: the greedy answers of transformers and PEFT alone."""

from pathlib import Path
from typing import Any

PROMPTS = ["What is the capital of France?", "My card was declined."]


def greedy_answers(base: Path, adapter: Path | None, texts: list[str]) -> list[str]:
    """Answer one text at a time with transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    answers = []
    for text in texts:
        batch = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        tokens = model.generate(**batch, max_new_tokens=8, do_sample=False)
        new = tokens[0, batch["input_ids"].shape[1] :]
        answers.append(str(tokenizer.decode(new, skip_special_tokens=True)))
    return answers


def as_chat(prompt: str) -> str:
    """Write a prompt as the tiny model's chat template does."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


PROMPTS_AS_CHATS = [as_chat(prompt) for prompt in PROMPTS]
