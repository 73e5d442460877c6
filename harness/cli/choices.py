"""An option with a few allowed words: another word gets the message that every other mistake gets."""

from __future__ import annotations

import ast
import re
from typing import Any

import typer
from typer.core import TyperCommand

from harness.errors import UserError

# Typer offers no nearest match, and puts pydantic's "Value error," in front
_REFUSED = re.compile(r"Value error, (?P<value>'.*'|\".*\") is not one of (?P<choices>'.*')\.", re.DOTALL)


class CommandWithChoices(TyperCommand):
    """A command whose refused words are told with the nearest allowed one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise UserError for a word that an option or an argument does not take; otherwise parse as usual."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            found = _REFUSED.fullmatch(error.message)
            if found is None or error.param is None:
                raise
            value = ast.literal_eval(found["value"])
            choices = ast.literal_eval(f"({found['choices']},)")
            name = error.param.opts[0] if error.param.opts[0].startswith("-") else error.param.name
            raise UserError(f"unknown value '{value}'", field=name, value=value, choices=choices) from None
