"""The row `none`: the untouched network, answered once, beside rows that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import harness
from harness.backbone.load import load_backbone
from harness.backbone.writing import Writing
from harness.cli.commands import app
from harness.data import all_tasks, encode, load_task, max_new_tokens
from harness.results.schema import Result
from harness.results.store import ResultStore, read_predictions
from harness.runner.plan import make_plan
from harness.runner.time_estimate import estimate_time
from harness.suite.make_groups import Overrides
from harness.train.evaluate import to_text
from tools.network_matrix.checkpoints import build

SUITE = """\
suite: shots
backbones: [{backbone}]
tasks: [micro_sentiment]
seeds: [1, 2]
recipe: {{steps: 4, batch_size: 4, eval_every: 2, warmup_steps: 0, backbone_dropout: true, head: {head}}}
methods:
  none:
  prompt_tuning: {{prompt_length: 3, recipe: {{lr: 0.1}}}}
"""


def write(folder: Path, backbone: str = "micro-t5", head: str = "label") -> Path:
    path = folder / "shots.yaml"
    path.write_text(SUITE.format(backbone=backbone, head=head))
    return path


def stored(folder: Path, label: str) -> list[Result]:
    return [result for _, result in ResultStore(folder).scan() if result.cell.label == label]


@pytest.mark.usefixtures("few_rows")
def test_the_untouched_network_is_answered_once_beside_cells_that_train(tmp_path: Path) -> None:
    suite, out = write(tmp_path), tmp_path / "out"
    assert harness.run(suite, results=out, quiet=True).num_failed == 0
    first, second = stored(out, "none")
    backbone = load_backbone("micro-t5")
    task = all_tasks()["micro_sentiment"]
    encoded = encode(load_task(task, None).test, backbone, task, task.max_source_length)
    expected = []
    for row in range(len(encoded)):
        ids = torch.as_tensor(encoded.sources(np.array([row]), backbone.pad_id))
        with torch.no_grad():
            writing = Writing(max_new_tokens(task, backbone), (backbone.eos_id,))
            found = backbone.write(backbone.embedding(ids), torch.ones_like(ids), writing)
        expected += to_text(backbone, found, writing)
    for result in (first, second):
        assert result.usage is not None
        assert (result.usage.num_steps, result.usage.num_samples, result.selected_step) == (0, 0, 0)
        assert [(item.step, item.train_loss) for item in result.dev_history] == [(0, None)]
        assert result.params is not None
        assert result.params.num_trained == 0
        (path,) = [p for p, other in ResultStore(out).scan() if other.cell.cell_id == result.cell.cell_id]
        answers = read_predictions(path)
        assert answers[answers.split == "test"].prediction.tolist() == expected
    assert {r.usage.num_steps for r in stored(out, "prompt_tuning") if r.usage} == {4}
    verified = CliRunner().invoke(app, ["verify", str(out)])
    assert verified.exit_code == 0, verified.output
    assert harness.run(suite, results=out, quiet=True).num_trained == 0
    shown = CliRunner().invoke(app, ["report", str(out), "--costs", "--format", "markdown"])
    assert shown.exit_code == 0, shown.output
    assert "| none" in shown.output


@pytest.mark.usefixtures("few_rows")
def test_the_time_of_an_untouched_network_is_that_of_its_answers(tmp_path: Path) -> None:
    plan = make_plan(write(tmp_path), Overrides(), tmp_path / "out", None)
    trained, untouched = ({line.method: line for line in estimate_time(plan, False)}[name] for name in
                          ("prompt_tuning", "none"))  # fmt: skip
    assert trained.flops is not None
    assert untouched.flops == 0.0
    assert trained.flops > 0


def test_nothing_would_train_its_head(tmp_path: Path) -> None:
    reasons = []
    for name in ("Llama 3", "BERT"):
        folder, out = tmp_path / name.split()[0], tmp_path / f"results of {name}"
        build(name, folder)
        harness.run(write(tmp_path, str(folder), "linear"), results=out, quiet=True)
        assert {result.status for result in stored(out, "prompt_tuning")} == {"done"}
        reasons += sorted({result.failure.message for result in stored(out, "none") if result.failure})
    assert "'none' takes no step, so nothing would train its head" in reasons[0]
    assert "an encoder writes no answer, and nothing trains a head here" in reasons[1]
