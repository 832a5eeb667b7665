"""An evaluation as one HTML file that needs nothing beside it: tables, charts and pictures."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from fcjax.metrics import Figure
from infer.figures import cell
from infer.sheet import Panel

HEIGHT = 512
"""Pixels of a picture in a page, at most, where nobody judges it."""
SHOWN = 256
"""Pixels at which a page shows a picture; those of fewer are shown larger with their pixels as squares."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .25em .8em; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr { border-bottom: 1px solid #ddd; }
.row { display: flex; flex-wrap: wrap; gap: 10px; border-bottom: 1px solid #ddd; padding: 12px 0; }
figure { margin: 0; max-width: 200px; } figure img { height: 256px; }
.few { image-rendering: pixelated; } .made figure { max-width: none; } .made img { height: 75vh; }
figcaption { font-size: 12px; } svg text { font: 12px system-ui, sans-serif; } .small { font-size: 12px; color: #555; }
label { display: block; } fieldset { border: 0; padding: 0; margin: 4px 0; } button { font-size: 16px; margin: 1em 0; }
"""


def document(title: str, body: str, script: str = "") -> str:
    """A whole page."""
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n<style>{_STYLE}</style>'
        f"</head>\n<body><h1>{name}</h1>\n{body}\n{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def report_page(
    title: str,
    settings: Mapping[str, Any],
    summaries: Mapping[str, Mapping[str, Figure]],
    rows: Sequence[Sequence[Panel]],
    tables: Mapping[str, Sequence[Sequence[str]]] = MappingProxyType({}),
) -> str:
    """A page of an evaluation.

    settings: what was asked and by which versions, for the foot. summaries: per arm its figures by the words that a
    table has for them. rows: pictures of some sets. tables: more figures by title, each a line of a name, its value and
    the number of pictures.
    """
    names = list(dict.fromkeys(name for figures in summaries.values() for name in figures))
    lines = [[name, *(cell(figures.get(name)) for figures in summaries.values())] for name in names]
    charts = (
        chart(name, {arm: figures[name] for arm, figures in summaries.items() if name in figures}) for name in names
    )
    foot = [
        [str(name), str(value)]
        for name, value in settings.items()
        if value is not None and value is not False and value != ()
    ]
    means = [
        table(["", *summaries], lines),
        '<p class="small">Means with 95 % bootstrap intervals over sets.</p>',
        "\n".join(charts),
    ]
    parts = [
        *(means if names else []),
        *(f"<h2>{html.escape(name)}</h2>{table(['', '', 'pictures'], own)}" for name, own in tables.items()),
        "<h2>Pictures</h2>",
        *(row(panels) for panels in rows),
        "<h2>How it was made</h2>",
        table(["", ""], foot),
    ]
    return document(title, "\n".join(parts))


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """An HTML table of plain words."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(words)}</{tag}>" for words in cells) + "</tr>"

    body = "\n".join(line(cells, "td") for cells in lines)
    return f"<table><thead>{line(head, 'th')}</thead><tbody>\n{body}\n</tbody></table>"


def row(panels: Sequence[Panel]) -> str:
    """Pictures side by side with their labels."""
    return f'<div class="row">{"".join(figure(label, picture) for label, picture in panels)}</div>'


def figure(label: str, picture: Image.Image | np.ndarray, most: int = HEIGHT) -> str:
    """One picture with its label, inside the page, no higher than `most` pixels."""
    words, image = html.escape(label), picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    few = ' class="few"' if image.height < SHOWN else ""
    return f'<figure><img alt="{words}"{few} src="{data_uri(image, most)}"><figcaption>{words}</figcaption></figure>'


def data_uri(image: Image.Image, most: int) -> str:
    """A picture as an address that holds it, no higher than `most`: a JPEG, or a PNG of small and clear ones."""
    if image.height > most:
        image = image.resize((max(round(image.width * most / image.height), 1), most), Image.Resampling.LANCZOS)
    held, small = io.BytesIO(), image.height <= SHOWN or image.has_transparency_data
    image.save(held, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 90, "subsampling": 0}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"


def chart(name: str, figures: Mapping[str, Figure]) -> str:
    """A bar for each arm, with its interval, as SVG."""
    wide, left, line = 420, 260, 24
    most = max((max(one.high, one.mean) for one in figures.values()), default=0.0)
    least = min((min(one.low, one.mean, 0.0) for one in figures.values()), default=0.0)
    scale = wide / ((most - least) or 1.0)

    def x(value: float) -> str:
        return f"{left + (value - least) * scale:.1f}"

    parts = []
    for number, (arm, one) in enumerate(figures.items()):
        top = 26 + number * line
        start, end = sorted((0.0, one.mean))
        parts.append(
            f'<text x="{left - 8}" y="{top + 14}" text-anchor="end">{html.escape(arm)}</text>'
            f'<rect x="{x(start)}" y="{top + 3}" width="{(end - start) * scale:.1f}" height="14" fill="#7aa6c2"/>'
            f'<line x1="{x(one.low)}" x2="{x(one.high)}" y1="{top + 10}" y2="{top + 10}" stroke="#222"/>'
        )
    height = 34 + line * len(figures)
    return (
        f'<svg width="{left + wide + 20}" height="{height}" role="img" aria-label="{html.escape(name)}">'
        f'<text x="0" y="14" font-weight="bold">{html.escape(name)}</text>{"".join(parts)}</svg>'
    )
