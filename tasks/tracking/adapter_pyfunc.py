"""The model that MLflow loads: a base found where it is kept, with the logged adapter on it.

This file is stored with each logged adapter and runs wherever that is loaded, so it imports
nothing of this project. `mlflow.pyfunc.load_model(uri, model_config={"base_model": "…"})` names
another place of the base.
"""

import json
import re
from pathlib import Path
from typing import Any

import mlflow.models
from mlflow.pyfunc.model import PythonModel, PythonModelContext

BATCH_SIZE = 16


class AdapterModel(PythonModel):
    """Answers the rows of a table: its column `prompt` (text), or `messages` (a chat)."""

    # Without it mlflow 3.17 asks for type hints on `predict` whenever this is loaded; with them it
    # would drop the signature's params.
    _skip_type_hint_validation = True

    def load_context(self, context: PythonModelContext) -> None:
        """Load base, adapter and tokenizer.

        Raises:
            ValueError: The base is not found, or the adapter's weights do not fit it exactly.
        """
        config = dict(context.model_config)
        folder = context.artifacts["adapter"]
        base, revision = find_base(config)
        self.tokenizer = _load_tokenizer(folder, base, revision)
        # Prompts are written as they were in training.
        self.chat = config["template"] == "chat" and self.tokenizer.chat_template is not None
        self.model = _load_base(base, revision, config)
        info = self.model.load_adapter(folder)
        # transformers 5.23 only logs what does not fit, and goes on with random weights.
        wrong = [*info.missing_keys, *info.unexpected_keys, *info.mismatched_keys]
        if wrong:
            raise ValueError(
                f"the adapter was made for another base than {base!r}: {len(wrong)} weights are "
                f"missing, unexpected or of another shape, such as {min(map(str, wrong))}"
            )
        self.model.eval()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, ARG002
        """Give one answer a row: a list of str."""
        # mlflow drops columns that the signature does not name, which may leave none.
        if not {"prompt", "messages"} & set(model_input.columns):
            raise ValueError("the table needs a column `prompt` or `messages`")
        prompts = [
            _as_text(self.tokenizer, row, self.chat)
            for row in model_input.to_dict(orient="records")
        ]
        answers: list[str] = []
        for start in range(0, len(prompts), BATCH_SIZE):
            answers += self._answer(prompts[start : start + BATCH_SIZE], **(params or {}))
        return answers

    def _answer(
        self, prompts: list[str], max_new_tokens: int = 128, temperature: float = 0.0
    ) -> list[str]:
        import torch

        batch = self.tokenizer(
            prompts,
            # The chat template wrote them already.
            add_special_tokens=not self.chat,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(self.model.device)
        with torch.inference_mode():
            tokens = self.model.generate(
                **batch, max_new_tokens=int(max_new_tokens), **_sampling(temperature)
            )
        new_tokens = tokens[:, batch["input_ids"].shape[1] :]
        answers = self.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        return [answer.strip() for answer in answers]


def find_base(config: dict[str, Any]) -> tuple[str, str | None]:
    """Give the base's folder or Hub id, and the revision of a Hub id.

    First `base_model` if it is set, then the place it was trained from, then its public name.
    """
    if config["base_model"]:
        return str(config["base_model"]), config["base_revision"]
    location, reference = config["recorded_location"], config["recorded_reference"]
    if Path(location).exists():
        return location, None
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", reference):
        return reference, config["recorded_revision"]
    raise ValueError(
        f"the base model is not at {location}, and {reference!r} is no Hub id; name its folder or "
        'Hub id: mlflow.pyfunc.load_model(uri, model_config={"base_model": "…"})'
    )


def _load_base(base: str, revision: str | None, config: dict[str, Any]) -> Any:  # noqa: ANN401
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, config["dtype"].removeprefix("torch."))
    packed = _quantization(config["quantization"], dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, revision=revision, dtype=dtype, quantization_config=packed
    )
    # bitsandbytes places its weights itself.
    return model if packed or not torch.cuda.is_available() else model.to("cuda")


def _quantization(name: str, dtype: Any) -> Any:  # noqa: ANN401
    from transformers import BitsAndBytesConfig

    if name == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if name == "8bit" else None


def _load_tokenizer(folder: str, base: str, revision: str | None) -> Any:  # noqa: ANN401
    from transformers import AutoTokenizer

    if (Path(folder) / "tokenizer_config.json").exists():
        base, revision = folder, None
    # Answers begin where prompts end, so that padding goes to the left.
    tokenizer = AutoTokenizer.from_pretrained(base, revision=revision, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _as_text(tokenizer: Any, row: dict[str, Any], chat: bool) -> str:  # noqa: ANN401, FBT001
    """Write a row's prompt or messages as the text that the answer continues."""
    messages, prompt = row.get("messages"), row.get("prompt")
    if isinstance(messages, str):
        messages = json.loads(messages)
    # An empty cell of a table is NaN.
    if not isinstance(prompt, str) and (messages is None or isinstance(messages, float)):
        raise ValueError(f"a row needs `prompt`, a text, or `messages`; this one is {row!r:.200}")
    if not chat:
        if not isinstance(prompt, str):
            raise ValueError("the adapter was trained without a chat template: give `prompt`")
        return prompt
    turns: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages
    text: str = tokenizer.apply_chat_template(
        list(turns), tokenize=False, add_generation_prompt=True
    )
    return text


def _sampling(temperature: float) -> dict[str, Any]:
    if temperature > 0:
        return {"do_sample": True, "temperature": float(temperature)}
    # None takes back what the base's own generation settings say about sampling.
    return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


mlflow.models.set_model(AdapterModel())
