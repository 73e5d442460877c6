"""What the micro T5 is pretrained on: span corruption of grammar text, and the six tasks with prefixes.

A supervised source is "TASK field: text ..." with a word as target. Two shares of those with labels ask for a
digit instead: "label TASK ..." for the label itself, "code TASK ..." for another numbering of the labels. No source
without a prefix has its own label as its target: such fields are denoised, or answered with another row's label.
So the finished model is at chance until a prompt tells it what is asked, and which number stands for what.
In the last stage the words of a prefix may stand scattered among others, as in a soft prompt that is only partly
learnt: a model that has only seen clean prefixes does not notice such a prompt, and training it has no slope.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from harness.data import (
    ARRANGEMENTS,
    TASKS,
    Dice,
    Row,
    arrange,
    encounter,
    generate,
    heldout_combinations,
    text,
    voiced,
)

LABEL_WORDS: dict[str, tuple[str, ...]] = {
    "sentiment": ("negative", "positive"),
    "entailment": ("entailment", "neutral", "contradiction"),
    "paraphrase": ("different", "same"),
    "acceptability": ("wrong", "right"),
}
FIELDS: dict[str, tuple[str, ...]] = {
    "sentiment": ("sentence",),
    "entailment": ("premise", "hypothesis"),
    "paraphrase": ("sentence1", "sentence2"),
    "similarity": ("sentence1", "sentence2"),
    "acceptability": ("sentence",),
    "qa": ("question", "context"),
}
FORMS: tuple[tuple[str, float], ...] = (("", 0.5), ("label", 0.25), ("code", 0.25))
"""(first word of the prefix, share of the rows): it asks for the label's word, its digit, or its digit in another
numbering. With one numbering alone a prompt would have nothing to choose."""
SENTINELS = 32
"""Number of tokens <extra_id_0> and so on. T5 has 100; texts here have at most some 34 words, so a few spans."""
VOCABULARY = 1_100
"""Most tokens: 256 bytes, the special ones, and merges for the words of the grammar. There are 958 in the end."""
PAD, END, UNKNOWN = 0, 1, 2
"""Ids as in T5, whose decoder starts with the padding id."""

Pair = tuple[str, str]


def untagged_source(task: str, row: Row) -> str:
    """Return the fields of a row, each after its name: "premise: P hypothesis: H"."""
    return " ".join(f"{field}: {row[field]}" for field in FIELDS[task])


def supervised(task: str, row: Row, form: str = "") -> Pair:
    """Return the source, with the task's prefix in one of the `FORMS`, and the target of a row."""
    source = f"{form} {task} {untagged_source(task, row)}".strip()
    if task == "qa":
        answers = row["answers"]
        assert isinstance(answers, list)
        return source, str(answers[0])
    label = row["label"]
    if isinstance(label, int):
        words = LABEL_WORDS[task]
        return source, {"": words[label], "label": str(label), "code": str((label + 1) % len(words))}[form]
    assert isinstance(label, float)
    return source, str(round(5.0 - label, 1) if form == "code" else label)


def supervised_pairs(task: str, size: int, seed: int, scattered: float = 0.0) -> Iterator[Pair]:
    """`size` pairs from the task's train rows, those with labels in the proportions of `FORMS`.

    In the share `scattered` of them the words of the prefix are spread among other words.
    """
    dice = Dice(random.Random(f"forms {task} {seed}"))
    rng = random.Random(f"scattered {task} {seed}")
    for row in generate(task, "train", size, seed):
        source, target = supervised(task, row, "" if task == "qa" else dice.weighted(FORMS))
        if rng.random() < scattered:
            fields = untagged_source(task, row)
            among = f"{scatter(rng, source.removesuffix(fields).split())} {fields}"
            # a word put in front may form a held-out combination with one of the row
            source = source if heldout_combinations(among) else among
        yield source, target


def scatter(rng: random.Random, prefix: list[str]) -> str:
    """Return the words of `prefix`, in their order, at random places among 4 to 16 words of a plain text."""
    words = text(rng).split()
    words = words[: rng.randint(4, 16)]
    places = sorted((rng.randint(0, len(words)) for _ in prefix), reverse=True)
    for place, word in zip(places, reversed(prefix), strict=True):
        words.insert(place, word)
    return " ".join(words)


def unprompted_pairs(task: str, size: int, seed: int) -> Iterator[Pair]:
    """Yield up to `size` rows without prefix, each with the target of the row before it: only chance can be learnt."""
    rows = generate(task, "train", size, seed + 2_000_000)
    for place, row in enumerate(rows):
        form = "" if task == "qa" else "label"
        source, target = untagged_source(task, row), supervised(task, rows[place - 1], form)[1]
        if not heldout_combinations(f"{source} {target}"):
            yield source, target


def role_pairs(size: int, seed: int) -> Iterator[Pair]:
    """Yield `size` sentences, active or passive, after "agent" or "patient", with that noun as target.

    It is no task: it teaches who did it to whom, without which the model learns swapped roles very late.
    """
    dice = Dice(random.Random(f"roles {seed}"))
    while size > 0:
        event = encounter(dice)
        placed = arrange(event, dice.pick(ARRANGEMENTS))
        sentence = dice.pick((placed, voiced(event, dice.chance(0.5), dice.pick(("", "not", "never")))))
        if not heldout_combinations(sentence):
            size -= 1
            yield dice.pick(
                ((f"agent sentence: {sentence}", event.agent), (f"patient sentence: {sentence}", event.patient))
            )


def corrupted(rng: random.Random, words: list[str]) -> Pair:
    """Return a text with about 15% of its words replaced by sentinels, in spans of 3 on average, and the spans.

    The numbers are those of T5 (Raffel et al. 2020, section 3.1.4).
    """
    hidden = max(1, round(len(words) * 0.15))
    starts = {int(rng.random() * len(words)) for _ in range(max(1, round(hidden / 3)))}
    masked = {start + step for start in starts for step in range(min(hidden, 2 + int(rng.random() * 3)))}
    source: list[str] = []
    target: list[str] = []
    sentinel = 0
    for place, word in enumerate(words):
        if place not in masked:
            source.append(word)
            continue
        if place - 1 not in masked:
            for side in (source, target):
                side.append(f"<extra_id_{sentinel}>")
            sentinel += 1
        target.append(word)
    return " ".join(source), " ".join([*target, f"<extra_id_{sentinel}>"])


def corrupted_pairs(size: int, seed: int) -> Iterator[Pair]:
    """Yield about `size` pairs of span corruption: half of plain text, half of the tasks' fields without a prefix."""
    rng = random.Random(f"spans {seed}")
    for _ in range(size - size // 2):
        yield corrupted(rng, text(rng).split())
    for task in TASKS:
        for row in generate(task, "train", size // 2 // len(TASKS), seed + 1_000_000):
            yield corrupted(rng, untagged_source(task, row).split())


def mixture(size: int, seed: int, shares: Mapping[str, float], scattered: float = 0.0) -> list[Pair]:
    """Return about `size` pairs of source and target text, shuffled.

    `shares` gives the part of each task, of "roles" and of "unprompted" rows (of all tasks together); what they
    leave of 1 is span corruption. `scattered` is as in `supervised_pairs`.
    """
    pairs = [pair for task in TASKS for pair in supervised_pairs(task, round(size * shares[task]), seed, scattered)]
    for task in TASKS:
        pairs += unprompted_pairs(task, round(size * shares["unprompted"] / len(TASKS)), seed)
    pairs += role_pairs(round(size * shares["roles"]), seed)
    pairs += corrupted_pairs(size - len(pairs), seed)
    random.Random(f"order {seed}").shuffle(pairs)
    return pairs


def build_tokenizer(seed: int, shares: Mapping[str, float], size: int = 12_000) -> Tokenizer:
    """Return a byte-level tokenizer with merges learnt from the mixture; it appends </s> to every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    specials = [AddedToken(token, special=True) for token in ("<pad>", "</s>", "<unk>")]
    # lstrip: the space before a sentinel would otherwise become a token of its own
    specials += [AddedToken(f"<extra_id_{index}>", special=True, lstrip=True) for index in range(SENTINELS)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_vocabulary_text(mixture(size, seed, shares)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return tokenizer


def _vocabulary_text(pairs: list[Pair]) -> Iterator[str]:
    """Yield the pairs, and as many lines of digits: each digit has to become one token, since labels are digits."""
    for source, target in pairs:
        yield f" {source} {target}"
    for _ in pairs:
        yield " 0 1 2 3 4 5 6 7 8 9"
