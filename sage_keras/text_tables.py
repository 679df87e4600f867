"""Tables as text, in the manner of Keras's `model.summary()`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import rich.console
import rich.markup
import rich.table

Columns = Mapping[str, Literal["left", "right"]]


def show(
    print_fn: Callable[[str], object] | None,
    model_name: str,
    columns: Columns,
    rows: Sequence[Sequence[str]],
    totals: Mapping[str, str],
) -> None:
    """Prints a table of a model's layers, and values of the whole model below it.

    Args:
        print_fn: Function that is called with the whole text, or `None` to print it.
        model_name: String.
        columns: Dict of heading to `"left"` or `"right"`.
        rows: List of rows, each a list of strings.
        totals: Dict of name to text.
    """
    parts = _parts(model_name, columns, rows, totals)
    if print_fn is None:
        rich.console.Console(highlight=False).print(*parts, sep="\n")
    else:
        print_fn(_plain(parts))


def text(
    model_name: str,
    columns: Columns,
    rows: Sequence[Sequence[str]],
    totals: Mapping[str, str],
) -> str:
    """What `show` prints, without colours."""
    return _plain(_parts(model_name, columns, rows, totals))


def _parts(
    model_name: str,
    columns: Columns,
    rows: Sequence[Sequence[str]],
    totals: Mapping[str, str],
) -> list[Any]:
    table = rich.table.Table(
        *[
            rich.table.Column(name, justify=justify, overflow="fold")
            for name, justify in columns.items()
        ]
    )
    for row in rows:
        table.add_row(*map(rich.markup.escape, row))
    title = f'[bold]Model: "{rich.markup.escape(model_name)}"[/]'
    return [title, table, *(f"[bold] {name}:[/] {value}" for name, value in totals.items())]


def _plain(parts: list[Any]) -> str:
    console = rich.console.Console(highlight=False, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    return capture.get().rstrip("\n")
