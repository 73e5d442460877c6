"""How the texts of a task become token ids: what a network reads, and what it is to write behind that.

There are three forms. `suffix` is that of the papers: a decoder reads the text and " Label : ". With `plain` it reads
the text alone, and a blank and the answer follow. With `chat` both stand in the tokenizer's own chat template. `auto`
is `chat` where the tokenizer has a template, else `plain`.

Every form has a text's begin and end tokens once: those that the tokenizer puts there, or in `chat` those that the
template writes. A row's own text may spell such a token, and loses it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from harness.backbone import Backbone
from harness.data.chat_template import ChatTemplate
from harness.data.examples import Example
from harness.data.messages import Messages
from harness.data.record import PromptRecord, ResolvedForm
from harness.data.tasks.task import Task
from harness.errors import UserError

PROBE = "zyxq"
"""An answer that no template holds; where it comes out shows what a template writes around an answer."""
NEUTRAL = "0"
"""A text behind which others are tokenised: a tokenizer may treat the beginning of a text in another way."""


class PromptForm:
    """The form of one task's texts on one backbone. This one is `suffix`; the others differ in what they override."""

    name: ClassVar[ResolvedForm] = "suffix"

    def __init__(self, task: Task, backbone: Backbone) -> None:
        self._task = task
        self._backbone = backbone
        self._tokenizer = backbone.tokenizer

    @property
    def record(self) -> PromptRecord:
        """What a result says of it: results that differ in it are not comparable."""
        return PromptRecord(form=self.name)

    @property
    def settings(self) -> list[Any]:
        """What of it decides the ids, beside the tokenizer; empty for `suffix`, which is older than the others."""
        return []

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens at which writing ends."""
        return (self._backbone.eos_id,)

    def source_ids(self, examples: Sequence[Example], limit: int) -> tuple[list[list[int]], int]:
        """Return what is read for each example, special tokens included, at most `limit` ids; and how many were cut.

        A text is cut at its end, and what frames it stays.
        """
        return self._framed([example.source for example in examples], limit, self._backbone.kind.text_suffix)

    def target_ids(self, text: str, limit: int | None, behind: str = "") -> list[int]:
        """Return the ids of an answer with exactly one end token, as the last; at most `limit` ids.

        `behind` is the source text in front of it, whose last blank may belong to the answer.
        """
        return target_ids(text, self._backbone, limit)

    def choice_ids(self, text: str, behind: str = "") -> list[int]:
        """Return the ids of an answer without its end, as it stands behind the prompt."""
        return self.target_ids(text, None, behind)[:-1]

    def require_writable(self, example: Example) -> None:
        """Raise UserError for an answer that spells a token which answers lose.

        It would be trained and written without the token, and its reference would keep it: no answer could be right.
        """
        for text in dict.fromkeys([example.target, *example.references]):
            spelled = None if self._spelled is None else self._spelled.search(text)
            if spelled is not None:
                problem = f"the answer {text!r:.60} spells {spelled[0]!r}, a token of backbone '{self._backbone.name}'"
                raise UserError(f"{problem} that no answer holds", hint="Take it out of the answers.")

    def longest_target(self, texts: Iterable[str]) -> int:
        """Return the most ids that one of these answers takes with its end, whatever stands in front of it."""
        return max(len(self.target_ids(text, None)) for text in texts)

    def _framed(self, texts: list[str], limit: int, suffix: str) -> tuple[list[list[int]], int]:
        """Return the ids of each text in the tokenizer's own frame, a decoder's with `suffix` and without end token."""
        tokenizer, kind = self._tokenizer, self._backbone.kind
        if kind.text_marks == "as they are":
            made = tokenizer(texts, truncation=True, max_length=limit)
            return list(made["input_ids"]), _num_cut(made, texts, tokenizer, limit)
        begin, end = _tokens_around(tokenizer)
        if kind.text_marks == "both" and not (begin and end):
            name, side = self._backbone.name, "behind" if begin else "in front of"
            problem = f"the tokenizer of encoder '{name}' puts no token {side} a text"
            raise UserError(
                problem, hint="An encoder reads a text between two special tokens, such as [CLS] and [SEP]."
            )
        tail = end if kind.text_marks == "both" else list(tokenizer(suffix, add_special_tokens=False)["input_ids"])
        # the text is cut, never what stands around it; end tokens that are taken off below need no room
        room = limit - len(tail) + len(end)
        marks = {*_boundary_tokens(self._backbone), *begin, *end}
        made = tokenizer(texts, truncation=True, max_length=room)
        num_cut = _num_cut(made, texts, tokenizer, room)
        bodies = made["input_ids"]
        return [[*begin, *(i for i in body[len(begin) :] if i not in marks), *tail] for body in bodies], num_cut

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _ids_behind(self, context: str, text: str) -> list[int]:
        """Return the ids of `text` as they are behind `context`, or alone where the two share a token."""
        whole, before = self._ids(context + text), self._context_ids(context)
        return whole[len(before) :] if whole[: len(before)] == before else self._ids(text)

    @functools.cached_property
    def _context_ids(self) -> Callable[[str], list[int]]:
        return functools.lru_cache(maxsize=8)(self._ids)  # all answers of a task stand behind one of two contexts

    @functools.cached_property
    def _special_tokens(self) -> list[str]:
        """The texts of the tokens that steer a network."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).values()
        named = getattr(self._tokenizer, "all_special_tokens", ())
        return list(dict.fromkeys([*named, *(token.content for token in added if token.special)]))

    @functools.cached_property
    def _spelled(self) -> re.Pattern[str] | None:
        """The tokens that an answer loses; of `suffix` the begin and the end token."""
        marks = self._tokenizer.convert_ids_to_tokens(sorted(_boundary_tokens(self._backbone)))
        return _pattern(mark for mark in marks if isinstance(mark, str))

    def _readable(self, text: str) -> str:
        """Return a text without the tokens that it spells. Raises UserError where nothing else stands in it."""
        left = self._unmarked(text)
        if left != text and not left.strip() and text.strip():
            problem = f"the text {text!r:.60} is nothing but special tokens of backbone '{self._backbone.name}'"
            raise UserError(f"{problem}, and nothing would be read", hint="Take the row or the message out.")
        return left

    @functools.cached_property
    def _unmarked(self) -> Callable[[str], str]:
        return functools.partial(_without, self._spelled)


class _Plain(PromptForm):
    """The text, and behind it a blank and the answer. What reads with an encoder gets the text alone."""

    name = "plain"

    @property
    def record(self) -> PromptRecord:
        return PromptRecord(form=self.name, system=self._task.system)

    @property
    def settings(self) -> list[Any]:
        return [self.name, self._task.system]

    @functools.cached_property
    def _spelled(self) -> re.Pattern[str] | None:
        return _pattern(self._special_tokens)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens at which writing ends: the end token, and those that the checkpoint's own generation ends at."""
        return tuple(dict.fromkeys([self._backbone.eos_id, *_generation_ends(self._backbone)]))

    def source_ids(self, examples: Sequence[Example], limit: int) -> tuple[list[list[int]], int]:
        """As for `suffix`. The last blank of a decoder's text is the answer's: words are one token with it."""
        texts = [self._unmarked(self._text(example)) for example in examples]
        for example in examples:
            for text in (example.source, *(content for _, content in example.messages)):
                self._readable(text)
        if self._backbone.kind.name != "decoder":
            return self._framed(texts, limit, "")
        found, num_cut = self._framed([text.removesuffix(" ") for text in texts], limit, "")
        # a network has to read something to write; without a begin token the end token is what stands before a text
        return [ids or [self._backbone.eos_id] for ids in found], num_cut

    def target_ids(self, text: str, limit: int | None, behind: str = "") -> list[int]:
        ids = self.choice_ids(text, behind)
        return [*ids[: None if limit is None else limit - 1], self._backbone.eos_id]

    def choice_ids(self, text: str, behind: str = "") -> list[int]:
        """Return the ids of an answer without its end, the blank in front included: the source's, or one more."""
        text = self._unmarked(text)
        marks = _boundary_tokens(self._backbone)
        if self._backbone.kind.name != "decoder":
            ids = self._ids(text)
        elif behind.endswith(" "):
            ids = self._ids_behind(NEUTRAL, f" {text}")
        elif behind[-1:].isspace():  # a line break, say, stays where it is and needs no blank
            ids = self._ids_behind(f"{NEUTRAL}\n", text)
        else:
            ids = self._ids_behind(NEUTRAL, text if text[:1].isspace() else f" {text}")
        return [i for i in ids if i not in marks]

    def longest_target(self, texts: Iterable[str]) -> int:
        return max(len(self.target_ids(text, None, behind)) for text in texts for behind in ("", " ", "\n"))

    def _text(self, example: Example) -> str:
        """A conversation in plain form is its messages, a blank line between them."""
        earlier = [content for _, content in _conversation(self._task, example)[:-1]]
        return "\n\n".join([*earlier, example.source])


class _Chat(PromptForm):
    """The tokenizer's chat template. Raises UserError where the template cannot be used for training."""

    name = "chat"

    def __init__(self, task: Task, backbone: Backbone) -> None:
        super().__init__(task, backbone)
        tokenizer = backbone.tokenizer
        try:
            self._text = str(tokenizer.get_chat_template())
        except ValueError as error:  # several templates, and none of them called default
            raise UserError(f"backbone '{backbone.name}' has no chat template to use: {error}") from None
        self._template = ChatTemplate(self._text, _tokens_of(tokenizer), backbone.name)
        self._known_shapes: set[tuple[str, ...]] = set()
        """Roles of conversations that have been tried."""
        self._first = _conversation(task, Example(NEUTRAL, "", ()))
        """A conversation of a single text, behind which answers are rendered."""
        self._prompt, self._lead, self._tail = self._around(self._first)
        """The prompt that answers are tokenised behind; what of it stands behind the generation prompt; what ends an
        answer. White space in front of an answer is part of it, but for a line break that is a token of its own. All
        else there, such as a closed block of thinking, is in the prompt."""
        self._require_texts(tuple(role for role, _ in self._first))
        self._known_shapes.add(tuple(role for role, _ in self._first))
        frame = self._template.render((("user", NEUTRAL),), False) + self._tail
        self._frame_tokens = [
            token.content
            for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
            # white space and words may be added tokens too, and are no marks
            if token.content in frame and token.content.strip() and not token.content.strip().isalnum()
        ]
        self._turn_end = self._end_of_turn()

    @property
    def record(self) -> PromptRecord:
        return PromptRecord(form=self.name, template=template_digest(self._tokenizer), system=self._task.system)

    @property
    def settings(self) -> list[Any]:
        return [self.name, self._task.system, self.record.template]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens at which writing ends: the end of a turn, the end token, and the checkpoint's own list."""
        ends = [self._turn_end, self._backbone.eos_id, *_generation_ends(self._backbone)]
        return tuple(dict.fromkeys(end for end in ends if end is not None))

    def source_ids(self, examples: Sequence[Example], limit: int) -> tuple[list[list[int]], int]:
        """Return the ids of each conversation up to where its answer begins.

        Of one that is longer than `limit` the last message is cut. Raises UserError if it is too long without it too,
        and where the template refuses conversations of such roles or treats their answers otherwise.
        """
        conversations = [self._unmarked_messages(_conversation(self._task, example)) for example in examples]
        for conversation in conversations:
            self._check_shape(conversation)
        texts = [self._rendered(conversation) for conversation in conversations]
        found: list[list[int]] = list(self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        long = [row for row, ids in enumerate(found) if len(ids) > limit]
        for row in long:
            found[row] = self._cut(conversations[row], len(found[row]), limit)
        return found, len(long)

    def target_ids(self, text: str, limit: int | None, behind: str = "") -> list[int]:
        """Return what the template writes behind the prompt, up to and including the token that ends the turn."""
        answer = self._answer(text)
        if self._turn_end is None:
            ids, end = self._ids_behind(self._prompt, answer.removesuffix(self._tail)), self._backbone.eos_id
        else:
            ids, end = self._ids_behind(self._prompt, answer), self._turn_end
            ids = ids[: ids.index(end)]
        return [*ids[: None if limit is None else limit - 1], end]

    def choice_ids(self, text: str, behind: str = "") -> list[int]:
        return self._ids_behind(self._prompt, self._answer(text).removesuffix(self._tail))

    def _rendered(self, conversation: Messages) -> str:
        """The text that is read: the conversation, the generation prompt, and what always stands behind that."""
        return self._template.render(conversation, True) + self._lead

    def _answer(self, text: str) -> str:
        """What the template writes behind the prompt for an answer. Raises UserError if it rewrites the answer."""
        text = self._unmarked(text)
        whole = self._template.render((*self._first, ("assistant", text)), False)
        if not whole.startswith(self._prompt) or text.strip() not in whole[len(self._prompt) :]:
            problem = f"rewrites an answer, which begins {text!r:.60}, so it does not stand behind the prompt as it is"
            raise self._template.error(problem, "Take form: plain.")
        return whole[len(self._prompt) :]

    def _around(self, conversation: Messages) -> tuple[str, str, str]:
        """Return the prompt of a conversation, what of it stands behind the generation prompt, and an answer's end."""
        prompt, without = (self._template.render(conversation, wanted) for wanted in (True, False))
        whole = self._template.render((*conversation, ("assistant", PROBE)), False)
        if not whole.startswith(prompt):
            start = next(i for i in range(len(prompt) + 1) if whole[:i] != prompt[:i]) - 1
            answer = whole[start:].partition(PROBE)[0]
            problem = f"has {answer!r:.60} in front of an answer and {prompt[start:]!r:.60} in its generation prompt"
            raise self._template.error(problem, "Take form: plain.")
        lead, found, tail = whole[len(prompt) :].partition(PROBE)
        if not found:
            raise self._template.error("leaves an answer out", "Take form: plain.")
        if not lead.strip():
            # with a line break in front, a stop text "\n" would end every answer at its first token
            front = self._ids(prompt + lead)
            is_apart = lead.endswith("\n") and self._ids(prompt + lead + PROBE)[: len(front)] == front
            lead = lead if is_apart else ""
        elif prompt == without:
            problem = f"has no generation prompt: add_generation_prompt does not write {lead!r:.60}"
            raise self._template.error(problem, "Take form: plain, or mend the template.")
        return prompt + lead, lead, tail

    def _check_shape(self, conversation: Messages) -> None:
        """Raise UserError where the template treats an answer otherwise behind a conversation of these roles."""
        roles = tuple(role for role, _ in conversation)
        if roles in self._known_shapes:
            return
        self._require_texts(roles)
        around = self._around(tuple((role, NEUTRAL) for role in roles))[1:]
        if around != (self._lead, self._tail):
            problem = f"writes {around!r:.80} around an answer behind {', '.join(roles[:6])}, and "
            raise self._template.error(f"{problem}{(self._lead, self._tail)!r:.80} behind a single text")
        self._known_shapes.add(roles)

    def _require_texts(self, roles: Sequence[str]) -> None:
        """Raise UserError where the template leaves the text of a message out: rows would read alike."""
        marks = [f"{PROBE}{number}{PROBE}" for number in range(len(roles))]
        shown = self._template.render(tuple(zip(roles, marks, strict=True)), True)
        lost = next((role for role, mark in zip(roles, marks, strict=True) if mark not in shown), None)
        if lost is not None:
            problem = f"leaves out or rewrites the text of role {lost} in a conversation of {', '.join(roles[:6])}"
            raise self._template.error(problem, "Take form: plain, or mend the template.")

    def _end_of_turn(self) -> int | None:
        """Return the token that ends an answer; None where the template has none, so that the end token does it."""
        steering = set(map(self._tokenizer.convert_tokens_to_ids, [*self._special_tokens, *self._frame_tokens]))
        ids = self._ids_behind(self._prompt, self._answer(PROBE))
        return next((i for i in ids if i in steering), None)

    def _cut(self, conversation: Messages, num_ids: int, limit: int) -> list[int]:
        """Return the ids of a conversation whose last message is cut so that all of it takes at most `limit`."""
        *earlier, (role, text) = conversation
        starts = _token_starts(self._tokenizer, text)
        kept, ids = len(starts), []
        while num_ids > limit:
            if not kept:
                what = f"a text that begins {text!r:.40}" if text else "a text"
                problem = f"takes {num_ids:,} tokens around {what}, and {limit:,} is the limit"
                raise self._template.error(problem, "Raise max_source_length.")
            kept = max(0, kept - (num_ids - limit))
            ids = self._ids(self._rendered((*earlier, (role, text[: starts[kept]]))))
            num_ids = len(ids)
        return ids

    def _unmarked_messages(self, messages: Messages) -> Messages:
        return tuple((role, self._readable(content)) for role, content in messages)

    @functools.cached_property
    def _spelled(self) -> re.Pattern[str] | None:
        return _pattern([*self._special_tokens, *self._frame_tokens])


def make_form(task: Task, backbone: Backbone) -> PromptForm:
    """Return the form of a task's texts on a backbone. Raises UserError where its chat template cannot be used."""
    form, has_template = task.form, bool(getattr(backbone.tokenizer, "chat_template", None))
    if form == "auto":
        form = "chat" if has_template and backbone.writes_text else "plain"
    if form == "chat":
        if not backbone.writes_text:
            problem = (
                f"'{backbone.name}' is an encoder and writes no answer, so task '{task.name}' cannot have form: chat"
            )
            raise UserError(problem, hint="Take form: plain, or auto.")
        if not has_template:
            problem = f"the tokenizer of backbone '{backbone.name}' has no chat template for task '{task.name}'"
            raise UserError(problem, hint="Take form: plain, or auto, which takes a template where there is one.")
        return _Chat(task, backbone)
    if form == "plain":
        return _Plain(task, backbone)
    if task.messages or task.system:
        what = "a conversation" if task.messages else "a system text"
        hint = "Say form: auto, or template.form: auto in the protocol."
        raise UserError(f"task '{task.name}' has {what}, for which form: suffix has no place", hint=hint)
    return PromptForm(task, backbone)


def template_digest(tokenizer: Any) -> str | None:
    """Return a hash of a tokenizer's chat template and of the tokens that it is given; None where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    whole = json.dumps([tokenizer.chat_template, _tokens_of(tokenizer)], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _tokens_of(tokenizer: Any) -> dict[str, Any]:
    """Return the special tokens by their names, for a template: `bos_token` and the like."""
    tokens = getattr(tokenizer, "special_tokens_map", {})
    return {name: token for name, token in tokens.items() if isinstance(token, (str, list))}


def target_ids(text: str, backbone: Backbone, limit: int | None) -> list[int]:
    """Return the ids of an answer with exactly one end token, as the last; at most `limit` ids."""
    marks = _boundary_tokens(backbone)
    ids = [i for i in backbone.tokenizer(text, add_special_tokens=False)["input_ids"] if i not in marks]
    return [*ids[: None if limit is None else limit - 1], backbone.eos_id]


def _conversation(task: Task, example: Example) -> Messages:
    """Return the messages before the answer, the task's system text in front unless the row has one."""
    messages = example.messages or (("user", example.source),)
    return (("system", task.system), *messages) if task.system and messages[0][0] != "system" else messages


def _generation_ends(backbone: Backbone) -> list[int]:
    """Return the tokens at which the checkpoint's generation configuration ends an answer, where it says so."""
    ends = getattr(getattr(backbone.model, "generation_config", None), "eos_token_id", None)
    return [int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None]


def _pattern(tokens: Iterable[str]) -> re.Pattern[str] | None:
    # a single character is no spelling of a token: some tokenizers pad with "!"
    longest_first = sorted((token for token in tokens if len(token.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _without(pattern: re.Pattern[str] | None, text: str) -> str:
    """Return a text without the tokens that it spells, also those that come about as others are taken out."""
    before = None
    while pattern is not None and text != before:
        before, text = text, pattern.sub("", text)
    return text


def _token_starts(tokenizer: Any, text: str) -> list[int]:
    """Return where the tokens of a text begin in it, in characters."""
    made = tokenizer(text, add_special_tokens=False, verbose=False)
    if getattr(made, "encodings", None):
        return [start for start, _ in made.encodings[0].offsets]
    # a tokenizer written in Python knows no places, so tokens count as equally long
    count = len(made["input_ids"])
    return [len(text) * index // count for index in range(count)]


def _boundary_tokens(backbone: Backbone) -> set[int]:
    """Return the begin and the end token. A text that spells one would seem to begin or end there, so it loses it."""
    begin = getattr(backbone.tokenizer, "bos_token_id", None)
    return {backbone.eos_id} if begin is None else {backbone.eos_id, begin}


def _tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer puts before and behind a text. Raises UserError if the text's own ids change."""
    plain, framed = (tokenizer(NEUTRAL, add_special_tokens=added)["input_ids"] for added in (False, True))
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return list(framed[:start]), list(framed[start + len(plain) :])
    raise UserError(f"the tokenizer {type(tokenizer).__name__} changes a text's tokens where it frames it")


def _num_cut(made: Any, texts: Sequence[str], tokenizer: Any, limit: int) -> int:
    """Return how many of the tokenised texts were cut."""
    if made.encodings is not None:
        return sum(bool(encoding.overflowing) for encoding in made.encodings)
    # a tokenizer written in Python does not say, so texts that fill the limit are tokenised again without it
    full = [text for text, ids in zip(texts, made["input_ids"], strict=True) if len(ids) >= limit]
    return sum(len(tokenizer(text, verbose=False)["input_ids"]) > limit for text in full)
