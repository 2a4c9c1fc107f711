"""What vLLM (0.32) can't serve as an adapter, read from the adapter's own files."""

from collections.abc import Iterator

from tasks.engine.adapters import AdapterFolder
from tasks.errors import UserError

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for `--max-lora-rank`."""

_UNSERVABLE = {
    "use_dora": "DoRA",
    "modules_to_save": "fully trained modules",
    "trainable_token_indices": "trained tokens",
    "lora_bias": "a bias of the adapter",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}
"""Settings of PEFT that change what an adapter computes, and that vLLM refuses or leaves out."""


def check_servable(adapter: AdapterFolder) -> None:
    """Check that vLLM can serve an adapter.

    Raises:
        UserError: it can't; the message names the setting, and the merged export.
    """
    if problems := list(_problems(adapter)):
        raise UserError(
            f"vLLM can't serve {adapter.source} as an adapter: {'; '.join(problems)}; write one "
            f"model with `adapterflow export {adapter.source} FOLDER --merged`, and serve that"
        )


def rank_of(adapter: AdapterFolder) -> int:
    """Return an adapter's largest rank, whichever layer has it.

    As vLLM reads it: the matrices of experts are stacked, so that their shapes do not show it.
    """
    ranks = adapter.given_config.get("rank_pattern") or {}
    return max(int(one) for one in (adapter.given_config["r"], *ranks.values()))


def _problems(adapter: AdapterFolder) -> Iterator[str]:
    if adapter.method != "lora":
        yield f"its method is {adapter.method}, and vLLM has LoRA only"
        return
    given = adapter.given_config
    for field, name in _UNSERVABLE.items():
        if value := given.get(field):
            shown = ", ".join(map(str, value)) if isinstance(value, list | dict) else ""
            yield f"it has {name} ({field}{f': {shown}' if shown else ''})"
    if (bias := given.get("bias") or "none") != "none":
        yield f"it trained biases of the base (bias: {bias})"
    if (rank := rank_of(adapter)) > RANKS[-1]:
        yield f"its rank is {rank}, and {RANKS[-1]} is the highest"
