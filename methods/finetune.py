"""Full fine-tuning: every weight of the backbone trains.

Source: rabeehk/compacter, seq2seq/configs/baseline.json (lr 3e-4, all weights).
"""

from dataclasses import dataclass

from torch import nn

from harness.method import Backbone, Defaults, Method, Paper, sweep


class Finetune(Method):
    """Trains copies of all weights. Attaching puts them in the places of the originals; tied weights stay tied.

    The backbone's own weights stay as they are, since other cells need them.
    """

    name = "finetune"
    paper = Paper("raffel-etal-2020-t5", "https://jmlr.org/papers/v21/20-074.html", params={"t5-base": 220_000_000})
    defaults = Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})
    is_positionwise = True
    trains_weights = True

    @dataclass(frozen=True, kw_only=True)
    class HP:
        """Full fine-tuning has no settings of its own."""

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        if backbone.quantization in ("int8", "nf4"):
            raise ValueError(
                f"{backbone.quantization} weights cannot be trained; set recipe.quantization to none or bf16"
            )
        dtype = backbone.embedding.weight.dtype
        names = {id(p): name.replace(".", "/") for name, p in backbone.model.named_parameters()}
        self.weights = nn.ParameterDict(
            {names[id(p)]: nn.Parameter(p.detach().to(dtype, copy=True)) for p in backbone.model.parameters()}
        )
        # (module, attribute, original, copy) for every attribute that holds a weight; a tied weight has several
        self._slots = [
            (module, key, weight, self.weights[names[id(weight)]])
            for module in backbone.model.modules()
            for key, weight in module._parameters.items()
            if weight is not None
        ]

    def attach(self, backbone: Backbone) -> None:
        """Put the copies in."""
        for module, key, _, own in self._slots:
            module._parameters[key] = own

    def detach(self, backbone: Backbone) -> None:
        """Put the originals back."""
        for module, key, original, _ in self._slots:
            module._parameters[key] = original
