"""How many parameters each method trains and keeps, beside the figure its paper prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.backbone import Backbone
from harness.errors import UserError, require_choice
from harness.fit import misfit
from harness.listings_data import table
from harness.loading import meta_backbone
from harness.method import Method, Registered, Rule, explain_figure, get_class
from harness.validation import validate_settings


def describe_params(
    methods: dict[str, Registered], names: Sequence[str] | None, backbone: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Trainable parameters of each method with its defaults and `settings` such as {"dept.rank": 10}."""
    built = meta_backbone(backbone)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name in names or methods:
        cls = get_class(methods, name) if names else methods[name].cls
        if cls is None or issubclass(cls, Rule):
            continue
        own = {key.split(".", 1)[1]: value for key, value in settings.items() if key.split(".", 1)[0] == name}
        try:
            rows.append(_count(cls, own, built, backbone))
        except UserError as error:
            if names or own:
                raise
            left_out[name] = error.problem
    _check_setting_names(settings, [row["method"] for row in rows])
    columns = ["method", "trained", "kept", "per task", "% of backbone", "published"]
    title = f"{built.name}: {built.num_params:,} parameters, width {built.hidden}"
    notes = [f"{row['method']}, published figure: {row['difference']}" for row in rows if row["difference"]]
    notes += [f"{name}, not counted: {reason}" for name, reason in left_out.items()]
    text = "\n".join([title, table([_shown(row) for row in rows], columns), *notes])
    return {"backbone": built.name, "num_params": built.num_params, "methods": rows, "left_out": left_out, "text": text}


def _count(cls: type[Method], settings: dict[str, Any], backbone: Backbone, source: str) -> dict[str, Any]:
    method, kept = _build(cls, settings, backbone, source)
    published = cls.paper.params.get(backbone.name)
    return {
        "method": cls.name,
        "num_trained": method.num_trained,
        "num_kept": kept,
        "num_tasks": method.num_tasks,
        "percent_of_backbone": 100 * method.num_trained / backbone.num_params,
        "published": published,
        "difference": _difference(cls, method, published, bool(settings)),
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


def _build(cls: type[Method], settings: dict[str, Any], backbone: Backbone, source: str) -> tuple[Method, int]:
    """The method on a backbone without weights, and what it keeps. Raises UserError where its own code raises."""
    values = validate_settings(cls.HP, settings, lambda *key: f"--set {cls.name}.{key[-1]}", (cls.name,))
    reason = misfit(cls, values, source)
    if reason is not None:
        raise UserError(reason, field=cls.name)
    try:
        method = cls(cls.HP(**values), backbone)
        return method, method.num_kept
    except Exception as error:  # whatever someone's file raises
        raise UserError(f"its code raises {type(error).__name__}: {error}", field=cls.name) from None


def _check_setting_names(settings: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in settings:
        name, _, setting = key.partition(".")
        require_choice(name, known, kind="method", where=f"--set {key}")
        if not setting:
            raise UserError("expected METHOD.SETTING=VALUE", where=f"--set {key}")
