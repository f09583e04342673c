"""The revision graph, as text, JSON and Mermaid: applied, pending, unknown."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
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
        places.append(Place(node, lane, above, tuple(own[1:]), lanes))
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


def legend(places: Sequence[Place]) -> str:
    """Return the marks, with their meanings and numbers."""
    counts = Counter(place.node.state for place in places)
    words = (f"{mark} {counts[state]} {MEANINGS[state]}" for state, mark in MARKS.items() if counts[state])
    return "  ".join(words) or "No revisions"


def faults_of(history: History) -> Iterator[str]:
    """Yield the unreadable files."""
    for path, fault in history.unreadable.items():
        yield f"Unreadable: {printable(path_text(path))}: {printable(fault)}"


def printable(text: str) -> str:
    """Return the text without characters that could control a terminal or a drawing."""
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


# --- as Mermaid -------------------------------------------------------------------------------------------------------

SPECIAL = str.maketrans({"#": "&num;", "`": "&grave;"})
"""Mermaid's own entities, and Markdown."""
STYLES: dict[State, str] = {
    "applied": "fill:#1a7f37,color:#fff",
    "pending": "fill:#fff,stroke:#0969da,color:#0969da",
    "unknown": "fill:#fff,stroke:#bc4c00,color:#bc4c00,stroke-dasharray:3",
    "untold": "fill:#fff,stroke:#59636e,color:#59636e",
}


def as_mermaid(history: History, applied: Applied | None) -> str:
    """Return the graph as a Mermaid flowchart, newest first, which GitHub, GitLab and editors draw."""
    nodes = nodes_of(history, applied)
    numbers = {node.id: number for number, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    for node in nodes:
        words = [node.id, node.message, *(f"({note})" for note in node.notes)]
        words += ["head"] * node.is_head + ["database"] * node.is_current
        text = "<br>".join(escape(printable(each)).translate(SPECIAL) for each in words if each)
        lines.append(f'    r{numbers[node.id]}["{text}"]:::{node.state}')
        lines += [f"    r{numbers[node.id]} --> r{numbers[parent]}" for parent in node.parents if parent in numbers]
    lines += [f"    classDef {state} {style}" for state, style in STYLES.items()]
    return "\n".join([*lines, *(f"    %% {fault}" for fault in faults_of(history))])
