"""Pages: reports as one HTML file each, with everything inside, that any browser opens."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

__all__ = ["image", "page", "table"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse }
td, th { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
         border-bottom: 1px solid #ccc; font-variant-numeric: tabular-nums }
.small { color: #666 } .holds { color: #1a7f37 } .fails { color: #c62828; font-weight: bold }
img { max-width: 100%; image-rendering: pixelated } svg { max-width: 100%; height: auto }
"""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """Return a page as HTML text.

    Args:
        title: plain text; also its heading.
        body: HTML, piece by piece.
        style: CSS beside the common one.
    """
    head = f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}'
    head += f"</title>\n<style>{_STYLE}{style}</style>\n<h1>{escape(title)}</h1>"
    return "\n".join([head, *body, "</html>\n"])


def table(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield a table of plain texts, a row a mapping, whose keys name the columns."""
    if not rows:
        return
    yield "<table>\n<tr>" + "".join(f"<th>{escape(name)}" for name in rows[0])
    for row in rows:
        yield "<tr>" + "".join(f"<td>{escape(value)}" for value in row.values())
    yield "</table>"


def image(png: bytes, about: str, kind: str = "") -> str:
    """Return a picture that holds its own bytes.

    Args:
        png: the picture.
        about: plain words for those who cannot see it.
        kind: its class in the style; "" for none.
    """
    named = f' class="{kind}"' if kind else ""
    data = b64encode(png).decode()
    return f'<img{named} src="data:image/png;base64,{data}" alt="{escape(about)}">'
