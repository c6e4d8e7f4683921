"""Pieces of a self-contained HTML page: pictures stand inside as base64, text is escaped."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

_STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5c6a78; --line: #dfe5eb; --pale: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 3rem; background: #fff;
  color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: .7rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .3rem 0 .8rem; max-width: 46rem; }
.soft { color: var(--soft); }
.notice { border-left: 3px solid #b5472f; background: #fcf3f1; padding: .5rem .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .34rem .7rem .34rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: .87rem; }
tr.heading th { color: var(--ink); background: var(--pale); padding-left: .5rem; }
td:last-child, th:last-child { padding-right: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { white-space: normal; }
.number + :not(.number) { padding-left: .7rem; }
.narrow { width: auto; min-width: min(100%, 24rem); }
figure { margin: .6rem 0 1rem; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; }
figure.wide img { min-width: 42rem; }
.pictures { display: grid; gap: .2rem 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); align-items: start; }
.strip { display: grid; gap: 3px; margin-bottom: 3px; grid-auto-flow: column;
  grid-auto-columns: 1fr; }
.strip span { color: var(--soft); font-size: .75rem; line-height: 1.2; align-self: end;
  text-align: center; }
.strip img { display: block; width: 100%; }
.studies td { padding-right: 1.1rem; }
.studies td:first-child { width: 9.5rem; }
.studies img { display: block; width: 8.5rem; }
@media (max-width: 44rem) {
  .studies tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--line); }
  .studies tr:first-child { display: none; }
  .studies td { display: block; border: 0; padding: .2rem 0; }
  .studies td:first-child { width: auto; }
  .studies td[data-title]::before { content: attr(data-title); display: block; font-weight: 600;
    color: var(--soft); font-size: .8rem; }
  .studies img { width: 60%; }
  th, td { padding-right: .45rem; }
}
"""


def document(title: str, parts: Sequence[str]) -> str:
  """A whole page; `parts` are HTML."""
  return "\n".join([
      '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
      f"<h1>{html.escape(title)}</h1>",
      *parts,
      "</body>\n</html>\n",
  ])


def heading(text: str, level: int = 2) -> str:
  """A heading."""
  return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str, css: str = "") -> str:
  """A paragraph; `css` is a class: soft or notice."""
  return f"<p{_class(css)}>{html.escape(text)}</p>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[int] = (),
    bold: Sequence[int | None] = (),
    css: str = "",
) -> str:
  """A table of text.

  A head of empty texts is left out; a row of one cell is a heading over all columns. Columns in
  `numeric` stand to the right, `bold` gives the column to stress in each row. `css` is a class:
  narrow.
  """
  lines = []
  if any(head):
    cells = (_cell("th", text, i in numeric) for i, text in enumerate(head))
    lines.append(f"<tr>{''.join(cells)}</tr>")
  for number, row in enumerate(rows):
    if len(row) == 1:
      lines.append(
          f'<tr class="heading"><th colspan="{len(head)}">{html.escape(row[0])}</th></tr>'
      )
      continue
    stressed = bold[number] if bold else None
    cells = (_cell("td", text, i in numeric, i == stressed) for i, text in enumerate(row))
    lines.append(f"<tr>{''.join(cells)}</tr>")
  return f'<div class="scroll"><table{_class(css)}>\n' + "\n".join(lines) + "\n</table></div>"


def _cell(tag: str, text: str, is_numeric: bool, is_bold: bool = False) -> str:
  inside = f"<b>{html.escape(text)}</b>" if is_bold else html.escape(text)
  return f"<{tag}{_class('number' if is_numeric else '')}>{inside}</{tag}>"


def figure(drawing: Figure, description: str, is_wide: bool = False) -> str:
  """A figure; a wide one is scrolled sideways on a narrow screen."""
  buffer = io.BytesIO()
  drawing.savefig(buffer, format="png", dpi=150)
  width = round(drawing.get_figwidth() * 100)
  image = _image(buffer.getvalue(), description, f' width="{width}"')
  return f"<figure{_class('wide' if is_wide else '')}>{image}</figure>"


def strips(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> str:
  """Rows of pictures, uint8 (H, W), under titles; two rows side by side where there is room."""
  head = "".join(f"<span>{html.escape(title)}</span>" for title in titles)
  lines = [
      "".join(picture(png(pixels), title) for title, pixels in zip(titles, row, strict=True))
      for row in rows
  ]
  half = -(-len(lines) // 2)
  halves = [[head, *part] for part in (lines[:half], lines[half:]) if part]
  columns = (
      "".join(f'<div class="strip">{line}</div>\n' for line in part) for part in halves
  )
  return f'<div class="pictures">{"".join(f"<div>{column}</div>" for column in columns)}</div>'


def study_table(head: Sequence[str], rows: Sequence[tuple[bytes, Sequence[str]]]) -> str:
  """A PNG picture and texts in each row, under one another on a narrow screen."""
  lines = ["".join(f"<th>{html.escape(title)}</th>" for title in head)]
  for image, texts in rows:
    cells = (
        f'<td data-title="{html.escape(title)}">{html.escape(text)}</td>'
        for title, text in zip(head[1:], texts, strict=True)
    )
    lines.append(f"<td>{picture(image, head[0])}</td>{''.join(cells)}")
  return '<table class="studies">' + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>"


def picture(image: bytes, description: str) -> str:
  """A PNG file as an image of the page."""
  return _image(image, description, "")


def png(pixels: np.ndarray) -> bytes:
  """The PNG file of a grey picture, uint8 (H, W)."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, format="png")
  return buffer.getvalue()


def _image(image: bytes, description: str, attributes: str) -> str:
  source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
  return f'<img alt="{html.escape(description)}"{attributes} src="{source}">'


def _class(name: str) -> str:
  return f' class="{name}"' if name else ""
