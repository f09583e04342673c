"""Where git has a revision file that is lost. Changes nothing."""

import os
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from migrations.revisions import RevisionUnreadable, read_revision

GIT_SECONDS = 10
"""How long git may search."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A revision file as a commit has it; the path is seen from the folder that was searched, the date is ISO 8601."""

    id: str
    commit: str
    branches: tuple[str, ...]
    date: str
    path: str

    @property
    def command(self) -> str:
        """What brings the file back, typed in that folder."""
        return f"git checkout {self.commit} -- {shlex.quote(self.path)}"


PLAIN_DIFFS = ("--no-renames", "--no-ext-diff", "--no-textconv")
"""Without the programs that a repository may be set up to run."""


def find_in_git(id: str, root: Path) -> list[Lost]:
    """Where git has the file of a revision: on any branch, or in what was thrown away lately. Changes nothing.

    Each path once, as the newest commit has it. Empty as well where there is no git or no repository.
    """
    if not id or "\0" in id:
        return []
    git = Git(root)
    everywhere = ("log", "--all", "--reflog", "--ignore-missing", "--full-history", "--date-order", *PLAIN_DIFFS)
    # -S takes the id as it is, whatever it holds; which of the files has it for its own is seen below.
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
    """Whether this is the file of that revision."""
    try:
        return read_revision(source).id == id
    except RevisionUnreadable:
        return False


class Git:
    """Git in a folder, asked for no longer than GIT_SECONDS in all."""

    def __init__(self, root: Path) -> None:
        self.command = [shutil.which("git") or "", "--no-pager", "-C", str(root), "-c", "core.quotePath=false"]
        self.command += ["-c", "log.showSignature=false"]
        self.deadline = time.monotonic() + GIT_SECONDS

    def lines(self, *arguments: str) -> list[str]:
        """What git answers; nothing where it does not."""
        try:
            answer = subprocess.run(  # noqa: S603 (no shell takes part)
                [*self.command, *arguments],
                capture_output=True,
                check=True,
                encoding="utf-8",
                errors="replace",
                # What a partial clone left out is not fetched.
                env={**os.environ, "GIT_NO_LAZY_FETCH": "1"},
                timeout=max(0.0, self.deadline - time.monotonic()),
            )
        except (OSError, subprocess.SubprocessError):
            return []
        return answer.stdout.splitlines()

    def branches_with(self, commit: str) -> tuple[str, ...]:
        """The branches, also of remotes, that contain a commit; origin/HEAD is only another name of one."""
        name = "--format=%(if)%(symref)%(then)%(else)%(refname:short)%(end)"
        return tuple(filter(None, self.lines("for-each-ref", "--contains", commit, name, "refs/heads", "refs/remotes")))
