"""One cluster and one service for all scenarios, and a table of what became of the writes in each."""

from collections.abc import Iterator

import pytest

from tests.support.attack import TABLE, Attack, attacking
from tests.support.cluster import Configuration, reason_to_skip


@pytest.fixture(scope="session")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attack]:
    """Attacks on a cluster as docs/cluster.md prescribes it."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    with attacking(Configuration.prescribed(), tmp_path_factory.mktemp("cluster")) as attack:
        yield attack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures, as docs/cluster.md has them."""
    if not TABLE:
        return
    terminalreporter.section("what became of the writes")
    terminalreporter.line("| scenario | acknowledged | unknown | put off | refused | lost | doubled | silence |")
    terminalreporter.line("|---|--:|--:|--:|--:|--:|--:|--:|")
    for scenario, it in TABLE.items():
        counts = (it.acknowledged, it.unknown, it.put_off, it.refused, it.lost, it.doubled)
        terminalreporter.line(f"| {scenario} | {' | '.join(map(str, counts))} | {it.silence:.1f} s |")
