"""Any method of the PEFT library, from its own configuration: `config: {peft_type: LOHA, r: 8}`.

Which tensors train, where they stand and how they start is PEFT's. The loop, the schedule and the loss are the
harness's, as for every other row. Without a configuration it is PEFT's LoRA with all of its defaults.

Source: huggingface/peft, `peft.PEFT_TYPE_TO_CONFIG_MAPPING`.

Choices made: where PEFT names no modules for a network, the first of its choices for others is taken whose names all
exist there. AdaLoRA's ranks are allocated over the recipe's steps. `init_from: {adapter: FOLDER}` goes on from what
PEFT has saved. `docs/peft.md` has the rest.
"""

from dataclasses import dataclass, field
from typing import Any

from harness.method import ConfiguredPeft, Defaults, Paper, checked_peft_config, require_positive, sweep


class Peft(ConfiguredPeft):
    """Of the kind that its configuration asks for: layers, vectors in front of the text, keys and values."""

    name = "peft"
    paper = Paper("mangrulkar-etal-2022-peft", "https://github.com/huggingface/peft")
    defaults = Defaults(recipe={"lr": sweep(1e-4, 3e-4, 1e-3)})
    takes_sources = (0, 1)

    @dataclass(frozen=True, kw_only=True)
    class HP:
        config: dict[str, Any] = field(default_factory=dict)
        num_tasks: int = 1
        num_steps: int | None = None

        def __post_init__(self) -> None:
            require_positive(self, "num_tasks", "num_steps")
            object.__setattr__(self, "config", checked_peft_config(self.config))
