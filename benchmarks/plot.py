"""Bars of what `worker.py` measured, as an SVG."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, BAR, LEFT, GAP = 720, 22, 210, 34
SANS = 'font-family="sans-serif"'
COLOURS = ("#2563eb", "#94a3b8", "#94a3b8")


def bars(title: str, unit: str, rounds: Mapping[str, Sequence[float]]) -> str:
    """A picture of one figure: a bar for the median of each contender, a tick for each round."""
    most = max(max(values) for values in rounds.values())
    scale = (WIDTH - LEFT - 90) / most
    height = 40 + len(rounds) * GAP
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-size="13" {SANS}>',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>',
    ]
    for row, (name, values) in enumerate(rounds.items()):
        y, median = 36 + row * GAP, sorted(values)[len(values) // 2]
        out.append(f'<text x="{LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        fill = COLOURS[min(row, len(COLOURS) - 1)]
        out.append(f'<rect x="{LEFT}" y="{y}" width="{median * scale:.1f}" height="{BAR}" fill="{fill}"/>')
        out += [
            f'<rect x="{LEFT + value * scale:.1f}" y="{y - 2}" width="2" height="{BAR + 4}" fill="#111827"/>'
            for value in values
        ]
        label = f"{median:.0f} {unit}" if median >= 10 else f"{median:.2f} {unit}"
        out.append(f'<text x="{LEFT + max(values) * scale + 8:.1f}" y="{y + 16}">{escape(label)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
