"""The few SVG pieces that the figures are drawn from. Every text and attribute is escaped here, in one place."""

from __future__ import annotations

from markupsafe import Markup

from unbackdoor.visible_text import one_line

FIGURE_STYLE = Markup("""
.figure { --ink: #24292f; --soft: #6a737d; --hair: #e3e5e8; --axis: #b9bec5; --paper: #ffffff;
  --before: #c2570c; --after: #1f63d6; --s0: #1f63d6; --s1: #c2570c; --s2: #20845a; --s3: #8250c4; --s4: #b3305f;
  font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
@media (prefers-color-scheme: dark) { .figure { --ink: #e3e6ea; --soft: #98a1ac; --hair: #2d3238; --axis: #545b64;
  --paper: #1c1f23; --before: #f0954f; --after: #6ea8ff; --s0: #6ea8ff; --s1: #f0954f; --s2: #58c493; --s3: #b693f0;
  --s4: #ee7ba3; } }
.figure text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.figure .strong { fill: var(--ink); }
.figure .grid { stroke: var(--hair); }
.figure .axis { stroke: var(--axis); }
.figure .divider { stroke: var(--axis); stroke-dasharray: 2 3; }
.figure .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.figure .whisker { stroke-width: 2; stroke-linecap: round; }
.figure .dashed { stroke-dasharray: 4 3; }
.figure .before { stroke: var(--before); } .figure .after { stroke: var(--after); }
.figure .other { stroke: var(--soft); }
.figure .s0 { stroke: var(--s0); } .figure .s1 { stroke: var(--s1); } .figure .s2 { stroke: var(--s2); }
.figure .s3 { stroke: var(--s3); } .figure .s4 { stroke: var(--s4); }
.figure .hollow { fill: var(--paper); stroke-width: 2; }
.figure .full.before { fill: var(--before); } .figure .full.after { fill: var(--after); }
.figure .full.other { fill: var(--soft); }
.figure text.before { fill: var(--before); stroke: none; font-weight: 600; }
.figure text.after { fill: var(--after); stroke: none; font-weight: 600; }
.figure text.other { stroke: none; }
""")
"""Colours for light and dark; inside the HTML page once, and inside each figure that is a file of its own."""


def element(name: str, *children: str, **attributes: str | float) -> Markup:
    """An SVG element. `class_` and `stroke_width` are written `class` and `stroke-width`; numbers with one decimal."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value)) for key, value in attributes.items()
    )
    body = Markup("").join(c if isinstance(c, Markup) else one_line(c) for c in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, body)


def drawing(title: str, width: float, height: float, *children: Markup) -> Markup:
    """A whole figure, to stand inside an HTML page; `title` is read out where it cannot be seen."""
    return element(
        "svg",
        element("title", title),
        *children,
        class_="figure",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
    )


def standalone(figure: Markup) -> str:
    """The same figure as the text of an SVG file, with its colours inside."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    style = f"<style>{FIGURE_STYLE}.figure {{ background: var(--paper); }}</style>"
    opening, rest = str(figure).removeprefix("<svg ").split(">", 1)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}{opening}>{style}{rest}\n'


def _value(value: str | float) -> str:
    return one_line(value) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
