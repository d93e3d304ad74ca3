"""Draws the comparison of routing policies: two rows of grouped bars, as SVG."""

import math
from collections.abc import Callable, Mapping
from html import escape

from sim.results import Average

COLOURS = {
    "round robin": "#b8bcc4",
    "power of two": "#8d95a3",
    "consistent hash": "#c9a227",
    "Octavo": "#1f6f8b",
    "omniscient": "#9fd3c7",
}
WIDTH, LEFT, PANEL, GAP = 920, 60, 190, 64


def chart(runs: Mapping[str, Mapping[str, Average]]) -> str:
    """Return hit rates and times to the first token, a group of bars for each workload."""
    top = 56
    times = [result.ttft_mean_s * 1e3 for arms in runs.values() for result in arms.values()]
    lowest, highest = 10.0, 10 ** math.ceil(math.log10(max(times)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 2 * PANEL + GAP + 40}">',
        "<style>text { font: 12px sans-serif; fill: #222 }</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        *legend(next(iter(runs.values()))),
        *panel(runs, top, "prefix hit rate", lambda result: result.hit_rate, lambda share: f"{share:.0%}"),
        *ticks(top, [(share, f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]),
        *panel(
            runs,
            top + PANEL + GAP,
            "mean time to first token (logarithmic, lower is better)",
            lambda result: height(result.ttft_mean_s * 1e3, lowest, highest),
            None,
        ),
        *ticks(
            top + PANEL + GAP,
            [
                (height(10.0**power, lowest, highest), f"{10**power} ms")
                for power in range(int(math.log10(lowest)), int(math.log10(highest)) + 1)
            ],
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def height(value: float, lowest: float, highest: float) -> float:
    """Return the share of the axis, 0 to 1, that a value takes on a logarithmic scale."""
    return max(0.0, math.log(max(value, lowest) / lowest) / math.log(highest / lowest))


def legend(arms: Mapping[str, object]) -> list[str]:
    """Return the names of the policies with their colours."""
    parts = []
    for index, arm in enumerate(arms):
        x = LEFT + 160 * index
        parts.append(f'<rect x="{x}" y="14" width="12" height="12" fill="{COLOURS[arm]}"/>')
        parts.append(f'<text x="{x + 18}" y="24">{escape(arm)}</text>')
    return parts


def panel(
    runs: Mapping[str, Mapping[str, Average]],
    top: int,
    title: str,
    share_of: Callable[[Average], float],
    label_of: Callable[[float], str] | None,
) -> list[str]:
    """Return the bars of one figure; `share_of` gives a bar's height from 0 to 1."""
    parts = [f'<text x="{LEFT}" y="{top - 8}" style="font-weight: bold">{escape(title)}</text>']
    group_width = (WIDTH - LEFT - 20) / len(runs)
    for group, (workload, arms) in enumerate(runs.items()):
        bar_width = (group_width - 16) / len(arms)
        left = LEFT + group * group_width + 8
        for index, (arm, result) in enumerate(arms.items()):
            share = min(1.0, share_of(result))
            x, y = left + index * bar_width, top + PANEL * (1 - share)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar_width - 1:.1f}" height="{PANEL * share:.1f}" '
                f'fill="{COLOURS[arm]}"/>'
            )
            if label_of is not None and arm == "Octavo" and share > 0:
                parts.append(
                    f'<text x="{x + bar_width / 2:.1f}" y="{y - 3:.1f}" style="font-size: 10px" text-anchor="middle">'
                    f"{label_of(share)}</text>"
                )
        centre = left + (group_width - 16) / 2
        parts.append(f'<text x="{centre:.1f}" y="{top + PANEL + 16}" text-anchor="middle">{escape(workload)}</text>')
    return parts


def ticks(top: int, marks: list[tuple[float, str]]) -> list[str]:
    """Return the lines of an axis with their labels."""
    parts = []
    for share, label in marks:
        y = top + PANEL * (1 - share)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#0001"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" style="font-size: 10px">{label}</text>')
    return parts
