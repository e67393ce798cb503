"""What a notebook shows of an object: HTML, in which texts that others chose are text."""

from __future__ import annotations

from collections.abc import Sequence

from stepfuse.display import NAME, printable

_ENDS = 5  # rows that are shown of each end of a long table


def html_table(title: str, rows: Sequence[Sequence[object]], header: Sequence[str] = ()) -> str:
    """A table with a title, such as ``_repr_html_`` gives.

    Args:
        title: Above it.
        rows: Their cells, of each at most 200 characters. Under a header the first five rows are shown and the last.
        header: Names of the columns; () is a table of names and values.
    """
    head = f"<thead>{_row(header, 'th')}</thead>" if header else ""
    if header and len(rows) > 2 * _ENDS:
        rows = [*rows[:_ENDS], ["…"], *rows[-_ENDS:]]
    body = "".join(_row(row, "td") for row in rows)
    return f"<table><caption>{_text(title)}</caption>{head}<tbody>{body}</tbody></table>"


def _row(cells: Sequence[object], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _text(given: object) -> str:
    from html import escape  # for notebooks alone

    return escape(printable(given, NAME))
