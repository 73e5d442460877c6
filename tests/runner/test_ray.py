"""The Ray engine: the same results as in one process, on workers that may die, under a driver that may die.

The cluster is real: two nodes on this machine, one processor each.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from paths import ROOT
from test_run import NEW_METHOD
from typer.testing import CliRunner
from typing_help import present
from watching import meanwhile

import harness
from harness import stop
from harness.cli.commands import app
from harness.data import splits
from harness.errors import UserError
from harness.results.store import ResultStore
from harness.runner.engines import make_engine
from harness.runner.pack import pack
from harness.runner.plan import make_plan
from harness.runner.ray import cluster as ray_cluster
from harness.runner.ray.engine import RayEngine
from harness.runner.ray.gpu_share import gpu_share, memory_need
from harness.runner.ray.shipping import _folders
from harness.runner.ray.worker import News, Parcel, Worker
from harness.suite.cell import Mixture, Part
from harness.suite.make_groups import Overrides
from harness.train.bundle import Bundle
from harness.train.checkpoint import CheckpointPlan, read_header

SUITE = """\
suite: small
backbones: [micro-t5]
tasks: [first, second]
seeds: [1]
recipe: {steps: 12, batch_size: 2, eval_every: 6, warmup_steps: 1, warmup_max_share: 1.0, backbone_dropout: true}
execution: {checkpoint_every: 1 steps}
define_tasks:
  first: {files: rows.csv, fields: {review: text}, label: verdict, labels: [bad, good]}
  second: {files: rows.csv, fields: {view: text}, label: verdict, labels: [good, bad]}
methods:
  shift: {recipe: {lr: 0.01}}
  prompt_tuning: {prompt_length: 4, recipe: {lr: {sweep: [0.1, 0.3]}}}
"""
NUM_CELLS = 6
# own rows, of which there are few: workers would make and answer all 600 of a generated task
STARTS = """\
suite: starts
backbones: [micro-t5]
tasks: [first]
seeds: [1]
recipe: {steps: 2, batch_size: 2, eval_every: 2, backbone_dropout: false, lr: 0.3}
define_tasks:
  first: {files: rows.csv, fields: {review: text}, label: verdict, labels: [bad, good]}
  second: {files: rows.csv, fields: {view: text}, label: verdict, labels: [good, bad]}
sources: {teacher: {method: prompt_tuning, prompt_length: 4}}
methods:
  spot: {prompt_length: 4, init_from: {method: teacher, task: second}}
"""
# long enough to be killed in the middle, on little processor time; nobody kills a run that does not wait
SLOW_METHOD = NEW_METHOD.replace("import torch\n", "import os\nimport time\n\nimport torch\n").replace(
    "        return embeds +", "        time.sleep(0 if 'NO_WAIT' in os.environ else 0.2)\n        return embeds +"
)


def lay_out(folder: Path) -> Path:
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "shift.py").write_text(SLOW_METHOD)
    rows = [f"number {i} was {'fine' if i % 2 else 'no use'},{'good' if i % 2 else 'bad'}" for i in range(24)]
    (folder / "rows.csv").write_text("\n".join(["text,verdict", *rows]) + "\n")
    (folder / "suite.yaml").write_text(SUITE)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "run")


def run(folder: Path, **options: Any) -> harness.runner.RunSummary:
    return harness.run(
        folder / "suite.yaml", results=folder / "results", method_dirs=[folder / "mine"],
        **{"quiet": True, **options},
    )  # fmt: skip


def run_without_waiting(folder: Path, **options: Any) -> harness.runner.RunSummary:
    """Run in this process, where no step waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_WAIT", "1")
        return run(folder, **options)


def ray_engine(address: str, gpus: int | None = None) -> RayEngine:
    made = make_engine("ray", address, gpus=gpus)
    assert isinstance(made, RayEngine)
    return made


def outcomes(folder: Path) -> dict[str, object]:
    """All that training gave, bit for bit, by cell."""
    found: dict[str, object] = {}
    for path, made in ResultStore(folder / "results").scan():
        kept = {"dev", "test", "dev_history", "selected_step", "status", "backbone", "method_sha256"}
        tensors = path.with_suffix(".safetensors").read_bytes()
        found[f"{made.cell.label} {made.cell_id}"] = (made.model_dump(include=kept), tensors)
    return found


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the local engine makes of the suite."""
    folder = lay_out(tmp_path_factory.mktemp("local") / "run")
    assert run_without_waiting(folder).num_failed == 0
    return outcomes(folder)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two Ray nodes with a processor each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'peft-harness[ray]'")
    ray_cluster.import_ray()
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        # Ray's workers give way to all others by default, and starve beside other tests
        patch.setenv("RAY_worker_niceness", "0")
        cluster = Cluster(initialize_head=True, head_node_args=small)
        cluster.add_node(**{key: value for key, value in small.items() if key != "include_dashboard"})
    yield cluster.address
    cluster.shutdown()


def num_begun(folder: Path) -> int:
    """Bundles of which a checkpoint is there."""
    headers = (read_header(path) for path in (folder / "results").glob(".checkpoints/*/*.safetensors"))
    return sum(header is not None and header.step > 1 for header in headers)


def test_two_machines_train_what_one_process_trains(
    address: str, folder: Path, tmp_path: Path, untouched: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    with ray_engine(address) as engine:  # its workers stay for the second suite: to start one takes 6 s of processor
        though_a_worker_dies(engine, folder, untouched, capsys)
        where_cells_start_from_results_that_workers_do_not_see(engine, tmp_path)


def though_a_worker_dies(
    engine: RayEngine, folder: Path, untouched: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    nodes: set[str | None] = set()

    def kill_one() -> bool:
        nodes.update(handle.slot.node for handle in engine.cluster.handles)
        training = [assignment.handle.name for assignment in engine._assignments if assignment.job.best_step > 1]
        if training:
            os.kill(int(training[0].split()[-1]), signal.SIGKILL)
        return bool(training)

    with meanwhile(kill_one):
        summary = run(folder, engine=engine, quiet=False)
    said = capsys.readouterr().err
    assert (summary.num_trained, summary.num_failed) == (NUM_CELLS, 0)
    assert outcomes(folder) == untouched
    assert len(nodes) == 2, "both machines had work"
    assert said.count(" died (") == 1
    assert said.count("bundle: ") == 3, "two bundles, and once more that of the dead worker"
    assert said.count("continued from a checkpoint at step") == 1
    assert not list((folder / "results").rglob("*.driver"))
    assert not (folder / "results" / ".claims").exists()


def where_cells_start_from_results_that_workers_do_not_see(engine: RayEngine, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "starts")
    suite = folder / "suite.yaml"
    suite.write_text(STARTS)
    alone = harness.run(suite, results=tmp_path / "alone", quiet=True)
    (tmp_path / "hidden").mkdir()
    handle = os.open(tmp_path / "hidden", os.O_RDONLY)
    try:
        hidden = f"/proc/self/fd/{os.dup2(handle, 900)}/results"  # another place, or none, in every other process
        spread = harness.run(suite, results=hidden, quiet=True, engine=engine)
    finally:
        os.close(handle)
        os.close(900)
    assert (spread.num_trained, spread.num_failed) == (alone.num_trained, 0)
    found = []
    for results in (tmp_path / "alone", tmp_path / "hidden" / "results"):
        found.append({r.cell_id: (r.starts, r.dev, r.files.tensors) for _, r in ResultStore(results).scan()})
    assert found[0] == found[1]
    assert any(starts for starts, _, _ in found[1].values())


@pytest.mark.slow
def test_a_stopped_run_keeps_what_its_workers_did_and_goes_on(
    address: str, folder: Path, untouched: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> bool:
        begun = num_begun(folder) > 0
        if begun:
            os.kill(os.getpid(), signal.SIGINT)
        return begun

    engine = ray_engine(address)
    with meanwhile(interrupt), pytest.raises(stop.Stopped):
        run(folder, engine=engine)
    assert not engine.cluster.handles
    assert num_begun(folder) >= 1
    assert run(folder, quiet=False).num_failed == 0
    assert "continued from a checkpoint at step" in capsys.readouterr().err
    assert outcomes(folder) == untouched


def test_a_killed_driver_leaves_no_worker_and_the_same_command_continues(
    address: str, folder: Path, untouched: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "harness", "run", "suite.yaml", "--methods-dir", "mine"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([*command, "--engine", "ray", "--address", address], cwd=folder, env=env)
    try:
        while num_begun(folder) == 0:
            assert driver.poll() is None
            time.sleep(0.02)
        nodes = psutil.Process().children(recursive=True)
        workers = [process for process in nodes if process.cmdline()[:1] == ["ray::Worker.poll"]]
    finally:
        driver.kill()
        driver.wait()
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert workers
    assert not alive
    assert list((folder / "results").rglob("*.driver"))
    # in this process: a state is the same wherever it was kept
    assert run_without_waiting(folder, quiet=False).num_failed == 0
    assert "continued from a checkpoint at step" in capsys.readouterr().err
    assert outcomes(folder) == untouched
    assert not list((folder / "results").rglob("*.driver"))


def test_gpus_that_no_machine_has_are_refused(address: str) -> None:
    with pytest.raises(UserError, match="--gpus-per-bundle: got 2, and no machine of the cluster has a GPU"):
        make_engine("ray", address, gpus=2).__enter__()
    with pytest.raises(UserError, match="--cpus-per-bundle: no machine of the cluster has 64 CPUs; the largest has 1"):
        make_engine("ray", address, cpus=64).__enter__()


@pytest.mark.slow
def test_the_quickstart_on_two_machines_equals_the_quickstart_in_one_process(address: str, tmp_path: Path) -> None:
    suite, found = ROOT / "suites" / "quickstart.yaml", []
    for name in ("local", "ray"):
        options: dict[str, Any] = {"engine": make_engine("ray", address)} if name == "ray" else {}
        assert harness.run(suite, results=tmp_path / name / "results", quiet=True, **options).num_failed == 0
        columns = ["cell_id", "split", "metric", "value", "selected_step"]
        frame = harness.load_results(tmp_path / name / "results")[columns]
        found.append(sorted(frame.astype(str).to_numpy().tolist()))
    assert len(found[0]) >= 60
    assert found[0] == found[1]


@pytest.fixture
def machine_with_gpus() -> Iterator[str]:
    """A Ray node that says it has two GPUs; the work is done without."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'peft-harness[ray]'")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "num_gpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
def test_a_bundle_of_two_processes_gets_two_gpus_of_a_machine(machine_with_gpus: str, folder: Path) -> None:
    options = {"methods": ["shift"], "tasks": ["first"], "settings": {"execution.processes": 2}}
    with pytest.raises(UserError, match=r"--gpus-per-bundle.*execution.processes is 2, and a worker has 1 GPUs"):
        run(folder, engine=make_engine("ray", machine_with_gpus), **options)
    engine = ray_engine(machine_with_gpus, gpus=2)
    slots: list[Any] = []

    def look() -> bool:
        slots.extend(assignment.handle.slot for assignment in engine._assignments)
        return bool(slots)

    with meanwhile(look):
        assert run(folder, engine=engine, **options).num_failed == 0
    assert (slots[0].spec.gpus, engine._assignments) == (2, [])
    assert [made.status for _, made in ResultStore(folder / "results").scan()] == ["done"]


@pytest.fixture
def bundle(folder: Path) -> Bundle:
    """A bundle of one `shift` cell, on its way to a worker."""
    overrides = Overrides(methods=["shift"], tasks=["first"], settings={"recipe.steps": 2})
    plan = make_plan(folder / "suite.yaml", overrides, folder / "results", None, [str(folder / "mine")])
    return pack(plan, plan.pending())[0]


def all_news(
    bundle: Bundle, marker: Path | None = None, signum: int | None = None, folders: dict[str, Path] | None = None
) -> News:
    """What a worker tells of a bundle from its start to its end."""
    worker = Worker(threads=1)
    sources = {name: SLOW_METHOD.encode() for name in bundle.method_files}
    worker.start(Parcel(bundle, sources, False, Path.cwd(), folders or {}, marker))
    total = News()
    while not total.ended:
        news = worker.poll(signum)
        total = replace(news, products=total.products + news.products, lines=total.lines + news.lines)
    return total


def test_a_method_file_that_is_not_on_the_workers_machine_goes_there_with_the_bundle(bundle: Bundle) -> None:
    elsewhere = replace(bundle, method_files={"shift": Path("/nowhere/shift.py")})
    products = all_news(elsewhere).products
    assert [product.result.status for product in products] == ["done"]


def test_a_machine_without_the_inputs_says_which(bundle: Bundle) -> None:
    news = all_news(bundle, folders={"backbone": Path("/nowhere/at-all")})
    assert isinstance(news.refused, UserError)
    assert "the backbone folder '/nowhere/at-all' is not there" in str(news.refused)
    assert "machine " in str(news.refused)
    assert not news.products


def test_whatever_lies_beside_the_suite_asks_for_its_folder(bundle: Bundle) -> None:
    (own,) = bundle.cells
    shipped = own.model_copy(update={"definition": None})
    texts = {
        name: own.recipe.model_copy(update={"forgetting_text": name}) for name in ("none", "shipped", "mine/own.txt")
    }
    mixed = [Mixture(parts=[Part(task="cb", task_version=1), part], sampling="equal", temperature=1.0)
             for part in (Part(task="rte", task_version=1),
                          Part(task="first", task_version=1, definition=own.definition))]  # fmt: skip

    def asks(**changes: Any) -> bool:
        return "suite" in _folders(replace(bundle, cells=(shipped.model_copy(update=changes),)))

    assert [asks(recipe=recipe) for recipe in texts.values()] == [False, False, True]
    assert [asks(mixture=mixture) for mixture in mixed] == [False, True]
    assert asks(definition=own.definition)


def test_rows_that_a_machine_lacks_stop_the_run_before_a_cell_fails(bundle: Bundle, folder: Path) -> None:
    (folder / "rows.csv").rename(folder / "gone.csv")
    splits._load_rows.cache_clear()
    news = all_news(bundle)
    assert "no such file or folder for split 'train' of task 'first'" in str(news.refused)
    assert not news.products


def test_checkpoints_are_kept_only_where_the_results_folder_is_the_drivers(bundle: Bundle, tmp_path: Path) -> None:
    plan = CheckpointPlan(tmp_path / "states" / "a.safetensors", "key", every_steps=1)
    news = all_news(replace(bundle, checkpoint=plan), marker=tmp_path / "states" / "no.driver")
    assert len(news.products) == 1
    assert any("no checkpoints" in line for line in news.lines)
    assert not (tmp_path / "states").exists()


def test_a_worker_that_is_asked_to_stop_keeps_its_state(bundle: Bundle, tmp_path: Path) -> None:
    marker, plan = tmp_path / "a.driver", CheckpointPlan(tmp_path / "a.safetensors", "key")
    marker.touch()
    try:
        news = all_news(replace(bundle, checkpoint=plan), marker, signal.SIGTERM)
    finally:
        with stop.on_signals():
            pass  # forgets the request
    assert not news.products
    assert present(read_header(plan.path)).step == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--address", "127.0.0.1:6379"], "--address: says where Ray's workers run, and this run has none"),
        (["--cpus-per-bundle", "2"], "--cpus-per-bundle: says where"),
        (["--gpus-per-bundle", "2"], "--gpus-per-bundle: says where"),
        (["--engine", "ray", "--cpus-per-bundle", "0"], "--cpus-per-bundle: must be at least 1, got 0"),
        (["--engine", "ray", "--address", "127.0.0.1:1"], "--address: nothing answers at 127.0.0.1:1"),
        (["--engine", "ray", "--address", "ray://head:10001"], "--address: expected auto or HOST:PORT"),
        (["--engine", "ray", "--address", "head"], "--address: expected auto or HOST:PORT"),
    ],
)
def test_options_that_make_no_sense_are_refused(folder: Path, options: list[str], expected: str) -> None:
    if options[0] == "--engine":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'peft-harness[ray]'")
    done = CliRunner().invoke(app, ["run", str(folder / "suite.yaml"), "--methods-dir", str(folder / "mine"), *options])
    assert isinstance(done.exception, UserError)
    assert expected in str(done.exception)


def test_without_ray_the_message_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray.*pip install 'peft-harness\[ray\]'"):
        make_engine("ray")


def test_small_bundles_share_a_gpu_and_large_ones_have_it_alone() -> None:
    gib = 2**30
    assert gpu_share(30 * gib, 24 * gib) == 1, "too large is for the step to find out, not for the placement"
    assert gpu_share(11 * gib, 24 * gib) == 1
    assert gpu_share(10 * gib, 24 * gib) == 1 / 2
    assert gpu_share(1 * gib, 24 * gib) == 1 / 4, "never more than four"
    assert gpu_share(0, 24 * gib) == 1 / 4
    assert gpu_share(1 * gib, None) == 1, "a GPU of unknown size is not shared"


def test_a_larger_backbone_budget_or_bundle_needs_more_memory(folder: Path) -> None:
    def need(method: str, backbone: str, **settings: Any) -> int:
        changed = {"recipe.lr": 0.1, **{f"execution.{key}": value for key, value in settings.items()}}
        overrides = Overrides([method], ["micro_sentiment"], [backbone], [1], changed)
        plan = make_plan(folder / "suite.yaml", overrides, folder / "results", None)
        return memory_need(pack(plan, plan.pending())[0])

    small = need("prompt_tuning", "t5-small", micro_batch_tokens=1_000)
    assert small > 4 * 60_506_624, "weights of 4 bytes"
    assert need("prompt_tuning", "t5-base", micro_batch_tokens=1_000) > small
    assert need("prompt_tuning", "t5-small", micro_batch_tokens=9_000) > small
    assert need("finetune", "t5-small", micro_batch_tokens=1_000) > small + 4 * 4 * 60_506_624
    assert need("majority", "t5-small") == 0
