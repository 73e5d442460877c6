"""How many parameters each method trains and keeps, beside the figure its paper prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.backbone import Backbone, meta_backbone
from harness.errors import UserError
from harness.method import LinearHead, Method, Registered, Rule, explain_figure, get_class
from harness.runner import check_method_options, method_settings
from harness.text_tables import text_table
from harness.train import misfit

CLASSES = 2
"""Classes of the heads whose size is shown."""


def describe_params(
    methods: Mapping[str, Registered], names: Sequence[str] | None, backbone: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Trainable parameters of each method with its defaults and `settings` such as {"dept.rank": 10}."""
    check_method_options({name: registered.spec for name, registered in methods.items()}, names, settings)
    built = meta_backbone(backbone)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name in names or methods:
        cls = get_class(methods, name) if names else methods[name].cls
        if cls is None or issubclass(cls, Rule):
            continue
        is_changed = any(key.split(".", 1)[0] == name for key in settings)
        values = method_settings(methods[name].spec, settings)
        try:
            rows.append(_count(cls, values, is_changed, built, backbone))
        except UserError as error:
            if names or is_changed:
                raise
            left_out[name] = error.problem
    columns = ["method", "trained", "kept", "per task", "% of backbone", "published"]
    title = f"{built.name}: {built.num_params:,} parameters, width {built.hidden}"
    notes = [f"{row['method']}, published figure: {row['difference']}" for row in rows if row["difference"]]
    notes += [f"{name}, not counted: {reason}" for name, reason in left_out.items()]
    heads = _heads(built)
    if heads:
        shown = ", ".join(f"{count:,} ({head})" for head, count in heads.items())
        notes.append(f"a head of {CLASSES} classes trains beside these, and is counted apart: {shown}")
    text = "\n".join([title, text_table([_shown(row) for row in rows], columns), *notes])
    return {
        "backbone": built.name,
        "num_params": built.num_params,
        "methods": rows,
        "left_out": left_out,
        "heads": heads,
        "text": text,
    }


def _heads(backbone: Backbone) -> dict[str, int]:
    """Return the parameters of each kind of head over CLASSES classes; none where the network has no use for heads."""
    if not backbone.kind.has_text_states:
        return {}
    made = {kind: LinearHead(CLASSES, backbone, kind == "hidden") for kind in ("linear", "hidden")}
    return {kind: sum(p.numel() for p in head.parameters()) for kind, head in made.items()}


def _count(
    cls: type[Method], values: dict[str, Any], is_changed: bool, backbone: Backbone, source: str
) -> dict[str, Any]:
    method, kept = _build(cls, values, backbone, source)
    published = cls.paper.params.get(backbone.name)
    return {
        "method": cls.name,
        "num_trained": method.num_trained,
        "num_kept": kept,
        "num_tasks": method.num_tasks,
        "percent_of_backbone": 100 * method.num_trained / backbone.num_params,
        "published": published,
        "difference": _difference(cls, method, published, is_changed),
    }


def _difference(cls: type[Method], method: Method, published: int | None, is_changed: bool) -> str:
    """Why the published figure is not the number trained, in words; empty if it is."""
    if published is None or published == method.num_trained:
        return ""
    tasks = method.num_tasks
    known = explain_figure(published, round(method.num_trained / tasks), round(method.num_kept / tasks), tasks)
    if known or not is_changed:
        return " ".join(filter(None, [known, cls.paper.params_note]))
    return "The settings are not those of the figure."


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "method": row["method"],
        "trained": f"{row['num_trained']:,}",
        "kept": f"{row['num_kept']:,}",
        "per task": f"{round(row['num_trained'] / row['num_tasks']):,}" if row["num_tasks"] > 1 else "",
        "% of backbone": f"{row['percent_of_backbone']:.3f}",
        "published": f"{row['published']:,}" if row["published"] else "",
    }


def _build(cls: type[Method], values: dict[str, Any], backbone: Backbone, source: str) -> tuple[Method, int]:
    """The method on a backbone without weights, and what it keeps. Raises UserError where its own code raises."""
    reason = misfit(cls, values, source)
    if reason is not None:
        raise UserError(reason, field=cls.name)
    try:
        method = cls(cls.HP(**values), backbone)
        return method, method.num_kept
    except Exception as error:  # whatever someone's file raises
        raise UserError(f"its code raises {type(error).__name__}: {error}", field=cls.name) from None
