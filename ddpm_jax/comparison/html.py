"""Parts of a page of HTML for several runs: tables, figures, and the style sheet.

All text from runs goes through `text_html`.
"""

import base64
import html
from collections.abc import Iterable, Sequence

from ddpm_jax.comparison.pictures import COLOURS, Palette, Series, curve_png
from ddpm_jax.terminal import escape

__all__ = ["STYLE", "data_uri", "figure_html", "run_html", "table_html", "text_html"]

_LETTERS = "ABCDEFGH"


def table_html(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Of cells that are HTML; the first of each row is a heading."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    lines = [
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for first, *cells in rows
    ]
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def run_html(letter: str) -> str:
    """The letter of a run in its colour."""
    return f'<span class="run run-{letter}">{letter}</span>'


def text_html(text: str) -> str:
    """Text from outside: neither markup nor control characters."""
    return html.escape(escape(text))


def figure_html(
    title: str, series: Sequence[Series], *, x: str, y: str, smooth: bool = True
) -> str:
    """A plot for light and for dark screens, and its title below; `x` and `y` name the axes."""
    images = {
        screen: data_uri(curve_png(series, palette, x=x, y=escape(y), smooth=smooth))
        for screen, palette in COLOURS.items()
    }
    return (
        f"<figure><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{images["dark"]}">'
        f'<img src="{images["light"]}" alt="{text_html(y)} of each run"></picture>'
        f"<figcaption>{text_html(title)}</figcaption></figure>"
    )


def data_uri(png: bytes) -> str:
    """A PNG as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _variables(palette: Palette, line: str, pale: str) -> str:
    runs = "".join(
        f" --run-{letter}: {c};" for letter, c in zip(_LETTERS, palette.lines, strict=True)
    )
    return f"--paper: {palette.paper}; --ink: {palette.ink}; --line: {line}; --pale: {pale};{runs}"


_RUNS = "\n".join(f".run-{letter} {{ background: var(--run-{letter}); }}" for letter in _LETTERS)

STYLE = f""":root {{ {_variables(COLOURS["light"], "#d5d9de", "#f3f5f7")} }}
@media (prefers-color-scheme: dark) {{
  :root {{ {_variables(COLOURS["dark"], "#3a4048", "#20252b")} }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 1rem 1.25rem 3rem; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: 0.6rem 0; }}
h2 {{ font-size: 1.25rem; margin: 2rem 0 0.6rem; padding-bottom: 0.2rem;
  border-bottom: 1px solid var(--line); }}
h3 {{ font-size: 1rem; margin: 1.2rem 0 0.4rem; }}
p {{ margin: 0.6rem 0; max-width: 75ch; }}
ul {{ margin: 0.6rem 0; padding-left: 1.3rem; }}
li {{ overflow-wrap: anywhere; }}
code {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 0.88em; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.3rem 0.75rem; text-align: left; vertical-align: top; font-weight: normal;
  border-bottom: 1px solid var(--line); max-width: 24rem; overflow-wrap: break-word; }}
td {{ min-width: 5.5rem; }}
thead th {{ font-weight: 600; background: var(--pale); vertical-align: bottom; }}
tbody th {{ min-width: 7rem; position: sticky; left: 0; background: var(--paper); }}
tbody th:has(.run) {{ min-width: 0; }}
.run {{ display: inline-block; min-width: 1.5em; padding: 0 0.35em; border-radius: 0.25em;
  text-align: center; font-weight: 600; line-height: 1.45; margin: 0 0.1em; color: var(--paper); }}
{_RUNS}
svg line {{ stroke: var(--ink); stroke-width: 2; }}
svg line.zero {{ stroke: var(--line); stroke-width: 1; }}
svg circle {{ fill: var(--ink); }}
.curves {{ display: grid; gap: 1rem; margin: 0.8rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }}
figure {{ margin: 0; }}
figcaption, small {{ font-size: 0.85rem; opacity: 0.85; }}
img {{ max-width: 100%; height: auto; }}
.block {{ margin: 0.8rem 0; }}
.strip {{ display: flex; align-items: center; gap: 0.5rem; margin: 2px 0; }}
.strip img {{ min-width: 0; image-rendering: pixelated; }}
summary {{ cursor: pointer; margin: 0.8rem 0 0.4rem; }}
"""
