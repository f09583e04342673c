"""The judge of `make cluster` sees what is lost, doubled or late."""

from pathlib import Path

from tests.support.writers import Write, Writers


def writers(*writes: Write) -> Writers:
    """Clients that have sent these, in a scenario that began at 0."""
    return Writers(Path(), (1, 2), list(writes))


def acknowledged(name: str, at: float = 1, kind: str = "deposit") -> Write:
    return Write(kind, name, acknowledged=at)


def test_what_was_acknowledged_and_is_not_there_is_lost() -> None:
    figures = writers(acknowledged("a"), acknowledged("b"), Write("deposit", "c")).judge(["a"])

    assert (figures.acknowledged, figures.lost, figures.doubled) == (2, 1, 0)


def test_what_is_there_twice_is_doubled_whether_or_not_it_was_acknowledged() -> None:
    figures = writers(acknowledged("a"), Write("deposit", "b")).judge(["a", "a", "b", "b", "another's", "another's"])

    assert (figures.lost, figures.doubled) == (0, 2)


def test_silence_is_counted_for_each_kind_by_itself() -> None:
    spoken = [acknowledged(str(at), at) for at in range(1, 10)]

    figures = writers(*spoken, acknowledged("t", 2, "transfer"), acknowledged("u", 9, "transfer")).judge([])

    assert figures.silence == 7
