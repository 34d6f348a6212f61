"""A web page in one file: pieces of HTML, its style, and matplotlib figures set in the page's own ink.

Nothing in it asks the network for anything, and its content security policy forbids it to.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

from .plots import STYLES

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
DARK = ("#56B4E9", "#F5894B", "#2FC79C", "#E8E8E8", "#E29BC4")  # of STYLES' colours, on a dark page

STYLE = """
:root { color-scheme: light dark; --page: #fff; --card: #f6f7f9; --line: #d9dde3; --ink: #1b1f24; --soft: #5b6470;
  --good: #00694c; --bad: #a33f00; COLOURS }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2127; --line: #353b44;
  --ink: #e6e9ed; --soft: #a0a9b5; --good: #2fc79c; --bad: #f5894b; DARK_COLOURS } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
.scroll + article { margin-top: 2.5rem; }
article + article { border-top: 3px solid var(--line); margin-top: 4rem; padding-top: 1rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: .2rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } figure h3, .groups h3 { margin-top: 0; }
p { margin: .4rem 0; max-width: 46rem; }
a { color: inherit; }
code { font: .875em ui-monospace, monospace; overflow-wrap: anywhere; }
.soft, figcaption, .card small { color: var(--soft); font-size: .875rem; }
.state { font-weight: 600; color: var(--good); } .state.bad { color: var(--bad); }
.note { border-left: 4px solid var(--bad); background: var(--card); padding: .6rem .9rem; margin: 1rem 0; }
.cards, .figures { display: grid; align-items: start; }
.cards { grid-template-columns: repeat(var(--columns), 1fr); margin-top: 1.2rem; gap: .75rem; }
.cards { align-items: stretch; } .card { background: var(--card); border-radius: 8px; padding: .7rem .9rem; }
.card b { display: block; font-size: 1.4rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { font-size: .875rem; } .card small { display: block; }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.5rem 2.5rem; }
.figures > div { min-width: 0; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; fill: currentColor; }
figure svg text { fill: currentColor; font-family: inherit !important; }
figure svg image { image-rendering: pixelated; }
.one { max-width: 40rem; }
.groups { columns: 20rem; column-gap: 1rem; margin-top: .8rem; }
.groups > div { break-inside: avoid; background: var(--card); border-radius: 8px; padding: .8rem .9rem .6rem;
  margin-bottom: 1rem; }
.scroll { overflow-x: auto; margin: .4rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .28rem 1.4rem .28rem 0; border-bottom: 1px solid var(--line); }
tr > :last-child { padding-right: 0; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; } .number { text-align: right; white-space: nowrap; }
.groups table { width: 100%; } .groups td:last-child { text-align: right; overflow-wrap: anywhere; }
.groups td { padding-right: .6rem; font-size: .85rem; } .groups tr:last-child td { border-bottom: 0; }
@media (max-width: 40rem) { main { padding: 1rem .9rem 3rem; } h1 { font-size: 1.35rem; }
  .cards { grid-template-columns: 1fr 1fr; } .card b { font-size: 1.2rem; } th, td { padding-right: .8rem; }
  .scroll td { white-space: nowrap; } }
@media print { body { font-size: 11pt; } main { max-width: none; padding: 0; } h2 { break-after: avoid; }
  article + article { break-before: page; border: 0; } .card, .groups > div, .note { border: 1px solid var(--line); }
  .scroll { overflow: visible; } }
"""


def document(title: str, body: str) -> str:
    """The whole page; ``title`` is text, ``body`` HTML."""
    light, dark = (
        " ".join(f"--line-{i}: {colour};" for i, colour in enumerate(colours))
        for colours in ([colour for colour, _ in STYLES], DARK)
    )
    style = STYLE.replace("DARK_COLOURS", dark).replace("COLOURS", light)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def section(heading: str, *parts: str) -> str:
    """A heading, text, and HTML below it."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """Text, in one of the style's classes."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def notes(lines: Sequence[str]) -> str:
    """Lines of text that want attention; nothing where there are none."""
    return '<div class="note">' + "".join(map(paragraph, lines)) + "</div>" if lines else ""


def cards(values: Sequence[tuple[str, str, str]]) -> str:
    """Headline numbers, as (what, value, remark), in full rows where that can be."""
    shown = (
        f'<div class="card"><span>{escape(what)}</span><b>{escape(value)}</b><small>{escape(remark)}</small></div>'
        for what, value, remark in values
    )
    columns = next((count for count in (4, 5, 3) if len(values) % count == 0), 4)
    return f'<div class="cards" style="--columns: {columns}">' + "\n".join(shown) + "</div>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Text in rows; the columns in ``numbers`` are set to the right. Wider than the page, it scrolls by itself."""
    right = set(numbers)

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = (' class="number"' if i in right else "" for i in range(len(cells)))
        marked = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return "<tr>" + "".join(marked) + "</tr>"

    head = f"<thead>{row(header, 'th')}</thead>\n" if header else ""
    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def groups(named: Mapping[str, Iterable[tuple[str, str, bool]]]) -> str:
    """Small tables side by side: by title, rows of (name, value, whether it stands out)."""
    parts = []
    for title, rows in named.items():
        cells = (
            f"<tr><td>{escape(name)}</td><td>{'<b>' if bold else ''}{escape(value)}{'</b>' if bold else ''}</td></tr>"
            for name, value, bold in rows
        )
        parts.append(f"<div><h3>{escape(title)}</h3><table><tbody>{''.join(cells)}</tbody></table></div>")
    return '<div class="groups">' + "\n".join(parts) + "</div>"


def picture(figure: Figure, title: str, key: str, caption: str = "") -> str:
    """A figure as inline SVG.

    Args:
        figure: drawn in black and in the colours of STYLES; both follow the page's light or dark.
        title: above it.
        key: unique in the page; the SVG's own names are made from it.
        caption: below it.
    """
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{_svg(figure, title, key)}{below}</figure>"


def side_by_side(*parts: str) -> str:
    """HTML in columns where the page is wide enough."""
    return '<div class="figures">' + "\n".join(f"<div>{part}</div>" for part in parts) + "</div>"


def _svg(figure: Figure, what: str, key: str) -> str:
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r' id="[a-z0-9A-Z.]+_\d+"', "", text)  # of groups: nothing refers to them, and each figure has them
    size = re.search(r'viewBox="[^"]*"', text).group()
    text = f'<svg {size} role="img" aria-label="{escape(what)}">' + text[text.index(">") + 1 :]
    for i, (colour, _) in enumerate(STYLES):
        ink = "currentColor" if colour == "#000000" else f"var(--line-{i})"
        text = re.sub(rf"\b(fill|stroke): {colour}", rf"\1: {ink}", text, flags=re.IGNORECASE)
    return text.strip()
