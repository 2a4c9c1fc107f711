"""The command of a vLLM server has everything that an adapter's answers depend on."""

from pathlib import Path
from typing import Any

import pytest
from plain_adapters import lora_folder
from tiny_models import CHAT_TEMPLATE, tiny_mixture, tiny_tokenizer

from tasks.config import ServingSettings, TrackingSettings
from tasks.errors import UserError
from tasks.serving.vllm_command import VllmServer, check_program, command_line, vllm_command


def command_of(base: Path, *adapters: str) -> list[str]:
    """Return the command for adapters of the base."""
    server = VllmServer("127.0.0.1", 8000, more=("--enforce-eager",))
    return vllm_command(adapters, server, ServingSettings(), TrackingSettings(), str(base))


def test_the_command_names_base_type_rank_and_adapters(tiny_base: Path, tmp_path: Path) -> None:
    """The rank is the largest one in any layer, rounded up to one that vLLM takes."""
    first = lora_folder(tiny_base, tmp_path / "first")
    second = lora_folder(
        tiny_base,
        tmp_path / "second",
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 9},
    )
    command = command_of(tiny_base, f"one={first}", f"two={second}")
    assert command[:3] == ["vllm", "serve", str(tiny_base)]
    line = " ".join(command)
    assert command[command.index("--dtype") + 1] in ("float32", "bfloat16")
    assert "--enable-lora --max-lora-rank 16 --max-loras 4 --lora-modules" in line
    assert f"--lora-modules one={first} two={second} --host 127.0.0.1 --port 8000" in line
    assert "--chat-template" not in line
    assert line.endswith("--enforce-eager")
    assert command_line(command).startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True ")


def test_experts_have_the_rank_of_one(tmp_path: Path) -> None:
    """Their matrices are stacked in the file: vLLM, too, reads the rank from the configuration."""
    base = tiny_mixture("mixtral", tmp_path / "base")
    adapter = lora_folder(base, tmp_path / "adapter", r=4, target_parameters=["experts.down_proj"])
    command = command_of(base, f"one={adapter}")
    assert command[command.index("--max-lora-rank") + 1] == "8"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, r"DoRA \(use_dora\)"),
        ({"modules_to_save": ["lm_head"]}, r"fully trained modules \(modules_to_save: lm_head\)"),
        ({"bias": "all"}, r"biases of the base \(bias: all\)"),
        ({"trainable_token_indices": [5]}, r"trained tokens \(trainable_token_indices"),
    ],
)
def test_what_vllm_can_t_serve_is_refused_by_name(
    tiny_base: Path, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    """The message offers the export that vLLM can serve."""
    adapter = lora_folder(tiny_base, tmp_path / "adapter", **config)
    with pytest.raises(UserError, match=f"{named}.*adapterflow export .* --merged"):
        command_of(tiny_base, f"one={adapter}")


def test_an_adapter_s_chat_template_is_passed_on(tiny_base: Path, tmp_path: Path) -> None:
    """A server has one for all: two adapters with different ones need two servers."""
    plain = lora_folder(tiny_base, tmp_path / "plain")
    own = lora_folder(tiny_base, tmp_path / "own")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ 'Please: ' }}" + CHAT_TEMPLATE
    tokenizer.save_pretrained(own)
    command = command_of(tiny_base, f"one={own}")
    file = Path(command[command.index("--chat-template") + 1])
    assert file.read_text() == tokenizer.chat_template
    with pytest.raises(UserError, match="start a server for each"):
        command_of(tiny_base, f"one={own}", f"two={plain}")


def test_a_missing_program_and_a_missing_adapter_are_told(tiny_base: Path, tmp_path: Path) -> None:
    """Each is one message that says what can be given."""
    with pytest.raises(UserError, match="give its program with --vllm"):
        check_program(str(tmp_path / "vllm"))
    with pytest.raises(UserError, match="nor NAME=FOLDER"):
        command_of(tiny_base, f"one={tmp_path / 'none'}")
    with pytest.raises(UserError, match="is no version of a registered model"):
        command_of(tiny_base, str(tmp_path))
