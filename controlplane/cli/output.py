"""What commands print: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def print_json(value: Any) -> None:
    """One JSON document on stdout. What is not printable is escaped: it could steer a terminal."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text))


def _escaped(character: str) -> str:
    """As a JSON string has it."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def sanitized(text: str, *, one_line: bool = False) -> str:
    """`text` without control characters, which could steer a terminal; newlines and tabs stay.

    one_line: newlines and tabs become spaces.
    """
    if one_line:
        text = " ".join(text.split())
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def for_terminal(text: str) -> str:
    """`text` as it is for a file or pipe, sanitized for a terminal."""
    return sanitized(text) if sys.stdout.isatty() else text


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    empty: str,
    right: Sequence[str] = (),
) -> None:
    """A table on stdout; the line `empty` instead when there are no rows.

    right: columns to set flush right.
    """
    rows = list(rows)
    if not rows:
        print(empty)
        return
    from rich.console import Console

    # Piped, a table is as wide as it needs: nothing may be folded that a program looks for.
    console = Console(width=None if sys.stdout.isatty() else 400, highlight=False)
    console.print(table(title, columns, rows, right=right))


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
) -> Table:
    """What `print_table` prints."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(sanitized(cell, one_line=True)) for cell in row))
    return made


def print_styled(lines: Iterable[str], styles: Mapping[str, str], *, default: str) -> None:
    """Lines on stdout, on a terminal each character in its style."""
    if not sys.stdout.isatty():
        for line in lines:
            print(line)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines:
        console.print(Text.assemble(*((sign, styles.get(sign, default)) for sign in line)))


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """One `name  value` line each, the values in one column."""
    fields = list(fields)
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        print(f"{name:<{width}}  {sanitized(value, one_line=True)}")


def human_bytes(count: int) -> str:
    """1536 -> '1.5 KiB'."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"
