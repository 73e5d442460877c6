"""The reference of suite files in docs/suite-reference.md: every key, made from the models that read it.

Type and default come from the model, the meaning from the docstring below the field, the example from `EXAMPLES`.
"""

from __future__ import annotations

import json
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from harness.suite.blocks import FewShot, ProtocolReference, RowLimit, Strict, TaskFile
from harness.suite.file_schema import (
    ExceptionRule,
    Execution,
    Measure,
    MixtureFile,
    Recipe,
    SourceChoice,
    SuiteFile,
    Tuning,
    Where,
)
from harness.suite.json_schema import attribute_docstrings, sentence
from harness.suite.report_block import (
    Axis,
    Categories,
    Curve,
    FigureLayout,
    Gates,
    Line,
    Panel,
    ReportBlock,
    TableLayout,
    TimeRow,
)
from harness.suite.report_block import Where as Conditions

SECTIONS: dict[type[Strict], str] = {
    SuiteFile: "the file",
    ProtocolReference: "protocol",
    FewShot: "few_shot",
    RowLimit: "rows.TASK",
    TaskFile: "define_tasks.NAME",
    MixtureFile: "define_mixtures.NAME",
    Tuning: "tuning",
    Recipe: "recipe",
    SourceChoice: "methods.NAME.init_from",
    ExceptionRule: "exceptions",
    Where: "exceptions.where",
    Execution: "execution",
    Measure: "measure",
    ReportBlock: "report",
    TableLayout: "report.define_tables.NAME",
    Line: "rows and columns of a table",
    FigureLayout: "report.define_figures.NAME",
    Axis: "x of a figure",
    Curve: "curves of a figure",
    Panel: "panels of a figure",
    TimeRow: "time of a figure",
    Gates: "gates of a figure",
    Categories: "categories of a figure",
}
"""Model -> title of its section, in the order of the page."""

LINE = {"title": "DePT", "where": {"method": "dept"}}
TASK = {"fields": {"review": "text"}, "labels": ["bad", "good"]}

EXAMPLES: dict[type[Strict], list[dict[str, Any]]] = {
    SuiteFile: [
        {
            "suite": "mine",
            "version": 1,
            "description": "Two methods on my reviews.",
            "backbones": ["t5-base", "mine=runs/b/checkpoint-500"],
            "tasks": ["cb", "reviews"],
            "seeds": [42, 43, 44],
            "repeats": 3,
            "protocol": {"base": "accept-2024", "stsb.round": "fifth"},
            "few_shot": {"k": [4, 16, 32]},
            "rows": {"cb": {"test": 20}},
            "define_tasks": {"reviews": {"files": "reviews.csv", **TASK}},
            "define_mixtures": {"pair": {"tasks": ["mnli", "qqp"]}},
            "tuning": {"seeds": "each"},
            "recipe": {"steps": 10_000, "lr": {"sweep": [0.1, 0.3]}},
            "methods": {"majority": None, "short": {"method": "prompt_tuning", "prompt_length": 20}},
            "sources": {"source_prompt": {"method": "prompt_tuning"}},
            "exceptions": [{"where": {"tasks": ["cb"]}, "recipe": {"steps": 3_000}}],
            "execution": {"bundle_cells": 16},
            "measure": {"answering": True},
            "report": {"tables": ["accept-1"]},
        }
    ],
    ProtocolReference: [{"name": "ept-2025", "version": 1, "overrides": {"stsb.round": "fifth"}}],
    FewShot: [{"k": [4, 16, 32], "draw": "balanced", "draw_seeds": [42, 43, 44], "select_with": "k"}],
    RowLimit: [{"train": 1_000, "dev": 400, "test": 800}],
    TaskFile: [
        {
            "kind": "classification",
            "files": "reviews.csv",
            **TASK,
            "label": "verdict",
            "metrics": ["accuracy"],
            "extra_metrics": ["macro_f1"],
            "selection": "macro_f1",
            "split": "cut_train",
            "dev_share": 0.1,
            "test_share": 500,
            "max_source_length": 256,
            "max_target_length": 20,
            "version": 2,
        },
        {"hub": "owner/name:config", "revision": "0f3a6c1", "template": "review: {text}", "labels": ["bad", "good"]},
        {
            "kind": "choice",
            "files": "quiz.jsonl",
            "template": "{q}",
            "choices": "options",
            "choice_score": "per_character",
        },
        {"files": "claims.jsonl", **TASK, "labels": [False, True], "words": ["no", "yes"], "answered_by": "likelihood"},
        {"files": "talks.jsonl", "messages": "talk", "kind": "text", "form": "auto", "system": "Be brief."},
        {
            "kind": "text",
            "files": "sums.jsonl",
            "template": "{question}",
            "num_beams": 4,
            "stop": ["\n\n"],
            "max_new_tokens": 300,
        },
    ],
    MixtureFile: [{"tasks": ["mnli", "qqp", "sst2"], "sampling": "temperature", "temperature": 10.0}],
    Tuning: [
        {"seeds": "first", "strategy": "halving", "begin": "learnt"},
        {"strategy": "tpe", "trials": 16, "startup": 8, "batch": 4, "seed": 7, "pruning": "halving"},
    ],
    Recipe: [
        {
            "steps": 10_000,
            "batch_size": 16,
            "lr": 0.3,
            "warmup_steps": 500,
            "warmup_max_share": 0.06,
            "schedule": "linear",
            "weight_decay": 0.01,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "adamw": "torch",
            "label_tokens": 20,
            "forgetting_text": "shipped",
            "clip_norm": 1.0,
            "eval_every": 500,
            "max_source_length": 348,
            "precision": "bfloat16",
            "backbone_dropout": False,
            "quantization": "nf4",
            "head": "linear",
            "head_lr": 0.001,
            "pooling": "mean",
        }
    ],
    SourceChoice: [
        {"method": "source_prompt", "task": "mnli", "backbone": "t5-base", "seed": "own"},
        {"file": "prompts/mnli.safetensors"},
        {"adapter": "downloads/lora", "base_model": "any"},
    ],
    ExceptionRule: [{"where": {"tasks": ["cb"]}, "recipe": {"steps": 3_000}, "hp": {"rank": 8}}],
    Where: [{"tasks": ["cb", "rte"], "methods": ["dept"], "backbones": ["t5-base"]}],
    Measure: [{"answering": True, "rows": 64, "rounds": 9}],
    Execution: [
        {
            "micro_batch_tokens": 4_096,
            "compile": True,
            "bundle_cells": 16,
            "max_cells": 20_000,
            "checkpoint_every": "10m",
            "processes": 2,
            "sharding": "fsdp",
            "gradient_checkpointing": True,
        },
        {"device_map": "auto"},
    ],
    ReportBlock: [
        {
            "tables": ["accept-1", "mine"],
            "figures": ["by-rank"],
            "define_tables": {
                "mine": {"title": "Mine", "rows": [LINE], "columns": [{"over": "task", "values": ["rte"]}]}
            },
            "define_figures": {"by-rank": {"title": "By rank", "x": {"setting": "hp.rank", "title": "rank"}}},
            "bold": "best",
            "report_seeds": "others",
        }
    ],
    TableLayout: [
        {
            "title": "Two methods by rank",
            "caption": "Mean over three seeds.",
            "where": {"backbone": "t5-base"},
            "heads": ["method", "rank"],
            "rows": [{"title": ["LoRA", "{value}"], "where": {"method": "lora"}, "over": "hp.rank", "values": [4, 8]}],
            "columns": [{"over": "task", "values": {"rte": "RTE"}}],
            "best": "column",
            "published": "accept-2024:Table 1",
        }
    ],
    Line: [
        {
            "title": ["LoRA", "{value}"],
            "group": "layer-side",
            "where": {"method": "lora"},
            "show": "score",
            "metric": "macro_f1",
            "over": "hp.rank",
            "values": [4, 8],
            "published": "LoRA",
            "only_published": True,
        },
        {"over": "task", "values": {"rte": "RTE", "mrpc": "MRPC"}, "average": "Avg."},
        {"title": "GLUE", "mean_over": ["rte", "mrpc"]},
    ],
    FigureLayout: [
        {
            "title": "Score by rank",
            "where": {"backbone": "t5-base"},
            "x": {"setting": "hp.rank", "title": "rank"},
            "panels": [{"title": "GLUE", "tasks": ["rte", "mrpc"]}],
            "curves": [{"title": "LoRA", "where": {"method": "lora"}}],
            "time": {"tasks": ["rte"]},
        },
        {"title": "Gates", "gates": {"prompt": "prompt", "weight": "gates.{i}.weight", "bias": "gates.{i}.bias"}},
        {"title": "By data set", "categories": {"setting": "task", "title": "data set"}},
    ],
    Axis: [{"setting": "hp.rank", "title": "rank", "log": True}],
    Curve: [{"title": "LoRA", "where": {"method": "lora"}}],
    Panel: [{"title": "GLUE", "tasks": ["rte", "mrpc"]}],
    TimeRow: [{"where": {"suite": "length-time"}, "tasks": ["rte"]}],
    Gates: [{"prompt": "prompt", "weight": "gates.{i}.weight", "bias": "gates.{i}.bias"}],
    Categories: [
        {"setting": "task", "title": "data set", "panels": [{"title": "Llama", "where": {"backbone": "llama-2-7b"}}]}
    ],
}
"""Valid blocks that hold each key at least once. Several where keys exclude each other."""

NAMES = {str: "text", bool: "true or false", int: "whole number", float: "number", types.NoneType: "none", Any: "any"}


def reference() -> str:
    """All sections as markdown: one table for each model. Raises ValueError for a key without meaning or example."""
    return "\n".join(section(model, title) for model, title in SECTIONS.items())


def section(model: type[Strict], title: str) -> str:
    """The title, the model's sentence and a row for each key."""
    lines = [
        f"## {title}",
        "",
        sentence(model),
        "",
        "| key | type | default | meaning | example |",
        "|---|---|---|---|---|",
    ]
    meanings = attribute_docstrings(model)
    for key, field in model.model_fields.items():
        if key not in meanings:
            raise ValueError(f"{model.__name__}.{key} has no docstring below it")
        cells = [f"`{key}`", spelled_type(field), spelled_default(field), meanings[key], spelled_example(model, key)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def spelled_type(field: FieldInfo) -> str:
    """A field's type in words, with its bounds."""
    text = spelled_hint(field.annotation)
    bounds = spelled_bounds(field.metadata)
    return f"{text}, {bounds}" if bounds else text


def spelled_hint(hint: Any) -> str:
    """A type in words; models are links to their sections."""
    origin, args = get_origin(hint), get_args(hint)
    if hint == Conditions:
        return "mapping: setting to a value or a list of values"
    if origin is Annotated:
        bounds = spelled_bounds(args[1].metadata) if isinstance(args[1], FieldInfo) else ""
        return f"{spelled_hint(args[0])} {bounds}".strip()
    if origin is Literal:
        return " or ".join(f"`{json.dumps(item) if not isinstance(item, str) else item}`" for item in args)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(spelled_hint(item) for item in args if item is not types.NoneType))
    if origin is list:
        return f"list: {spelled_hint(args[0])}"
    if origin is dict:
        return f"mapping: name to {spelled_hint(args[1])}"
    if isinstance(hint, type) and issubclass(hint, Strict):
        return f"[{SECTIONS[hint]}](#{anchor(SECTIONS[hint])})"
    return NAMES[hint]


def spelled_bounds(metadata: list[Any]) -> str:
    """The bounds of a number or a length: "from 1 up to 64", "over 0", "2 or more"."""
    found: dict[str, Any] = {}
    for item in metadata:
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if getattr(item, name, None) is not None:
                found[name] = getattr(item, name)
    words = {"ge": "from {}", "gt": "over {}", "le": "up to {}", "lt": "under {}"}
    words |= {"min_length": "{} or more", "max_length": "{} or fewer"}
    return " ".join(words[name].format(f"{value:,}") for name, value in found.items())


def spelled_default(field: FieldInfo) -> str:
    """A field's default as it would stand in the file."""
    if field.default is PydanticUndefined:
        return "must be given"
    if field.default is None or field.default in ([], {}, ""):
        return "–"
    if isinstance(field.default, Strict):
        return "its own defaults"
    return f"`{inline_yaml(field.default)}`"


def spelled_example(model: type[Strict], key: str) -> str:
    """The key's value in the first example that has it."""
    for example in EXAMPLES[model]:
        if key in example:
            return f"`{inline_yaml(example[key])}`"
    raise ValueError(f"EXAMPLES[{model.__name__}] holds no {key}")


def inline_yaml(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {inline_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline_yaml, value))}]"
    if isinstance(value, float) and "e" in repr(value):
        return f"{value:.1e}"  # 1e-06 without a point is text in YAML 1.1 tools
    plain = isinstance(value, str) and re.fullmatch(r"[\w./=-]+( [\w./=-]+)*\.?", value) and not value[0].isdigit()
    return value if plain else json.dumps(value)


def anchor(title: str) -> str:
    """The anchor that a heading gets on a page."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
