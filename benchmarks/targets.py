"""`python -m benchmarks.targets`: which modules should carry adapters by default?

PEFT's own map gives Llama only `q_proj` and `v_proj`. QLoRA (Dettmers et al. 2023, section 4) finds
that adapters on all linear layers are what reaches full fine-tuning. Both are trained here on the
same rows, in three arms: PEFT's map, all linear layers at the same rank, and all linear layers at
the rank with which as many parameters are trained as with PEFT's map. Each arm is trained with
several seeds, of the initial weights and of the order of the rows.
"""

from collections.abc import Iterator

from benchmarks.harness.arms import Arm, Trial, arms_command

PEFT_MAP, ALL_LINEAR, EQUAL_PARAMETERS = "PEFT's map", "all linear", "all linear, equal parameters"


def equal_rank(num_at_rank: int, wanted: int, rank: int) -> int:
    """Return the rank with which about `wanted` parameters are trained, at least 1.

    Args:
        num_at_rank: trained parameters at `rank`; LoRA's number is proportional to its rank.
        wanted: trained parameters.
        rank: the known rank.
    """
    return max(1, round(rank * wanted / num_at_rank))


def _arms(trial: Trial) -> Iterator[Arm]:
    peft = trial.arm(PEFT_MAP, {"target_modules": "peft-default"})
    everywhere = trial.arm(ALL_LINEAR, {"target_modules": "all-linear"})
    wanted, given = peft.num_trainable_parameters, everywhere.num_trainable_parameters
    equal = {"r": equal_rank(given, wanted, trial.rank), "target_modules": "all-linear"}
    yield from (peft, everywhere, trial.arm(EQUAL_PARAMETERS, equal))


main = arms_command("targets", _arms)

if __name__ == "__main__":
    main()
