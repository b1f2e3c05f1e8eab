"""`report.html`: one page without other files, for wide and narrow, light and dark screens."""

from __future__ import annotations

import html
from collections.abc import Sequence

from lowrank_core.cli.palette import DARK, LIGHT, Look


def _declared(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


_COLORS = f"""
:root {{ color-scheme: light dark; {_declared(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_declared(DARK)} }} }}"""
_STYLE = """
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 68rem;
  margin: auto; padding: 1rem }
h1 { font-size: 1.5rem; line-height: 1.25 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; max-width: 100% }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: top }
.words td { overflow-wrap: anywhere }
.numbers td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.numbers th + th { text-align: right; vertical-align: bottom }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; margin: 1rem 0; padding: .4rem 0 }
.legend.kept { position: sticky; top: 0; background: var(--paper); z-index: 1 }
.legend svg { width: 1.9rem; height: .5rem; margin-right: .4rem; vertical-align: middle }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 2rem }
.small { grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: .8rem .6rem }
figure { margin: 0 }
figure svg { width: 100%; height: auto; max-width: 34rem }
pre { background: var(--shade); padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
.given, .note { color: var(--faint) } .note { font-size: .9rem; max-width: 46rem }
@media (max-width: 40rem) {
  body { padding: .7rem }
  .numbers { font-size: .69rem; line-height: 1.4 } .numbers th, .numbers td { padding-right: .4rem }
  .small { grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)) }
}
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

    body = f"{line('th', head)}{''.join(line('td', row) for row in rows)}"
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def legend(looks: dict[str, Look]) -> str:
    """The one legend of the page; it stays in sight where it is short."""
    keys = "".join(f"<li>{_key(look)}{html.escape(name)}</li>" for name, look in looks.items())
    return f'<ul class="legend{" kept" if len(looks) <= 6 else ""}">{keys}</ul>'


def _key(look: Look) -> str:
    width = 3  # of the line; dashes are in widths
    dashes = " ".join(f"{width * part:g}" for part in look.dashes)
    line = f'stroke="var(--{look.role})" stroke-width="{width}" stroke-dasharray="{dashes}"'
    return f'<svg viewBox="0 0 32 8" aria-hidden="true"><line x1="1" x2="31" y1="4" y2="4" {line}/></svg>'


def plots(elements: Sequence[str], kind: str = "plots") -> str:
    """SVG elements beside each other where there is room."""
    return f'<div class="{kind}">{"".join(f"<figure>{element}</figure>" for element in elements)}</div>'


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
