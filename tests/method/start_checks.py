"""What a tensor may be held to at its start: a distribution, a constant, or rows and entries of the backbone."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from harness.backbone.network import Backbone
from harness.method.method import Method
from harness.method.registry import discover
from harness.train.tiny_backbones import TinyTokenizer

REGISTRY: dict[str, type[Method]] = {
    name: found.cls for name, found in discover().items() if found.cls and issubclass(found.cls, Method)
}
WIDTH, VOCABULARY = 128, 1_200
ENOUGH = {"normal": 60_000, "uniform": 2_000}
"""Numbers after which another scale by 2 % shows: a deviation is known to 1 % (3.5 standard errors), an edge to 0.8."""


@functools.cache
def backbone() -> Backbone:
    """A T5 wide enough for statistics, with norms that differ from each other and from ones."""
    config = T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config).eval()
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                nn.init.normal_(parameter, mean=1.0)
    return Backbone("wide", model, TinyTokenizer(), None, "float32")


def build(name: str, seed: int = 5, **hp: Any) -> Method:
    torch.manual_seed(seed)
    return REGISTRY[name](REGISTRY[name].HP(**hp), backbone())


Check = Callable[[str, Tensor], None]
"""Of a tensor's name and values."""


@dataclass(frozen=True)
class Drawn:
    """Independent numbers from N(0, s) or U(-s, s), s by shape."""

    law: Literal["normal", "uniform"]
    scale: Callable[[Sequence[int]], float]
    rough: bool = False
    """Whether a quarter of the numbers is enough, where more would take seconds."""

    @property
    def enough(self) -> int:
        return ENOUGH[self.law] // (4 if self.rough else 1)

    def __call__(self, name: str, tensor: Tensor) -> None:
        """One tensor: its deviation within 6 standard errors, and a uniform one within its edge."""
        values = self.scaled(tensor)
        self._within(values, 6.0, name)
        if self.law == "uniform":
            assert float(values.abs().max()) <= 1 + 1e-6, f"{name} leaves its bound"

    def scaled(self, tensor: Tensor) -> Tensor:
        """[...] -> [n], in units of s."""
        return tensor.double().flatten() / self.scale(tensor.shape)

    def pooled(self, values: Tensor, what: str) -> None:
        """All tensors of a row over several seeds, [n] in units of s."""
        assert len(values) >= self.enough, f"{len(values)} numbers are too few for {what}"
        self._within(values, 3.5, what)
        kurtosis = float(((values - values.mean()) / values.std()).pow(4).mean())
        expected = 3.0 if self.law == "normal" else 1.8
        assert abs(kurtosis - expected) < 0.3, f"{what} is not {self.law}: kurtosis {kurtosis:.2f}"
        if self.law == "uniform":
            for edge in (float(values.max()), -float(values.min())):
                assert edge >= 1 - 15 / len(values), f"{what} stays within its bound"

    def _within(self, values: Tensor, errors: float, what: str) -> None:
        """Mean and deviation within so many standard errors."""
        # variances of a sample's mean and of its deviation, times n, by the second and fourth moment
        std, spread = (1.0, 0.5**0.5) if self.law == "normal" else (3**-0.5, 15**-0.5)
        n = len(values)
        assert abs(float(values.mean())) <= errors * std / n**0.5, f"mean of {what}"
        if n >= 20:
            deviation = float(values.std())
            allowed = errors * spread / n**0.5
            assert abs(deviation - std) <= allowed, f"deviation of {what}: {deviation / std:.4g} of what it should be"


def normal(std: float, rough: bool = False) -> Drawn:
    """N(0, std)."""
    return Drawn("normal", lambda shape: std, rough)


def uniform(bound: Callable[[Sequence[int]], float]) -> Drawn:
    """U(-b, b) with b by shape."""
    return Drawn("uniform", bound)


def fan_in(shape: Sequence[int]) -> float:
    """PyTorch's Linear, weight [out, in]: kaiming-uniform with a = sqrt(5)."""
    return float(shape[1] ** -0.5)


def xavier(gain: float) -> Callable[[Sequence[int]], float]:
    return lambda shape: gain * math.sqrt(6 / (shape[-1] + shape[-2]))


def fixed(bound: float) -> Callable[[Sequence[int]], float]:
    return lambda shape: bound


def kaiming(a: float) -> Callable[[Sequence[int]], float]:
    """`kaiming_uniform_`, whose fan-in of a tensor with more than two dimensions is all but the first."""
    return lambda shape: math.sqrt(6 / ((1 + a * a) * math.prod(shape[1:])))


def constant(value: float) -> Check:
    def check(name: str, tensor: Tensor) -> None:
        assert bool((tensor == value).all()), f"{name} is not {value}"

    return check


def ids_of(rows: Tensor) -> list[int]:
    """Which token's embedding each row is, [P, H]."""
    equal = (rows[:, None] == backbone().embedding.weight[None]).all(-1)
    assert bool(equal.any(1).all()), "rows are not those of the embedding"
    return equal.int().argmax(1).tolist()


def vocabulary(first: int, stop: int, once: bool = True) -> Check:
    """Rows of these ids, spread over all of them and in no order, each `once` or with repetition."""

    def check(name: str, tensor: Tensor) -> None:
        found = ids_of(tensor.reshape(-1, WIDTH))
        assert all(first <= token < stop for token in found), name
        assert len(set(found)) == len(found) or not once, f"{name} repeats a row"
        assert found != sorted(found), f"{name} is in the order of the vocabulary"
        middle, error = (first + stop) / 2, (stop - first) / (12 * len(found)) ** 0.5
        assert abs(sum(found) / len(found) - middle) < 5 * error, f"{name} prefers some ids"

    return check


def sentence(name: str, tensor: Tensor) -> None:
    """The tokens of one sentence with its end, again and again (the authors' spelling)."""
    tokens = TinyTokenizer()("Classify this text is postive or not:")["input_ids"]
    assert ids_of(tensor) == (tokens * 9)[: len(tensor)], name


def backbones_own(name: str, tensor: Tensor) -> None:
    own = re.sub(r"^(copies|tables)\.", "", name.split(".", 1)[1]).replace("/", ".")
    parameters = dict(backbone().model.named_parameters())
    # a table of relative positions is named by its attention
    full = parameters[own] if own in parameters else parameters[f"{own}.relative_attention_bias.weight"]
    assert torch.equal(tensor, full), name


def pad_row(name: str, tensor: Tensor) -> None:
    assert torch.equal(tensor, backbone().embedding.weight[0]), name


def submatrix(name: str, tensor: Tensor) -> None:
    """Rows and columns of the backbone's, so nothing that is not there; which ones, `test_layer_equations` says."""
    stack, rest = name.removeprefix("ladders.").split(".side.")
    full = backbone().model.get_parameter(f"{stack}.{re.sub('^block.0', 'block.1', rest)}")
    assert set(tensor.flatten().tolist()) <= set(full.flatten().tolist()), name
    assert tensor.numel() < full.numel()


def position_table(name: str, tensor: Tensor) -> None:
    stack, rest = name.removeprefix("ladders.").split(".side.")
    assert torch.equal(tensor, backbone().model.get_parameter(f"{stack}.{rest}"))


def magnitude(name: str, tensor: Tensor) -> None:
    path = name.removeprefix("tensors.").removesuffix("/lora_magnitude_vector/default/weight").replace("/", ".")
    torch.testing.assert_close(tensor.data, backbone().model.get_submodule(path).weight.norm(dim=1))
