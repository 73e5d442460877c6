"""Phrases of the micro grammar: drawing at random, clauses in both voices, polarity, opinions, plain text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from harness.data.micro.lexicon import (
    ACTOR_VERBS,
    ACTORS,
    DAYS,
    DISLIKING,
    INTRANSITIVES,
    LIKING,
    PLACES,
    PRAISE,
    REVIEWED,
    SCORN,
    SYNONYM_OF,
    THING_VERBS,
    THINGS,
    TRAITS,
    article,
    past,
)

T = TypeVar("T")


class Dice:
    """Random draws that call `Random.random` alone, the only method whose sequence Python promises to keep.

    So a seed gives the same rows in every Python version, and stored results stay comparable.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._rng.random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices, all equally likely."""
        return choices[int(self._rng.random() * len(choices))]

    def weighted(self, shares: Sequence[tuple[T, float]]) -> T:
        """One of the first members, with the probabilities in the second (which sum to 1)."""
        rest = self._rng.random()
        for choice, share in shares:
            rest -= share
            if rest < 0:
                return choice
        return shares[-1][0]

    def other(self, choices: Sequence[T], *taken: T) -> T:
        """One of the choices that is not taken yet."""
        return self.pick([choice for choice in choices if choice not in taken])

    def two(self, choices: Sequence[T]) -> tuple[T, T]:
        """Two different choices, in random order."""
        first = self.pick(choices)
        return first, self.other(choices, first)


@dataclass(frozen=True)
class Event:
    """Somebody did something to somebody or something somewhere; the verb is a base form."""

    agent: str
    verb: str
    patient: str
    place: str

    def reworded(self) -> Event:
        """The same event with the verb's synonym."""
        return replace(self, verb=SYNONYM_OF[self.verb])

    def swapped(self) -> Event:
        """The event in which agent and patient have changed roles."""
        return replace(self, agent=self.patient, patient=self.agent)


ARRANGEMENTS = ("active", "fronted", "passive", "fronted passive")


def encounter(dice: Dice) -> Event:
    """A random event between two actors."""
    agent, patient = dice.two(ACTORS)
    return Event(agent, dice.pick(dice.pick(ACTOR_VERBS)), patient, dice.pick(PLACES))


def errand(dice: Dice) -> Event:
    """A random event of an actor and a thing."""
    return Event(dice.pick(ACTORS), dice.pick(dice.pick(THING_VERBS)), dice.pick(THINGS), dice.pick(PLACES))


def arrange(event: Event, arrangement: str) -> str:
    """The event as one sentence, place included, in one of `ARRANGEMENTS`."""
    if arrangement.endswith("passive"):
        core = f"the {event.patient} was {past(event.verb)} by the {event.agent}"
    else:
        core = f"the {event.agent} {past(event.verb)} the {event.patient}"
    if arrangement.startswith("fronted"):
        return f"in the {event.place} {core}."
    return f"{core} in the {event.place}."


def voiced(event: Event, passive: bool, negation: str, trait: str = "") -> str:
    """The event without its place; negation is "", "not" or "never", the trait describes the agent."""
    agent = f"{trait} {event.agent}".strip()
    if passive:
        return f"the {event.patient} was {negation} {past(event.verb)} by the {agent}.".replace("  ", " ")
    verb = f"did not {event.verb}" if negation == "not" else f"{negation} {past(event.verb)}".strip()
    return f"the {agent} {verb} the {event.patient}."


def outcome(event: Event, form: str, patient: str) -> str:
    """Whether the agent got something indefinite done; form is "plain", "managed", "not" or "failed"."""
    verb = {
        "plain": past(event.verb),
        "managed": f"managed to {event.verb}",
        "not": f"did not {event.verb}",
        "failed": f"failed to {event.verb}",
    }[form]
    return f"the {event.agent} {verb} {article(patient)}."


def opinion(dice: Dice, noun: str, positive: bool) -> str:
    """A clause that likes the noun or does not, through a plain or a negated adjective."""
    if dice.chance(0.35):
        negation = dice.pick(("not", "never", "hardly", "far from"))
        return f"the {noun} was {negation} {dice.pick(SCORN if positive else PRAISE)}"
    strength = dice.pick(("", "", "very ", "really ", "so "))
    return f"the {noun} was {strength}{dice.pick(PRAISE if positive else SCORN)}"


def feeling(dice: Dice, noun: str, positive: bool) -> str:
    """A clause in which the writer likes the noun or does not, through a plain or a negated verb."""
    speaker = dice.pick(("i", "we", "they"))
    if dice.chance(0.4):
        return f"{speaker} did not {dice.pick(DISLIKING if positive else LIKING)} the {noun}"
    return f"{speaker} {past(dice.pick(LIKING if positive else DISLIKING))} the {noun}"


def statement(dice: Dice, actor: str) -> str:
    """One sentence of plain text about the actor (or, now and then, a review)."""
    event = replace(dice.pick((encounter, errand))(dice), agent=actor)
    kind = dice.pick(("event", "event", "event", "state", "stay", "polarity", "review"))
    if kind == "event":
        return arrange(event, dice.pick(ARRANGEMENTS))
    if kind == "state":
        return f"the {actor} was {dice.pick(TRAITS)} on {dice.pick(DAYS)}."
    if kind == "stay":
        return f"the {dice.pick(TRAITS)} {actor} {past(dice.pick(INTRANSITIVES))} near the {event.place}."
    if kind == "polarity":
        return voiced(event, dice.chance(0.5), dice.pick(("not", "never")), dice.pick(TRAITS))
    return f"{dice.pick((opinion, feeling))(dice, dice.pick(REVIEWED), dice.chance(0.5))}."


def passage(dice: Dice) -> str:
    """Two or three sentences of plain text, which mostly share an actor."""
    actor, second = dice.two(ACTORS)
    cast = (actor, actor, second)
    return " ".join(statement(dice, dice.pick(cast)) for _ in range(2 + dice.chance(0.4)))
