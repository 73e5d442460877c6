"""Suites whose answers are chosen by likelihood: what is refused before a run, what is stored, and what it costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkpoints import GPT2, byte_tokenizer, write_checkpoint

import harness
from harness.backbone.load import local_tokenizer
from harness.backbone.names import resolve_backbone
from harness.cli.listings import describe_plan
from harness.data.splits import load_task
from harness.errors import UserError
from harness.results.schema import Failure, Result
from harness.results.store import ResultStore, checksum, read_result
from harness.results.verify import verify_folder
from harness.runner.plan import Plan, make_plan
from harness.runner.time_estimate import StoredCosts, TextLengths, _evaluated_positions, _sampled_lengths, rows_of
from harness.suite.make_groups import Overrides
from harness.train.cell_result import BundleFacts, failed_result
from tools.network_matrix.checkpoints import build

SUITE = """\
suite: ranked
backbones: [{backbone}]
tasks: [{tasks}]
seeds: [1]
recipe: {{steps: 2, batch_size: 4, eval_every: 1, warmup_steps: 0, lr: 0.1, backbone_dropout: false{recipe}}}
define_tasks:
  quiz: {{kind: choice, files: quiz.jsonl, template: "{{q}}", form: plain, choices: options, label: answer}}
  verdict:
    kind: classification
    files: quiz.jsonl
    fields: {{text: q}}
    label: verdict
    labels: [false, true]
    words: ["no", "yes"]
    answered_by: likelihood
  story: {{kind: text, files: quiz.jsonl, fields: {{text: q}}, label: verdict_text}}
define_mixtures:
  both: {{tasks: [quiz, verdict, story], sampling: equal}}
methods:
  {methods}
"""


def write(folder: Path, backbone: str = "micro-t5", tasks: str = "quiz, verdict", recipe: str = "",
          methods: str = "prompt_tuning: {prompt_length: 4, recipe: {lr: 0.1}}", text: str = "") -> Path:  # fmt: skip
    rows = [
        {"q": f"film number {i} was", "options": ["good", f"bad {text}", "dull and long"][: 2 + i % 2],
         "answer": "AB"[i % 2], "verdict": i % 3 == 0, "verdict_text": "good"} for i in range(40)
    ]  # fmt: skip
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "ranked.yaml"
    path.write_text(SUITE.format(backbone=backbone, tasks=tasks, recipe=recipe, methods=methods))
    return path


def results(folder: Path) -> dict[str, Result]:
    """Results by task."""
    return {read_result(path).cell.task: read_result(path) for path in (folder / "out").rglob("*.json")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranked")
    summary = harness.run(write(folder, tasks="quiz, verdict, both"), results=folder / "out", quiet=True)
    assert (summary.num_trained, summary.num_failed) == (3, 0)
    return folder


def test_every_answer_is_one_that_can_be_chosen(trained: Path) -> None:
    found = results(trained)
    assert found["verdict"].metrics is not None
    assert found["verdict"].metrics.labels == ["no", "yes"]
    for name in ("quiz", "verdict"):
        test = found[name].test
        assert test is not None
        assert test.num_unreadable == 0
    mixed = found["both"].test
    assert mixed is not None
    assert {name: part.num_unreadable for name, part in mixed.parts.items() if name != "story"} == {
        "quiz": 0,
        "verdict": 0,
    }


def test_tokens_of_choices_count_in_estimates(trained: Path) -> None:
    found = results(trained)["quiz"]
    assert found.data is not None
    plan = plan_of(trained)
    cell = found.cell
    costs = StoredCosts([found])
    (lengths,) = costs.lengths.values()
    tokenizer = local_tokenizer(resolve_backbone("micro-t5"))
    measured = _sampled_lengths(load_task(plan.tasks["quiz"], None), tokenizer, 256)
    in_all = sum(found.data.choice_tokens.values())
    assert lengths.choices == in_all / (found.data.num_dev + found.data.num_test)
    assert measured.choices == found.data.choice_tokens["dev"] / found.data.num_dev
    without = TextLengths(lengths.source, lengths.target, lengths.num_dev, lengths.num_test)
    more = rows_of(cell, lengths, 0).evaluation - rows_of(cell, without, 0).evaluation
    assert more == pytest.approx(lengths.choices * (2 * lengths.num_dev + lengths.num_test))
    bare = found.model_copy(update={"data": found.data.model_copy(update={"choice_tokens": {}})})
    read = 2 * found.data.choice_tokens["dev"] + found.data.choice_tokens["test"]
    assert _evaluated_positions(found) - _evaluated_positions(bare) == pytest.approx(read)


def plan_of(folder: Path) -> Plan:
    return make_plan(folder / "ranked.yaml", Overrides(), folder / "other", None)


@pytest.mark.parametrize(
    ("tasks", "recipe", "expected"),
    [
        ("quiz", "", "is an encoder and gives no likelihood of texts, which task 'quiz' ranks"),
        ("quiz", ", head: linear", "is an encoder and gives no likelihood of texts"),
        ("verdict", ", head: linear", "is an encoder and gives no likelihood of texts"),
    ],
)
def test_an_encoder_is_refused_in_one_sentence(tmp_path: Path, tasks: str, recipe: str, expected: str) -> None:
    build("BERT", tmp_path / "bert")
    path = write(tmp_path, str(tmp_path / "bert"), tasks, recipe)
    with pytest.raises(UserError, match=expected):
        harness.run(path, results=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_head_and_a_ranking_exclude_each_other(tmp_path: Path) -> None:
    build("GPT-2", tmp_path / "gpt2")
    for tasks, expected in (("quiz", "needs classes or numbers"), ("verdict", "by the likelihood of its labels")):
        path = write(tmp_path, str(tmp_path / "gpt2"), tasks, ", head: linear")
        with pytest.raises(UserError, match=expected):
            harness.run(path, results=tmp_path / "out", quiet=True)


def test_labels_of_which_one_could_never_win_are_refused_before_a_run(tmp_path: Path) -> None:
    """A tokenizer of single bytes: 'no' is two tokens, 'none' begins with them."""
    write_checkpoint(tmp_path / "net", {**GPT2, "n_positions": 64}, byte_tokenizer("$A"))
    path = write(tmp_path, str(tmp_path / "net"), "verdict", ", max_source_length: 32")
    path.write_text(path.read_text().replace('["no", "yes"]', '["no", "none"]'))
    expected = "label 'no' begins label 'none', so by likelihood 'none' could never win"
    with pytest.raises(UserError, match=expected):
        harness.run(path, results=tmp_path / "out", quiet=True)
    plan = make_plan(path, Overrides(), tmp_path / "out", None)
    with pytest.raises(UserError, match=expected):
        describe_plan(plan)
    assert not (tmp_path / "out").exists()


def test_a_choice_that_does_not_fit_the_network_is_said_and_not_cut(tmp_path: Path) -> None:
    """GPT-2 learns 256 positions here."""
    build("GPT-2", tmp_path / "gpt2")
    path = write(tmp_path, str(tmp_path / "gpt2"), "quiz", ", max_source_length: 100", text="very " * 170)
    summary = harness.run(path, results=tmp_path / "out", quiet=True)
    assert summary.num_failed == 1
    failure = results(tmp_path)["quiz"].failure
    assert failure is not None
    assert "positions (4 prompt + 100 source + 514 target)" in failure.message


def test_a_mixture_is_verified_task_by_task(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "out", tmp_path / "out")
    assert verify_folder(tmp_path / "out").findings == []
    (path,) = (path for path, result in ResultStore(tmp_path / "out").scan() if result.cell.task == "both")
    content = json.loads(path.read_text())
    del content["test"]["parts"]["quiz"]
    path.write_text(json.dumps(content | {"checksum": checksum(content)}))
    problems = [item.problem for item in verify_folder(tmp_path / "out").findings]
    assert "is a mixture, and lacks what belongs to its task quiz" in problems


def test_a_failed_cell_of_a_mixture_is_stored(trained: Path) -> None:
    """What a failure stores needs the mixture's benchmark, and a mixture is no task of its own."""
    cell = results(trained)["both"].cell
    facts = BundleFacts("", str(trained), {"prompt_tuning": ""}, 1, {}, 1)
    made = failed_result(cell, Failure(type="E", message="m", traceback=""), facts)
    assert made.result.status == "failed"


def test_the_protocol_ranks_labels_where_it_is_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "boolq.yaml"
    path.write_text(
        "suite: b\nbackbones: [t5-base]\ntasks: [boolq, cb, stsb]\nmethods: {prompt_tuning: {recipe: {lr: 0.3}}}\n"
        "protocol: {base: accept-2024, answers.by: likelihood, answers.words: no_yes, answers.score: per_byte}\n"
    )
    usual = make_plan(path, Overrides(protocol="accept-2024"), tmp_path / "out", None)
    plan = make_plan(path, Overrides(), tmp_path / "out", None)
    boolq = plan.tasks["boolq"]
    assert (boolq.is_ranked, boolq.targets, boolq.choice_score) == (True, ["no", "yes"], "per_byte")
    assert (plan.tasks["cb"].is_ranked, plan.tasks["cb"].targets) == (True, ["0", "1", "2"])
    assert not plan.tasks["stsb"].is_ranked

    def ids(made: Plan) -> dict[str, str]:
        return {group.task: group.cells[(0, group.seeds[0])].cell_id for group in made.groups}

    assert {task for task, found in ids(plan).items() if found != ids(usual)[task]} == {"boolq", "cb"}
