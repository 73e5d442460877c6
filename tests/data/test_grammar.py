"""The micro grammar's promises: determinism, disjoint splits, held-out combinations, honest labels."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest

from harness.backbone.names import SHIPPED as SHIPPED_BACKBONES
from harness.data.micro import lexicon
from harness.data.micro.grammar import LABEL_SHARES, SPLITS, TASKS, generate, row_text, text
from harness.data.micro.tasks import Row
from tools.micro_t5 import mixture
from tools.micro_t5.stages import STAGES

SIZES = {"train": 4000, "validation": 300, "test": 500}
SHIPPED = SHIPPED_BACKBONES["micro-t5"]


@cache
def rows_of(task: str, split: str) -> list[Row]:
    """The split in the size the package promises."""
    return generate(task, split, SIZES[split])


def fields(task: str, row: Row) -> list[str]:
    """The row's texts, in the order of the task's fields."""
    return [str(row[field]) for field in mixture.FIELDS[task]]


def labels(rows: list[Row]) -> list[int]:
    """The integer labels of the rows."""
    return [int(str(row["label"])) for row in rows]


def test_equal_arguments_give_equal_rows() -> None:
    for task in TASKS:
        assert generate(task, "test", 50, seed=3) == generate(task, "test", 50, seed=3)
        assert generate(task, "test", 50, seed=3) != generate(task, "test", 50, seed=4)


def test_a_longer_split_begins_with_the_shorter_one() -> None:
    for task in TASKS:
        assert generate(task, "train", 80)[:30] == generate(task, "train", 30)


def test_rows_do_not_depend_on_the_process_or_its_hash_seed() -> None:
    program = (
        "import json, random; from harness.data.micro.grammar import *\n"
        "print(json.dumps([[generate(t, s, 20, 5) for t in TASKS for s in SPLITS], text(random.Random(1))]))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    }
    here = [[generate(t, s, 20, 5) for t in TASKS for s in SPLITS], text(random.Random(1))]
    assert [json.loads(each) for each in printed] == [here]


@pytest.mark.parametrize("task", TASKS)
def test_splits_are_large_unique_and_disjoint_even_across_seeds(task: str) -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        texts = [row_text(row) for row in rows_of(task, split)]
        assert len(texts) == len(set(texts)) == SIZES[split]
        texts += [row_text(row) for row in generate(task, split, 200, seed=9)]
        assert {seen.setdefault(each, split) for each in texts} == {split}


def test_unknown_names_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="sentiment, entailment"):
        generate("summary", "train", 1)
    with pytest.raises(ValueError, match="train, validation, test"):
        generate("qa", "dev", 1)
    with pytest.raises(ValueError, match="at least 0"):
        generate("qa", "train", -1)


@pytest.mark.parametrize("task", TASKS)
def test_heldout_pairs_never_occur_in_training(task: str) -> None:
    for row in rows_of(task, "train"):
        assert not lexicon.heldout_combinations(row_text(row))


def test_heldout_pairs_never_occur_in_the_pretraining_mixture() -> None:
    for stage in STAGES:
        for source, target in mixture.mixture(3000, 11, stage.shares.parts(), stage.scattered):
            assert not lexicon.heldout_combinations(f"{source} {target}")


@pytest.mark.parametrize("task", sorted(LABEL_SHARES))
def test_sources_without_a_prefix_are_never_taught_their_label(task: str) -> None:
    rows = generate(task, "train", 600, seed=2_000_008)
    truth = {mixture.untagged_source(task, row): str(row["label"]) for row in rows}
    pairs = list(mixture.unprompted_pairs(task, 600, seed=8))
    hits = sum(truth[source] == target for source, target in pairs)
    shares = [share for _, share in LABEL_SHARES[task]]
    assert hits / len(pairs) == pytest.approx(sum(share**2 for share in shares), abs=0.07)


def test_the_code_form_numbers_every_label_differently() -> None:
    for task, words in mixture.LABEL_WORDS.items():
        for row in rows_of(task, "validation")[:40]:
            plain, coded = (mixture.supervised(task, row, form)[1] for form in ("label", "code"))
            assert plain != coded
            assert {plain, coded} <= {str(digit) for digit in range(len(words))}


@pytest.mark.parametrize("task", TASKS)
def test_every_evaluation_row_has_a_combination_unseen_in_training(task: str) -> None:
    seen = frozenset[tuple[str, str]]().union(*(lexicon.combinations(row_text(row)) for row in rows_of(task, "train")))
    for split in ("validation", "test"):
        for row in rows_of(task, split):
            assert lexicon.combinations(row_text(row)) - seen


def test_training_shows_every_noun_and_predicate_by_itself() -> None:
    seen = " ".join(row_text(row) for task in TASKS for row in rows_of(task, "train"))
    pairs = lexicon.combinations(seen)
    assert {noun for noun, _ in pairs} == set(lexicon.NOUNS)
    assert {predicate for _, predicate in pairs} == set(lexicon.PREDICATES)


@pytest.mark.parametrize("task", sorted(LABEL_SHARES))
@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_nearly_but_not_exactly_balanced(task: str, split: str) -> None:
    counts = Counter(labels(rows_of(task, split)))
    wanted = dict(LABEL_SHARES[task])
    assert set(counts) == set(wanted)
    for label, share in wanted.items():
        assert counts[label] / SIZES[split] == pytest.approx(share, abs=0.07)
    assert len(set(counts.values())) > 1


def test_similarity_scores_span_the_scale_in_tenths() -> None:
    scores = [float(str(row["label"])) for row in rows_of("similarity", "train")]
    assert (min(scores), max(scores)) == (0.0, 5.0)
    assert all(score == round(score, 1) for score in scores)
    assert np.std(scores) > 1.0


def test_qa_answers_are_spans_and_the_question_names_one_fact() -> None:
    for split in SPLITS:
        for row in rows_of("qa", split):
            assert isinstance(row["answers"], list)
            (answer,) = row["answers"]
            assert str(row["context"]).split().count(answer) or f"{answer}." in str(row["context"])
            assert answer not in str(row["question"]).rstrip("?").split()


def test_sentences_are_short() -> None:
    for task in TASKS:
        longest = max(len(mixture.untagged_source(task, row).split()) for row in rows_of(task, "train"))
        assert longest <= (42 if task == "qa" else 28)


def overlap(task: str, row: Row) -> list[float]:
    """Word overlap of the row's two texts (or the text's length) in several scalings."""
    words = [set(each.rstrip(".").split()) for each in fields(task, row)]
    common, union = set.intersection(*words), set.union(*words)
    return [len(common), len(common) / len(union), *(len(each) for each in words)]


def bag_of_words_accuracy(task: str) -> float:
    """Test accuracy of logistic regression on word counts of each text and on their overlap."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, test = rows_of(task, "train"), rows_of(task, "test")
    parts: list[tuple[Any, ...]] = []
    for place in range(len(mixture.FIELDS[task])):
        counter = CountVectorizer(token_pattern=r"\w+")
        learnt = counter.fit_transform([fields(task, row)[place] for row in train])
        parts.append((learnt, counter.transform([fields(task, row)[place] for row in test])))
    parts.append(tuple(csr_matrix([overlap(task, row) for row in rows]) for rows in (train, test)))
    features, held = (hstack([part[side] for part in parts]).tocsr() for side in (0, 1))
    model = LogisticRegression(max_iter=300, C=0.1).fit(features, labels(train))
    return float(model.score(held, labels(test)))


@pytest.mark.parametrize(("task", "bound"), [("entailment", 0.5), ("acceptability", 0.62)])
def test_counting_words_does_not_solve_the_structural_tasks(task: str, bound: float) -> None:
    assert bag_of_words_accuracy(task) < bound


def test_sentiment_has_lexical_cues_but_needs_composition() -> None:
    assert 0.6 < bag_of_words_accuracy("sentiment") < 0.85


@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_model_reaches_its_recorded_accuracy(task: str) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    from tools.micro_t5.pretrain import score

    recorded = json.loads((SHIPPED / "pretraining.json").read_text(encoding="utf-8"))["validation"]
    model = transformers.T5ForConditionalGeneration.from_pretrained(SHIPPED)
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    assert score(model, tokenizer, task, size=100) == pytest.approx(recorded[task], abs=0.08)


def test_the_shipped_tokenizer_loads_and_ends_texts() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHIPPED)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.model_max_length == 512
    assert all(len(tokenizer(digit).input_ids) == 2 for digit in "0123456789")
    assert tokenizer("the doctor helped the nurse.").input_ids[-1] == 1
    kept = tokenizer.decode(tokenizer("Ünknown, 12.5%!").input_ids, skip_special_tokens=True)
    assert kept == "Ünknown, 12.5%!"
