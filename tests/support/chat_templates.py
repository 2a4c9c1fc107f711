"""Chat templates of the shapes that models come with, small and our own, for tests."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiny_models import CHAT_TEMPLATE, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Shape:
    """A template, with the special tokens that it writes and those that stop generation."""

    template: str
    specials: tuple[str, ...] = ()
    ends: tuple[str, ...] = ("<|im_end|>",)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Make a tokenizer with the template."""
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|im_start|>", *self.specials]}
        )
        tokenizer.add_tokens(["<think>", "</think>"])
        tokenizer.chat_template = self.template
        return tokenizer

    def end_ids(self) -> list[int]:
        """Return the tokens that stop generation."""
        tokenizer = self.tokenizer()
        return [tokenizer.added_tokens_encoder[end] for end in self.ends]


EACH = "{% for m in messages %}"
LAST_USER = "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}\
{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"

SHAPES = {
    "chatml": Shape(CHAT_TEMPLATE),
    "qwen3": Shape(  # an empty thought in front; what was thought earlier is dropped
        LAST_USER + EACH + "{{ '<|im_start|>' + m.role + '\n' }}{% set said = m.content %}"
        "{% if m.role == 'assistant' %}{% set thought = '' %}{% if '</think>' in said %}"
        "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
        "{% endif %}{{ said + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "qwen3 thinking": Shape(  # the thought is opened by the prompt
        EACH + "{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    ),
    "glm4.5": Shape(  # the next turn's role ends a turn
        EACH + "{% if m.role == 'assistant' %}{{ '<|assistant|>\n<think></think>\n' }}"
        "{% else %}{{ '<|' + m.role + '|>\n' }}{% endif %}{{ m.content | trim }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
        specials=("<|user|>", "<|assistant|>", "<|system|>"),
        ends=("<|im_end|>", "<|user|>"),
    ),
    "gpt-oss": Shape(  # a channel, and another end for the last answer than for earlier ones
        EACH + "{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}"
        "{{ '<|channel|>final' }}{% endif %}{{ '<|message|>' + m.content }}"
        "{% if m.role == 'assistant' and loop.last %}{{ '<|return|>' }}"
        "{% else %}{{ '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        specials=("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|end|>"),
        ends=("<|return|>",),
    ),
    "phi-3": Shape(  # a token of its own closes the conversation
        EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        specials=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        ends=("<|im_end|>", "<|end|>"),
    ),
    "phi-3 without stops": Shape(
        EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        specials=("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
    ),
    "deepseek-r1": Shape(  # asks for an answer with more than it writes before one
        "{{ bos_token }}" + EACH + "{% if m.role == 'assistant' %}{{ '<|assistant|>' + m.content"
        " + eos_token }}{% else %}{{ '<|' + m.role + '|>' + m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}",
        specials=("<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "llama-3": Shape(
        "{{ bos_token }}" + EACH + "{{ '<|head|>' + m.role + '<|/head|>\n\n'"
        " + m.content | trim + '<|eot|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}",
        specials=("<|head|>", "<|/head|>", "<|eot|>"),
        ends=("<|im_end|>", "<|eot|>"),
    ),
    "no end": Shape(
        EACH + "{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    ),
    "quoted": Shape(  # behind the content stands what a content may end in
        EACH + "{{ '<|im_start|>' + m.role + '\n\"' + m.content + '\"<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "no end, quoted": Shape(
        EACH + "{{ m.role + ': \"' + m.content + '\"' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ),
    "another end": Shape(  # ChatML on a base that stops at its end token only
        CHAT_TEMPLATE.replace("<|im_end|>", "<|turn_end|>"), specials=("<|turn_end|>",)
    ),
}
