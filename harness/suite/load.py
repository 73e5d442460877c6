"""A suite file with the command line's overrides, before its grid is spanned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from harness.errors import UserError
from harness.suite.adapter_rows import with_a_row_for_each
from harness.suite.blocks import ProtocolReference
from harness.suite.file_schema import SLUG, SUITE_FORMAT, SuiteFile
from harness.suite.overrides import BLOCKS, Overrides, assign, check_lists, check_setting_key, check_slug
from harness.suite.protocol import Protocol, resolve_protocol
from harness.suite.report_layout_files import check_block
from harness.validation import validate_model
from harness.yaml_lines import Document, read_document


@dataclass(frozen=True)
class Suite:
    """A suite file with the command line's overrides applied."""

    file: SuiteFile
    document: Document
    backbone_sources: dict[str, str]
    """Short name, as used in results -> what the user gave (known name, hub id or path)."""
    overrides: Overrides
    protocol: Protocol
    encoders: frozenset[str] = frozenset()
    """Short names of the backbones that only read a text, once these are looked up."""

    @property
    def backbones(self) -> list[str]:
        """Short names of the backbones of its table."""
        given = self.overrides.backbones or self.file.backbones
        return [short_name(source) for source in given]

    @property
    def folder(self) -> str:
        """Where the suite file lies; the paths that it declares are relative to it."""
        return str(Path(self.document.path).parent)


def load_suite(path: str | Path, overrides: Overrides) -> Suite:
    """Read and validate a suite file. Raises UserError with file and line."""
    document = read_document(path)
    data, assigned = with_a_row_for_each(document), []
    for key, value in overrides.settings.items():
        check_setting_key(key)
        if key.split(".")[0] in BLOCKS:
            assign(data, key, value)
            assigned.append(key)
    file = validate_model(SuiteFile, data, partial(_where, document, assigned))
    if file.version != SUITE_FORMAT:
        problem = f"suite version {file.version} is not known here; this program reads version {SUITE_FORMAT}"
        raise UserError(problem, where=document.where("version"), field="version")
    for label in (*file.methods, *file.sources):
        check_slug(label, "method", document.where(*(("methods" if label in file.methods else "sources"), label)))
    check_block(file.report, document)
    overrides = replace(overrides, backbones=_as_declared(overrides.backbones, file.backbones))
    check_lists(overrides)
    sources = _short_names(overrides.backbones or file.backbones, document)
    if overrides.backbones:  # cells may still start from what the file's own backbones trained
        sources = {**_short_names(file.backbones, document), **sources}
    return Suite(file, document, sources, overrides, _protocol(file, document, overrides))


def _where(document: Document, assigned: Sequence[str], *key: str | int) -> str:
    """Place of a key: the command line's option, where that has set it or the block with the mistake."""
    path = ".".join(str(part) for part in key)
    options = [name for name in assigned if name == path or name.startswith(f"{path}.")]
    return f"--set {options[-1]}" if options and path else document.where(*key)


def _protocol(file: SuiteFile, document: Document, overrides: Overrides) -> Protocol:
    """The suite's protocol, with what --protocol and --set protocol.KEY=VALUE change."""
    reference, where = file.protocol, document.where("protocol")
    if overrides.protocol:
        reference, where = ProtocolReference(name=overrides.protocol), "--protocol"
    found = resolve_protocol(reference, where)
    settings = {k.removeprefix("protocol."): v for k, v in overrides.settings.items() if k.startswith("protocol.")}
    for key, value in settings.items():
        changed = {**found.reference.overrides, key: value}
        found = resolve_protocol(found.reference.model_copy(update={"overrides": changed}), f"--set protocol.{key}")
    return found


def named_source(given: str) -> tuple[str, str]:
    """`NAME=SOURCE` as (name, source), name "" where none is given; a folder may have an equals sign in its path."""
    name, sign, source = given.partition("=")
    is_named = sign and source and re.fullmatch(SLUG, name) and not Path(given).exists()
    return (name, source) if is_named else ("", given)


def short_name(given: str) -> str:
    """Name of a backbone in results: the one given in front of an equals sign, or the last part of path or hub id."""
    name, source = named_source(given)
    if name:
        return name
    last = source.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return Path(source).resolve().name if last in (".", "..", "") else last


def _as_declared(given: Sequence[str] | None, declared: Sequence[str]) -> list[str] | None:
    """Names from the command line, a suite's backbone also by the short name that tables show; a folder is itself."""
    by_short = {short_name(source): source for source in declared}
    return None if given is None else [name if Path(name).is_dir() else by_short.get(name, name) for name in given]


def _short_names(given: Sequence[str], document: Document) -> dict[str, str]:
    """Two sources may not share one name in the results."""
    names: dict[str, str] = {}
    for source in given:
        short, where = short_name(source), document.where("backbones")
        check_slug(short, "backbone", where)
        if short in names:
            problem = f"'{source}' and '{names[short]}' would both be called '{short}' in the results"
            raise UserError(problem, where=where, hint=f"Give one a name: NAME={named_source(source)[1]}.")
        names[short] = named_source(source)[1]
    return names
