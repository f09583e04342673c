"""What a disk holds after a loss of power, made from what tests/power_loss/shim.c wrote down."""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

HEADER = struct.Struct("4Q")
SECTOR = 512
"""Bytes that a disk writes whole, or not at all."""


class Record(NamedTuple):
    """One call of a process: its kind (see shim.c), the inode, and where in the log the record ends."""

    kind: str
    inode: int
    offset: int
    content: bytes
    end: int


def read_log(path: Path) -> Iterator[Record]:
    """All records, in the order of the calls."""
    with path.open("rb") as log:
        while header := log.read(HEADER.size):
            kind, inode, offset, length = HEADER.unpack(header)
            yield Record(chr(kind), inode, offset, log.read(length), log.tell())


@dataclass(eq=False)
class File:
    """A file: its content as it was synced, and the changes since: content at an offset, or a new length."""

    synced: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.waiting:
            apply(change, self.synced)
        self.waiting.clear()

    def after_failure(self, choose: random.Random, share: float) -> bytes:
        """The synced content, and about this share of the changes since, sector by sector."""
        content = bytearray(self.synced)
        for offset, written in self.waiting:
            if written is None:
                if choose.random() < share:
                    apply((offset, None), content)
                continue
            # The parts of sectors that this call wrote.
            edges = [offset, *range((offset // SECTOR + 1) * SECTOR, offset + len(written), SECTOR)]
            for start, end in zip(edges, [*edges[1:], offset + len(written)], strict=True):
                if choose.random() < share:
                    apply((start, written[start - offset : end - offset]), content)
        return bytes(content)


def apply(change: tuple[int, bytes | None], content: bytearray) -> None:
    offset, written = change
    if written is None:
        del content[offset:]
    content.extend(bytes(max(0, offset - len(content))))
    if written is not None:
        content[offset : offset + len(written)] = written


class Disk:
    """A folder on a disk that keeps for certain only what was synced: contents of files, and names in the folder."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.synced_names: dict[str, File] = {}
        self.waiting_names: list[tuple[str, File | None]] = []

    def follow(self, record: Record) -> None:
        """Do what one record says."""
        name = record.content.decode() if record.kind in "ou" else ""
        match record.kind:
            case "o":
                if record.offset:  # It is new, whatever had this inode before.
                    self.files[record.inode] = File()
                    self.waiting_names.append((name, self.files[record.inode]))
            case "w":
                self.files[record.inode].waiting.append((record.offset, record.content))
            case "t":
                self.files[record.inode].waiting.append((record.offset, None))
            case "s":
                self.files[record.inode].sync()
            case "u":
                self.waiting_names.append((name, None))
            case "d":
                self.synced_names = self._names(random.Random(0), 1)
                self.waiting_names.clear()

    def fail(self, choose: random.Random, folder: Path) -> None:
        """Write into the folder what the disk holds if the power fails now; what was not synced is there or not."""
        share = choose.choice([0, 1, choose.random()])
        for name, file in self._names(choose, share).items():
            (folder / name).write_bytes(file.after_failure(choose, share))

    def _names(self, choose: random.Random, share: float) -> dict[str, File]:
        names = dict(self.synced_names)
        for name, file in self.waiting_names:
            if choose.random() < share:
                names.pop(name, None)
                if file is not None:
                    names[name] = file
        return names
