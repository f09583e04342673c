"""Helpers of the tests of readme."""

import re


def steps_in(text: str) -> list[tuple[str, str]]:
    """The commands in the console blocks of a text, each with the output that follows it."""
    steps: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = step.partition("\n")
            steps.append((command, output.strip()))
    return steps
