"""Words of the micro grammar, and the pairs of words kept out of everything that is trained on.

A *combination* is a noun and a predicate (verb or adjective) in the same row, whatever their inflection.
About one in twelve is held out: train rows and pretraining text hold none of them, validation and test rows
hold at least one. Which ones is decided by a checksum of the pair, so it never changes between machines.
"""

from __future__ import annotations

import re
import zlib
from itertools import chain, product

HELDOUT_MODULUS = 12
"""One pair in twelve is held out: enough for the rows of dev and test, while eleven twelfths are left to train on."""

PEOPLE = (
    "doctor", "nurse", "teacher", "student", "farmer", "baker",
    "singer", "painter", "lawyer", "driver", "pilot", "sailor",
)  # fmt: skip
ANIMALS = ("dog", "cat", "horse", "cow", "goat", "duck")
ACTORS = PEOPLE + ANIMALS

KINDS: dict[str, tuple[str, ...]] = {
    "fruit": ("apple", "pear", "lemon"),
    "tool": ("hammer", "shovel", "ladder"),
    "vehicle": ("car", "truck", "bicycle"),
    "instrument": ("violin", "flute", "drum"),
    "flower": ("rose", "tulip", "lily"),
}
THINGS = tuple(chain.from_iterable(KINDS.values()))
KIND_OF = {thing: kind for kind, members in KINDS.items() for thing in members}
KIND_OF |= dict.fromkeys(PEOPLE, "person") | dict.fromkeys(ANIMALS, "animal")

# Verbs come in pairs of synonyms: the grammar counts both members of a pair as one meaning.
ACTOR_VERBS = (
    ("help", "assist"), ("watch", "observe"), ("chase", "pursue"), ("push", "shove"), ("call", "phone"),
    ("praise", "applaud"), ("scare", "frighten"), ("greet", "welcome"), ("blame", "accuse"),
)  # fmt: skip
THING_VERBS = (
    ("buy", "purchase"), ("clean", "wash"), ("repair", "fix"), ("find", "discover"), ("lift", "raise"),
    ("sell", "trade"), ("keep", "retain"),
)  # fmt: skip
INTRANSITIVES = ("sleep", "laugh", "arrive", "wait", "cough", "yawn", "smile", "kneel")
IRREGULAR_PAST = {
    "buy": "bought", "find": "found", "sell": "sold", "keep": "kept", "sleep": "slept", "kneel": "knelt",
}  # fmt: skip

TRAITS = ("old", "young", "tall", "tired", "happy", "angry", "hungry", "quiet", "brave", "lazy")
PLACES = (
    "kitchen", "garden", "market", "school", "park", "station", "office", "library", "village", "forest",
)  # fmt: skip
DAYS = ("monday", "tuesday", "friday", "sunday")

REVIEWED = (
    "film", "book", "song", "story", "play", "meal", "hotel", "concert", "lesson", "trip", "game", "show",
)  # fmt: skip
PRAISE = (
    "great", "wonderful", "lovely", "excellent", "charming", "brilliant", "delightful", "superb", "funny",
    "fresh",
)  # fmt: skip
SCORN = (
    "awful", "terrible", "dull", "boring", "horrible", "poor", "weak", "dreadful", "bland", "messy",
)  # fmt: skip
LIKING = ("love", "enjoy", "like", "adore")
DISLIKING = ("hate", "dislike", "resent", "despise")


def past(verb: str) -> str:
    """The past tense of a base form, which is its participle too."""
    return IRREGULAR_PAST.get(verb) or verb + ("d" if verb.endswith("e") else "ed")


def plural(noun: str) -> str:
    """The regular plural of a noun."""
    return noun + "s"


def article(noun: str) -> str:
    """The noun after "a" or "an"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


NOUNS = ACTORS + THINGS + REVIEWED
VERBS = tuple(chain.from_iterable(ACTOR_VERBS + THING_VERBS)) + INTRANSITIVES + LIKING + DISLIKING
PREDICATES = VERBS + TRAITS + PRAISE + SCORN
SYNONYM_OF = {a: b for pair in ACTOR_VERBS + THING_VERBS for a, b in (pair, pair[::-1])}


def is_heldout(noun: str, predicate: str) -> bool:
    """Return whether this combination of base forms never occurs in training."""
    return zlib.crc32(f"{noun} {predicate}".encode()) % HELDOUT_MODULUS == 0


def _noun_forms() -> dict[str, str]:
    forms = {noun: noun for noun in NOUNS}
    return forms | {plural(noun): noun for noun in ACTORS}


def _predicate_forms() -> dict[str, str]:
    forms = {word: word for word in PREDICATES}
    return forms | {past(verb): verb for verb in VERBS}


NOUN_FORMS = _noun_forms()
PREDICATE_FORMS = _predicate_forms()
_HELDOUT = frozenset(pair for pair in product(NOUNS, PREDICATES) if is_heldout(*pair))


def combinations(text: str) -> frozenset[tuple[str, str]]:
    """Return every (noun, predicate), as base forms, that occur together in the text."""
    words = re.findall(r"[a-z]+", text)
    nouns = {NOUN_FORMS[word] for word in words if word in NOUN_FORMS}
    predicates = {PREDICATE_FORMS[word] for word in words if word in PREDICATE_FORMS}
    return frozenset(product(nouns, predicates))


def heldout_combinations(text: str) -> frozenset[tuple[str, str]]:
    """Return the combinations of the text that are held out of training."""
    return combinations(text) & _HELDOUT
