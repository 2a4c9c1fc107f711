"""The summary of a set of variants: a table of their scores, and where everything is."""

from rich.console import Console
from rich.table import Table

from flows.cli.next_steps import places, use_set
from flows.server.programs import near
from tasks.records import VARIANTS_FILE, VariantsRecord
from tasks.variants.comparison import COLUMNS, cells

_MOST_ROWS = 50


def print_variants(record: VariantsRecord) -> None:
    """Print the summary on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    Console(highlight=False).print(_table(record))
    for name, value in _lines(record):
        console.print(f"[bold]{name:<12}[/bold] ", end="")
        console.print(value, markup=False)


def _table(record: VariantsRecord) -> Table:
    table = Table(title=f"Variants by {record.metric.value}")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == COLUMNS[0] else "right")
    for one in record.variants[:_MOST_ROWS]:
        style = "bold green" if one.name == record.best else "red" if one.error else None
        table.add_row(*cells(one), style=style)
    if (more := len(record.variants) - _MOST_ROWS) > 0:
        table.caption = f"and {more:,} more, in {VARIANTS_FILE}"
    return table


def _lines(record: VariantsRecord) -> list[tuple[str, str]]:
    num_trained = len(record.variants) - len(record.failed)
    registered = [f"models:/{name}/{number}" for name, number in record.registered.items()]
    return [
        ("variants", f"{num_trained:,} of {len(record.variants):,} trained"),
        *([("best", record.best)] if record.best else []),
        *([("registered", ", ".join(registered[:_MOST_ROWS]))] if registered else []),
        ("adapters", f"{near(record.run.folder)}, listed in {VARIANTS_FILE}"),
        *places(record.run),
        *use_set(record),
    ]
