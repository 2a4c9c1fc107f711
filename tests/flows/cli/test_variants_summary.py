"""The last lines of a set of variants: the command that uses its adapters."""

import shlex
from pathlib import Path

import pytest

from flows.cli.next_steps import use_set
from tasks.config import Score
from tasks.records import RunRecord, VariantResult, VariantsRecord


def _record(folder: Path, *adapters: str | None) -> VariantsRecord:
    run = RunRecord(tracking_uri="", experiment="", run_name="", flow_run_id="", folder=folder)
    variants = (
        VariantResult(name=f"v{n}", settings={}, value=None, flow_run_id="", adapter=adapter)
        for n, adapter in enumerate(adapters)
    )
    return VariantsRecord(
        run=run,
        base="",
        column=None,
        metric=Score.EVAL_LOSS,
        best=None,
        variants=tuple(variants),
    )


@pytest.mark.parametrize("adapters", [("variants/v0/default",), (None, "variants/v1/default")])
def test_a_set_with_an_adapter_ends_with_the_command_that_uses_it(
    tmp_path: Path, adapters: tuple[str | None, ...]
) -> None:
    """The folder of the set is given, as one word of a shell; a variant that failed is left out."""
    ((_, command),) = use_set(_record(tmp_path / "my set", *adapters))
    words = shlex.split(command)
    assert words[1:] == ["predict", str(tmp_path / "my set"), "INPUT.jsonl", "OUTPUT.jsonl"]


def test_a_set_without_adapters_names_no_command(tmp_path: Path) -> None:
    """`predict` would refuse it."""
    assert use_set(_record(tmp_path, None, None)) == []
