"""Checks the settings that a user writes for an adapter of PEFT, against what PEFT's own configuration classes say.

Everything here is known without a network. What depends on one is checked where the adapter is made.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import typing
import warnings
from collections.abc import Mapping
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from harness.backbone import KindName
from harness.errors import SettingError
from harness.method.peft_adapter import TASK_TYPES
from harness.suite import is_plain_note

DEFAULT_TYPE = "LORA"
"""Taken where there is no configuration at all."""

NOTES = ("peft_version", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping")
"""Keys that PEFT writes beside a method's settings. They say where an adapter comes from and change nothing here: the
backbone is the suite's, the task follows from it, and every cell trains."""

ELSEWHERE: Mapping[str, str] = {
    "tokenizer_name_or_path": "loads a tokenizer; the backbone's own is taken",
    "tokenizer_kwargs": "loads a tokenizer; the backbone's own is taken",
    "prompt_tuning_init_state_dict_path": "reads a file from elsewhere; start from another cell with init_from",
    "megatron_config": "is for networks of Megatron",
    "layer_replication": "makes another network, and the backbone of a suite is one for all its rows",
    "eva_config": "needs activations of training rows before training",
    "corda_config": "needs activations of training rows before training",
    "lora_ga_config": "needs gradients of training rows before training",
    "loftq_config": "quantises weights; recipe.quantization does that for every row alike",
    "arrow_config": "mixes adapters that are trained already",
    "monteclora_config": "adds a loss of its own, which is not wired here",
    "alora_invocation_tokens": "looks for tokens of a prompt's text, and a method sees vectors only",
    "runtime_config": "chooses how PEFT stores weights while it runs",
}
"""Keys that reach outside of the method, with why they cannot be set."""

DATA_STARTS = {"eva": "eva_config", "corda": "corda_config", "lora_ga": "lora_ga_config", "loftq": "loftq_config"}
"""Starts of LoRA that need what the key beside them needs."""

REFUSED_TYPES: Mapping[str, str] = {
    "XLORA": "mixes LoRA adapters that are trained already, and a cell starts without any",
    "SHADOW": "keeps a state of its own beside the network from token to token and trains it by a second loss over the "
    "same rows, which a method here has no place for",
}
"""Types of PEFT that cannot train here, with why."""

# fmt: off
POSITIONWISE_TYPES = frozenset({
    "ADALORA", "ADAMSS", "BEFT", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA",
    "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA",
    "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA",
    "WAVEFT",
})
# fmt: on
"""Types whose layers treat each position by itself. LILY's router takes a mean over rows, and POLY's goes by tasks."""

SCALES = ("lora_alpha", "alpha", "psoft_alpha", "randlora_alpha", "scaling")
"""Settings by which an update is multiplied. At 0 nothing would train."""
LOOSE_SCALES = ("lora_alpha", "alpha")
"""Those that PEFT declares as whole numbers and only multiplies by: files of PEFT hold 16.0 and 12.5 too."""

TOKENS = ("token_indices", "cpt_token_ids")
"""Settings that list ids of tokens."""


def checked_peft_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without PEFT's notes, so that these do not make another cell of it.

    Raises SettingError, which names the key under `config`, for what PEFT does not know or what cannot train here.
    """
    _check(json.dumps(config, sort_keys=True, default=str))
    settings = {key: value for key, value in config.items() if key not in NOTES and value is not None}
    return {**settings, "peft_type": peft_type(config)} if config else {}


def make_peft_config(config: Mapping[str, Any], kind: KindName, num_steps: int | None) -> PeftConfig:
    """Return PEFT's object for a configuration, for a network of a kind and a cell of `num_steps` steps.

    The steps are unknown where only shapes count.
    """
    cls, values = _read(config)
    names = {field.name for field in dataclasses.fields(cls)}
    if "total_step" in names:
        values["total_step"] = num_steps or _schedule_length(cls, values)
    if issubclass(cls, _prompt_class()):
        values["task_type"] = TASK_TYPES[kind]
        _settle_prompts(peft_type(config), values, kind)
    return _made(cls, values)


def _settle_prompts(name: str, values: dict[str, Any], kind: KindName) -> None:
    """Settle where vectors in front stand in an encoder-decoder. Raises SettingError where PEFT has no place there."""
    count = values.get("num_transformer_submodules")
    if name == "CPT" and kind != "decoder":
        raise SettingError("config.peft_type", "CPT puts words in front of a decoder's text; this is no decoder alone")
    if kind != "encoder-decoder":
        return
    if name in ("PREFIX_TUNING", "CARTRIDGE") and count == 1:
        raise SettingError("config.num_transformer_submodules", "1 would put the prefix into cross-attention too")
    if name == "MULTITASK_PROMPT_TUNING":
        if count == 2:
            raise SettingError("config.num_transformer_submodules", "2 would put vectors in front of the answer too")
        values["num_transformer_submodules"] = 1


def peft_type(config: Mapping[str, Any]) -> str:
    """Return the type of PEFT that a configuration names, in capitals, e.g. LORA."""
    return str(config.get("peft_type") or DEFAULT_TYPE).upper()


@functools.lru_cache(maxsize=1024)  # each grid point of a suite is judged several times
def _check(text: str) -> None:
    config = json.loads(text)
    cls, values = _read(config)
    hints, defaults = typing.get_type_hints(cls), {field.name: field.default for field in dataclasses.fields(cls)}
    for key, value in values.items():
        if value is not None and value != defaults[key]:
            _check_value(key, value, hints[key])
    for name in ("tinit", "tfinal"):
        if name in defaults and isinstance(values.get(name), int) and values[name] < 0:
            raise SettingError(f"config.{name}", f"must be 0 steps or more, got {values[name]}")
    if "total_step" in defaults:
        values["total_step"] = _schedule_length(cls, values)
    if issubclass(cls, _prompt_class()):
        values["task_type"] = "CAUSAL_LM"
        if str(values.get("prompt_tuning_init") or "RANDOM") not in ("RANDOM", "SAMPLE_VOCAB"):
            raise SettingError("config.prompt_tuning_init", "starts from a text or from files",
                               choices=["RANDOM", "SAMPLE_VOCAB"])  # fmt: skip
        count = values.get("num_virtual_tokens")
        if not isinstance(count, int) and "cpt_token_ids" not in defaults:
            raise SettingError("config.num_virtual_tokens", "is missing: how many vectors go in front of a text")
        if isinstance(count, int) and count < 1:
            raise SettingError("config.num_virtual_tokens", f"must be at least 1, got {count}")
        if values.get("modules_to_save"):
            raise SettingError("config.modules_to_save", "cannot be set beside vectors in front of the text")
    _check_meaning(_made(cls, values))


def _read(config: Mapping[str, Any]) -> tuple[type[PeftConfig], dict[str, Any]]:
    """Return PEFT's class for a configuration, and the settings without notes. Raises SettingError."""
    if config and "peft_type" not in config:
        raise SettingError("config.peft_type", "is missing", choices=_types())
    kind = peft_type(config)
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise SettingError("config.peft_type", f"unknown type '{kind}'", value=kind, choices=_types())
    if kind in REFUSED_TYPES:
        raise SettingError("config.peft_type", f"{kind} cannot train here: it {REFUSED_TYPES[kind]}")
    cls: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    names = [field.name for field in dataclasses.fields(cls) if field.name != "total_step"]
    defaults = {field.name: _default(field) for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in config.items():
        if key == "total_step" and value is not None and key in defaults:
            raise SettingError("config.total_step", "is the recipe's steps; leave it out, or write null")
        if key == "peft_type" or (key == "total_step" and key in defaults):
            continue
        if key not in names:
            known = [name for name in names if name not in (*NOTES, "peft_type", *ELSEWHERE)]
            raise SettingError(f"config.{key}", f"unknown; {kind} has no such setting", value=key, choices=known)
        if key in NOTES:
            _check_note(key, value)
            continue
        if key in ELSEWHERE and value and not _is_default(value, defaults[key]):
            raise SettingError(f"config.{key}", f"cannot be set: it {ELSEWHERE[key]}")
        if key not in ELSEWHERE:
            values[key] = value
    return cls, values


def _default(field: Any) -> Any:
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


def _is_default(value: Any, default: Any) -> bool:
    """Whether a value, as an adapter's file has it, is what PEFT takes without it."""
    plain = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default  # type: ignore[arg-type]
    return bool(value == plain)


def _check_note(key: str, value: Any) -> None:
    """Raise SettingError for a note that points to code or outside of the adapter's folder."""
    if is_plain_note(key, value):
        return
    where = f"config.{key}"
    if key == "auto_mapping":
        raise SettingError(where, f"names code to import ({_short(value)}); take it out")
    if key == "revision":
        raise SettingError(where, f"names a version of another network ({_short(value)}); the suite names the backbone")
    raise SettingError(where, f"points outside of the folder ({_short(str(value))}); take it out: the suite names the "
                       "backbone")  # fmt: skip


def _check_value(key: str, value: Any, hint: Any) -> None:
    """Raise SettingError where a value is not of the type that PEFT declares."""
    if key == "init_lora_weights" and isinstance(value, str):
        _check_start(value)
        return
    if key in LOOSE_SCALES and isinstance(value, float) and math.isfinite(value):
        return
    try:
        declared: TypeAdapter[Any] = TypeAdapter(hint)
        declared.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        wanted = "" if choices else f": {found['msg'][:1].lower()}{found['msg'][1:]}"
        raise SettingError(f"config.{key}", f"is not what PEFT takes{wanted}, got {_short(value)}",
                           value=value, choices=map(str, choices)) from None  # fmt: skip
    except PydanticUserError:  # a type of PEFT's own, which its constructor judges
        return


def _check_start(start: str) -> None:
    """Raise SettingError for a start of LoRA that PEFT does not know or that needs data."""
    if start in DATA_STARTS:
        key = DATA_STARTS[start]
        raise SettingError("config.init_lora_weights", f"'{start}' cannot be set: it {ELSEWHERE[key]}")
    known = ["gaussian", "olora", "pissa", "pissa_niter_4", "orthogonal", "mica"]
    if start not in known and not re.fullmatch(r"pissa_niter_\d+", start):
        raise SettingError("config.init_lora_weights", f"unknown start '{start}'", value=start, choices=known)


def _check_meaning(config: Any) -> None:
    """Raise SettingError for settings that PEFT takes, and that would not do here what they say."""
    kind = peft_type({"peft_type": getattr(config.peft_type, "value", config.peft_type)})
    if kind == "ADALORA" and config.target_r >= config.init_r:
        raise SettingError("config.target_r", f"{config.target_r} is not below init_r, {config.init_r}")
    if kind == "ADALORA" and config.deltaT < 1:
        raise SettingError("config.deltaT", f"must be at least 1 step between two allocations, got {config.deltaT}")
    for name in ("rank_pattern", "alpha_pattern"):
        for key, value in (getattr(config, name, None) or {}).items():
            if kind != "ADALORA" and (not isinstance(value, (int, float)) or value <= 0):
                raise SettingError(f"config.{name}.{key}", f"must be a number above 0, got {_short(value)}")
    for name in SCALES:
        value = getattr(config, name, None)
        if value is not None and value <= 0:
            raise SettingError(f"config.{name}", f"must be above 0, got {_short(value)}: it multiplies the update")
    if getattr(config, "use_asa", False):
        raise SettingError("config.use_asa", "cannot be set: its choice of subspaces in training is not wired here")
    if getattr(config, "opt_weighted_loss_type", "none") not in (None, "none"):
        raise SettingError("config.opt_weighted_loss_type", "cannot be set: every row trains with one loss here")


def _schedule_length(cls: type[PeftConfig], values: Mapping[str, Any]) -> int:
    """Return steps enough for the schedule of the settings, where those of the recipe are not known."""
    parts = [values.get(name) or 0 for name in ("tinit", "tfinal")]
    return 1 + sum(part for part in parts if isinstance(part, int))


def _made(cls: type[PeftConfig], values: Mapping[str, Any]) -> PeftConfig:
    """Return PEFT's object. Raises SettingError with the first sentence of what PEFT says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return cls(**values)
    except (ValueError, TypeError, KeyError, AssertionError, ImportError, AttributeError) as error:
        raise SettingError("config", f"is refused by PEFT: {first_sentence(error)}") from None


def first_sentence(said: Exception | str) -> str:
    """Return what PEFT says without the advice that follows: it names functions of PEFT that a suite has no use for."""
    lines = str(said).strip().splitlines() or [type(said).__name__]
    return re.split(r"(?<=[\w`'\"\])}])\. +(?=[A-Z])", lines[0])[0].rstrip(".")


def _prompt_class() -> type[PeftConfig]:
    from peft.config import PromptLearningConfig

    found: type[PeftConfig] = PromptLearningConfig
    return found


def _types() -> list[str]:
    return sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value not in REFUSED_TYPES)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
