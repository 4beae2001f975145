"""Rows for a terminal, and for `grep` and `awk` behind a pipe: cells padded to columns, nothing drawn around them."""

from collections.abc import Sequence


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = False) -> str:
    """Lines of a table. right: all columns but the first end at the same place, as numbers do."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(_line(row, widths, right=right) for row in (head, *rows))


def _line(row: Sequence[str], widths: Sequence[int], *, right: bool) -> str:
    cells = [
        cell.rjust(width) if right and place else cell.ljust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
