"""A table of text that a terminal and a notebook show."""

from dataclasses import dataclass
from html import escape

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """Heads and rows of text. A column whose head starts with a space is aligned to the right.

    >>> print(Table(("cell", " rate"), (("lif1", "0.100"),)))
    cell   rate
    lif1  0.100
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        lines = [tuple(head.strip() for head in self.heads), *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(_padded, line, widths, self.heads)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        heads = "".join(_html("th", head.strip(), head) for head in self.heads)
        rows = ("".join(map(_html, ["td"] * len(row), row, self.heads)) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _is_right(head: str) -> bool:
    return head.startswith(" ")


def _padded(text: str, width: int, head: str) -> str:
    return text.rjust(width) if _is_right(head) else text.ljust(width)


def _html(tag: str, text: str, head: str) -> str:
    side: str = "right" if _is_right(head) else "left"
    return f'<{tag} style="text-align: {side}">{escape(text)}</{tag}>'
