"""What a page is built of: strings of HTML. Every given word is escaped, and nothing is loaded from anywhere."""

import base64
import html
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from course_lib.plots import png

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #57606a; --line: #d0d7de; --back: #fff; --panel: #f6f8fa;
  --heat: 0, 114, 178; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b3; --line: #3d444d; --back: #0f1419;
  --panel: #1a2129; --heat: 86, 180, 233; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 46rem; padding: 1.25rem 1rem 3rem; background: var(--back); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption, figcaption { color: var(--soft); font-size: .9rem; text-align: left; padding: .3rem 0; }
th { overflow-wrap: break-word; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre, blockquote { background: var(--panel); border-radius: 4px; margin: .5rem 0; padding: .6rem .8rem; }
pre { overflow-x: auto; font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: normal; }
li { margin: .6rem 0; } .soft { color: var(--soft); }
"""
SIZE = (5.6, 3.4)  # inches of a figure: its words can be read at 400 pixels too
# a page that asks for nothing, and whose reader's browser refuses to ask even if it did
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page with a heading. sections: as `section` makes them."""
    words = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{words}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{words}</h1>
{"".join(sections)}</main>
</body>
</html>
"""


def section(heading: str, *parts: str) -> str:
    """A heading and what stands under it."""
    return f"<section>\n<h2>{html.escape(heading)}</h2>\n{''.join(parts)}</section>\n"


def words(*sentences: str) -> str:
    """A paragraph; nothing, where there is nothing to say.

    >>> words("1 < 2.")
    '<p>1 &lt; 2.</p>\\n'
    """
    said = " ".join(sentence for sentence in sentences if sentence)
    return f"<p>{html.escape(said)}</p>\n" if said else ""


def table(rows: Sequence[Sequence[str]], caption: str = "", heat: Sequence[Sequence[float]] = ()) -> str:
    """A table, its head first; the first cell of a row names it. heat: from 0 to 1, how strongly to colour the cells
    behind it, row by row."""
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = [_row("".join(f'<th scope="col">{cell}</th>' for cell in head))]
    for number, (name, *cells) in enumerate(body):
        tones = heat[number] if heat else [0.0] * len(cells)
        lines.append(_row(f'<th scope="row">{name}</th>', *map(_cell, cells, tones)))
    said = f"<caption>{html.escape(caption)}</caption>\n" if caption else ""
    return f'<div class="wide"><table>\n{said}{chr(10).join(lines)}\n</table></div>\n'


def _row(*cells: str) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _cell(content: str, tone: float) -> str:
    tint = f' style="background: rgba(var(--heat), {0.55 * tone:.2f})"' if tone else ""
    return f"<td{tint}>{content}</td>"


def picture(figure: Figure, alt: str, caption: str = "") -> str:
    """A figure as a PNG inside the page. alt: what a reader would see in it.

    Raises ValueError if `alt` is empty.
    """
    if not alt.strip():
        raise ValueError("alt is empty: say in a sentence what the figure shows, for readers who cannot see it")
    data = base64.b64encode(png(figure)).decode()
    said = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(alt)}">{said}</figure>\n'


def code(lines: str) -> str:
    """Lines to copy."""
    return f"<pre><code>{html.escape(lines)}</code></pre>\n"


def quotes(entries: Iterable[tuple[str, str]]) -> str:
    """A numbered list of what was said about a text, and the text."""
    rows = [f"<li>{html.escape(about)}<blockquote>{html.escape(text)}</blockquote></li>\n" for about, text in entries]
    return f"<ol>\n{''.join(rows)}</ol>\n" if rows else ""
