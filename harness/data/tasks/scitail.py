"""SciTail (Khot et al. 2018), which belongs to no benchmark; the papers use it in few-shot runs."""

from __future__ import annotations

from harness.data.tasks.task import Hub, Task

FILES = ("snli_format/scitail_1.0_{}.txt", "tsv_format/scitail_1.0_{}.tsv")


def _stems(split: str) -> tuple[str, ...]:
    return tuple(name.format(split) for name in FILES)


TASKS = (
    Task(
        name="scitail",
        title="SciTail",
        benchmark="SciTail",
        kind="classification",
        fields=(("premise", "sentence1"), ("hypothesis", "sentence2")),
        label="gold_label",
        labels=("entailment", "neutral"),
        label_words={"entails": 0},  # what the tsv_format files call it
        sizes=(23_596, 652, 652),
        hub=(Hub("allenai/scitail", "snli_format"), Hub("allenai/scitail", "tsv_format")),
        folders=("scitail", "SciTail", "SciTailV1.1", "hub/scitail"),
        stems={"train": _stems("train"), "validation": _stems("dev"), "test": _stems("test")},
        tsv_columns=("premise", "hypothesis", "label"),
        aliases={"sentence1": ("premise",), "sentence2": ("hypothesis",), "gold_label": ("label",)},
        licence="Apache-2.0",
        citation="khot-etal-2018-scitail",
        notes="The papers' code halves validation; split official_test uses the published test rows (1,304 / 2,126).",
    ),
)
