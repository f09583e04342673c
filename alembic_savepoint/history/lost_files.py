"""Lost revision files, found in git. Changes nothing."""

import os
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from alembic_savepoint.history.revisions import RevisionUnreadable, read_revision

GIT_SECONDS = 10
"""The time limit of git's searches."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A revision file in a commit; the path is relative to the folder that was searched, the date is ISO 8601."""

    id: str
    commit: str
    branches: tuple[str, ...]
    date: str
    path: str

    @property
    def command(self) -> str:
        """The command that restores the file, run in that folder."""
        return f"git checkout {self.commit} -- {shlex.quote(self.path)}"


PLAIN_DIFFS = ("--no-renames", "--no-ext-diff", "--no-textconv")
"""Options that run no programs which a repository may configure."""


def find_in_git(id: str, root: Path) -> list[Lost]:
    """Return the commits with the file of a revision, on any branch or in the reflog. Changes nothing.

    Each path comes once, from its newest commit. Without git or a repository, the list is empty.
    """
    if not id or "\0" in id:
        return []
    git = Git(root)
    everywhere = ("log", "--all", "--reflog", "--ignore-missing", "--full-history", "--date-order", *PLAIN_DIFFS)
    # -S takes any id literally; which of the files has it as its own is checked below.
    listing = (f"-S{id}", "--diff-filter=A", "--format=", "--name-only", "--relative", "--max-count=100")
    found = []
    for path in dict.fromkeys(git.lines(*everywhere, *listing, "--", ":(glob)**/versions/*.py")):
        versions = ("--diff-filter=AM", "--format=%h %cI", "--max-count=5")
        for line in git.lines(*everywhere, *versions, "--", f":(literal){path}"):
            commit, date = line.split(" ")
            if has_id("\n".join(git.lines("show", f"{commit}:./{path}")), id):
                found.append(Lost(id, commit, git.branches_with(commit), date, path))
                break
    return found


def has_id(source: str, id: str) -> bool:
    """Return whether this is the file of that revision."""
    try:
        return read_revision(source).id == id
    except RevisionUnreadable:
        return False


class Git:
    """Git in a folder, for no longer than GIT_SECONDS in all."""

    def __init__(self, root: Path) -> None:
        self.command = [shutil.which("git") or "", "--no-pager", "-C", str(root), "-c", "core.quotePath=false"]
        self.command += ["-c", "log.showSignature=false"]
        self.deadline = time.monotonic() + GIT_SECONDS

    def lines(self, *arguments: str) -> list[str]:
        """Return git's output; nothing if it fails."""
        try:
            answer = subprocess.run(  # noqa: S603 (no shell takes part)  # nosec B603
                [*self.command, *arguments],
                capture_output=True,
                check=True,
                encoding="utf-8",
                errors="replace",
                # A partial clone fetches nothing.
                env={**os.environ, "GIT_NO_LAZY_FETCH": "1"},
                timeout=max(0.0, self.deadline - time.monotonic()),
            )
        except (OSError, subprocess.SubprocessError):
            return []
        return answer.stdout.splitlines()

    def branches_with(self, commit: str) -> tuple[str, ...]:
        """Return the branches, also of remotes, that contain a commit, without the alias origin/HEAD."""
        name = "--format=%(if)%(symref)%(then)%(else)%(refname:short)%(end)"
        return tuple(filter(None, self.lines("for-each-ref", "--contains", commit, name, "refs/heads", "refs/remotes")))
