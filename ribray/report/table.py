"""One model of a table with typed cells; a terminal (rich), a page (``parts.html.j2``) and markdown are renderings."""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import rich.table
from rich import box
from rich.console import Group, RenderableType
from rich.text import Text

NOTHING = "–"
LOOKS = {"strong": "bold", "good": "green", "bad": "red", "faint": "dim"}
"""What a cell may look like: the page's class, and the style on a terminal."""
MARKDOWN = re.compile(r"([\\`*\[\]|~])|(?<!\w)_|_(?!\w)")  # what has a meaning in markdown, besides HTML


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | None = None  # what sorting goes by
    look: str = ""  # words of `LOOKS`
    note: str = ""  # a small line below it
    share: float | None = None  # percent that a bar behind it covers, on a page


@dataclass(frozen=True)
class Column:
    """What stands above a column, and how its cells are set."""

    heading: str
    is_number: bool = False
    is_long: bool = False  # its cells hold sentences
    width: int | None = None  # letters that it has at least, on a terminal
    wraps: bool = True
    look: int | None = None  # of the maps that it is about, on a page: colours its bars


@dataclass(frozen=True)
class Table:
    """A table; a line keeps groups of rows apart, of which only the first is sorted."""

    title: str
    columns: Sequence[Column]
    groups: Sequence[Sequence[Sequence[Cell]]]
    notes: Sequence[str] = ()
    is_sortable: bool = False
    is_dense: bool = False
    is_wide: bool = False  # on a terminal, title and notes have its whole width

    def __rich__(self) -> RenderableType:
        table = rich.table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=self.is_dense)
        for column in self.columns:
            table.add_column(
                Text(column.heading),
                justify="right" if column.is_number else "left",
                min_width=column.width,
                no_wrap=not column.wraps,
                overflow="fold" if self.is_wide else "ellipsis",
            )
        for group in self.groups:
            for row in group:
                table.add_row(*map(_text, row))
            table.add_section()
        title, notes = Text(self.title, "bold"), Text("\n".join(self.notes), "dim")
        if self.is_wide:
            return Group(title, table, notes)
        table.title, table.title_justify = title if self.title else None, "left"
        table.caption, table.caption_justify = notes if self.notes else None, "left"
        return table

    def markdown(self) -> str:
        """Return the table as GitHub markdown that shows just its text."""
        lines = [
            f"### {_escaped(self.title)}",
            "",
            _line(_escaped(column.heading) for column in self.columns),
            _line("---:" if column.is_number else ":---" for column in self.columns),
        ]
        for row in (row for group in self.groups for row in group):
            texts = ((_escaped(cell.text), "strong" in cell.look) for cell in row)
            lines.append(_line(f"**{text}**" if is_strong else text for text, is_strong in texts))
        return "\n".join([*lines, "", *(f"{_escaped(note)}  " for note in self.notes)]).rstrip() + "\n"


def _text(cell: Cell) -> Text:
    text = Text(cell.text, " ".join(LOOKS[word] for word in cell.look.split()))
    return text.append(f"\n{cell.note}", "not bold dim default") if cell.note else text


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _escaped(text: str) -> str:
    return MARKDOWN.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
