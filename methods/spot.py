"""SPoT: a prompt that starts from the prompts of other tasks (Vu et al., ACL 2022).

X = [P; E(x)] with P [P, H], which starts from the prompt of a source task, or from the mean of several: P = mean_k S_k.
Whatever collapses to a prompt of P vectors alone can be the source; one that adds a table to the token embeddings is
refused, since its prompt is half of what it learnt. All else is prompt tuning.

Source: AkariAsai/ATTEMPT, attempt/run_seq2seq.py (`prompt_embedding_path`) and attempt/third_party/models/t5/
modeling_t5.py (`update_prefix_weights`).

Choices made: several sources count alike (the code weighs them by U(0, 1), or by their cosine with a given prompt); the
source is what the suite names in `init_from` (the code behind the published T5 figures always takes MNLI); with
`init_from: {sweep: [...]}` dev chooses it, as the paper chooses among tasks. One rate, lr 0.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.method import Backbone, Defaults, Method, Paper, copy_into, require_positive, source_prompts, sweep


class SPoT(Method):
    """Only P trains."""

    name = "spot"
    paper = Paper("vu-etal-2022-spot", "https://aclanthology.org/2022.acl-long.346", params={"t5-base": 76_800})
    defaults = Defaults(recipe={"lr": sweep(0.3, 0.4, 0.5)})
    takes_sources = (1, None)

    @dataclass(frozen=True, kw_only=True)
    class HP:
        prompt_length: int = 100  # P

        def __post_init__(self) -> None:
            require_positive(self, "prompt_length")

    def __init__(self, hp: HP, backbone: Backbone) -> None:
        super().__init__(hp, backbone)
        like = backbone.embedding.weight
        vectors = torch.zeros(hp.prompt_length, backbone.hidden, dtype=like.dtype, device=like.device)
        self.vectors = nn.Parameter(vectors)  # [P, H], replaced by start_from

    def start_from(self, sources: Sequence[Mapping[str, Tensor]]) -> None:
        """Start as the mean of the sources' prompts, [P, H]."""
        copy_into(self.vectors, source_prompts(sources, *self.vectors.shape).mean(0), "the prompt")

    def prompt(self) -> Tensor:
        """P, [P, H]."""
        return self.vectors
