"""Renders the chat templates of tokenizers. A template is a stranger's program, so it runs in a sandbox, within bounds.

It is rendered here and not by transformers for three reasons. A template that loops ends in a message. One that writes
the date writes the same each day, since what is read is part of a result. And what it raises is told in its own words.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from harness.data.messages import Messages
from harness.errors import UserError

MOST_STEPS = 100_000
"""Rounds of loops and calls of macros in one rendering, 0.3 s. 1,000 messages take some thousands."""
MOST_LENGTH = 1_000_000
"""Characters that a rendering may have besides ten times those of its messages, and that a text made on the way may
have."""
TODAY = date(2024, 7, 26)
"""The date that a template is told, whatever the day: what Llama 3.1's template writes where it is told none."""


class TemplateTooLong(TemplateError):
    """A template has not ended within the bounds."""


class ChatTemplate:
    """One tokenizer's template. Raises UserError, also when rendering, with the template's own words."""

    def __init__(self, text: str, tokens: Mapping[str, Any], backbone: str) -> None:
        self._backbone = backbone
        self._tokens = dict(tokens)
        try:
            self._environment, self._template = _compiled(text)
        except TemplateError as error:
            raise self.error(f"cannot be read: {error}") from None

    def error(self, problem: str, hint: str | None = None) -> UserError:
        """Return an error that says whose template it is."""
        return UserError(f"the chat template of backbone '{self._backbone}' {problem}", hint=hint)

    def render(self, messages: Messages, generation_prompt: bool) -> str:
        """Return the conversation as text; with `generation_prompt`, up to where an answer begins."""
        self._environment.begin(MOST_LENGTH + 10 * sum(len(content) for _, content in messages))
        given = {
            **self._tokens,
            "messages": [{"role": role, "content": content} for role, content in messages],
            "add_generation_prompt": generation_prompt,
            "enable_thinking": False,  # a template that can then closes the thinking itself, in front of the answer
            "tools": None,
            "documents": None,
        }
        pieces, length = [], 0
        try:
            for piece in self._template.generate(given):
                length += len(piece)
                self._environment.check_length(length)
                pieces.append(piece)
        except TemplateTooLong as error:
            raise self.error(str(error)) from None
        # whatever goes wrong in it, with this conversation, is a property of the template
        except Exception as error:
            words = " ".join(str(error).split()) or type(error).__name__
            hint = "Leave the system text away." if "system" in words.lower() else None
            raise self.error(f"refuses {_shape(messages)}: {words}", hint) from None
        return "".join(pieces)


def _shape(messages: Messages) -> str:
    return "a conversation of " + ", ".join(role for role, _ in messages[:6]) + (", ..." if len(messages) > 6 else "")


class _Environment(ImmutableSandboxedEnvironment):
    """Counts what a template does. Loops and macros call `step`; texts that operators make are measured."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = TODAY.strftime
        self.begin(MOST_LENGTH)

    def begin(self, most_length: int) -> None:
        """Count from 0 again."""
        self.steps = 0
        self.most_length = most_length

    def step(self) -> bool:
        """Count one round of a loop or one call of a macro; always true."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise TemplateTooLong(f"does not end: it was stopped after {MOST_STEPS:,} rounds of its loops")
        return True

    def check_length(self, length: int) -> None:
        """Raise TemplateTooLong for a text that no conversation makes."""
        if length > self.most_length:
            raise TemplateTooLong(f"does not end: it was stopped behind {self.most_length:,} characters")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise TemplateTooLong("takes powers, which no conversation needs")
        if operator == "*":
            for sized, factor in ((left, right), (right, left)):
                if hasattr(sized, "__len__") and isinstance(factor, int):
                    self.check_length(len(sized) * factor)
        made = super().call_binop(context, operator, left, right)
        if hasattr(made, "__len__"):
            self.check_length(len(made))
        return made

    def joined(self, *parts: Any) -> str:
        """What stands for `~`, which no environment may intercept."""
        text = "".join(map(str, parts))
        self.check_length(len(text))
        return text


class _Counted(NodeTransformer):
    """Puts a call of `step` into every loop and macro, and `joined` in the place of `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.test is not None:  # rows that it leaves out are rounds too
            node.test = nodes.And(_call("step"), node.test)
        node.body.insert(0, nodes.ExprStmt(_call("step")))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step")))
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step")))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes)


def _call(name: str, arguments: Sequence[nodes.Expr] = ()) -> nodes.Call:
    # an attribute of the environment is no variable, so no template can put another in its place
    return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)


class _Generation(Extension):
    """`{% generation %}` marks an assistant's words for other programs. Here what is inside is simply written."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements inside the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=8)  # a long template takes 30 ms, and every evaluation asks for it
def _compiled(text: str) -> tuple[_Environment, Any]:
    environment = _Environment()
    counted = _Counted().visit(environment.parse(text)).set_environment(environment)
    return environment, environment.from_string(counted)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """What transformers has in the place of Jinja's filter, which escapes characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
