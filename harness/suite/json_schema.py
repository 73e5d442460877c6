"""JSON Schema (draft 2020-12) of suite files, for editors: made from the models that read these files.

A schema cannot know what only looking up tells: own tasks and methods, settings that exclude each other, sizes.
`harness check` judges all of it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter

from harness.suite.adapter_folder import ADAPTER_CONFIG
from harness.suite.blocks import Strict
from harness.suite.file_schema import ADAPTER, MAX_SEED, SLUG, SUITE_FORMAT, MethodSpec, Recipe, SourceChoice, SuiteFile
from harness.suite.init_from import INIT_FROM, NO_SOURCE
from harness.suite.protocol import ProtocolKey, protocol_keys, protocol_names
from harness.suite.report_layout_files import figure_names, table_names

Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
NULL: Schema = {"type": "null"}
RANGE = "range"
ROW = "row"
"""Definition of a row under a label that is no shipped method; `row.NAME` is that of a row of the method NAME."""


BESIDE_ADAPTER: Schema = {"propertyNames": {"enum": [ADAPTER, "method", "recipe"]}}
"""A row that answers with an adapter has no settings of its own: the folder decides."""


@dataclass(frozen=True)
class Names:
    """What suites may name of what comes with the program."""

    tasks: Sequence[str]
    backbones: Sequence[str]
    metrics: Sequence[str]
    methods: Mapping[str, MethodSpec]


def suite_schema(names: Names) -> Schema:
    """Return the schema; equal names give an equal one."""
    suite, definitions = model_schema(SuiteFile)
    for model in (Recipe, SourceChoice):
        made, more = model_schema(model)
        definitions |= {**more, model.__name__: made}
    definitions["Recipe"] = _settings(definitions["Recipe"])
    definitions |= {INIT_FROM: _init_from(), RANGE: _range(), ADAPTER: _adapter()}
    definitions |= {f"{ROW}.{name}": _row_of(spec) for name, spec in names.methods.items()}
    definitions[ROW] = _row(list(names.methods))
    known = suite["properties"]
    known["version"] |= {"const": SUITE_FORMAT}
    known["backbones"]["items"] = _offered(names.backbones)
    known["protocol"] = _about(_protocol(), known["protocol"])
    known["recipe"] = _about(_ref("Recipe"), known["recipe"])
    known["methods"] = _about(_rows(names.methods, fewest=1), known["methods"])
    known["sources"] = _about(_rows(names.methods, fewest=0), known["sources"])
    for axis in ("backbones", "tasks"):
        known[axis]["uniqueItems"] = True
    _unique(known["seeds"])
    _unique(definitions["FewShot"]["properties"]["k"])
    _unique(definitions["MixtureFile"]["properties"]["tasks"])
    for key in ("tables", "figures"):
        _unique(definitions["ReportBlock"]["properties"][key])
    rule = definitions["ExceptionRule"]["properties"]
    rule["recipe"] = _about(_ref("Recipe"), rule["recipe"])
    task = definitions["TaskFile"]["properties"]
    for key in ("metrics", "extra_metrics"):
        task[key]["items"] = _offered(names.metrics)
    report = definitions["ReportBlock"]["properties"]
    report["tables"]["items"] = {**report["tables"]["items"], **_offered(table_names())}
    report["figures"]["items"] = {**report["figures"]["items"], **_offered(figure_names())}
    definitions["Execution"]["properties"]["checkpoint_every"]["pattern"] = r"^(off|[1-9]\d{0,8} ?(s|m|h|steps))$"
    head = {"$schema": DIALECT, "title": "Suite file of the PEFT harness", "description": suite.pop("description")}
    own = {"anyOf": [{"required": ["define_tasks"]}, {"required": ["define_mixtures"]}]}
    # a suite without tasks of its own can name shipped ones alone, so a misspelt one is marked
    shipped = {"properties": {"tasks": {"items": {"enum": sorted(names.tasks)}}}}
    return {**head, **suite, "if": own, "else": shipped, "$defs": dict(sorted(definitions.items()))}


def model_schema(model: type[Strict]) -> tuple[Schema, dict[str, Schema]]:
    """Return the schema of a model and those of the models below it, with what stands below each field as text."""
    made = _without_titles(model.model_json_schema())
    definitions: dict[str, Schema] = made.pop("$defs", {})
    for each in models_below(model):
        schema = made if each is model else definitions[each.__name__]
        schema["description"] = sentence(each)
        for name, text in attribute_docstrings(each).items():
            schema["properties"][name]["description"] = text.replace("`", "")
    return made, definitions


def models_below(model: type[Strict]) -> Iterator[type[Strict]]:
    """Yield the model and every model that a field of it names."""
    yield model
    for field in model.model_fields.values():
        waiting = [field.annotation]
        while waiting:
            hint: Any = waiting.pop()
            waiting += get_args(hint)
            if isinstance(hint, type) and issubclass(hint, Strict):
                yield from models_below(hint)


def sentence(model: type[Strict]) -> str:
    """Return the first paragraph of a model's docstring, on one line."""
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def attribute_docstrings(model: type[Strict]) -> dict[str, str]:
    """Return field -> the text that stands below it in the source."""
    [cls] = ast.parse(inspect.getsource(model)).body
    assert isinstance(cls, ast.ClassDef)
    found = {}
    for before, after in zip(cls.body, cls.body[1:], strict=False):
        match before, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _without_titles(schema: Any) -> Any:
    """Take out pydantic's titles, which repeat each key; a property that is called `title` is a schema, no text."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_titles(item) for key, item in schema.items() if key != "title" or not isinstance(item, str)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _about(schema: Schema, before: Schema) -> Schema:
    """Return `schema` with the description of what it replaces."""
    return {"description": before["description"], **schema}


def _unique(schema: Schema) -> None:
    """Say of a list that it names nothing twice; of a choice of types the list is meant."""
    for branch in (schema, *schema.get("anyOf", ())):
        if branch.get("type") == "array":
            branch["uniqueItems"] = True


def _offered(names: Sequence[str]) -> Schema:
    """Any text that is not empty; an editor offers the names."""
    return {"anyOf": [{"enum": sorted(names)}, {"type": "string", "minLength": 1}]}


def _swept(value: Schema) -> Schema:
    """A value, or `{sweep: [...]}` of such values; where it may be a number, `{range: [lowest, highest]}` too."""
    values = {"type": "array", "items": value, "minItems": 1, "uniqueItems": True}
    sweep = {
        "type": "object",
        "properties": {"sweep": values},
        "required": ["sweep"],
        "additionalProperties": False,
        "description": "Values that are tried.",
    }
    return {"anyOf": [value, sweep, *([_ref(RANGE)] if _takes_numbers(value) else [])]}


def _takes_numbers(value: Schema) -> bool:
    kinds = value.get("type", ())
    named = {"integer", "number"} & set([kinds] if isinstance(kinds, str) else kinds)
    return bool(named) or any(map(_takes_numbers, value.get("anyOf", ())))


def _range() -> Schema:
    """`{range: [1e-5, 1], log: true}`."""
    ends = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    return {
        "type": "object",
        "properties": {
            "range": {**ends, "description": "Lowest and highest value."},
            "log": {"type": "boolean", "description": "Whether every decade is as likely as any other."},
        },
        "required": ["range"],
        "additionalProperties": False,
        "description": "Values that a search by random or tpe draws from.",
    }


def _adapter() -> Schema:
    """One adapter, or several, which become a row each."""
    paths: Schema = {
        "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
    }
    named = {
        "type": "object",
        "properties": {
            "folder": {**paths, "description": "Path of it, or several."},
            "base_model": {
                "enum": ["recorded", "any"],
                "description": "Whether the network that it records must have the backbone's name.",
            },
        },
        "required": ["folder"],
        "additionalProperties": False,
    }
    about = "Folder of an adapter that was trained elsewhere, with which the row answers."
    return {"anyOf": [*paths["anyOf"], named], "description": about}


def _settings(model: Schema) -> Schema:
    """A block of settings of which none has to be given and each may be swept."""
    properties = {}
    for name, schema in model["properties"].items():
        value = {key: item for key, item in schema.items() if key not in ("description", "default")}
        properties[name] = {**_swept(value), **{key: schema[key] for key in schema if key not in value}}
    return {**model, "properties": properties, "required": []}


def _init_from() -> Schema:
    """What a row starts from."""
    source = _ref(SourceChoice.__name__)
    plain = {"anyOf": [NULL, {"const": NO_SOURCE}, source, {"type": "array", "items": source, "minItems": 1}]}
    return {
        **_swept(plain),
        "description": "What its tensors start from: cells, an adapter, or a file.",
    }


def _row_of(spec: MethodSpec) -> Schema:
    """A row of one method: its own settings, and what all rows may have."""
    row = {
        "type": "object",
        "properties": {"method": {"const": spec.name}, "recipe": _ref("Recipe")},
        "additionalProperties": False,
        "description": f"Settings of {spec.name}.",
    }
    if spec.error is not None:  # what it takes is told when it is imported
        return {**row, "additionalProperties": True}
    if spec.is_rule:
        return {**row, "description": f"{spec.name} has no settings."}
    hints = get_type_hints(spec.hp_type)
    settings = {item.name: _setting(hints[item.name], item) for item in dataclasses.fields(spec.hp_type)}
    if "config" in settings:
        settings[ADAPTER_CONFIG] = {"type": "string", "description": "Folder whose adapter_config.json is the config."}
    if spec.takes_sources != (0, 0):
        settings[INIT_FROM] = _ref(INIT_FROM)
    made: Schema = {**row, "properties": {**row["properties"], **settings}}  # type: ignore[dict-item]
    if spec.answers_from_files:
        made["properties"][ADAPTER] = _ref(ADAPTER)
        made["dependentSchemas"] = {ADAPTER: BESIDE_ADAPTER}
    return made


def _setting(hint: Any, field: dataclasses.Field[Any]) -> Schema:
    """One hp; of a mapping each value may be swept, so nothing is said of what is in it."""
    value = {"type": "object"} if get_origin(hint) is dict or hint is dict else TypeAdapter(hint).json_schema()
    default = {} if field.default in (dataclasses.MISSING, None) else {"default": field.default}
    return {**_swept(value), **default}


def _row(methods: Sequence[str]) -> Schema:
    """A row under any label: what it may hold follows from its `method`, which may be a file of the user's own."""
    by_method = [
        {"if": {"properties": {"method": {"const": name}}, "required": ["method"]}, "then": _ref(f"{ROW}.{name}")}
        for name in methods
    ]
    properties = {
        "method": _offered(methods), "recipe": _ref("Recipe"), INIT_FROM: _ref(INIT_FROM), ADAPTER: _ref(ADAPTER),
    }  # fmt: skip
    without = {"required": [ADAPTER], "not": {"required": ["method"]}}
    by_method.append({"if": {"type": "object", **without}, "then": BESIDE_ADAPTER})
    return {"type": ["object", "null"], "properties": properties, "allOf": by_method}


def _rows(methods: Mapping[str, MethodSpec], fewest: int) -> Schema:
    """`[lora, dept]`, or label -> settings; a label that is a shipped method stands for it unless the row says else."""
    named = {
        name: {
            "if": {"type": "object", "required": ["method"]},
            "then": _ref(ROW),
            "else": {"anyOf": [NULL, _ref(f"{ROW}.{name}")]},
        }
        for name in methods
    }
    mapping = {
        "type": "object",
        "minProperties": fewest,
        "propertyNames": {"pattern": SLUG},
        "properties": named,
        "additionalProperties": _ref(ROW),
    }
    return {"anyOf": [mapping, {"type": "array", "items": _offered(list(methods)), "minItems": fewest}]}


def _protocol() -> Schema:
    """A name, or `{base: NAME, KEY: VALUE}`; also the form in which results hold it."""
    names = {"enum": protocol_names()}
    keys = {name: _protocol_key(key) for name, key in protocol_keys().items() if key.kind != "recorded"}
    changed = {"type": "object", "properties": {"base": names, **keys}, "additionalProperties": False}
    overrides = {"type": "object", "properties": keys, "additionalProperties": False}
    stored = {
        "type": "object",
        "properties": {"name": names, "version": {"type": ["integer", "null"]}, "overrides": overrides},
        "required": ["overrides"],
        "additionalProperties": False,
    }
    return {"anyOf": [names, changed, stored]}


def _protocol_key(key: ProtocolKey) -> Schema:
    """What a key of a protocol may be, as `ProtocolKey.checked` judges."""
    if key.choices is not None:
        # a choice is compared as text, so 20 is "20"
        numbers = [float(name) if "." in name else int(name) for name in key.choices if _is_numeric(name)]
        return {"enum": [*key.choices, *numbers], "description": key.about}
    number: Schema = {"type": "number", "minimum": 0}
    kinds: dict[str, Schema] = {
        "integer": {"type": "integer", "minimum": key.minimum},
        "number": number,
        "grid": {"type": "array", "items": number, "minItems": 1},
        "text": {"type": "string"},
        "texts": {"type": "array", "items": {"type": "string", "minLength": 1}},
        "general text": {"type": "string"},
    }
    schema = kinds[key.kind]
    if key.maximum is not None:
        schema = {**schema, "maximum": key.maximum}
    if key.sets == "seeds":
        schema = {
            **schema,
            "items": {"type": "integer", "minimum": 0, "exclusiveMaximum": MAX_SEED},
            "uniqueItems": True,
        }
    if key.unset is not None:
        schema = {"anyOf": [{"const": key.unset}, schema]}
    return {**schema, "description": key.about}


def _is_numeric(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
