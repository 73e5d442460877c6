"""Arithmetic, commonsense choices, long answers: official files and hub rows give the same examples."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import jinja2
import pytest
import yaml  # type: ignore[import-untyped]
from task_rows import GSM8K_OFFICIAL, HUB, LONG, METAMATH, OFFICIAL, activity, gsm8k, jsonl, metamath, write_files

from harness.data.examples import Converter
from harness.data.metrics import METRICS, compute_metrics
from harness.data.origins import find_origin
from harness.data.splits import _read_split, _tsv_rules, load_task
from harness.data.tasks import Task, all_tasks
from harness.data.tasks.arithmetic import MOST_CHARACTERS
from harness.data.tasks.declared import METRICS_OF
from harness.data.tasks.llm_adapters import TEMPLATE
from harness.data.tasks.task import EDITS, NEEDED_SPLITS, Row
from harness.errors import UserError

TASKS = all_tasks()
TODAY = ("Arithmetic", "Commonsense", "Generation", "Commonsense-170k", "Math-10k")
CHOICES = [name for name in OFFICIAL if TASKS[name].kind == "choice"]
SIXTEEN = " " * 16


def flat_rows(task: Task, folder: Path) -> dict[str, list[Row]]:
    """What `prepare` makes of the published splits."""
    origin, tsv = find_origin(task, folder), _tsv_rules(task)
    found: dict[str, list[Row]] = {}
    for split in NEEDED_SPLITS[task.split]:
        source = task.sources.get(split)
        prepare = source.prepare if source is not None and source.prepare is not None else task.prepare
        assert prepare is not None
        found[split] = [flat for _, row in _read_split(task, origin, split, tsv) for flat in prepare(row)]
    return found


def raised(task: Task, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_task(task, folder)
    return str(caught.value)


def test_every_task_of_today_has_rows_in_both_forms_here() -> None:
    named = {name for name, task in TASKS.items() if task.benchmark in TODAY}
    assert named == set(OFFICIAL)
    assert {name for name in named if TASKS[name].hub} == set(HUB)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_make_examples_and_so_do_hub_rows(name: str, tmp_path: Path) -> None:
    data = load_task(TASKS[name], write_files(tmp_path / "a", OFFICIAL[name]))
    assert min(data.record.num_train, data.record.num_dev, data.record.num_test) > 0
    if name in HUB:
        other = load_task(TASKS[name], write_files(tmp_path / "b", HUB[name]))
        assert (other.train, other.dev, other.test) == (data.train, data.dev, data.test)
        assert other.record.fingerprint == data.record.fingerprint


@pytest.mark.parametrize("name", CHOICES)
def test_official_files_and_hub_rows_have_the_same_questions_and_choices(name: str, tmp_path: Path) -> None:
    rows = flat_rows(TASKS[name], write_files(tmp_path / "a", OFFICIAL[name]))
    assert rows == flat_rows(TASKS[name], write_files(tmp_path / "b", HUB[name]))
    assert list(rows) == list(NEEDED_SPLITS[TASKS[name].split])
    for row in (row for split in rows.values() for row in split):
        assert set(row) == {"question", "choices", "label"}
        assert 0 <= row["label"] < len(row["choices"])


def test_a_number_problem_is_asked_and_answered_with_the_whole_way(tmp_path: Path) -> None:
    data = load_task(TASKS["gsm8k"], write_files(tmp_path, OFFICIAL["gsm8k"]))
    assert (data.record.num_train, data.record.num_dev, data.record.num_test) == (2, 2, 4)
    first = data.test[0]
    assert first.source == "Question: Ada has 12 boxes with 3 pens each. How many pens has she?\nAnswer:"
    assert first.target == "She has 12 * 3 = <<12*3=36>>36 pens.\n#### 36"
    assert first.references == (first.target,)


def test_splits_of_two_data_sets_say_where_each_comes_from(tmp_path: Path) -> None:
    write_files(tmp_path, {**OFFICIAL["metamath_gsm8k"], "grade_school_math/data/train.jsonl": jsonl(
        [gsm8k(i) for i in range(60)])})  # fmt: skip
    data = load_task(TASKS["metamath_gsm8k"], tmp_path)
    assert data.record.source == (
        "train: folder MetaMathQA, without rows of more than 1,300 characters; "
        "validation: folder grade_school_math/data train, 50 rows drawn; test: folder grade_school_math/data"
    )
    assert data.record.revision == "train: local files; validation: local files; test: local files"
    assert (data.record.num_train, data.record.num_dev, data.record.num_test) == (3, 50, 4)
    assert data.train[0].source == f"Question: {metamath(0)['query']} Think step by step.\nAnswer:"
    assert data.train[0].target == metamath(0)["response"]
    assert data.test[0].source == f"Question: {gsm8k(10)['question']} Think step by step.\nAnswer:"


DRAWN = [26, 35, 59, 28, 11, 2, 34, 58]


def test_dev_rows_of_pefts_board_are_those_that_it_draws(tmp_path: Path) -> None:
    """The first of numpy.random.seed(0) and shuffle over 60 rows, worked out once with NumPy's own functions."""
    write_files(tmp_path, {**OFFICIAL["metamath_gsm8k"], "grade_school_math/data/train.jsonl": jsonl(
        [gsm8k(i) for i in range(60)])})  # fmt: skip
    dev = load_task(TASKS["metamath_gsm8k"], tmp_path).dev
    asked = [int(example.source.split(" has ")[1].split()[0]) - 2 for example in dev]
    assert asked[:8] == DRAWN
    assert len(set(asked)) == 50


def test_rows_of_metamath_are_kept_up_to_the_limit_in_characters(tmp_path: Path) -> None:
    row = metamath(0)
    room = MOST_CHARACTERS - len(f"{row['query']} {row['response']}")
    rows = [{**row, "response": "x" * extra + row["response"]} for extra in (room, room + 1)]
    write_files(tmp_path, {**OFFICIAL["metamath_gsm8k"], "MetaMathQA/MetaMathQA-395K.json": json.dumps(rows)})
    train = load_task(TASKS["metamath_gsm8k"], tmp_path).train
    assert [example.target for example in train] == [rows[0]["response"]]
    assert len(LONG["response"]) > MOST_CHARACTERS
    assert LONG in METAMATH


def test_a_missing_part_of_two_data_sets_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, GSM8K_OFFICIAL)
    said = raised(TASKS["metamath_gsm8k"], tmp_path)
    assert "no files of task 'metamath_gsm8k' in the data folder; looked in" in said
    assert "MetaMathQA-395K" in said
    write_files(tmp_path, OFFICIAL["metamath_gsm8k"])
    (tmp_path / "grade_school_math/data/test.jsonl").unlink()
    assert "grade_school_math/data has no test" in raised(TASKS["metamath_gsm8k"], tmp_path)


def test_a_set_without_a_copy_on_the_hub_says_where_its_files_are(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_task(TASKS["cs170k_piqa"], None)
    assert "has no copy on the hub" in str(caught.value)
    assert "https://github.com/AGI-Edgerunners/LLM-Adapters" in str(caught.value)
    assert "The files are at https://github.com" in raised(TASKS["math10k_gsm8k"], tmp_path)


def test_a_sum_is_asked_as_one_text_and_answered_with_its_number(tmp_path: Path) -> None:
    test = load_task(TASKS["svamp"], write_files(tmp_path, OFFICIAL["svamp"])).test
    assert test[0].source == "Question: Ben picked 14 plums. He ate 3 of them. How many are left?\nAnswer:"
    assert (test[0].target, test[0].references) == ("11", ("11",))


@pytest.mark.parametrize(
    ("name", "source", "choices", "label"),
    [
        ("piqa", "Question: How do I dry 0 wet socks?\nAnswer:",
         ["Hang them on a line.", "Put them into the sink."], 0),
        ("siqa", "Q: Cleo lent Max 0 euros. What does Max want to do next?\nA:",
         ["pay her back", "forget it", "lend her a car"], 0),
        ("hellaswag", "Baking bread: How to bake bread. Mix 0 cups of flour with water. The baker",
         ["kneads the dough. Ten minutes will do.", "eats the bowl.", "paints the oven.", "flies."], 0),
        ("winogrande", "The cup did not fit into box 0 since the", ["cup was too small.", "box was too small."], 0),
        ("arc_easy", "Question: Which of these is a liquid? (0)\nAnswer:", ["iron", "water", "sand", "wood"], 1),
        ("openbookqa", "Which of these is a liquid? (0)", ["iron", "water", "sand", "wood"], 1),
    ],
)  # fmt: skip
def test_a_question_is_asked_as_lm_evaluation_harness_asks_it(
    name: str, source: str, choices: list[str], label: int, tmp_path: Path
) -> None:
    row = flat_rows(TASKS[name], write_files(tmp_path, OFFICIAL[name]))["train"][0]
    assert Converter(TASKS[name])._source("here", row) == source
    assert (row["choices"], row["label"]) == (choices, label)


LM_EVAL = {"gsm8k": "gsm8k/gsm8k", "piqa": "piqa/piqa", "siqa": "siqa/siqa", "arc_easy": "arc/arc_easy",
           "openbookqa": "openbookqa/openbookqa"}  # fmt: skip


def lm_eval_file(name: str) -> Path:
    """A file of the installed lm-evaluation-harness, which is not imported: that would take seconds."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None, "lm_eval is one of the packages for the tests"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks" / name


@pytest.mark.parametrize("name", LM_EVAL)
def test_a_prompt_is_that_of_the_installed_lm_evaluation_harness(name: str, tmp_path: Path) -> None:
    settings = lm_eval_file(f"{LM_EVAL[name]}.yaml").read_text().replace("!function", "")
    template = yaml.safe_load(settings)["doc_to_text"]
    if "{{" not in template:
        template = "{{" + template + "}}"
    hub = write_files(tmp_path, HUB[name]) / next(file for file in HUB[name] if "train" in file)
    rows = [json.loads(line) for line in hub.read_text().splitlines()]
    flat = flat_rows(TASKS[name], tmp_path)["train"]
    ours = [Converter(TASKS[name])._source("here", row) for row in flat]
    assert ours == [jinja2.Template(template).render(row) for row in rows]


def test_texts_of_hellaswag_are_those_of_the_installed_lm_evaluation_harness(tmp_path: Path) -> None:
    theirs: dict[str, Any] = {}
    exec(lm_eval_file("hellaswag/utils.py").read_text(), theirs)
    rows = [{**activity(i, 0), "ctx_b": b, "ctx_a": f" [title]  A [step] mill. [substeps] {i} [a [b] c] grinds  corn "}
            for i, b in enumerate(("", "the MILLER", "he says [title] so"))]  # fmt: skip
    folder = write_files(tmp_path, {f"Rowan/hellaswag/{s}.jsonl": jsonl(rows) for s in ("train", "validation")})
    found = flat_rows(TASKS["hellaswag"], folder)["train"]
    expected = theirs["process_docs"](datasets.Dataset.from_list(rows)).to_list()
    assert [(row["question"], row["choices"]) for row in found] == [(row["query"], row["choices"]) for row in expected]


def test_labels_count_from_one_or_have_names_where_the_authors_have_it_so(tmp_path: Path) -> None:
    def labels(name: str) -> list[int]:
        return [row["label"] for row in flat_rows(TASKS[name], write_files(tmp_path / name, OFFICIAL[name]))["train"]]

    assert labels("piqa") == [0, 1, 0, 1]
    assert labels("siqa") == [0, 1, 2, 0]
    assert labels("winogrande") == [0, 1, 0, 1]
    assert labels("hellaswag") == [0, 1, 2, 3]
    assert labels("arc_challenge") == labels("openbookqa") == [1, 2, 0, 4], "B, 3, A of three and E of five choices"


BAD: list[tuple[str, Mapping[str, Any], str]] = [
    ("gsm8k", {"question": "q", "answer": "It is 4."}, "the answer has no number behind '####'"),
    ("gsm8k", {"question": "q", "answer": "It is 4.\n#### four"}, "the answer has no number behind '####'"),
    ("svamp", {"Body": "b", "Question": "q", "Answer": "four"}, "the answer 'four' is not a number"),
    ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": 2}, "the label 2 is none of its 2 choices"),
    ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": -1}, "the label -1 is none of its 2 choices"),
    ("piqa", {"goal": "g", "sol1": "a", "sol2": " ", "label": 0}, "choice 1 (from 0) is empty"),
    ("siqa", {"context": "c", "question": "q", "answerA": "a", "answerB": "b", "answerC": "c", "label": "0"},
     "the label '0' is none of its 3 choices"),
    ("hellaswag", {"activity_label": "a", "ctx_a": "b", "ctx_b": "", "endings": [], "label": 0},
     "has 0 choices; at least two are needed"),
    ("hellaswag", {"activity_label": "a", "ctx_a": "b", "ctx_b": "", "endings": ["a", "[step]"], "label": 0},
     "choice 1 (from 0) is empty"),
    ("winogrande", {"sentence": "No gap.", "option1": "a", "option2": "b", "answer": "1"}, "has no gap '_': 'No gap.'"),
    ("winogrande", {"sentence": "a _ b", "option1": "a", "option2": "b", "answer": ""}, "the label '' is none of its"),
    ("winogrande", {"sentence": "a _ b", "option1": "a", "option2": "", "answer": "1"}, "choice 1 (from 0) is empty"),
    ("arc_easy", {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
     "the label 'C' is none of its 2 choices"),
    ("openbookqa", {"question_stem": "q", "choices": {"text": [], "label": []}, "answerKey": "A"}, "has 0 choices"),
    ("cs170k_siqa", {"instruction": "i", "input": "", "output": "the correct answer is answer4", "answer": "answer4"},
     "answer4"),
    ("cs170k_siqa", {"instruction": "i", "input": "", "output": "the correct answer is answer1", "answer": "answer2"},
     "do not name one answer"),
    ("cs170k_siqa", {"instruction": "i", "input": "", "output": "", "answer": ""}, "do not name one answer"),
    ("cs170k_siqa", {"instruction": "i", "input": "more", "output": "", "answer": "answer1"}, "has an input"),
    ("math10k_svamp", {"instruction": "i", "input": "", "output": " ", "answer": "1"}, "the output is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), BAD)
def test_a_wrong_row_is_one_sentence_with_its_file_and_row(
    name: str, row: Mapping[str, Any], expected: str, tmp_path: Path
) -> None:
    """The second row of the training file is wrong."""
    write_files(tmp_path, OFFICIAL[name])
    path = next(tmp_path / file for file in OFFICIAL[name] if "train" in Path(file).stem.lower() or "math" in file)
    for labels in path.parent.glob("*.lst"):
        labels.unlink()
    good = HUB.get(name, OFFICIAL[name])
    text = next(text for file, text in good.items() if "train" in Path(file).stem or "math_10k" in file)
    first = json.loads(text)[0] if text.startswith("[") else json.loads(text.splitlines()[0])
    path.write_text(jsonl([first, row]))
    said = raised(TASKS[name], tmp_path)
    assert said.startswith(f"{path}:2: ")
    assert expected in said
    assert "\n" not in said


@pytest.mark.parametrize(("labels", "expected"), [
    ("0\n1\n0\n", "train.jsonl:4: has no label in train-labels.lst, which holds 3"),
    ("0\n1\n0\n1\n1\n", "train-labels.lst: holds 5 labels for the 4 rows of train.jsonl"),
])  # fmt: skip
def test_labels_in_a_file_of_their_own_have_to_be_as_many_as_the_rows(
    labels: str, expected: str, tmp_path: Path
) -> None:
    write_files(tmp_path, OFFICIAL["piqa"])
    (tmp_path / "physicaliqa-train-dev/train-labels.lst").write_text(labels)
    with pytest.raises(UserError) as caught:
        flat_rows(TASKS["piqa"], tmp_path)
    assert str(caught.value).endswith(expected)


def test_an_instruction_stands_in_the_prompt_of_llm_adapters_and_its_label_is_a_phrase(tmp_path: Path) -> None:
    test = load_task(TASKS["cs170k_arc_challenge"], write_files(tmp_path, OFFICIAL["cs170k_arc_challenge"])).test
    assert test[0].target == "the correct answer is answer5"
    assert test[0].source.startswith(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n"
        f"\n{SIXTEEN}### Instruction:\n{SIXTEEN}(0) Please choose the correct answer to the question: "
    )
    assert test[0].source.endswith(f"answer4/answer5\n{SIXTEEN}\n{SIXTEEN}### Response:\n{SIXTEEN}")
    assert TEMPLATE.count("{") == 1


def test_a_label_is_read_off_the_output_where_no_answer_stands_beside_it() -> None:
    prepare = TASKS["cs170k_boolq"].prepare
    assert prepare is not None
    assert list(prepare({"instruction": "i", "output": "the correct answer is true."})) == [
        {"instruction": "i", "label": "true"}
    ]


def test_of_a_test_row_the_number_counts_and_not_the_way_beside_it(tmp_path: Path) -> None:
    data = load_task(TASKS["math10k_svamp"], write_files(tmp_path, OFFICIAL["math10k_svamp"]))
    assert [example.references for example in data.test] == [("3",), ("4",)]
    assert {example.target for example in (*data.train, *data.dev)} == {
        f"{i} + 2 = {i + 2}. The answer is {i + 2}." for i in range(4)
    }


def test_svamps_own_file_is_a_test_for_math_10k(tmp_path: Path) -> None:
    write_files(tmp_path, {**OFFICIAL["math10k_svamp"], "LLM-Adapters/dataset/SVAMP/SVAMP.json": json.dumps(
        [{"ID": "own-1", "Body": "Ben has 8 plums.", "Question": "How many?", "Answer": 8.0}])})  # fmt: skip
    (tmp_path / "LLM-Adapters/dataset/SVAMP/test.json").unlink()
    test = load_task(TASKS["math10k_svamp"], tmp_path).test
    assert (test[0].target, "Ben has 8 plums. How many?" in test[0].source) == ("8", True)


def test_the_texts_of_one_meaning_are_the_references_of_one_row(tmp_path: Path) -> None:
    data = load_task(TASKS["e2e"], write_files(tmp_path, OFFICIAL["e2e"]))
    assert len(data.train) == 4, "each text is trained on"
    for split in (data.dev, data.test):
        assert [example.source for example in split] == [
            "Meaning: name[The Mill], food[Thai], area[riverside]\nText:",
            "Meaning: name[Blue Door], eatType[pub]\nText:",
        ]  # fmt: skip
        assert split[0].references == (
            "The Mill serves Thai food by the river.", "By the river, The Mill offers Thai food.",
        )  # fmt: skip
        assert split[1].references == ("Blue Door is a pub.",)


def test_a_dialogue_has_one_kind_of_line_break_and_may_be_empty(tmp_path: Path) -> None:
    test = load_task(TASKS["samsum"], write_files(tmp_path, OFFICIAL["samsum"])).test
    assert test[0].source == "Summarize the dialogue.\n\nDana: Shall we meet at 21?\nEli: Yes, at the pond.\n\nSummary:"
    assert test[0].target == "Dana and Eli meet at the pond at 21."
    prepare = TASKS["samsum"].prepare
    assert prepare is not None
    (row,) = prepare({"dialogue": None, "summary": "Nothing."})
    assert (row["dialogue"], row[EDITS]) == ("", ("empty dialogue",))
    (row,) = prepare({"dialogue": "Ann: Hi.", "summary": "Ann comes.\r\nEli too."})
    assert (row["summary"], row[EDITS]) == ("Ann comes. Eli too.", ("summary of several lines",)), (
        "a break ends writing"
    )


def test_what_the_eight_sets_train_on_is_commonsense_170k() -> None:
    """The 170,420 rows of the file, 15 of each of them dev: the 120 of LLM-Adapters."""
    sizes = [task.sizes for task in TASKS.values() if task.benchmark == "Commonsense-170k" and task.sizes]
    assert len(sizes) == 8
    assert sum(dev for _, dev, _ in sizes) == 120
    assert sum((train or 0) + dev for train, dev, _ in sizes) == 170_420


PUBLISHED = {
    "gsm8k": (7_473, 1_319), "svamp": (700, 300), "piqa": (16_113, 1_838), "siqa": (33_410, 1_954),
    "hellaswag": (39_905, 10_042), "winogrande": (40_398, 1_267), "arc_easy": (2_251, 570, 2_376),
    "arc_challenge": (1_119, 299, 1_172), "openbookqa": (4_957, 500, 500), "samsum": (14_732, 818, 819),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_published_splits(name: str) -> None:
    sizes = TASKS[name].sizes
    assert sizes is not None
    train, dev, test = sizes
    published = PUBLISHED[name]
    assert (train, dev, test) == published if len(published) == 3 else ((train or 0) + dev, test) == published


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_metrics_of_a_task_exist_and_fit_its_kind(name: str) -> None:
    assert set(TASKS[name].metrics) <= set(METRICS)
    assert set(TASKS[name].metrics) <= METRICS_OF[TASKS[name].kind]


@pytest.mark.parametrize("name", ["gsm8k", "metamath_gsm8k", "math10k_gsm8k"])
def test_an_answer_as_it_is_trained_on_counts_as_right(name: str, tmp_path: Path) -> None:
    """Of the way and of MetaMathQA's last line the number is read; another number is wrong."""
    test = load_task(TASKS[name], write_files(tmp_path, OFFICIAL[name])).test
    (right,) = {example.references for example in test[:1]}
    number = right[0].rpartition("#### ")[2]
    told = [f"So there are {number} of them.\nThe answer is: {number}", f"It is {number}1.\n#### {number}1"]
    scores = [compute_metrics(["numeric_match"], [text], [right], [])["numeric_match"] for text in told]
    assert scores == [100.0, 0.0]


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_record_says_how_answers_are_written_or_chosen(name: str) -> None:
    task = TASKS[name]
    assert task.form in ("auto", "plain")
    assert "{" in task.template
    if task.kind == "text":
        assert task.max_new_tokens is not None
    else:
        assert task.kind == "classification" or (task.choices == ("choices",) and task.answered_by == "likelihood")
