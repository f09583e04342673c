"""The revision graph, as text and as SVG: applied, pending, unknown."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from string import Template
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size

from alembic_savepoint.history.applied import Applied, Event
from alembic_savepoint.history.revisions import History, ancestors, children_first, path_text

State = Literal["applied", "pending", "unknown", "untold"]

MARKS: dict[State, str] = {"applied": "●", "pending": "○", "unknown": "?", "untold": "·"}
MEANINGS: dict[State, str] = {
    "applied": "applied",
    "pending": "pending",
    "unknown": "unknown to these files",
    "untold": "applied or pending, not known which",
}


# --- what is drawn ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """A revision in the graph."""

    id: str
    parents: tuple[str, ...]
    state: State
    message: str
    notes: tuple[str, ...]
    paths: tuple[str, ...]
    created: str | None
    applied_at: datetime | None
    """Its latest application on record; None if there is none, or it was undone since."""
    is_head: bool
    is_current: bool
    """The database is at this revision."""


def nodes_of(history: History, applied: Applied | None) -> list[Node]:
    """Return the revisions of the files, the database and its record, newest first.

    A revision that no file has is included if the database is at it, or another one names it as its parent.
    """
    # A stamp with a revision that no file had says nothing about it.
    recorded = {event.revision: event for event in applied.record if event.checksum} if applied else {}
    needs = with_unknown(history, applied.current if applied else [], recorded)
    states = states_of(needs, history, applied.current if applied else None, recorded)
    nodes = []
    for id in children_first(needs):
        revision, event = history.by_id.get(id), recorded.get(id)
        named = revision or event
        nodes.append(
            Node(
                id=id,
                parents=parents_of(id, history, recorded),
                state=states[id],
                message=named.message if named else "",
                notes=tuple(notes_of(id, history)),
                paths=tuple(map(path_text, history.paths[id])) if revision else (),
                created=revision.created if revision else None,
                applied_at=event.applied_at if event and event.action != "downgrade" else None,
                is_head=id in history.heads,
                is_current=applied is not None and id in applied.current,
            )
        )
    return nodes


def with_unknown(history: History, current: Sequence[str], recorded: Mapping[str, Event]) -> dict[str, tuple[str, ...]]:
    """Return what each revision needs, also those that only the database or another revision names."""
    needs: dict[str, tuple[str, ...]] = {}
    todo = [*(id for id in current if id not in history.by_id), *history.needs]
    while todo:
        id = todo.pop(0)
        if id not in needs:
            needs[id] = history.needs[id] if id in history.needs else parents_of(id, history, recorded)
            todo += needs[id]
    return needs


def parents_of(id: str, history: History, recorded: Mapping[str, Event]) -> tuple[str, ...]:
    """Return the parents that the file names; without a file, those in the record."""
    if id in history.by_id:
        return history.by_id[id].parents
    return recorded[id].parents if id in recorded else ()


def states_of(
    needs: Mapping[str, Sequence[str]], history: History, current: Sequence[str] | None, recorded: Mapping[str, Event]
) -> dict[str, State]:
    """Return each revision's state; applied is what the database is at, and all that this needs."""
    applied = {*(current or ()), *ancestors(needs, current or ())}
    # The ancestors of an unknown revision are unknown too, unless it is recorded.
    gaps = [id for id in applied if id not in history.by_id and id not in recorded]

    def state(id: str) -> State:
        if id not in history.by_id:
            return "unknown"
        if current is None:
            return "untold"
        if id in applied:
            return "applied"
        after_current = ancestors(needs, [id]) & set(current)
        return "untold" if gaps and not after_current else "pending"

    return {id: state(id) for id in needs}


def notes_of(id: str, history: History) -> Iterator[str]:
    """Yield notes about a revision, besides its message."""
    if id not in history.by_id:
        yield "in no file"
        return
    revision = history.by_id[id]
    yield from revision.branch_labels
    if revision.depends_on:
        yield f"depends on {', '.join(revision.depends_on)}"
    if id in history.duplicates:
        yield f"in {len(history.duplicates[id])} files"
    if any(id in cycle for cycle in history.cycles):
        yield "in a cycle"


# --- where it is drawn ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """A node's row in the graph, and what its lines do there; lanes are numbered from the left."""

    node: Node
    lane: int
    above: frozenset[int]
    """The lanes with a line from above, the node's own included."""
    joins: tuple[int, ...]
    """The lanes among these that end in the node."""
    below: frozenset[int]
    """The lanes with a line that continues below."""
    lanes: Mapping[str, int]
    """The lane in which the line to each parent continues."""


def arrange(nodes: Sequence[Node]) -> list[Place]:
    """Give each node a lane, as git does: the first parent continues below, others beside it, until children meet."""
    places: list[Place] = []
    waiting: dict[int, str] = {}
    below = {node.id for node in nodes}
    for node in nodes:
        below.remove(node.id)
        above = frozenset(waiting)
        own = sorted(lane for lane, id in waiting.items() if id == node.id)
        lane = own[0] if own else free_lane(waiting)
        for ended in own:
            del waiting[ended]
        lanes: dict[str, int] = {}
        # In a cycle, a parent may be above.
        for parent in filter(below.__contains__, node.parents):
            known = sorted(other for other, id in waiting.items() if id == parent)
            if not lanes:
                lanes[parent] = lane
            else:
                lanes[parent] = known[0] if known else free_lane(waiting)
            waiting[lanes[parent]] = parent
        places.append(Place(node, lane, above, tuple(own[1:]), frozenset(waiting), lanes))
    return places


def free_lane(waiting: Mapping[int, str]) -> int:
    """Return the leftmost lane without a line."""
    return next(lane for lane in range(len(waiting) + 1) if lane not in waiting)


# --- as text ----------------------------------------------------------------------------------------------------------


def as_text(history: History, applied: Applied | None) -> str:
    """Return the graph for a terminal, newest first, then the legend and unreadable files."""
    places = arrange(nodes_of(history, applied))
    rows = [row for place, before in zip(places, [None, *places], strict=False) for row in rows_of(place, before)]
    width = max((len(drawing) for drawing, _ in rows), default=0)
    id_width = max((cell_len(printable(place.node.id)) for place in places), default=0)
    drawn = [f"{drawing:{width}}  {caption(node, id_width) if node else ''}".rstrip() for drawing, node in rows]
    return "\n".join([*drawn, "", legend(places), *faults_of(history)]).lstrip()


def rows_of(place: Place, before: Place | None) -> Iterator[tuple[str, Node | None]]:
    """Yield the rows of one node: lines that join above it, the node itself, lines that part below it."""
    passing = place.above - {place.lane, *place.joins}
    if place.joins:
        yield connect(place, place.joins, place.above, "╯┴"), None
    elif before and before.lane == place.lane not in place.above:
        # The node that ended there is not a child of this one.
        yield spread(dict.fromkeys(passing, "│")), None
    yield spread({**dict.fromkeys(passing, "│"), place.lane: MARKS[place.node.state]}), place.node
    if parting := set(place.lanes.values()) - {place.lane}:
        yield connect(place, parting, passing, "╮┬"), None


def caption(node: Node, id_width: int) -> str:
    """Return the text beside a node."""
    words = [set_cell_size(printable(node.id), id_width), printable(node.message)]
    words += [f"({printable(note)})" for note in node.notes]
    words += ["(head)"] * node.is_head + ["← database"] * node.is_current
    return "  ".join(filter(None, words))


def spread(marks: Mapping[int, str]) -> str:
    """Return a row of lanes, with a blank between two."""
    return " ".join(marks.get(lane, " ") for lane in range(max(marks, default=-1) + 1))


def connect(place: Place, ends: Collection[int], passing: frozenset[int], corners: str) -> str:
    """Return the row between two nodes in which lines leave the node's lane, or return to it."""
    first, last = min(place.lane, *ends), max(place.lane, *ends)
    row = ""
    for lane in range(max(last, *passing, 0) + 1):
        inside = first <= lane <= last
        if lane == place.lane:
            row += "┼" if first < lane < last else "├" if lane < last else "┤"
        elif lane in ends and lane in passing - set(place.joins):
            row += "┼" if first < lane < last else "┤" if lane == last else "├"
        elif lane in ends:
            row += corners[1] if first < lane < last else corners[0] if lane == last else "╭"
        else:
            row += "│" if lane in passing else "─" if inside else " "
        row += "─" if first <= lane < last else " "
    return row.rstrip()


def count_states(places: Sequence[Place]) -> list[tuple[State, str]]:
    """Return the number of revisions of each state, in words."""
    counts = {state: sum(place.node.state == state for place in places) for state in MARKS}
    return [(state, f"{count} {MEANINGS[state]}") for state, count in counts.items() if count]


def legend(places: Sequence[Place]) -> str:
    """Return the marks, with their meanings and numbers."""
    return "  ".join(f"{MARKS[state]} {words}" for state, words in count_states(places)) or "No revisions"


def faults_of(history: History) -> Iterator[str]:
    """Yield the unreadable files."""
    for path, fault in history.unreadable.items():
        yield f"Unreadable: {printable(path_text(path))}: {printable(fault)}"


def printable(text: str) -> str:
    """Return the text without characters that could control a terminal or are not allowed in XML."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


# --- as JSON ----------------------------------------------------------------------------------------------------------


def as_json(history: History, applied: Applied | None) -> dict[str, Any]:
    """Return the graph as a JSON document, newest first; `current` is null if no database was read."""
    nodes = [asdict(node) for node in nodes_of(history, applied)]
    for node in nodes:
        node["applied_at"] = node["applied_at"] and node["applied_at"].isoformat()
    return {
        "current": applied and applied.current,
        "heads": history.heads,
        "revisions": nodes,
        "unreadable": {path_text(path): fault for path, fault in history.unreadable.items()},
    }


# --- as SVG -----------------------------------------------------------------------------------------------------------

ROW, LANE, MARGIN, GAP = 28, 20, 20, 14
"""Pixels."""
CHARACTER = 7.83
"""The width of a character of 13 pixels, the same in all fonts named below."""
LONGEST = 72
"""The number of characters shown of a text; the tooltip has all of them."""

SHAPES = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", "Liberation Mono", monospace }
path { fill: none; stroke-width: 2 } circle, rect { stroke-width: 2 } .pill { fill: none; stroke-width: 1.5 }
text.small { font-size: 11px; text-anchor: middle } .id { font-weight: bold }
"""
COLOURS = Template("""
.paper { fill: $paper; stroke: none } text { fill: $ink } .muted { fill: $muted } path, .head { stroke: $line }
circle { fill: $paper } .applied { stroke: $applied } .pending { stroke: $pending }
.unknown { stroke: $unknown; stroke-dasharray: 2.5 1.5 } .untold { stroke: $line }
circle.applied { fill: $applied } circle.untold { fill: $line } text.mark { fill: $unknown; font-weight: bold }
""")
LIGHT = COLOURS.substitute(
    paper="#ffffff",
    ink="#1f2328",
    muted="#59636e",
    line="#9aa3ad",
    applied="#1a7f37",
    pending="#0969da",
    unknown="#bc4c00",
)
DARK = COLOURS.substitute(
    paper="#0d1117",
    ink="#f0f6fc",
    muted="#9198a1",
    line="#6a737d",
    applied="#3fb950",
    pending="#58a6ff",
    unknown="#f0883e",
)


def as_svg(history: History, applied: Applied | None) -> str:
    """Return the graph as an SVG 1.1 image: tooltips name files and dates, and it follows the viewer's dark mode."""
    places = arrange(nodes_of(history, applied))
    lanes = 1 + max((lane for place in places for lane in (place.lane, *place.above, *place.below)), default=0)
    columns = Columns(MARGIN + lanes * LANE + GAP, max((cell_len(crop(place.node.id)) for place in places), default=0))
    drawn = [*svg_lines(places), *(columns.node(row, place) for row, place in enumerate(places))]
    drawn += columns.footer(len(places) + 0.5, places, list(faults_of(history)))
    width, height = columns.right + MARGIN, columns.bottom + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" version="1.1" width="{width:.0f}" height="{height:.0f}"'
            f' viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
            f"<title>Revisions: {escape(legend(places))}</title>",
            f"<style>{SHAPES}{LIGHT}@media (prefers-color-scheme: dark) {{{DARK}}}</style>",
            '<rect class="paper" width="100%" height="100%" rx="8"/>',
            *drawn,
            "</svg>\n",
        ]
    )


def svg_lines(places: Sequence[Place]) -> Iterator[str]:
    """Yield a line from each revision to each of its parents, in its lane."""
    found = {place.node.id: (row, place.lane) for row, place in enumerate(places)}
    for row, place in enumerate(places):
        x, y = x_of(place.lane), y_of(row)
        for parent, lane in place.lanes.items():
            parent_row, parent_lane = found[parent]
            path = f"M{x} {y}"
            if lane != place.lane:
                path += curve(x, y, x_of(lane))
            if lane != parent_lane:
                path += f"V{y_of(parent_row - 1)}" + curve(x_of(lane), y_of(parent_row - 1), x_of(parent_lane))
            yield f'<path d="{path}V{y_of(parent_row)}"/>'


def curve(x: int, y: int, to_x: int) -> str:
    """Return a change of lane, within one row."""
    return f"C{x} {y + ROW // 2} {to_x} {y + ROW // 2} {to_x} {y + ROW}"


def x_of(lane: int) -> int:
    """Return the middle of a lane."""
    return MARGIN + LANE // 2 + LANE * lane


def y_of(row: float) -> int:
    """Return the middle of a row."""
    return round(MARGIN + ROW // 2 + ROW * row)


class Columns:
    """The text beside the graph; its extent to the right and down is known when all is written."""

    def __init__(self, left: int, id_length: int) -> None:
        self.left = left
        self.message = left + id_length * CHARACTER + GAP
        self.right = self.bottom = 0.0

    def node(self, row: int, place: Place) -> str:
        """Return a revision: its mark, its text, and its labels."""
        node, y = place.node, y_of(row)
        parts = [f"<g><title>{escape(printable_lines(tooltip(node)))}</title>", mark(node.state, x_of(place.lane), y)]
        parts.append(self.words(self.left, y, node.id, "id"))
        x = self.message
        for words, style in ((node.message, "message"), (" ".join(f"({note})" for note in node.notes), "muted")):
            if words:
                parts.append(self.words(x, y, words, style))
                x = self.right_of(x, words)
        if node.is_head:
            parts.append(self.pill(x, y, "head", "head"))
            x = self.right_of(x, "head")
        if node.is_current:
            parts.append(self.pill(x, y, "database", node.state))
        return "".join([*parts, "</g>"])

    def words(self, x: float, y: int, text: str, style: str) -> str:
        """Return a piece of text, cut if it is too long."""
        self.right = max(self.right, x + cell_len(crop(text)) * CHARACTER)
        self.bottom = max(self.bottom, y + ROW // 2)
        return f'<text class="{style}" x="{x:.1f}" y="{y + 4}">{escape(crop(text))}</text>'

    def right_of(self, x: float, text: str) -> float:
        """Return the beginning of the next piece."""
        return x + cell_len(crop(text)) * CHARACTER + GAP

    def pill(self, x: float, y: int, word: str, style: str) -> str:
        """Return a word with a line around it."""
        width = len(word) * CHARACTER + 6
        self.right = max(self.right, x + width)
        return (
            f'<rect class="pill {style}" x="{x:.1f}" y="{y - 9}" width="{width:.1f}" height="18" rx="9"/>'
            f'<text class="small" x="{x + width / 2:.1f}" y="{y + 4}">{word}</text>'
        )

    def footer(self, row: float, places: Sequence[Place], faults: Sequence[str]) -> Iterator[str]:
        """Yield the legend, and the unreadable files."""
        x: float = MARGIN + LANE // 2
        for state, words in count_states(places):
            yield mark(state, round(x), y_of(row))
            yield self.words(x + GAP, y_of(row), words, "muted")
            x = self.right_of(x + GAP, words) + GAP
        if not places:
            yield self.words(x, y_of(row), legend(places), "muted")
        for line, fault in enumerate(faults, 1):
            yield self.words(x_of(0) - 5, y_of(row + line), fault, "fault")


def mark(state: State, x: int, y: int) -> str:
    """Return a revision's circle."""
    circle = f'<circle class="{state}" cx="{x}" cy="{y}" r="{ {"unknown": 8, "untold": 4}.get(state, 5) }"/>'
    return circle + (f'<text class="small mark" x="{x}" y="{y + 4}">?</text>' if state == "unknown" else "")


def tooltip(node: Node) -> Iterator[str]:
    """Yield everything known about a revision, line by line."""
    yield f"{node.id}  {node.message}".rstrip()
    yield ", ".join([MEANINGS[node.state], *node.notes])
    yield from node.paths
    if node.created:
        yield f"created {node.created}"
    if node.applied_at:
        yield f"applied {node.applied_at:%Y-%m-%d %H:%M:%S} UTC"


def printable_lines(lines: Iterable[str]) -> str:
    """Return lines without characters that are not allowed in XML."""
    return "\n".join(map(printable, lines))


def crop(text: str) -> str:
    """Return the text, cut to what is shown."""
    text = printable(text)
    return text if cell_len(text) <= LONGEST else set_cell_size(text, LONGEST - 1).rstrip() + "…"
