"""Line charts as SVG images that follow the viewer's dark mode."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape  # nosec B406 # it writes XML, and reads none

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 270, 210, 52, 12, 34, 40
"""Pixels: a chart, and what is around its lines."""
COLUMNS = 3

COLOURS = ("#0969da", "#8250df", "#cf222e", "#bc4c00", "#1a7f37", "#6e7781", "#bf3989")
LIGHT = "rect { fill: #ffffff } text { fill: #1f2328 } .grid { stroke: #d1d9e0 }"
DARK = "rect { fill: #0d1117 } text { fill: #f0f6fc } .grid { stroke: #3d444d }"
SHAPES = "text { font: 11px system-ui, sans-serif } .title { font-weight: bold } .line { fill: none; stroke-width: 2 }"


@dataclass(frozen=True, slots=True)
class Chart:
    """A title that says the unit, what stands below, and a value of each line for each of these."""

    title: str
    below: str
    points: Sequence[str]
    lines: Mapping[str, Sequence[float]]


def draw(charts: Sequence[Chart]) -> str:
    """The charts in rows, with one legend: the same name has the same colour in all of them."""
    names = list(dict.fromkeys(name for chart in charts for name in chart.lines))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    width, bottom = WIDTH * min(COLUMNS, len(charts)), HEIGHT * math.ceil(len(charts) / COLUMNS)
    height = bottom + 20 * len(names) + 10
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<style>{SHAPES} {LIGHT} @media (prefers-color-scheme: dark) {{ {DARK} }}</style>",
        '<rect width="100%" height="100%"/>',
    ]
    for index, chart in enumerate(charts):
        drawn.append(f'<g transform="translate({index % COLUMNS * WIDTH} {index // COLUMNS * HEIGHT})">')
        drawn += [*draw_chart(chart, colours), "</g>"]
    for index, (name, colour) in enumerate(colours.items()):
        y = bottom + 20 * index + 10
        drawn.append(f'<path class="line" stroke="{colour}" d="M{LEFT} {y}h20"/>' + words(LEFT + 28, y + 4, name))
    return "\n".join([*drawn, "</svg>\n"])


def draw_chart(chart: Chart, colours: Mapping[str, str]) -> Iterator[str]:
    """One chart, its scale beginning at 0."""
    yield words(8, 20, chart.title, "title")
    step = step_of(max((value for line in chart.lines.values() for value in line), default=1))
    high = step * max(1, math.ceil(max(value for line in chart.lines.values() for value in line) / step))
    foot = HEIGHT - BOTTOM

    def x_of(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (index + 0.5) / len(chart.points)

    def y_of(value: float) -> float:
        return foot - (foot - TOP) * value / high

    for mark in range(round(high / step) + 1):
        y = y_of(mark * step)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield words(LEFT - 6, y + 4, f"{mark * step:,.10g}", anchor="end")
    for index, point in enumerate(chart.points):
        yield words(x_of(index), foot + 16, point, anchor="middle")
    yield words((LEFT + WIDTH - RIGHT) / 2, foot + 32, chart.below, anchor="middle")
    for name, line in chart.lines.items():
        places = [(x_of(index), y_of(value)) for index, value in enumerate(line)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield f"<g><title>{escape(name)}: {', '.join(f'{value:,.4g}' for value in line)}</title>"
        yield f'<path class="line" stroke="{colours[name]}" d="M{path}"/>'
        yield from (f'<circle fill="{colours[name]}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places)
        yield "</g>"


def step_of(highest: float) -> float:
    """A round number that fits a few times below the highest value."""
    power = 10.0 ** math.floor(math.log10(highest / 2)) if highest > 0 else 1
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= highest)


def words(x: float, y: float, text: str, style: str = "words", anchor: str = "start") -> str:
    """A piece of text."""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
