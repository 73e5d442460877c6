"""Old spellings of commands: each answers with the command that does it today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from harness.cli.choices import CommandWithChoices
from harness.errors import UserError


class CommandWithOldOptions(CommandWithChoices):
    """A command some of whose options are commands of their own today."""

    moved: ClassVar[Mapping[str, str]]
    """Old option, as "--name" or "--name value" -> what to type instead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise UserError for an old option; otherwise parse as usual."""
        for old, new in self.moved.items():
            if _holds(args, old.split()):
                raise UserError(f"is a command of its own now: {new}", field=old)
        return super().parse_args(ctx, args)


def _holds(args: Sequence[str], words: Sequence[str]) -> bool:
    """Whether the words stand there one after the other, or joined by an equals sign."""
    joined = "=".join(words)
    together = any(list(args[i : i + len(words)]) == list(words) for i in range(len(args)))
    with_value = len(words) == 1 and any(arg.startswith(f"{joined}=") for arg in args)
    return together or with_value or joined in args


class ReportCommand(CommandWithOldOptions):
    """`harness report` was five commands once."""

    moved: ClassVar[Mapping[str, str]] = {
        "--format site": "harness site [RESULTS] --out DIR",
        "--tuning": "harness tuning [RESULTS]",
        "--fidelity": "harness fidelity NAME [RESULTS]",
        "--figures": "harness figures [RESULTS] --out DIR",
        "--table": "harness table A,B,... [RESULTS]",
    }


class PlanCommand(CommandWithOldOptions):
    """`harness plan` was two commands once."""

    moved: ClassVar[Mapping[str, str]] = {"--device": "harness devices NAME"}
