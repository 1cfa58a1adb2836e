"""The frame of volseg's HTML pages: one file without links, readable on light and dark screens."""

from collections.abc import Sequence
from html import escape

from volseg.text import printable

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --faint: #5d6670; --page: #fff; --card: #f3f5f7; --line: #dfe3e8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa3ad; --page: #14181c; --card: #1e2429; --line: #333b43 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 0 1rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem }
p { color: var(--faint); margin: .4rem 0 } img { width: 100%; height: auto }
.cards { display: flex; flex-wrap: wrap; gap: .7rem }
.card { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; min-width: 7rem }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums } .card span { color: var(--faint) }
.card.first b { font-size: 1.9rem; line-height: 1.2 }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--faint); font-weight: 600 } td { font-variant-numeric: tabular-nums }
.bar { display: inline-block; vertical-align: middle; width: 6rem; height: .6rem; margin-left: .6rem;
       background: var(--line); border-radius: .3rem; overflow: hidden }
.bar i { display: block; height: 100% }
pre { background: var(--card); border-radius: .5rem; padding: .9rem 1rem; overflow-x: auto; font-size: .85rem }
pre i { color: var(--faint) } summary { cursor: pointer; font-size: 1.15rem; font-weight: 600; margin: 2.2rem 0 .7rem }
"""


def html_page(title: str, parts: Sequence[str]) -> str:
    """A page with a title (plain text, also its heading) and parts (HTML)."""
    name = escape(printable(title))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    page = f"<!doctype html>\n<html lang='en'><head>{head}<title>{name}</title><style>{_STYLE}</style></head>\n<body>\n"
    return page + "\n".join([f"<h1>{name}</h1>", *parts]) + "\n</body></html>\n"


def html_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of plain texts and numbers; numbers have four significant digits, None is a dash."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else escape(printable(str(value)))
