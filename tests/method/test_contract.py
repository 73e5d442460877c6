"""The contract finds what is wrong with a method: one broken method per rule, and what the finding says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.backbone import KindName
from harness.cli.listings import describe_contract
from harness.method.method import Method
from harness.method.registry import load_file
from harness.train import method_contract as contract
from harness.train.method_contract import Finding, check_method_file
from harness.train.tiny_backbones import tiny_backbone

HEAD = """
from dataclasses import dataclass

import torch
from torch import nn

from harness.method import Defaults, Method, Paper, Rule, sweep, vocabulary_rows

TABLE = {}
"""

SOUND = """
class Broken(Method):
    name = "broken"
    paper = Paper("key", "https://example.org")

    def __init__(self, hp, backbone):
        super().__init__(hp, backbone)
        self.vectors = nn.Parameter(vocabulary_rows(backbone, 4, "top5000"))

    def prompt(self):
        return self.vectors
"""

METHOD_CHECKS = list(contract.METHODS)
(
    SETTINGS, RUNS, SEED, FROZEN, SEEN, REPEATS, GRADIENT, LOSS, RELOAD, EXPORT, EXTREMES, TOGETHER, BUNDLE, ANSWERS,
    DECODER, PACKED, ENCODER, BFLOAT16, COUNT, KEPT, FIGURE,
) = METHOD_CHECKS  # fmt: skip


def findings(tmp_path: Path, body: str) -> dict[str, Finding]:
    """All findings on a file of this text, by check."""
    return {item.check: item for item in check_method_file(write(tmp_path, body))}


def finding(tmp_path: Path, body: str, check: str) -> Finding:
    """One finding on a file of this text."""
    path = write(tmp_path, body)
    cls = load_file(path).cls
    assert cls is not None
    return contract._judged(check, contract.METHODS[check], cls, path)[0]


def write(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "broken.py"
    path.write_text(HEAD + body)
    return path


def changed(old: str, new: str, body: str = SOUND) -> str:
    assert old in body
    return body.replace(old, new)


ADDED_METHOD = "\n    def prompt(self):\n        return self.vectors\n"

BROKEN = {
    SETTINGS: (
        changed("    def __init__", '    defaults = Defaults(recipe={"lr": sweep(0.1, "fast")})\n\n    def __init__'),
        'recipe.lr: expected a number, got "fast"',
    ),
    RUNS: (changed("return self.vectors", "return [self.vectors]"), "[P, H] or [K, P, H], not a list"),
    SEED: (
        changed('vocabulary_rows(backbone, 4, "top5000")', "draw(backbone)")
        + "\nimport os, struct\n\ndef draw(backbone):\n"
        "    number = struct.unpack('H', os.urandom(2))[0]\n"
        "    return torch.full((4, backbone.hidden), float(number), dtype=backbone.embedding.weight.dtype)\n",
        "vectors differs between two builds with one seed",
    ),
    FROZEN: (
        changed(
            "super().__init__(hp, backbone)",
            "super().__init__(hp, backbone)\n        next(backbone.model.parameters()).requires_grad_(True)",
        ),
        "behind __init__ the backbone is another: requires_grad of the Embedding 'shared'",
    ),
    SEEN: (
        changed('nn.Parameter(vocabulary_rows(backbone, 4, "top5000"))',
                '[nn.Parameter(vocabulary_rows(backbone, 4, "top5000"))]')
        .replace("self.vectors\n", "self.vectors[0]\n"),
        "vectors[0]: trained tensors in a list",
    ),
    REPEATS: (
        changed("return self.vectors", "return torch.nn.functional.dropout(self.vectors, 0.5)"),
        "evaluation is random: the same rows give logits that differ by",
    ),
    KEPT: (
        changed(ADDED_METHOD, """
        self.table = nn.Parameter(torch.zeros(24, backbone.hidden).to(self.vectors))

    def prompt(self):
        return self.vectors

    def added(self):
        return self.table

    def kept(self):
        return {"vectors": self.vectors}
"""),
        "do not answer alone: logits differ by",
    ),
    GRADIENT: (
        changed("    def prompt", "        self.spare = nn.Parameter(torch.ones(3))\n\n    def prompt"),
        "no gradient: spare",
    ),
    LOSS: (
        changed("return self.vectors", "return Reverse.apply(self.vectors)")
        + "\nclass Reverse(torch.autograd.Function):\n"
        "    @staticmethod\n    def forward(ctx, x):\n        return x.clone()\n\n"
        "    @staticmethod\n    def backward(ctx, gradient):\n        return -gradient\n",
        "loss went from",
    ),
    RELOAD: (
        changed(
            "    def prompt",
            "        self.noise = torch.randn_like(self.vectors)  # not stored\n\n    def prompt",
        ).replace("return self.vectors", "return self.vectors + self.noise"),
        "logits after loading differ by",
    ),
    EXPORT: (
        SOUND + '\n    def export(self):\n        return {"prompt": 2 * self.vectors.detach()}\n',
        "logits of the exported form differ by",
    ),
    EXTREMES: (
        changed(
            ADDED_METHOD,
            """
    @property
    def num_prompt_tokens(self):
        return 0

    def forward(self, embeds, mask):
        return embeds * self.vectors.sum(0) / (embeds.shape[1] - 1), mask
""",
        ),
        "loss not finite for texts of [1] tokens",
    ),
    TOGETHER: (
        changed(
            ADDED_METHOD,
            """
    @property
    def num_prompt_tokens(self):
        return 0

    def forward(self, embeds, mask):
        return embeds + embeds.mean((0, 1)) * self.vectors.sum(0), mask
""",
        ),
        "losses of rows differ by",
    ),
    BUNDLE: (
        changed(
            'nn.Parameter(vocabulary_rows(backbone, 4, "top5000"))',
            'nn.Parameter(vocabulary_rows(backbone, 4, "top5000"))\n        TABLE["latest"] = self.vectors',
        ).replace("return self.vectors\n", 'return self.vectors + 0.5 * TABLE["latest"]\n'),
        "losses of cell 1 of 2 differ by",
    ),
    ANSWERS: (
        changed(
            ADDED_METHOD,
            """
    def attach(self, backbone):
        def shift(module, args, kwargs, output):
            if kwargs.get("use_cache"):
                output.logits = output.logits.roll(1, -1)
            return output

        self.handle = backbone.model.register_forward_hook(shift, with_kwargs=True)
        self.other = backbone.embedding.register_forward_hook(lambda m, a, out: out + self.vectors.sum(0))

    def detach(self, backbone):
        self.handle.remove()
        self.other.remove()
""",
        ),
        "answers written token by token differ from one pass over them",
    ),
    DECODER: (
        changed("return self.vectors", "return self.vectors[self.skip :]").replace(
            "    def prompt", "        self.skip = 0 if backbone.is_encoder_decoder else 5\n\n    def prompt"
        ),
        "gradient all zero: vectors",
    ),
    PACKED: (
        changed(
            ADDED_METHOD,
            """
    is_positionwise = True

    def layer_changes(self):
        from harness.method import LayerChange, sublayers_of
        return [LayerChange(sublayer.output, after=self.after) for sublayer in sublayers_of(self.backbone)]

    def after(self, states):
        return states + torch.roll(states, 1, 1) * self.vectors.sum(0)
""",
        ).replace("        self.v", "        object.__setattr__(self, 'backbone', backbone)\n        self.v"),
        "losses of packed rows differ by",
    ),
    ENCODER: (
        changed("return self.vectors", "return self.vectors[self.skip :]").replace(
            "    def prompt", "        self.skip = 0 if backbone.writes_text else 5\n\n    def prompt"
        ),
        "gradient all zero: vectors",
    ),
    BFLOAT16: (
        changed("return self.vectors", "return self.vectors.cumsum(0) if self.exact else self.vectors / 0").replace(
            "    def prompt", "        self.exact = backbone.precision != 'bfloat16'\n\n    def prompt"
        ),
        "loss not finite",
    ),
    COUNT: (
        changed("    def prompt", "        self.network = nn.Linear(backbone.hidden, backbone.hidden).to(self.vectors)"
                "\n\n    def prompt").replace("return self.vectors", "return self.network(self.vectors)"),
        "answer alone; override kept()",
    ),
    FIGURE: (
        changed('"https://example.org")', '"https://example.org", params={"t5-base": 4_000})'),
        "t5-base: 3,072 trained, 3,072 kept, but paper.params says 4,000 and no params_note says why",
    ),
}  # fmt: skip


def test_a_sound_method_meets_the_contract(tmp_path: Path) -> None:
    found = findings(tmp_path, SOUND)
    assert list(found) == [contract.LOADS, *METHOD_CHECKS]
    assert not [item for item in found.values() if not item.ok]


@pytest.mark.parametrize("check", METHOD_CHECKS)
def test_a_broken_method_is_caught_by_the_rule_it_breaks(tmp_path: Path, check: str) -> None:
    body, words = BROKEN[check]
    found = finding(tmp_path, body, check)
    assert not found.ok
    assert words in found.detail, found.detail


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (changed('name = "broken"', 'name = "other"'), "defines the method 'other'; name and file must agree"),
        (changed('    paper = Paper("key", "https://example.org")\n', ""), "must state its `paper`"),
        ("import nothing_of_this_name\n", "No module named 'nothing_of_this_name' (line 10)"),
        (SOUND + "\nraise SystemExit(3)\n", "SystemExit"),
    ],
    ids=["name", "paper", "import", "exit"],
)
def test_a_file_that_is_no_method_is_one_finding(tmp_path: Path, body: str, words: str) -> None:
    (found,) = findings(tmp_path, body).values()
    assert found.check == contract.LOADS
    assert not found.ok
    assert words in found.detail


@pytest.mark.parametrize(
    ("body", "cause", "words"),
    [
        (changed("return self.vectors", "return self.vectors[:, :5]"), RUNS, "must return [4, 64]"),
        (BROKEN[REPEATS][0], REPEATS, "evaluation is random"),
        (
            changed("return self.vectors", "return self.vectors + (torch.rand(()) > 0.5)"),
            REPEATS,
            "evaluation is random",
        ),
        (BROKEN[SEEN][0], SEEN, "vectors[0]"),
        (changed("return self.vectors", "return self.vectors / 0"), RUNS, "loss not finite"),
        (
            changed("return self.vectors", "return self.vectors[None].expand(3, -1, -1)"),
            RUNS,
            "must return [P, H], or one prompt for each of 1 tasks (num_tasks) in front, not 3",
        ),
        (
            SOUND + "\n    def export(self):\n        return [self.vectors]\n",
            EXPORT,
            "export() must return a dict of tensors by name, not a list",
        ),
        (SOUND + "\n    def kept(self):\n        return {'vectors': 4}\n", COUNT, "'vectors' is a int"),
    ],
    ids=["shape", "random", "at times", "list", "nan", "batch", "export", "kept"],
)
def test_one_cause_is_one_line_that_names_what_it_takes_along(
    body: str, cause: str, words: str, tmp_path: Path
) -> None:
    found = check_method_file(write(tmp_path, body))
    assert [item.check for item in found if not item.ok and not item.cause] == [cause]
    assert {item.cause for item in found if not item.ok} == {"", cause}
    text = describe_contract(tmp_path / "broken.py", found)["text"]
    assert (text.count("FAIL"), text.count(words)) == (1, 1)
    assert text.count(EXPORT) == 1


HIDDEN = {
    "dict": ("self.more = {'a': [made]}", "self.more['a'][0]"),
    "object": ("self.more = SimpleNamespace(own=made)", "self.more.own"),
    "object with slots": ("self.more = Slots(); self.more.own = made", "self.more.own"),
    "closure": ("self.more = lambda: made", "self.more()"),
    "default": ("self.more = lambda own=made: own", "self.more()"),
    "deque": ("self.more = deque([made])", "self.more[0]"),
    "class": ("type(self).more = made", "self.more"),
    "module": ("TABLE['more'] = made", "TABLE['more']"),
    "optimizer": ("self.more = torch.optim.SGD([made])", "self.more.param_groups[0]['params'][0]"),
}


@pytest.mark.parametrize("place", HIDDEN)
def test_a_trained_tensor_is_found_wherever_it_is_kept(tmp_path: Path, place: str) -> None:
    keep, use = HIDDEN[place]
    body = (
        "from collections import deque\nfrom types import SimpleNamespace\n\nclass Slots:\n    __slots__ = ('own',)\n"
        + SOUND
    )
    body = changed("    def prompt", f"        made = nn.Parameter(torch.zeros_like(self.vectors))\n        {keep}"
                   "\n\n    def prompt", body)  # fmt: skip
    found = finding(tmp_path, changed("return self.vectors", f"return self.vectors + {use}", body), SEEN)
    assert not found.ok
    known = {
        "dict": "more['a'][0]",
        "object": "more.own",
        "closure": "more.made",
        "optimizer": use.removeprefix("self."),
    }
    assert found.detail.startswith(f"{known.get(place, 'a tensor [4, 64]')}: trained tensors")


def test_an_exception_is_placed_in_the_methods_own_file(tmp_path: Path) -> None:
    body = changed("return self.vectors", "return torch.cat([self.vectors, torch.zeros(2, 3)])")
    found = finding(tmp_path, body, LOSS)
    line = (HEAD + body).splitlines().index("        return torch.cat([self.vectors, torch.zeros(2, 3)])") + 1
    assert found.detail.startswith("RuntimeError")
    assert found.detail.endswith(f"(broken.py:{line})")


def test_a_method_that_does_not_fit_a_decoder_may_say_so(tmp_path: Path) -> None:
    refuse = 'if not backbone.is_encoder_decoder:\n            raise ValueError("there is no encoder")\n        '
    body = changed("self.vectors = nn", refuse + "self.vectors = nn")
    found = finding(tmp_path, body, DECODER)
    assert found.ok
    assert found.detail == "does not apply: there is no encoder"


def test_a_file_whose_name_cannot_be_a_folders_is_one_finding(tmp_path: Path) -> None:
    path = tmp_path / "broken é.py"
    path.write_text(HEAD + changed('name = "broken"', 'name = "broken é"'))
    (found,) = check_method_file(path)
    assert not found.ok
    assert "letters, digits and _ . + - only" in found.detail


FORWARD = """
    def forward(self, embeds, mask):
        front = self.vectors.expand(len(embeds), -1, -1)
        return torch.cat([front, embeds], 1), torch.cat([torch.ones_like(front[..., 0]).long(), mask], 1)
"""
NONE_COUNTED = FORWARD + "\n    @property\n    def num_prompt_tokens(self):\n        return 0\n"
COUNTED = NONE_COUNTED.replace("return 0", "return 4")


@pytest.mark.parametrize(
    ("body", "check", "words"),
    [
        (COUNTED.replace("torch.cat([torch.ones_like(front[..., 0]).long(), mask], 1)", "mask"), LOSS,
         "must return [3, T, 64] and a mask of [3, T], not [3, 17, 64] and [3, 13]"),
        (COUNTED.replace(", torch.cat([torch.ones_like(front[..., 0]).long(), mask], 1)", ""), LOSS,
         "must return [3, T, 64] and a mask of [3, T]"),
        (NONE_COUNTED, EXTREMES, "4 positions are put in front of a text, num_prompt_tokens says 0"),
        (ADDED_METHOD.replace("self.vectors", "self.vectors[:, 1:]"), LOSS,
         "Broken.prompt() must return [4, 64] (num_prompt_tokens, H), "
         "or one for each task in front, not [4, 63]"),
        (ADDED_METHOD.replace("self.vectors", "self.vectors[0]"), LOSS, "[P, H] or [K, P, H], not [64]"),
        (ADDED_METHOD + "\n    def added(self):\n        return self.vectors[:3]\n", LOSS,
         "Broken.added() must return [24, 64] (tokens of the longest text, H), not [3, 64]"),
        (ADDED_METHOD.replace("self.vectors", "self.vector"), LOSS, "no attribute 'vector' (broken.py:"),
        (ADDED_METHOD + "\n    def kept(self):\n        return [self.vectors]\n", COUNT, "must return a dict of"),
    ],
    ids=["mask", "no-mask", "uncounted", "width", "one-vector", "short-table", "misspelt", "kept"],
)  # fmt: skip
def test_what_a_method_returns_is_named_where_it_is_wrong(tmp_path: Path, body: str, check: str, words: str) -> None:
    found = finding(tmp_path, changed(ADDED_METHOD, body), check)
    assert not found.ok
    assert words in found.detail, found.detail


def test_what_one_row_does_to_another_is_found_behind_a_zero_start(tmp_path: Path) -> None:
    body, _ = BROKEN[TOGETHER]
    body = changed('nn.Parameter(vocabulary_rows(backbone, 4, "top5000"))',
                   'nn.Parameter(0 * vocabulary_rows(backbone, 4, "top5000"))', body)  # fmt: skip
    assert not finding(tmp_path, body, TOGETHER).ok


@pytest.mark.parametrize(
    "attach",
    [
        "backbone.embedding.register_forward_hook(lambda m, a, out: out + self.vectors.sum(0))",
        "plain = backbone.embedding.forward; backbone.embedding.forward = lambda ids: plain(ids) + self.vectors.sum(0)",
    ],
    ids=["hook", "forward"],
)
def test_what_is_left_on_the_backbone_is_found(tmp_path: Path, attach: str) -> None:
    body = changed(
        ADDED_METHOD,
        f"""
    def attach(self, backbone):
        {attach}

    def detach(self, backbone):
        pass
""",
    )
    found = finding(tmp_path, body, FROZEN).detail
    assert found.startswith("behind attach() and detach() the backbone is another: a "), found
    assert found.endswith("of the Embedding 'shared'")


LAYER_SIDE = """
    def layer_changes(self):
        return [LayerChange(norm, after=lambda states: states + self.vectors.sum(0)) for norm in self.norms]
"""


def test_a_method_of_layer_changes_alone_meets_the_contract_and_shares(tmp_path: Path) -> None:
    norms = '        self.norms = [m for m in backbone.model.modules() if "Norm" in type(m).__name__]\n'
    body = changed(ADDED_METHOD, norms + LAYER_SIDE)
    path = write(tmp_path, "from harness.method import LayerChange\n" + body)
    cls = load_file(path).cls
    assert cls is not None
    assert issubclass(cls, Method)
    assert cls.is_layer_side()
    assert not cls.runs_alone()
    found = findings(tmp_path, "from harness.method import LayerChange\n" + body)
    assert all(item.ok for item in found.values()), [item for item in found.values() if not item.ok]
    assert found[BUNDLE].detail == ""


def test_a_rule_must_answer_every_row_with_text(tmp_path: Path) -> None:
    body = """
class Broken(Rule):
    name = "broken"
    paper = Paper("", "")

    def answers(self, train_targets, num_rows, seed):
        return [1] * num_rows
"""
    found = findings(tmp_path, body)["answers are texts, one per row"]
    assert not found.ok
    assert found.detail == "an answer is no text"


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder", "encoder"])
def test_what_is_done_to_a_tiny_network_is_not_in_the_next_one(kind: KindName) -> None:
    first, second = tiny_backbone(kind).model, tiny_backbone(kind).model
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
    for parameter in first.parameters():
        parameter.data.fill_(7)
    first.config.num_heads = 99
    first.register_forward_hook(lambda *_: None)
    third = tiny_backbone(kind).model
    assert third.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in third.state_dict().items())
    assert third.config.to_dict() == second.config.to_dict()
    assert not third._forward_hooks
