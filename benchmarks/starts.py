"""`python -m benchmarks.starts`: what LoRA's starts, scales and optimizers gain at equal steps.

Each arm changes one thing of a plain LoRA on all linear layers, with the same rows, rank and steps.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks.harness.arms import Arm, Trial, arms_command
from tasks.config import Dtype

_ALL: dict[str, Any] = {"target_modules": "all-linear"}

ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, {}),
    "PiSSA": ({"init_lora_weights": "pissa"}, {}),
    "rsLoRA": ({"use_rslora": True}, {}),
    "DoRA": ({"use_dora": True}, {}),
    "LoRA+ 4": ({}, {"loraplus_lr_ratio": 4}),
    "LoRA+ 16": ({}, {"loraplus_lr_ratio": 16}),
    "LoRA-FA": ({}, {"optim": "lora_fa"}),
    "NEFTune 5": ({}, {"neftune_noise_alpha": 5}),
}
"""Settings of `lora` and `training`, by the arm's name."""


def _arms(trial: Trial) -> Iterator[Arm]:
    for name, (lora, training) in ARMS.items():
        yield trial.arm(name, _ALL | lora, training)


# PiSSA and orthogonal matrices need a base in float32.
main = arms_command("starts", _arms, answering=False, usual_dtype=Dtype.FLOAT32)

if __name__ == "__main__":
    main()
