"""Forms of a prompt, on the tokenizers of several families: every special token once, and only the text is ever cut."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import GPT2, byte_tokenizer, write_checkpoint
from families import CHATS, DECODERS, FAMILIES, backbone
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.model import TemplateLM
from tokenizers import AddedToken

import harness
from harness.backbone.load import load_backbone, local_tokenizer
from harness.cli.list_tasks import describe_rows
from harness.cli.listings import describe_plan
from harness.data.examples import Example
from harness.data.prompt_form import PromptForm, make_form
from harness.data.splits import cell_rows
from harness.data.tasks import all_tasks
from harness.data.tasks.task import Task
from harness.data.tokenization import cached_encode, encode, max_new_tokens
from harness.errors import UserError
from harness.results.store import read_result
from harness.runner.plan import make_plan
from harness.suite.blocks import Form
from harness.suite.make_groups import Overrides
from tools.network_matrix.checkpoints import build

TASK = all_tasks()["micro_qa"]
LIMIT = 4_000
SPECIAL = sorted({token for family in FAMILIES.values() for token in [*dict(family.named).values(), *family.others]})
PARTS = [*SPECIAL, "<|im_", "end|>", "<", "|>", "s>", "No", " the", "\n", " ", "in", "é", "0", "[INST]", "user:"]


def example(text: str, answer: str = "No", *earlier: tuple[str, str]) -> Example:
    return Example(text, answer, (answer,), (*earlier, ("user", text)) if earlier else ())


@cache
def form(family: str, name: Form = "chat", system: str = "") -> PromptForm:
    return make_form(replace(TASK, form=name, system=system), backbone(family))


def source(made: PromptForm, text: str, limit: int = LIMIT, *earlier: tuple[str, str]) -> list[int]:
    ids, _ = made.source_ids([example(text, "No", *earlier)], limit)
    return ids[0]


def special_ids(made: PromptForm, ids: Sequence[int]) -> list[int]:
    """Those of the ids that are special tokens, in their order, without that of a letter which a family lacks."""
    tokens = made._tokenizer.added_tokens_decoder
    return [i for i in ids if i in tokens and tokens[i].special and tokens[i].content != "<unk>"]


texts = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@pytest.mark.parametrize("family", CHATS)
@given(text=texts, answer=texts)
@settings(max_examples=20)
def test_whatever_a_row_spells_no_special_token_is_lost_or_doubled(family: str, text: str, answer: str) -> None:
    for name in ("chat", "plain"):
        made = form(family, name)
        # behind a letter: of an empty text the end token alone may be read
        assert special_ids(made, source(made, f"a{text}")) == special_ids(made, source(made, "word"))
        later, same = (
            source(made, "word", LIMIT, ("user", first), ("assistant", second))
            for first, second in ((f"a{text}", f"a{answer}"), ("word", "word"))
        )
        assert special_ids(made, later) == special_ids(made, same)
        target = made.target_ids(answer, None, text)
        assert special_ids(made, target) == target[-1:]
        assert target[-1] in made.end_ids
        assert special_ids(made, made.choice_ids(answer, text)) == []


@pytest.mark.parametrize("name", ["plain", "chat"])
@pytest.mark.parametrize("family", CHATS)
def test_a_token_that_comes_about_as_another_is_taken_out_goes_too(family: str, name: Form) -> None:
    made = form(family, name)
    frame = special_ids(made, source(made, "word"))
    for token in (*dict(FAMILIES[family].named).values(), *FAMILIES[family].others):
        text = f"a{token[:2]}{token[:2]}{token}{token[2:]}{token[2:]}"
        assert special_ids(made, source(made, text)) == frame
        target = made.target_ids(text, None)
        assert special_ids(made, target) == target[-1:]


@pytest.mark.parametrize("family", CHATS)
@given(text=st.text("the No\n.é", max_size=12), answer=st.text("in Yes\n", max_size=9))
@settings(max_examples=20)
def test_chat_is_what_transformers_renders(family: str, text: str, answer: str) -> None:
    """Up to the generation prompt, and with the answer up to the end of its turn."""
    made, chat = form(family), [{"role": "user", "content": text}]
    theirs = made._tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    read, written = source(made, text), made.target_ids(answer, None)
    assert read[: len(theirs)] == theirs
    whole = made._tokenizer.apply_chat_template(
        [*chat, {"role": "assistant", "content": answer}], tokenize=False, enable_thinking=False
    )
    ours = made._tokenizer.decode([*read, *written])
    if family == "without end":  # the end token stands for the end of the turn
        ours = ours.removesuffix(made._tokenizer.eos_token) + "\n"
    assert made._tokenizer.decode(made._ids(whole)).rstrip("\n") == ours.rstrip("\n")
    if answer == answer.strip() and answer and family != "without end":
        ids = made._ids(whole)
        assert [*read, *written] == ids[: len(read) + len(written)]


@pytest.mark.parametrize("name", ["suffix", "plain", "chat"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_begin_token_stands_once_and_in_front(family: str, name: Form) -> None:
    if name == "chat" and family not in CHATS:
        return
    made = form(family, name)
    begins = FAMILIES[family].around.startswith("<")
    begin = made._tokenizer.bos_token_id
    for text in ("the thing", f"{made._tokenizer.bos_token} the thing", "the " * 50):
        for limit in (24, LIMIT):
            ids = source(made, text, limit if name != "chat" else LIMIT)
            assert [i for i, token in enumerate(ids) if token == begin] == ([0] if begins else [])


@pytest.mark.parametrize("family", DECODERS)
@given(
    context=st.text("the No.:é\n", max_size=9).map(str.rstrip).filter(bool),
    answer=st.text("in Yes0\n", min_size=1, max_size=9).filter(lambda text: not text[0].isspace()),
)
@settings(max_examples=20)
def test_plain_pairs_are_those_of_the_evaluation_harness(family: str, context: str, answer: str) -> None:
    made = form(family, "plain")
    theirs = SimpleNamespace(backend="causal", tok_encode=made._tokenizer.encode)
    for text in (context, f"{context} "):
        read, written = TemplateLM._encode_pair(theirs, context, f" {answer}")
        assert source(made, text) == read
        assert made.choice_ids(answer, text) == written
        assert made.target_ids(answer, None, text) == [*written, made._tokenizer.eos_token_id]


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(
    ("text", "answer", "whole"),
    [
        ("a:", "in", "a: in"),
        ("a: ", "in", "a: in"),
        ("a:\n", "in", "a:\nin"),
        ("a:  ", "in", "a:  in"),
        ("a:", " in", "a: in"),
        ("a:", "\nin", "a:\nin"),
        ("", "in", " in"),
    ],
)
def test_text_and_answer_stand_one_blank_apart_unless_there_is_white_space(
    family: str, text: str, answer: str, whole: str
) -> None:
    made = form(family, "plain")
    ids = [*source(made, text), *made.choice_ids(answer, text)]
    shown = made._tokenizer.decode(ids, skip_special_tokens=True)
    assert shown == (whole.lstrip() if FAMILIES[family].pieces else whole)
    assert len(source(made, text)) > 0


@pytest.mark.parametrize("family", CHATS)
@given(text=st.text("the No in\né[]", min_size=1, max_size=60), room=st.integers(0, 40))
@settings(max_examples=20)
def test_a_chat_is_cut_in_its_last_text_alone(family: str, text: str, room: int) -> None:
    made, history = form(family), (("user", "the"), ("assistant", "No"))
    frame = source(made, "", LIMIT, *history)
    limit = len(frame) + room
    whole = source(made, text, LIMIT, *history)
    (cut,), num_cut = made.source_ids([example(text, "No", *history)], limit)
    assert num_cut == (len(whole) > limit)
    assert len(cut) <= limit
    if not num_cut:
        assert cut == whole
        return
    rendered = [made._tokenizer.decode(source(made, text[:end], LIMIT, *history)) for end in range(len(text))]
    assert made._tokenizer.decode(cut) in rendered
    with pytest.raises(UserError, match=r"tokens around a text that begins .*, and 3 is the limit. Raise max_source"):
        made.source_ids([example(text, "No", *history)], 3)


@pytest.mark.parametrize("name", ["plain", "chat"])
@pytest.mark.parametrize("family", CHATS)
def test_a_long_answer_is_cut_and_keeps_its_end(family: str, name: Form) -> None:
    made = form(family, name)
    whole, cut = made.target_ids("the thing " * 20, None), made.target_ids("the thing " * 20, 9)
    assert cut == [*whole[:8], whole[-1]]


def test_a_line_break_in_front_of_an_answer_is_read_and_not_written() -> None:
    """Else the stop text "\\n" would end every answer at its first token."""
    made = form("zephyr")
    assert made._tokenizer.decode(source(made, "in")) == "<|user|>\nin</s>\n<|assistant|>\n"
    for answer in ("No", "the\nNo"):
        assert made._tokenizer.decode(made.target_ids(answer, None)) == f"{answer}</s>"
        assert made._tokenizer.decode(made.choice_ids(answer)) == answer


@pytest.mark.parametrize("family", CHATS)
def test_a_line_break_that_is_an_added_token_ends_no_turn(family: str) -> None:
    made = backbone(family)
    made.tokenizer.add_tokens([AddedToken("\n", special=False)])
    found, expected = make_form(replace(TASK, form="chat"), made), form(family)
    assert found.end_ids == expected.end_ids
    target = found.target_ids("the\nNo", None)
    assert target[-1] == expected.target_ids("the\nNo", None)[-1]
    assert made.tokenizer.decode(target[:-1]).endswith("the\nNo")


def test_a_system_text_stands_in_front_unless_the_row_has_its_own() -> None:
    made = form("qwen", "chat", "Be brief.")
    shown = made._tokenizer.decode(source(made, "in"))
    assert shown.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nin<|im_end|>")
    own = made._tokenizer.decode(source(made, "in", LIMIT, ("system", "Be long.")))
    assert own == shown.replace("brief", "long")
    assert made.target_ids("No", None) == form("qwen").target_ids("No", None)
    plain = form("gpt2", "plain", "Be brief.")
    assert plain._tokenizer.decode(source(plain, "in")) == "Be brief.\n\nin"


def test_a_conversation_in_plain_form_is_its_messages_with_blank_lines_between() -> None:
    made = form("gpt2", "plain")
    ids = source(made, "in", LIMIT, ("system", "Be brief."), ("user", "the"), ("assistant", "No"))
    assert made._tokenizer.decode(ids) == "Be brief.\n\nthe\n\nNo\n\nin"


def test_auto_takes_a_template_where_there_is_one_and_the_network_writes() -> None:
    names = {family: form(family, "auto").name for family in FAMILIES}
    assert names == {family: "chat" if family in CHATS else "plain" for family in FAMILIES}
    assert make_form(replace(TASK, form="auto"), backbone("llama", kind="encoder")).name == "plain"
    assert make_form(replace(TASK, form="auto"), backbone("gemma", kind="encoder-decoder")).name == "chat"


def test_an_encoder_decoder_reads_the_text_alone_in_plain_form_and_the_same_template_in_chat_form() -> None:
    plain, suffix = form("t5", "plain"), form("t5", "suffix")
    for text in ("the thing", "the thing " * 30):
        assert source(plain, text, 20) == source(suffix, text, 20)
    assert plain.target_ids("No", None) == suffix.target_ids("No", None)
    read = backbone("gemma", kind="encoder-decoder")
    made = make_form(replace(TASK, form="chat"), read)
    assert source(made, "in") == source(form("gemma"), "in")
    assert made.target_ids("No", None) == form("gemma").target_ids("No", None)


def test_an_encoder_reads_the_text_between_its_two_tokens() -> None:
    made, text = form("bert", "plain"), "the [SEP] thing"
    tokens = made._tokenizer.convert_ids_to_tokens(source(made, text, 6))
    assert (tokens[0], tokens[-1], len(tokens)) == ("[CLS]", "[SEP]", 6)
    assert "[SEP]" not in tokens[1:-1]


def test_writing_ends_at_the_end_of_a_turn_and_at_what_the_checkpoint_lists() -> None:
    made = backbone("llama")
    made.model.generation_config.eos_token_id = [7, 9]
    names = made.tokenizer.convert_tokens_to_ids(["<|eot|>", "</s>"])
    assert make_form(replace(TASK, form="chat"), made).end_ids == tuple(dict.fromkeys([*names, 7, 9]))
    assert make_form(replace(TASK, form="plain"), made).end_ids == tuple(dict.fromkeys([names[1], 7, 9]))
    assert make_form(TASK, made).end_ids == (names[1],)


@pytest.mark.parametrize("family", DECODERS)
def test_a_label_may_take_the_tokens_of_the_longest_whatever_stands_in_front(family: str) -> None:
    task = replace(all_tasks()["boolq"], form="auto", target_style="words")
    made = backbone(family)
    found = make_form(task, made)
    needed = max(
        len(found.target_ids(label, None, behind)) for label in task.targets for behind in ("a", "a ", "a\n", "")
    )
    assert max_new_tokens(task, made) == needed


BAD_TEMPLATES = {
    "raises": ("{{ raise_exception('Roles must alternate') }}", "refuses a conversation of user: Roles must alternate"),
    "no jinja": ("{% for", "cannot be read: unexpected 'end of template'"),
    "wrong name": ("{{ messages[0]['content'].text.x }}", "refuses a conversation of user: "),
    "loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "does not end: it was stopped after 100,000 rounds of its loops",
    ),
    "loops in vain": (
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "does not end: it was stopped after 100,000 rounds",
    ),
    "calls itself": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "does not end: it was stopped after 100,000 rounds",
    ),
    "writes without end": (
        "{% for a in range(9999) %}{% for b in range(9999) %}ever and ever{% endfor %}{% endfor %}",
        "does not end: it was stopped behind 1,000,010 characters",
    ),
    "doubles": (
        "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "does not end: it was stopped behind 1,000,010 characters",
    ),
    "doubles by adding": (
        "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "does not end: it was stopped behind 1,000,010 characters",
    ),
    "repeats": ("{{ 'x' * 999999999999 }}", "does not end: it was stopped behind 1,000,010 characters"),
    "no generation prompt": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "has no generation prompt: add_generation_prompt does not write '<|im_start|>assistant\\n'",
    ),
    "another generation prompt": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}bot: {% endif %}",
        "has 'assistant: ' in front of an answer and 'bot: ' in its generation prompt",
    ),
    "leaves answers out": ("{{ messages[0].content }}", "leaves an answer out"),
}


@pytest.mark.parametrize(("template", "words"), BAD_TEMPLATES.values(), ids=BAD_TEMPLATES)
def test_a_template_that_cannot_be_used_is_told_in_one_sentence(template: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        make_form(replace(TASK, form="chat"), backbone("qwen", template))
    assert str(caught.value).startswith(f"the chat template of backbone 'tiny-decoder' {words}")


def test_a_template_that_rewrites_an_answer_or_depends_on_the_turns_is_told() -> None:
    upper = FAMILIES["qwen"].template.replace("message.content", "message.content.replace('secret', '')")
    made = make_form(replace(TASK, form="chat"), backbone("qwen", upper))
    with pytest.raises(UserError, match="rewrites an answer, which begins 'a secret'"):
        made.target_ids("a secret", None)
    turns = FAMILIES["qwen"].template.replace("<|im_end|>\n'", "<|im_end|>\n' ~ ('x' if messages|length > 2 else '')")
    made = make_form(replace(TASK, form="chat"), backbone("qwen", turns))
    with pytest.raises(UserError, match=r"around an answer behind user, assistant, user, and"):
        source(made, "in", LIMIT, ("user", "the"), ("assistant", "No"))


@pytest.mark.parametrize("role", ["user", "system"])
def test_a_template_that_leaves_a_text_out_is_told(role: str) -> None:
    """Every row would read alike, and nothing else would show it."""
    without = FAMILIES["qwen"].template.replace(
        "message.content", f"('' if message.role == '{role}' else message.content)"
    )
    with pytest.raises(
        UserError, match=f"leaves out or rewrites the text of role {role} in a conversation of system, user"
    ):
        make_form(replace(TASK, form="chat", system="Be brief."), backbone("qwen", without))
    later = FAMILIES["qwen"].template.replace("message.content", "('' if loop.index > 2 else message.content)")
    made = make_form(replace(TASK, form="chat"), backbone("qwen", later))
    with pytest.raises(UserError, match="the text of role user in a conversation of user, assistant, user"):
        source(made, "in", LIMIT, ("user", "the"), ("assistant", "No"))


@pytest.mark.parametrize(
    ("name", "token", "is_refused"),
    [("chat", "<|im_start|>", True), ("plain", "<|im_start|>", True), ("suffix", "<|im_end|>", True),
     ("suffix", "<|im_start|>", False)],
)  # fmt: skip
def test_an_answer_that_spells_a_token_it_would_lose_is_told(name: Form, token: str, is_refused: bool) -> None:
    """The network would be trained without the token, and its right answers would be scored against it."""
    task, network = replace(TASK, form=name), backbone("qwen")
    rows = [example("in", "No"), Example("in", "No", ("No", f"No{token}"))]
    cached_encode(rows[:1], network, task, LIMIT)
    if is_refused:
        with pytest.raises(UserError, match=r"the answer 'No<.*spells '<\|im_\w+\|>'.*that no answer holds"):
            cached_encode(rows, network, task, LIMIT)
    else:
        cached_encode(rows, network, task, LIMIT)


@pytest.mark.parametrize("name", ["plain", "chat"])
def test_a_text_of_nothing_but_special_tokens_is_told(name: Form) -> None:
    made = form("qwen", name)
    for row in (example(" <|im_end|><|im_start|>\n"), example("in", "No", ("user", "<|im_end|>"), ("assistant", "in"))):
        with pytest.raises(UserError, match="is nothing but special tokens of backbone"):
            made.source_ids([row], LIMIT)
    made.source_ids([example("in<|im_end|>"), example("")], LIMIT)


@pytest.mark.parametrize("family", [name for name in CHATS if not FAMILIES[name].takes_system])
def test_a_template_that_refuses_a_system_message_says_so_itself(family: str) -> None:
    with pytest.raises(UserError, match=r"refuses a conversation of system, user: .*[Ss]ystem role|.*roles are supp"):
        form(family, "chat", "Be brief.")
    with pytest.raises(UserError, match="refuses a conversation of system, user: "):
        source(form(family), "in", LIMIT, ("system", "Be brief."))


def test_a_template_that_writes_the_date_writes_the_same_each_day() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}\n" + FAMILIES["qwen"].template
    made = make_form(replace(TASK, form="chat"), backbone("qwen", dated))
    assert made._tokenizer.decode(source(made, "in")).startswith("26 Jul 2024\n")


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt2", {"form": "chat"}, "the tokenizer of backbone 'tiny-decoder' has no chat template for task 'micro_qa'"),
        ("bert", {"form": "chat"}, "'tiny-encoder' is an encoder and writes no answer"),
        ("gpt2", {"system": "Be brief."}, "task 'micro_qa' has a system text, for which form: suffix has no place"),
        ("gpt2", {"messages": "talk"}, "task 'micro_qa' has a conversation, for which form: suffix has no place"),
    ],
)
def test_a_form_that_cannot_be_is_refused(family: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        make_form(replace(TASK, **changes), backbone(family))
    assert str(caught.value).startswith(words)


def test_stored_tokens_are_another_forms_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    other = FAMILIES["qwen"].template.replace("user", "user")
    kinds: list[tuple[Task, str]] = [
        (TASK, FAMILIES["qwen"].template),
        (replace(TASK, form="plain"), FAMILIES["qwen"].template),
        (replace(TASK, form="chat"), FAMILIES["qwen"].template),
        (replace(TASK, form="chat", system="Be brief."), FAMILIES["qwen"].template),
        (replace(TASK, form="chat"), "{# another #}" + other),
    ]
    row = example("the thing")
    kinds_of_rows = [[row], [replace(row, messages=(("user", "in"), ("assistant", "No"), ("user", "the thing")))]]
    for task, template in kinds:
        for rows in kinds_of_rows if task.form == "chat" else kinds_of_rows[:1]:
            before = len(list(tmp_path.glob("tokens/*")))
            made = backbone("qwen", template)
            for _ in range(2):
                stored, anew = cached_encode(rows, made, task, 64), encode(rows, made, task, 64)
                assert np.array_equal(stored.source_ids, anew.source_ids)
            assert len(list(tmp_path.glob("tokens/*"))) == before + 1


SUITE = """\
suite: sums
backbones: [{backbone}]
tasks: [sums]
seeds: [1]
recipe: {{steps: 1, eval_every: 1, batch_size: 2, warmup_steps: 0, lr: 0.1}}
protocol: {{{protocol}}}
define_tasks:
  sums: {{files: sums.jsonl, {text}, kind: text, metrics: [exact_match], {form}
         max_source_length: 40, max_target_length: 6, dev_share: 2, test_share: 2}}
methods: {{prompt_tuning: {{prompt_length: 2}}}}
"""
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def write_sums(
    folder: Path, form: str, template: str | None, text: str = 'template: "{prompt}"', protocol: str = ""
) -> Path:
    """A suite on ten sums and a tiny checkpoint with this chat template; the path of its file."""
    made = byte_tokenizer("$A")
    made.chat_template = template
    net = write_checkpoint(folder / "net", {**GPT2, "n_positions": 64}, made)
    lines = [
        {
            "prompt": f"{i} + {i} =",
            "completion": str(2 * i),
            "talk": [{"role": "user", "content": f"{i} + {i}"}, {"role": "assistant", "content": str(2 * i)}],
        }
        for i in range(10)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "sums.yaml"
    path.write_text(
        SUITE.format(
            backbone=net,
            text=text if "messages" in text and "template" not in text else f"{text}, label: completion",
            form=f"{form}," if form else "",
            protocol=protocol or "base: accept-2024",
        )
    )
    return path


def test_a_run_records_form_and_template(tmp_path: Path) -> None:
    path = write_sums(tmp_path, "form: auto, system: Be brief.", TEMPLATE)
    assert harness.run(path, results=tmp_path / "out", quiet=True).num_failed == 0
    stored = [read_result(file) for file in (tmp_path / "out" / "sums").rglob("*.json")]
    (prompt,) = {repr(result.data and result.data.prompt) for result in stored}
    expected = make_form(
        replace(TASK, form="chat", system="Be brief."), load_backbone(str(tmp_path / "net"), device="cpu")
    )
    assert prompt == repr(expected.record)
    assert len(expected.record.template or "") == 16


def test_another_template_makes_a_chat_stale_and_nothing_else(tmp_path: Path) -> None:
    for name, form in (("chat", "form: chat"), ("plain", "form: plain")):
        folder = tmp_path / name
        folder.mkdir()
        path = write_sums(folder, form, TEMPLATE)
        assert harness.run(path, results=folder / "out", quiet=True).num_trained == 1
        assert harness.run(path, results=folder / "out", quiet=True).num_stale == 0
        (folder / "net" / "chat_template.jinja").write_text(TEMPLATE.replace("assistant", "model"))
        local_tokenizer.cache_clear()  # one process reads a tokenizer once
        assert harness.run(path, results=folder / "out", quiet=True).num_stale == (name == "chat")


def test_a_template_that_appears_makes_auto_stale_and_plain_not(tmp_path: Path) -> None:
    for form in ("auto", "plain"):
        folder = tmp_path / form
        folder.mkdir()
        path = write_sums(folder, f"form: {form}", None)
        assert harness.run(path, results=folder / "out", quiet=True).num_trained == 1
        assert harness.run(path, results=folder / "out", quiet=True).num_stale == 0
        (folder / "net" / "chat_template.jinja").write_text(TEMPLATE)
        local_tokenizer.cache_clear()  # one process reads a tokenizer once
        assert harness.run(path, results=folder / "out", quiet=True).num_stale == (form == "auto")


def test_a_template_makes_no_text_of_an_encoder_stale(tmp_path: Path) -> None:
    build("BERT", tmp_path / "bert")
    path = write_sums(tmp_path, "form: auto", None)
    path.write_text(
        path.read_text()
        .replace(f"[{tmp_path / 'net'}]", f"[{tmp_path / 'bert'}]")
        .replace("kind: text, metrics: [exact_match]", "kind: regression, metrics: [pearson]")
        .replace("recipe: {", "recipe: {head: linear, ")
    )
    assert harness.run(path, results=tmp_path / "out", quiet=True).num_trained == 1
    (tmp_path / "bert" / "chat_template.jinja").write_text(TEMPLATE)
    local_tokenizer.cache_clear()
    assert harness.run(path, results=tmp_path / "out", quiet=True).num_stale == 0


@pytest.mark.parametrize(
    ("form", "template", "text", "protocol", "words"),
    [
        ("form: chat", None, 'template: "{prompt}"', "", "has no chat template for task 'sums'"),
        ("", None, 'template: "{prompt}"', "template.form: chat", "has no chat template for task 'sums'"),
        ("form: chat", "{{ raise_exception('no') }}", "messages: talk", "", "refuses a conversation of user: no"),
        ("form: chat", "x" * 50 + TEMPLATE, 'template: "{prompt}"', "", "tokens around a text, and 40 is the limit"),
        ("", TEMPLATE, "messages: talk", "", "'messages' goes with form: chat, plain or auto"),
        ("system: Be brief.", TEMPLATE, 'template: "{prompt}"', "", "'system' goes with form: chat, plain or auto"),
        ("", TEMPLATE, 'messages: talk, template: "{prompt}"', "", "give either fields or template, which make"),
        ("", TEMPLATE, 'template: "{prompt}"', "template.system: 3", "protocol.template.system: expected a text"),
        ("", TEMPLATE, 'template: "{prompt}"', "template.form: chta", "did you mean chat?"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, form: str, template: str | None, text: str, protocol: str, words: str
) -> None:
    path = write_sums(tmp_path, form, template, text, protocol)
    with pytest.raises(UserError) as caught:
        harness.run(path, results=tmp_path / "out", quiet=True)
    assert words in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.json"))


STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE.replace(
    "m.content", "m.content.replace('secret', '')"
)
"""Refuses a system message, and leaves a word out."""
ODD_ROWS = {
    "refused": ([("system", "Be brief."), ("user", "odd")], "1", "refuses a conversation of system, user: no system"),
    "too long": (
        [("user", "odd" * 20), ("assistant", "1"), ("user", "odd")],
        "1",
        "takes 1.. tokens around a text that begins 'odd', and 40 is the limit",
    ),
    "rewritten": ([("user", "odd")], "a secret", "rewrites an answer, which begins 'a secret'"),
    "no token": ([("user", "odd")], "</s>", "the choice '</s>' has no token in the vocabulary of 'net'"),
}


@pytest.mark.parametrize(("talk", "answer", "words"), ODD_ROWS.values(), ids=ODD_ROWS)
def test_a_row_that_a_backbone_cannot_take_is_told_before_a_run(
    tmp_path: Path, talk: list[tuple[str, str]], answer: str, words: str
) -> None:
    is_choice = answer == "</s>"
    text = "template: '{q}', choices: options" if is_choice else "messages: talk"
    path = write_sums(tmp_path, "form: auto", STRICT, text)
    made = path.read_text().replace("length: 2}}", "length: 2}, majority: }")
    path.write_text(made.replace("kind: text, metrics: [exact_match]", "kind: choice") if is_choice else made)
    rows: list[dict[str, Any]] = []
    for i in range(10):
        (*earlier, (role, last)), right = (talk, answer) if i == 8 else ([("user", "even")], "1")
        turns = [*earlier, (role, last), ("assistant", right)]
        shown = [{"role": speaker, "content": content} for speaker, content in turns]
        rows.append({"talk": shown, "q": last, "options": ["2", right], "completion": i % 2})
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = make_plan(path, Overrides(), tmp_path / "out", None)
    for start in (lambda: harness.run(path, results=tmp_path / "out", quiet=True), lambda: describe_plan(plan)):
        with pytest.raises(UserError) as caught:
            start()
        found = re.match(rf"sums (train|dev|test) row (\d+): .*{words}", str(caught.value))
        assert found, caught.value
        data = cell_rows(plan.asked()[0], None, plan.suite.folder)
        assert data.split(found[1])[int(found[2])].source == "odd"
    assert not (tmp_path / "out").exists()


def test_the_protocol_may_set_form_and_system_of_every_task(tmp_path: Path) -> None:
    protocol = "template.form: chat, template.system: Add."
    shown = describe_rows(
        "sums", str(tmp_path / "net"), "train", 1, None, write_sums(tmp_path, "", TEMPLATE, protocol=protocol)
    )
    assert shown["rows"][0]["source"].startswith("<s>system\nAdd.</s>\n<s>user\n")


def test_a_preview_shows_every_token_of_prompt_and_answer(tmp_path: Path) -> None:
    path = write_sums(tmp_path, "form: chat", TEMPLATE, "messages: talk")
    shown = describe_rows("sums", str(tmp_path / "net"), "train", 1, None, path)
    (row,) = shown["rows"]
    number = int(row["source"].split()[1])
    assert row["source"] == f"<s>user\n{number} + {number}</s>\n<s>assistant\n"
    assert row["target_pieces"] == [*str(2 * number), "</s>"]
    made = load_backbone(str(tmp_path / "net"), device="cpu").tokenizer
    assert made.decode(row["source_ids"]) == row["source"]
    assert (shown["ends"], shown["data"]["prompt"]["form"]) == (["</s>"], "chat")
    for part in (
        "form chat; an answer ends at </s>\n",
        "  source: <s>user\\n\n          ",
        f"{number}</s>\\n\n          <s>assistant\\n\n  target: {2 * number}</s>\n",
        f"  tokens: {' | '.join(str(2 * number))} | </s>",
    ):
        assert part in shown["text"]
