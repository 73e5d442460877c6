"""Every suite in suites/: as many cells as the design of its table or figure implies, and a run from end to end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import ROOT
from site_pages import Document, check_cell_page, check_links
from suite_rows import write_small_decoder, write_small_encoder, write_tiny_task, write_wide_backbone
from task_rows import OFFICIAL, write_files
from typer.testing import CliRunner

import harness
from harness.cli.commands import app
from harness.data.tasks import all_tasks
from harness.report.site.cells import leaves
from harness.report.site.names import cell_page
from harness.results.schema import Result
from harness.results.store import ResultStore
from harness.runner.plan import Plan, make_plan
from harness.suite.file_schema import Recipe
from harness.suite.make_groups import Overrides

FOLDER = ROOT / "suites"
SUITES = sorted(path.stem for path in FOLDER.glob("*.yaml"))

GRID = 3  # learning rates of the prompt that both papers searched: 0.3, 0.4, 0.5
GLUE, SUPERGLUE, MRQA, RULES = 8, 5, 4, 2
SHOTS = 3  # k = 4, 16, 32
# the winner of a search on the first of three seeds runs the other two
SEEDED = GRID + 2
EXPECTED = {
    "glue": GLUE * (6 * GRID + RULES),
    "superglue": SUPERGLUE * (6 * GRID + RULES),
    "mrqa": MRQA * (6 * SEEDED + RULES * 3),
    "calibration": 17,  # the released runs of DePT
    "methods": 3 * (19 * GRID + RULES),
    "quickstart": 3 * (6 * 3 + 2),  # three tasks, grids of two, two seeds; the rule has no grid
    # six methods of ACCEPT's Table 3 on BoolQ, CB and SciTail; dev chooses one of five sources for DePT and ACCEPT,
    # whose sides are trained apart
    "fewshot": 3 * SHOTS * (4 * SEEDED + 2 * (5 * GRID + 2)) + 3 * 5 * GRID,
    # EPT starts from one of five sources; MNLI, QQP and SST-2 not from themselves
    "fewshot-glue": SHOTS * (GLUE * SEEDED + 5 * (5 * GRID + 2) + 3 * (4 * GRID + 2)) + 5 * GRID,
    "ablation-granularity": 2 * 9 * GRID,  # nine widths on either side: Table 12
    "ablation-components": 4 * (GLUE + SUPERGLUE) * GRID,
    "ablation-components-mrqa": 4 * MRQA * SEEDED,
    "ablation-codebook": 6 * SUPERGLUE * GRID,  # the six rows of Table 4
    "ablation-ept": 6 * (GLUE + SUPERGLUE) * GRID,
    # either side alone on each task, and longer ones of MNLI; dev's choice of three starts, on MNLI of two
    "initialization": (5 * (GLUE + SUPERGLUE) + 28 + 3 * (GLUE + SUPERGLUE) - 1) * GRID,
    "initialization-mrqa": 3 * MRQA * SEEDED + 2 * (MRQA + 1) * GRID,  # either side alone on each task and SQuAD
    "ablation-length": 6 * 2 * GRID,  # m = 0, 20, ..., 100 on MRPC and STS-B
    "ablation-length-ept": (6 + 4 + 5) * GLUE * GRID,
    "ablation-length-boolq": (6 + 5) * GRID,
    "length-time": (6 + 6 + 1) * 2,
    "ablation-spaces": 7 * (GLUE + SUPERGLUE) * GRID,  # 2 to 8 spaces
    "gates": 4 * GRID,
    "scaling": 5 * 3 * 3 * GRID,  # BoolQ, MultiRC and WiC on three sizes
    "t5-3b": 4 * GLUE * GRID,
    "t5-11b": 3 * GRID,
    "flan-t5-11b": 3 * GRID,
    "llama2-7b": 4,
    "transfer-glue": (4 * GLUE + 6 + 2) * GRID,  # four rows, six source prompts, two first stages
    "multitask-glue": (4 + 8 + 2) * GRID,  # four rows on the mixture, eight teachers, two more source prompts
    "transfer-superglue": (4 * SUPERGLUE + 6 + 2) * GRID,
    "transfer-mrqa": 3 * MRQA * SEEDED + (6 + 1) * GRID,
    # dev chooses one of five sources for SPoT
    "fewshot-transfer": 3 * SHOTS * (3 * SEEDED + 5 * GRID + 2) + (6 + 2) * GRID,
    "peft-board": 67,  # one cell for each experiment of the board but four
    "commonsense": 3,
    "arithmetic": 3 * 5,
    "generation": 6 * 2,
    "choices": 4 * 8,
    "peft": 11 * 2 + 4 + 1,  # grids of two rates; one row has two lengths as well
    "real-encoder": 6 * (27 * (3 + 2) + 3),  # three rates, two more seeds
    "real-decoder": 4 * (11 * 4 + 2 * 3),  # grids of two, two more seeds
    "transfer": 3 * 4 + 2 * 4,
    "transfer-few-shot": 4 * 6 + 2 * 6,
}


@functools.cache
def plan_of(suite: str) -> Plan:
    """The plan of a suite of which nothing is trained yet."""
    return make_plan(FOLDER / f"{suite}.yaml", Overrides(), "nowhere", None)


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_has_the_cells_that_its_table_implies(suite: str) -> None:
    plan = plan_of(suite)
    assert sum(plan.num_cells(group) for group in plan.groups) == EXPECTED[suite]
    assert plan.suite.file.suite == suite
    papers = (
        "ACCEPT",
        "EPT",
        "DePT",
        "micro T5",
        "generated tasks",
        "PEFT's own board",
        "LLM-Adapters",
        "MiniLM",
        "SmolLM2",
    )
    assert any(name in plan.suite.file.description for name in papers), "it says what it reproduces"


def test_the_rows_of_table_12_have_the_printed_ranks() -> None:
    from harness.backbone.load import meta_backbone
    from harness.train.method_fit import build_method

    plan, backbone = plan_of("ablation-granularity"), meta_backbone("t5-base")
    cls = plan.methods["accept"].cls
    assert cls is not None
    printed = {
        "scpp": [74_496, 74_880, 75_360, 75_648, 75_840, 76_080, 76_224, 76_008, 76_260],
        "scap": [72_192, 73_728, 76_800, 74_240, 76_032, 76_544, 76_800, 76_800, 76_800],
    }
    for side, counts in printed.items():
        groups = [group for group in plan.groups if group.label.startswith(side)]
        built = [build_method(group.cells[(0, 42)], cls, backbone) for group in groups]  # type: ignore[arg-type]
        assert [method.num_trained for method in built] == counts


BOARD_COUNTS = {
    "adaptionprompt-lr_5e-3": 8_601_628, "beft-target-v_proj": 28_672, "c3a-default": 5_505_024,
    "deft-rank32": 9_175_040, "deft-rank32-para": 3_670_016, "full-finetuning-lr_0.00001": 3_212_749_824,
    "glora-default": 4_587_520, "glora-vector-paths": 229_376, "hira-rank32-lr4.5e-3": 9_175_040,
    "ia3-all-attn-5k-lr0.005": 630_784, "ia3-default": 286_720, "ln_tuning-default": 175_104,
    "lora-rank10-target-mlp": 9_461_760, "lora-rank32": 9_175_040, "lora-rank32-dora": 9_289_728,
    "lora-rank64-rslora": 18_350_080, "miss-default": 7_340_032, "miss-mini": 229_376, "oft-rank32": 8_171_520,
    "peanut-rank32-relu-depth0-s2.0": 7_340_032, "prefixtuning-lr_0.001": 11_468_800, "prompt_tuning-default": 614_400,
    "psoft-default": 1_856_512, "ptuning-default": 28_382_208, "pvera-default": 143_360, "pvera-rank64": 121_856,
    "road-lr_0.001": 229_376, "tinylora-default": 3_584, "tinylora-weight-tying": 64,
    "trainable_tokens-sos+eos": 6_144,
}  # fmt: skip
"""num_trainable_params in the result files of PEFT's board, of the rows that take little time to build."""


def test_rows_of_pefts_board_train_as_many_parameters_as_its_results_say() -> None:
    from harness.backbone.load import meta_backbone
    from harness.train.method_fit import build_method

    plan, backbone = plan_of("peft-board"), meta_backbone("llama-3.2-3b", "bf16")
    counted = {}
    for group in plan.groups:
        if group.label in BOARD_COUNTS:
            cell = group.cells[(0, 0)]
            cls = plan.methods[cell.method].cls
            counted[group.label] = build_method(cell, cls, backbone).num_trained  # type: ignore[arg-type]
    assert counted == BOARD_COUNTS


BOARD_DEFAULT = (1e-4, 0.1)
BOARD_RATES = {
    "peft-board": {
        "adaptionprompt-lr_0.0005": (5e-4, 0.01), "adaptionprompt-lr_5e-3": (5e-3, 0.01), "c3a-default": (0.3, 1e-5),
        "delora-rank32": (1e-3, 0.01), "frod-sparse0.02-lr_0.001": (1e-3, 0.01),
        "full-finetuning-lr_0.00001": (1e-5, 0.01), "glora-vector-paths": (5e-4, 0.0), "gralora-rank32": (2e-4, 0.01),
        "hira-rank32-lr4.5e-3": (4.5e-3, 0.0), "ia3-all-attn-5k-lr0.005": (5e-3, 0.0), "ia3-lr_0.001": (1e-3, 0.01),
        "lokr-rank32-factor4-lr0.003": (3e-3, 0.1), "osf-rank128": (5e-5, 0.01), "prefixtuning-lr_0.001": (1e-3, 0.01),
        "prefixtuning-lr_0.005_zero_init": (5e-3, 0.01), "prompt_tuning-lr_0.001": (1e-3, 0.01),
        "prompt_tuning-sample_vocab-lr_0.001": (1e-3, 0.01), "pvera-default": (3e-3, 0.01),
        "pvera-rank64": (3e-3, 0.01), "road-lr_0.001": (1e-3, 0.01), "shira-lr_0.0003-random_seed_42": (3e-4, 0.01),
        "tinylora-default": (1e-3, 0.01), "tinylora-weight-tying": (1e-3, 0.01),
        "trainable_tokens-sos+eos": (0.2, 0.01), "vblora-bank1024-lr5e4": (5e-4, 0.1), "vera-default": (1e-3, 0.01),
    },
    "generation": {"ia3": (1e-3, 0.01), "vera": (1e-3, 0.01), "prompt_tuning": (1e-3, 0.01)},
    "choices": {"ia3": (1e-3, 0.01), "prompt_tuning": (1e-3, 0.01)},
}  # fmt: skip
"""Rate and decay of the rows that differ from BOARD_DEFAULT, as the result files of PEFT's board show them."""


@pytest.mark.parametrize("suite", BOARD_RATES)
def test_rows_of_pefts_board_have_its_rates_and_decays(suite: str) -> None:
    for group in plan_of(suite).groups:
        for cell in group.cells.values():
            wanted = BOARD_RATES[suite].get(group.label, BOARD_DEFAULT)
            assert (cell.recipe.lr, cell.recipe.weight_decay) == wanted, group.label


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for task in all_tasks().values():
        if task.name in OFFICIAL:
            write_files(folder, OFFICIAL[task.name])
        elif task.hub:
            write_tiny_task(folder, task)
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_backbone(tmp_path_factory.mktemp("models") / "wide")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the second layer that LST needs: beside the first it has none of its own."""
    return write_wide_backbone(tmp_path_factory.mktemp("models") / "deep", layers=2)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_decoder(tmp_path_factory.mktemp("models") / "decoder")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_encoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="module")
def network(wide: Path, deep: Path, decoder: Path, encoder: Path) -> Callable[[str], Path]:
    """Return a suite's small network: one of the kind that it is for."""
    others = {"real-encoder": encoder, "methods": deep, **dict.fromkeys(SMALL_DECODERS, decoder)}
    return lambda suite: others.get(suite, wide)


DECODERS = ("arithmetic", "choices", "commonsense", "generation", "peft-board")
"""Suites of a Llama, whose rows name its modules."""
SMALL_DECODERS = (*DECODERS, "real-decoder")
"""With that of a Llama which a processor trains."""
SMALL_ENOUGH = {"peft-board": [
    "boft-default", "full-finetuning-lr_0.00001", "ia3-default", "lora-rank32", "lora-rank32-dora",
    "lora-rank64-rslora", "oft-rank32", "prefixtuning-lr_0.001", "prompt_tuning-default", "ptuning-default",
    "vera-default",
]}  # fmt: skip
"""Rows that a width of 128 and one step have room for: others have ranks, blocks or phases beyond that."""
PHASES = {"real-encoder": ["adalora"]}
"""Rows that go through phases, for which one step has no room."""


SHOTS_OF_PAPERS = "k: [4, 16, 32]"
"""As suites write it."""


def run_short(suite: str, wide: Path, tiny_data: Path, out: Path, tasks: list[str] | None) -> None:
    """One step of every row; without `tasks`, of all of them.

    With them few-shot rows see the largest k alone: a smaller one goes the same way with fewer rows.
    """
    path = FOLDER / f"{suite}.yaml"
    if tasks is not None and SHOTS_OF_PAPERS in path.read_text():
        path = out.parent / path.name
        path.write_text((FOLDER / path.name).read_text().replace(SHOTS_OF_PAPERS, "k: [32]"))
    rows, phases = plan_of(suite).suite.file.methods, PHASES.get(suite, [])
    methods = SMALL_ENOUGH.get(suite) or [row for row in rows if row not in phases]
    settings: dict[str, object] = {"recipe.steps": 1, "recipe.eval_every": 1, "recipe.batch_size": 2}
    settings |= {"recipe.precision": "float32", "recipe.lr": 0.01}  # one rate: no search
    summary = harness.run(path, backbones=[str(wide)], tasks=tasks, methods=methods,
                          seeds=[42], results=out, data=tiny_data, settings=settings, quiet=True)  # fmt: skip
    assert summary.num_failed == 0
    results = [result for _, result in ResultStore(out).scan()]
    assert {result.cell.label for result in results if result.cell.suite == suite} == {*methods}
    assert all(result.test is not None and result.selected_step is not None for result in results)
    check_pages(out, results)


def check_pages(out: Path, results: list[Result]) -> None:
    """The pages of a suite hold together, and those of cells, one of each kind, say all that its results hold."""
    site = out.parent / "site"
    done = CliRunner().invoke(app, ["site", str(out), "--out", str(site)])
    assert done.exception is None, done.output
    kinds = {frozenset(name.split(".")[0] for name in leaves(r.cell.__dict__ | r.__dict__)): r for r in results}
    cells = {site / cell_page(result): result for result in kinds.values()}
    documents = {path: Document(path) for path in [*site.glob("*.html"), *site.glob("*/*.html"), *cells]}
    check_links(site, documents)
    for path, result in cells.items():
        check_cell_page(documents[path], result)


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_runs_from_end_to_end(
    suite: str, network: Callable[[str], Path], tiny_data: Path, tmp_path: Path
) -> None:
    plan = plan_of(suite)
    first = plan.suite.file.tasks[0]
    # generated tasks have hundreds of rows to score
    tasks = ["cb" if plan.tasks[first].generate else first]
    run_short(suite, network(suite), tiny_data, tmp_path / "out", tasks)


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_runs_on_all_its_tasks(
    suite: str, network: Callable[[str], Path], tiny_data: Path, tmp_path: Path
) -> None:
    run_short(suite, network(suite), tiny_data, tmp_path / "out", None)


def test_large_backbones_are_not_run_in_float32() -> None:
    for suite in ("t5-3b", "t5-11b", "flan-t5-11b", "llama2-7b", *DECODERS):
        cells = [cell for group in plan_of(suite).groups for cell in group.cells.values()]
        assert {cell.recipe.precision for cell in cells} == {"bfloat16"}
    assert Recipe().precision == "float32"
