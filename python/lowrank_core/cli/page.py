"""`report.html`: one page without other files, for wide and narrow, light and dark screens."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lowrank_core.cli.plots import COLORS

# The names of plots.VARIABLES, and two of the page alone.
_LIGHT = {**COLORS, "ink": "#37352f", "faint": "#6f6e69", "grid": "#e3e2e0", "paper": "#ffffff", "shade": "#f6f5f2"}
_DARK = {
    "first": "#56b4e0", "second": "#f0974a",
    "ink": "#dcdad5", "faint": "#9b9a97", "grid": "#3a3a38", "paper": "#191919", "shade": "#242423",
}  # fmt: skip


def _declared(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


_COLORS = f"""
:root {{ color-scheme: light dark; {_declared(_LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_declared(_DARK)} }} }}"""
_STYLE = """
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: auto; padding: 1rem }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
table { border-collapse: collapse; margin: 1rem 0; max-width: 100% }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top;
  overflow-wrap: anywhere }
.numbers td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.numbers th + th { text-align: right }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 2rem }
figure { margin: 0 }
svg { width: 100%; height: auto; max-width: 34rem }
pre { background: var(--shade); padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
.given, .note { color: var(--faint) } .note { font-size: .9rem; max-width: 46rem }
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def page(title: str, parts: Sequence[str]) -> str:
    """The page `title` of `parts`, which are HTML."""
    return _PAGE.format(title=html.escape(title), style=_COLORS + _STYLE, body="\n".join(parts))


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "words") -> str:
    """A table whose first column names its rows; `kind` "numbers" sets the others flush right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        first, *rest = map(html.escape, cells)
        return f"<tr><th>{first}</th>{''.join(f'<{tag}>{cell}</{tag}>' for cell in rest)}</tr>"

    return f'<table class="{kind}">{line("th", head)}{"".join(line("td", row) for row in rows)}</table>'


def paragraph(text: str, kind: str = "note") -> str:
    """`text`, escaped."""
    return f'<p class="{kind}">{html.escape(text)}</p>'


def heading(text: str) -> str:
    """`text`, escaped, as the heading of a part."""
    return f"<h2>{html.escape(text)}</h2>"


def folded(summary: str, body: str) -> str:
    """`body`, which is HTML, behind a line that opens it."""
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def written(prompt: str, text: str) -> str:
    """What a model was given, and what it wrote after it."""
    return f'<pre><span class="given">{html.escape(prompt)}</span>{html.escape(text)}</pre>'
