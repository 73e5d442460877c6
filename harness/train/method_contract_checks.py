"""The single checks of the contract: each returns a short detail, or raises AssertionError that says what is wrong.

All run on tiny random backbones. Equalities are checked in float64, where only a real difference can show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.backbone import Backbone, KindName, Seal
from harness.errors import UserError
from harness.method import HeadReader, LinearHead, Method, Rule, is_collapsible, own_export, serve
from harness.suite import Recipe
from harness.train.batch_input import BatchInput, Rows
from harness.train.cell_state import checked_groups
from harness.train.tiny_backbones import expect_packing, tiny_backbone, tiny_rows
from harness.validation import validate_settings

SOURCE_LENGTH = 24
LENGTHS = [5, 9, 13]
TOLERANCE = 1e-6
NUM_SOURCES = 2
"""Where a method takes any number of sources."""
NO_TENSORS = "does not apply: it has no tensors of its own"


def build(cls: type[Method], backbone: Backbone, seed: int = 0) -> Method:
    """Create a method with its default hp, its tables cut to the tiny source length.

    One that has to start from other cells gets random prompts of its `prompt_length`.
    """
    number = max(NUM_SOURCES, cls.takes_sources[0]) if cls.takes_sources[1] is None else cls.takes_sources[0]
    sizes = {"source_length": SOURCE_LENGTH, "num_sources": number}
    hp = cls.HP(**{name: size for name, size in sizes.items() if name in cls.HP.__dataclass_fields__})
    # torch.manual_seed would keep a traceback for each of three kinds of device that may be used later
    torch.default_generator.manual_seed(seed)
    method = cls(hp, backbone)
    if cls.takes_sources[0]:
        like = backbone.embedding.weight
        length: int = getattr(hp, "prompt_length", 1)
        prompts = [torch.randn(length, backbone.hidden).to(like) for _ in range(number)]
        method.start_from([{"prompt": prompt} for prompt in prompts])
    return method


class Bench:
    """A method with a tiny backbone under it, both in evaluation mode."""

    def __init__(
        self,
        cls: type[Method],
        kind: KindName = "encoder-decoder",
        precision: str = "float64",
        seed: int = 0,
        backbone: Backbone | None = None,
    ) -> None:
        self.backbone = backbone or tiny_backbone(kind, precision)
        self.method = build(cls, self.backbone, seed)
        if backbone is None and not self.method.is_layer_side():  # nothing of it stands in the layers
            expect_packing(self.backbone)
        if not self.backbone.writes_text:
            self.method.linear_head = LinearHead(2, self.backbone)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train: a method may leave all to a head, which only an encoder has here."""
        return any(parameter.requires_grad for parameter in self.method.parameters())

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The method in its place; taken off again at the end, whatever happens."""
        if self.method.is_layer_side():
            self.method.attach(self.backbone)
        self.backbone.model.eval()
        self.method.eval()
        try:
            yield
        finally:
            if self.method.is_layer_side():
                self.method.detach(self.backbone)

    def inputs(self, lengths: Sequence[int], only: int | None = None) -> tuple[BatchInput, Tensor, Tensor, Tensor]:
        """The input of the backbone for texts of these token counts, or for one of them, and the labels."""
        encoded = tiny_rows(lengths, self.backbone)
        chosen = np.arange(len(lengths)) if only is None else np.array([only])
        fused = BatchInput([self.method], self.backbone, SOURCE_LENGTH)
        fused.refresh(grad=True, cells=[0])
        embeds, mask, rows = fused.build(encoded, Rows(np.zeros_like(chosen), chosen))
        return fused, embeds, mask, torch.as_tensor(encoded.targets(rows.rows))

    def losses(self, lengths: Sequence[int], only: int | None = None) -> Tensor:
        """Loss per row, [N]; the gradient of their mean reaches the method."""
        fused, embeds, mask, labels = self.inputs(lengths, only)
        reader = self.backbone
        if self.method.linear_head is not None:
            cells = np.zeros(len(embeds), np.int64)
            reader = HeadReader(self.backbone, [self.method.linear_head], cells)
            labels = labels[:, :1] % 2
        losses = reader.token_losses(embeds, mask, labels).sum(1)
        if losses.requires_grad:
            losses.mean().backward()
            fused.backward()
        return losses.detach()

    @torch.no_grad()
    def logits(self, lengths: Sequence[int] = LENGTHS) -> Tensor:
        """[N, T, V] while attached."""
        _, embeds, mask, labels = self.inputs(lengths)
        return self.backbone.target_logits(embeds, mask, labels)

    def train(self, steps: int) -> tuple[float, float]:
        """Train on one fixed batch; return the loss before and after. The gradients of the loss after are left."""
        with self.attached():
            first = self._steps(steps)
            last = float(self.losses(LENGTHS).mean())
            return (last if first is None else first), last

    def move(self, steps: int) -> None:
        """Train as `train` does, where nobody asks for a loss."""
        with self.attached():
            self._steps(steps)

    def _steps(self, steps: int) -> float | None:
        """Take steps while attached; return the loss before the first, or None where there is nothing to train."""
        if not self.trains:
            return None
        optimizer = torch.optim.AdamW(checked_groups(self.method, 0.01), lr=0.01, weight_decay=0.0)
        first: float | None = None
        for step in range(steps):
            self.method.on_step(step, steps)
            optimizer.zero_grad()
            loss = float(self.losses(LENGTHS).mean())
            first = loss if first is None else first
            optimizer.step()
        self.method.zero_grad()
        return first


MOVED: dict[type[Method], Bench] = {}
"""By class, what `moved_bench` has made."""


def moved_bench(cls: type[Method]) -> Bench:
    """Return a bench two steps from its start, since many methods start at zero, where much does not show.

    It is to be read only. One serves several checks: the same seed would make the same again, and all of them come
    after those of seeds, of the backbone and of evaluation.
    """
    if cls not in MOVED:
        bench = Bench(cls)
        bench.move(steps=2)
        MOVED[cls] = bench
    return MOVED[cls]


def rule_answers(cls: type[Rule]) -> str:
    for labels, targets in ((["0", "1"], ["0", "1", "1"]), ([], ["Rome", "in 1990"])):
        answers = cls(labels).answers(targets, 5, 0)
        assert len(answers) == 5, f"{len(answers)} answers for 5 rows"
        assert all(isinstance(answer, str) for answer in answers), "an answer is no text"
        assert answers == cls(labels).answers(targets, 5, 0), "the same seed gives other answers"
    return ""


def default_settings(cls: type[Method]) -> str:
    """Each default, and each value of its grid, held to the type and bounds of its setting."""
    searched: dict[str, dict[str, Any]] = {"recipe": {}, "hp": {}}
    for key, value in cls.defaults.search.items():
        block, _, name = key.partition(".")
        assert block in searched, f"search names {key}; expected recipe.SETTING or hp.SETTING"
        searched[block][name] = value
    for kind, part, settings in (
        (Recipe, "recipe", cls.defaults.recipe),
        (cls.HP, "hp", cls.defaults.hp),
        (Recipe, "recipe", {**cls.defaults.recipe, **searched["recipe"]}),
        (cls.HP, "hp", {**cls.defaults.hp, **searched["hp"]}),
    ):
        tried = {name: _tried(value) for name, value in settings.items()}
        first = {name: values[0] for name, values in tried.items()}
        for changed in [{}, *({name: value} for name, values in tried.items() for value in values)]:
            try:
                validate_settings(kind, first | changed, lambda *_: "", (part,))
            except UserError as error:
                raise AssertionError(str(error)) from None
    return ""


def _tried(value: Any) -> list[Any]:
    """The values that a default stands for; of a range its ends."""
    return list(value.get("sweep") or value["range"]) if isinstance(value, dict) else [value]


def runs(cls: type[Method]) -> str:
    bench = Bench(cls)
    with bench.attached():
        assert bench.losses(LENGTHS).isfinite().all(), "loss not finite"
    return ""


def seed(cls: type[Method]) -> str:
    first, second = (build(cls, tiny_backbone(), seed=7).state_dict() for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs between two builds with one seed"
    return f"{len(first)} tensors"


def backbone_unchanged(cls: type[Method]) -> str:
    backbone = tiny_backbone()
    seal = Seal(backbone)  # of what it is before the method has seen it
    bench = Bench(cls, backbone=backbone)
    _assert_sealed(seal, "__init__")
    with bench.attached():
        pass
    _assert_sealed(seal, "attach() and detach()")
    bench.train(steps=2)
    _assert_sealed(seal, "training")
    with bench.attached(), torch.no_grad():
        _, embeds, mask, _ = bench.inputs(LENGTHS)
        backbone.decode(embeds, mask, 2)
    _assert_sealed(seal, "evaluation")
    return ""


def _assert_sealed(seal: Seal, behind: str) -> None:
    what = seal.difference()
    assert what is None, f"behind {behind} the backbone is another: {what}"


def gradients(cls: type[Method], bench: Bench | None = None) -> str:
    """`bench` is one where the method is as it was made; it is trained."""
    bench = bench or Bench(cls)
    if not bench.trains:
        return NO_TENSORS
    # tensors behind a zero-initialised factor get their first gradient after one step
    _, loss = bench.train(steps=1)
    assert np.isfinite(loss), "loss not finite"
    parameters = [(name, p) for name, p in bench.method.named_parameters() if p.requires_grad]
    assert parameters, "nothing to train"
    without = [name for name, p in parameters if p.grad is None]
    assert not without, f"no gradient: {_first(without)}"
    zero = [name for name, p in parameters if p.grad is not None and not p.grad.any()]
    assert not zero, f"gradient all zero: {_first(zero)}"
    return f"{bench.method.num_trained:,} parameters"


def loss_falls(cls: type[Method]) -> str:
    bench = Bench(cls)
    if not bench.trains:
        return NO_TENSORS
    first, last = bench.train(steps=12)
    assert last < first, f"loss went from {first:.3f} to {last:.3f}"
    return f"{first:.3f} to {last:.3f}"


def save_and_load(cls: type[Method]) -> str:
    trained, fresh = moved_bench(cls), Bench(cls, seed=99)
    fresh.method.load_state_dict(trained.method.state_dict())
    _assert_close(_logits(fresh), _logits(trained), "logits after loading")
    return ""


def export(cls: type[Method]) -> str:
    trained = Bench(cls)  # of its own, since an export() may move tensors
    trained.move(steps=2)
    expected, stored = _logits(trained), trained.method.state_dict()
    tensors = own_export(trained.method)
    for name, tensor in tensors.items():
        assert not tensor.requires_grad, f"export() returns {name} with its graph; detach it"
    served = Bench(cls, seed=99)
    served.method = serve(served.method, tensors, served.backbone)
    _assert_close(_logits(served), expected, "logits of the exported form")
    if is_collapsible(cls):  # the command exports from the stored tensors, without the backbone's weights
        unweighted = build(cls, tiny_backbone(meta=True))
        unweighted.load_state_dict(stored, assign=True)
        for name, tensor in own_export(unweighted.eval()).items():
            assert not tensor.is_meta, f"{name} depends on tensors outside the state_dict; register them as buffers"
            _assert_close(tensor, tensors[name], f"{name} exported from stored tensors")
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:3])


def extremes(cls: type[Method]) -> str:
    bench = Bench(cls, precision="float32")
    with bench.attached():
        for lengths in ([1], [SOURCE_LENGTH], [1, SOURCE_LENGTH]):
            assert bench.losses(lengths).isfinite().all(), f"loss not finite for texts of {lengths} tokens"
            front = bench.inputs(lengths)[1].shape[1] - max(lengths)
            said = bench.method.num_prompt_tokens
            assert front == said, f"{front} positions are put in front of a text, num_prompt_tokens says {said}"
    return ""


def rows_together(cls: type[Method]) -> str:
    lengths = [3, SOURCE_LENGTH, 9]
    bench = moved_bench(cls)  # what starts at zero would hide what one row does to another
    with bench.attached():
        together = bench.losses(lengths)
        alone = torch.cat([bench.losses(lengths, only=i) for i in range(3)])
    _assert_close(together, alone, "losses of rows")
    return ""


def bundle(cls: type[Method]) -> str:
    """Two cells in one forward pass, against each alone: losses and gradients."""
    if cls.runs_alone():
        return "does not apply: the method runs alone"
    backbone = tiny_backbone(precision="float64")
    together = [build(cls, backbone, seed) for seed in (1, 2)]
    if next(together[0].parameters(), None) is None:
        return NO_TENSORS
    losses = _bundle_losses(together, backbone)
    for index in range(2):
        method = build(cls, backbone, seed=index + 1)
        expected = _bundle_losses([method], backbone)
        _assert_close(losses[index], expected[0], f"losses of cell {index + 1} of 2")
        fused = dict(together[index].named_parameters())
        for name, parameter in method.named_parameters():
            if parameter.grad is not None:
                found = fused[name].grad
                assert found is not None, f"{name} gets no gradient in a bundle"
                _assert_close(found, parameter.grad, f"gradients of {name}")
    return ""


def _bundle_losses(methods: list[Method], backbone: Backbone) -> list[Tensor]:
    """Losses of the same rows in every cell; gradients are left on the methods."""
    encoded = tiny_rows(LENGTHS, backbone)
    fused = BatchInput([method.eval() for method in methods], backbone, SOURCE_LENGTH)
    fused.refresh(grad=True, cells=range(len(methods)))
    cells = np.repeat(np.arange(len(methods)), len(LENGTHS))
    embeds, mask, placed = fused.build(encoded, Rows(cells, np.tile(np.arange(len(LENGTHS)), len(methods))))
    with fused.attached():
        losses = backbone.token_losses(embeds, mask, torch.as_tensor(encoded.targets(placed.rows))).sum(1)
        if losses.requires_grad:  # that nothing takes a gradient is another check's finding
            losses.sum().backward()
    fused.backward()
    order = [np.flatnonzero(placed.cells == cell) for cell in range(len(methods))]
    return [losses.detach()[where[np.argsort(placed.rows[where])]] for where in order]


def answers(cls: type[Method], kind: KindName = "encoder-decoder") -> str:
    """Greedy answers, written token by token, against the most likely tokens of one pass over them."""
    bench = Bench(cls, kind)
    with bench.attached(), torch.no_grad():
        _, embeds, mask, _ = bench.inputs(LENGTHS)
        written = bench.backbone.decode(embeds, mask, 4)
        ended = (written == bench.backbone.eos_id).cumsum(1) - (written == bench.backbone.eos_id).long() > 0
        labels = written.masked_fill(ended, -100)
        likely = bench.backbone.target_logits(embeds, mask, labels).argmax(-1)
    assert torch.equal(likely[~ended], written[~ended]), "answers written token by token differ from one pass over them"
    return ""


def decoder(cls: type[Method]) -> str:
    try:
        bench = Bench(cls, "decoder")
    except ValueError as error:
        return f"does not apply: {error}"
    return gradients(cls, bench) + answers(cls, "decoder")


def packed_rows(cls: type[Method]) -> str:
    """Losses and gradients on a decoder, from packed rows and from padded ones."""
    try:
        bench = Bench(cls, "decoder")
    except ValueError as error:
        return f"does not apply: {error}"
    if not bench.method.takes_packed_rows():
        return "does not apply: it does not say that it treats positions one by one"
    bench.move(steps=2)  # what starts at zero would hide what one position does to another
    found = []
    for wanted in (False, True):
        bench.method.zero_grad()
        with bench.attached(), bench.backbone.packed(wanted):
            losses = bench.losses(LENGTHS)
        found.append((losses, {n: p.grad for n, p in bench.method.named_parameters() if p.grad is not None}))
    (losses, gradients_of), (packed_losses, packed_gradients) = found
    _assert_close(packed_losses, losses, "losses of packed rows")
    for name, gradient in gradients_of.items():
        _assert_close(packed_gradients[name], gradient, f"gradients of {name} from packed rows")
    return ""


def encoder(cls: type[Method]) -> str:
    try:
        bench = Bench(cls, "encoder")
    except ValueError as error:
        return f"does not apply: {error}"
    return gradients(cls, bench)


def bfloat16(cls: type[Method]) -> str:
    bench = Bench(cls, precision="bfloat16")
    _, last = bench.train(steps=2)
    assert np.isfinite(last), "loss not finite"
    for name, parameter in bench.method.named_parameters():
        assert parameter.dtype == torch.float32, f"{name} became {parameter.dtype}; weights stay in float32"
        assert parameter.grad is None or parameter.grad.isfinite().all(), f"gradient of {name} not finite"
    return ""


def _logits(bench: Bench) -> Tensor:
    with bench.attached():
        return bench.logits()


def _first(names: Any) -> str:
    return ", ".join(sorted(names)[:3])


def _assert_close(got: Tensor, expected: Tensor, what: str) -> None:
    difference = float((got - expected).abs().max())
    assert difference < TOLERANCE, f"{what} differ by {difference:.2g}"
