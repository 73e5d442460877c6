"""Imported: an adapter that was trained elsewhere, scored as it is, beside rows that are trained here.

`adapter: FOLDER` makes such a row. Each text is answered once, with the prompt's form, the choices and the decoding of
the other rows. No step is taken.

Source: huggingface/peft (folders of `save_pretrained`); ZhengxiangShi/DecomposedPromptTuning, peft/utils/
save_and_load.py (a prompt with a low-rank pair); AkariAsai/ATTEMPT, attempt/run_seq2seq.py (`prefix_embeddings.pt`);
google-research/prompt-tuning, prompts.py (`np_load`).

Choices made: recipe and seed change nothing, so there is one cell per task. What PEFT has saved of a prompt is answered
with as a plain prompt, whatever made it. `docs/adapters-in.md` has the rest.
"""

from dataclasses import dataclass, field
from typing import Any

from harness.method import AnsweringAdapter, Defaults, Paper, checked_peft_config


class Imported(AnsweringAdapter):
    """Of the kind that the folder's configuration asks for."""

    name = "imported"
    paper = Paper("mangrulkar-etal-2022-peft", "https://github.com/huggingface/peft")
    defaults = Defaults(recipe={"lr": 1e-3})
    takes_sources = (1, 1)
    trains = False

    @dataclass(frozen=True, kw_only=True)
    class HP:
        config: dict[str, Any] = field(default_factory=dict)
        source_length: int | None = None  # S, filled in by the harness
        num_tasks: int = 1

        num_steps = None  # no step is taken

        def __post_init__(self) -> None:
            object.__setattr__(self, "config", checked_peft_config(self.config))
