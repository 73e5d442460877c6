"""The rules of docs/architecture.md that a reader relies on: imports point one way, reports need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# each module imports only from lines above its own
LAYERS = [
    [
        "attention",
        "declarations",
        "dropout",
        "errors",
        "library_noise",
        "memory",
        "method_facts",
        "micro",
        "provenance",
        "scores",
        "screen",
        "stop",
        "traces",
        "transfer",
        "tsv",
        "weighted",
    ],
    ["seal"],
    [
        "blame",
        "backbone_names",
        "class_names",
        "cli_moved",
        "draws",
        "durable",
        "hub",
        "low_rank",
        "metrics",
        "quantization",
        "report_declarations",
        "shipped_suites",
        "text_tables",
        "validation",
    ],
    ["label_matching", "layer_change", "readers"],
    ["shared_layers", "suite_file", "yaml12"],
    ["method_source", "optimizer", "overrides", "protocol", "schema"],
    ["data_notes"],
    [
        "backbone",
        "claims",
        "cli_options",
        "lineage",
        "listings_protocols",
        "parts",
        "progress",
        "racing",
        "report_layouts",
    ],
    ["flops", "footprint", "initialization", "prefix_layers", "results", "suite_loading", "sweeps"],
    ["cell_limit", "settings"],
    ["families"],
    ["suite", "tokenizer_files"],
    ["group_index", "suite"],
    ["loading", "selection", "tasks"],
    ["examples", "report", "resolved_suite", "sources", "staleness"],
    ["cli_boards", "cli_layouts", "data", "stored_files"],
    [
        "cli_publish",
        "cli_report",
        "few_shot",
        "heads",
        "limits",
        "listings_data",
        "mixture",
        "tiny",
        "token_cache",
        "verify",
    ],
    ["caches", "cli_store", "device_plan", "method"],
    ["cell_state", "export", "fused", "layer_parts", "listings_suites", "peft_layers", "probe"],
    ["contract_checks", "distributed", "fit", "predict", "starting", "tracking", "usage"],
    ["contract_tensors", "listings_params"],
    ["checkpoint", "contract", "products", "sharding"],
    ["building", "step"],
    ["train"],
    ["bundle"],
    ["placement", "planning", "ray_worker"],
    ["estimate", "namesakes", "packing", "ray_cluster", "ray_parcel"],
    ["listings_time", "ray_engine", "worklist"],
    ["engines", "preflight"],
    ["listings"],
    ["cli_list", "runner"],
    ["cli_check", "cli_run"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in (ROOT / "harness").rglob("*.py") if path != ROOT / "harness" / "__init__.py")
METHOD_FILES = sorted((ROOT / "methods").glob("*.py"))


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, at any depth."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / "harness").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_up(path: Path) -> None:
    own = layer_of(path)
    for name in imported(path):
        if name.startswith("harness."):
            other = name.split(".")[1]
            assert other == own or RANK[other] < RANK[own], f"{own} may not import {other}"


def test_every_module_has_a_layer() -> None:
    assert {layer_of(path) for path in MODULES} == set(RANK)


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda p: p.name)
def test_a_method_imports_only_torch_peft_the_library_and_the_method_surface(path: Path) -> None:
    allowed = {"torch", "peft", *sys.stdlib_module_names}
    for name in imported(path):
        shared = ("method", "transfer", "peft_layers", "prefix_layers", "layer_parts")
        surface = name in {f"harness.{module}" for module in shared}
        assert surface or name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_nothing_in_harness_names_a_method() -> None:
    names = {path.stem for path in METHOD_FILES}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            words = {getattr(node, "id", None), getattr(node, "attr", None)}
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            assert not words & names, f"{path.name}:{getattr(node, 'lineno', 0)} names {words & names}"


def test_reports_results_and_help_start_without_torch() -> None:
    code = (
        "import sys, harness, harness.cli, harness.results, harness.suite, harness.tasks,"
        " harness.report.tables, harness.report.aggregate; harness.tasks.all_tasks();"
        " sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_module_stands_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    missing = [
        name for name in RANK if not name.startswith("__") and f"`{name}`" not in page and f"`{name}/`" not in page
    ]
    assert not missing
