"""Answer each item with a finding, in a process of its own: `… on_gpu.worker PLACE.json`."""

import sys
import time
import traceback

import torch

from benchmarks.harness.answering import answers_only, read_request
from benchmarks.on_gpu import older_torch
from benchmarks.on_gpu.exactness import CHECKS, AbsentError
from benchmarks.on_gpu.measuring import card_flops_per_second, figures
from benchmarks.on_gpu.messages import Card, Finding, Item, Place, State
from benchmarks.on_gpu.trainings import TRAININGS


def found(item: Item, place: Place) -> Finding:
    """Do what an item asks for; whatever is raised becomes a finding, too."""
    try:
        return _found(item, place)
    except AbsentError as error:
        return Finding(item=item, state=State.ABSENT, reason=str(error))
    except Exception as error:  # noqa: BLE001 - the other items go on
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Finding(
            item=item,
            state=State.ERROR,
            reason=f"{type(error).__name__}: {lines[0] if lines else ''}",
            trace=traceback.format_exc(),
        )


def _found(item: Item, place: Place) -> Finding:
    checks = CHECKS | TRAININGS
    if item.kind == "card":
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        card = Card(gpu=gpu, flops_per_second=card_flops_per_second(), checks=list(checks))
        return Finding(item=item, state=State.MEASURED, card=card)
    if item.kind == "training":
        return Finding(item=item, state=State.MEASURED, figures=figures(item, place))
    compared = checks[item.name](place)
    passed = compared.difference <= compared.tolerance  # False for NaN
    return Finding(
        item=item,
        state=State.PASSED if passed else State.FAILED,
        difference=compared.difference,
        tolerance=compared.tolerance,
    )


def main() -> None:
    """Answer items until the input ends."""
    answers = answers_only()
    place = read_request(Place)
    older_torch.allow_fewer_key_heads()
    for line in sys.stdin:
        began = time.perf_counter()
        finding = found(Item.model_validate_json(line), place)
        finding.seconds = time.perf_counter() - began
        print(finding.model_dump_json(), file=answers, flush=True)


if __name__ == "__main__":
    main()
