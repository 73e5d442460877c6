"""The six micro tasks: for each a function that draws one row with a wanted label.

Every construction keeps its surface words as equal between the labels as it can: what decides is who did it
to whom, which of two clauses counts, whether two polarities agree, or in which order the same words stand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness.data.micro.lexicon import (
    ACTOR_VERBS,
    ACTORS,
    INTRANSITIVES,
    KIND_OF,
    PLACES,
    REVIEWED,
    SYNONYM_OF,
    THING_VERBS,
    THINGS,
    TRAITS,
    past,
    plural,
)
from harness.data.micro.phrases import (
    ARRANGEMENTS,
    Dice,
    Event,
    arrange,
    encounter,
    errand,
    feeling,
    opinion,
    outcome,
    voiced,
)

Row = dict[str, object]

ENTAILED, NEUTRAL, CONTRADICTED = 0, 1, 2


def sentiment(dice: Dice, label: int) -> Row:
    """A review of one clause, or of two opposed ones of which the main or the last one counts."""
    positive = label == 1
    noun, aside = dice.two(REVIEWED)
    verdict = dice.pick((opinion, feeling))(dice, noun, positive)
    if dice.chance(0.4):
        return {"sentence": f"{verdict}.", "label": label}
    concession = opinion(dice, aside, not positive)
    sentence = dice.pick(
        (
            f"{concession} but {verdict}.",
            f"although {concession} {verdict}.",
            f"{verdict} although {concession}.",
        )
    )
    return {"sentence": sentence, "label": label}


def entailment(dice: Dice, label: int) -> Row:
    """A premise and a hypothesis about roles, about polarity and kinds, or about quantity."""
    family = dice.weighted(((_roles, 0.4), (_kinds, 0.35), (_quantities, 0.25)))
    premise, hypothesis = family(dice, label)
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def _roles(dice: Dice, label: int) -> tuple[str, str]:
    """Neutral when the roles have been swapped; otherwise the two polarities decide."""
    event, negated = encounter(dice), dice.chance(0.5)
    first, second = dice.two(("not", "never"))
    opposed = dice.chance(0.5) if label == NEUTRAL else label == CONTRADICTED
    passive, also_passive = dice.chance(0.5), dice.chance(0.5)
    claim = event.reworded() if passive == also_passive or dice.chance(0.4) else event
    claim = claim.swapped() if label == NEUTRAL else claim
    premise = voiced(event, passive, first if negated else "", dice.pick(("", "", *TRAITS[:6])))
    return premise, voiced(claim, also_passive, second if negated != opposed else "")


_SAME_POLARITY = {"plain": "managed", "managed": "plain", "not": "failed", "failed": "not"}
_OPPOSITE_POLARITY = {
    "plain": ("not", "failed"),
    "managed": ("not",),
    "not": ("plain", "managed"),
    "failed": ("plain",),
}


def _kinds(dice: Dice, label: int) -> tuple[str, str]:
    """From a hammer to a tool or back: truth is kept upwards when it happened, downwards when it did not."""
    event, form = errand(dice), dice.pick(tuple(_SAME_POLARITY))
    happened = form in ("plain", "managed")
    opposed = dice.chance(0.5) if label == NEUTRAL else label == CONTRADICTED
    upwards = happened == (label != NEUTRAL)
    claimed = dice.pick(_OPPOSITE_POLARITY[form]) if opposed else _SAME_POLARITY[form]
    specific, general = event.patient, KIND_OF[event.patient]
    first, second = (specific, general) if upwards else (general, specific)
    claim = event.reworded() if dice.chance(0.3) else event
    return outcome(event, form, first), outcome(claim, claimed, second)


_QUANTITIES: dict[int, tuple[tuple[str, str, str], ...]] = {
    ENTAILED: (
        ("every", "every", "down"),
        ("no", "no", "down"),
        ("some", "some", "up"),
        ("every", "some", "up"),
        ("every", "some", "down"),
    ),
    NEUTRAL: (
        ("every", "every", "up"),
        ("no", "no", "up"),
        ("some", "some", "down"),
        ("some", "no", "down"),
        ("no", "some", "up"),
        ("some", "every", "up"),
    ),
    CONTRADICTED: (
        ("every", "no", "up"),
        ("every", "no", "down"),
        ("no", "every", "up"),
        ("no", "every", "down"),
        ("some", "no", "up"),
        ("no", "some", "down"),
    ),
}


def _quantities(dice: Dice, label: int) -> tuple[str, str]:
    """Every, some or no member of a kind, and the kind itself (kinds are never empty here)."""
    noun = dice.pick(dice.pick((ACTORS, THINGS)))
    if noun in THINGS:
        predicate = f"was {past(dice.pick(dice.pick(THING_VERBS)))}"
    else:
        predicate = dice.pick((f"was {dice.pick(TRAITS)}", past(dice.pick(INTRANSITIVES))))
    first, second, direction = dice.pick(_QUANTITIES[label])
    names = (noun, KIND_OF[noun]) if direction == "up" else (KIND_OF[noun], noun)
    return f"{first} {names[0]} {predicate}.", f"{second} {names[1]} {predicate}."


def paraphrase(dice: Dice, label: int) -> Row:
    """The same event arranged and worded anew, or another event of much the same words."""
    event = encounter(dice)
    arrangement, anew = dice.two(ARRANGEMENTS)
    told = event.reworded() if dice.chance(0.5) else event
    if label == 0:
        told = _altered(dice, told)
    return {"sentence1": arrange(event, arrangement), "sentence2": arrange(told, anew), "label": label}


def _altered(dice: Dice, event: Event) -> Event:
    """The event with swapped roles, or with another verb, patient or place."""
    change = dice.weighted((("roles", 0.5), ("verb", 0.2), ("patient", 0.15), ("place", 0.15)))
    if change == "roles":
        return event.swapped()
    if change == "verb":
        verbs = [verb for pair in ACTOR_VERBS for verb in pair]
        return replace(event, verb=dice.other(verbs, event.verb, SYNONYM_OF[event.verb]))
    if change == "patient":
        return replace(event, patient=dice.other(ACTORS, event.agent, event.patient))
    return replace(event, place=dice.other(PLACES, event.place))


def similarity(dice: Dice) -> Row:
    """Two events; the score adds what agent, verb, thing and place have in common, 5.0 in all.

    The same word or a synonym counts in full (1.4, 1.4, 1.4, 0.8); an agent or a thing of the same kind
    counts half.
    """
    event = errand(dice)
    agent, agent_score = _neighbour(dice, event.agent, ACTORS)
    thing, thing_score = _neighbour(dice, event.patient, THINGS)
    same_verb, same_place = dice.chance(0.5), dice.chance(0.5)
    pair = dice.pick([pair for pair in THING_VERBS if (event.verb in pair) == same_verb])
    place = event.place if same_place else dice.other(PLACES, event.place)
    score = agent_score + thing_score + 1.4 * same_verb + 0.8 * same_place
    told = Event(agent, dice.pick(pair), thing, place)
    first, second = (arrange(each, dice.pick(ARRANGEMENTS[:3])) for each in (event, told))
    return {"sentence1": first, "sentence2": second, "label": round(score, 1)}


def _neighbour(dice: Dice, noun: str, nouns: tuple[str, ...]) -> tuple[str, float]:
    """The noun itself, one of its kind, or one of another kind; with its score of 1.4, 0.7 or 0."""
    nearness = dice.weighted((("same", 0.45), ("kind", 0.25), ("other", 0.3)))
    if nearness == "same":
        return noun, 1.4
    akin = [each for each in nouns if KIND_OF[each] == KIND_OF[noun] and each != noun]
    if nearness == "kind":
        return dice.pick(akin), 0.7
    return dice.other(nouns, noun, *akin), 0.0


def acceptability(dice: Dice, label: int) -> Row:
    """An English sentence, or the same words (or the same kinds of words) put together wrongly."""
    maker = dice.weighted(
        ((_agreement, 0.25), (_determiners, 0.15), (_auxiliary, 0.2), (_coordination, 0.2), (_order, 0.2))
    )
    return {"sentence": maker(dice, label == 1), "label": label}


def _agreement(dice: Dice, good: bool) -> str:
    """The verb agrees with the head, not with the nearer noun."""
    head, near = dice.two(ACTORS)
    many = dice.chance(0.5)
    nouns = (plural(head), near) if many else (head, plural(near))
    verb = dice.pick((("is", "are"), ("was", "were"), ("has been", "have been")))[many == good]
    return f"the {nouns[0]} near the {nouns[1]} {verb} {dice.pick(TRAITS)}."


def _determiners(dice: Dice, good: bool) -> str:
    """Singular and plural demonstratives, each before its noun or before the other one."""
    first, second = dice.two(ACTORS)
    many = dice.chance(0.5)
    nouns = (plural(first), second) if many else (first, plural(second))
    words = dice.pick((("this", "these"), ("that", "those")))
    before, after = words[many == good], words[many != good]
    return f"{before} {nouns[0]} {past(dice.pick(dice.pick(ACTOR_VERBS)))} {after} {nouns[1]}."


def _auxiliary(dice: Dice, good: bool) -> str:
    """ "did" takes the base form, "has" the participle."""
    event, perfect = encounter(dice), dice.chance(0.5)
    verb = past(event.verb) if perfect == good else event.verb
    negation = dice.pick(("not ", "never ", "")) if perfect else "not "
    return f"the {event.agent} {'has' if perfect else 'did'} {negation}{verb} the {event.patient}."


def _coordination(dice: Dice, good: bool) -> str:
    """Of two joined verbs only the one beside the object may take it."""
    event, bare = encounter(dice), past(dice.pick(INTRANSITIVES))
    verbs = (bare, past(event.verb)) if good else (past(event.verb), bare)
    joint = dice.pick(("and", "and then"))
    return f"the {event.agent} {verbs[0]} {joint} {verbs[1]} the {event.patient}."


def _order(dice: Dice, good: bool) -> str:
    """Words in English order, or with a noun phrase or the object out of place."""
    event, trait = encounter(dice), dice.pick(TRAITS)
    verb = past(event.verb)
    if good:
        return f"the {trait} {event.agent} {verb} the {event.patient}."
    return dice.pick(
        (
            f"the {event.agent} {trait} {verb} the {event.patient}.",
            f"{trait} the {event.agent} {verb} the {event.patient}.",
            f"the {trait} {event.agent} the {event.patient} {verb}.",
            f"the {trait} {event.agent} {verb} {event.patient} the.",
        )
    )


def qa(dice: Dice) -> Row:
    """Two or three errands and a question for the agent, the thing or the place of one of them."""
    facts = _facts(dice, 2 + dice.chance(0.4))
    asked = dice.pick(facts)
    question, answer = dice.pick(
        (
            (f"who {past(asked.verb)} the {asked.patient}?", asked.agent),
            (f"what did the {asked.agent} {asked.verb}?", asked.patient),
            (f"where did the {asked.agent} {asked.verb} the {asked.patient}?", asked.place),
        )
    )
    context = " ".join(arrange(fact, "active") for fact in facts)
    return {"context": context, "question": question, "answers": [answer]}


def _facts(dice: Dice, count: int) -> list[Event]:
    """Errands with things and places of their own; one agent may run several, with different verbs."""
    facts: list[Event] = []
    for _ in range(count):
        fact = errand(dice)
        if facts and dice.chance(0.3):
            fact = replace(fact, agent=facts[0].agent)
        elif facts and dice.chance(0.3):
            fact = replace(fact, verb=facts[0].verb)
        facts.append(fact)
    return facts if _answerable(facts) else _facts(dice, count)


def _answerable(facts: list[Event]) -> bool:
    """Whether no two facts share a thing, a place, or both agent and verb (or its synonym)."""
    verbs = [min(fact.verb, SYNONYM_OF[fact.verb]) for fact in facts]
    doings = list(zip((fact.agent for fact in facts), verbs, strict=True))
    columns: tuple[list[object], ...] = (
        [fact.patient for fact in facts],
        [fact.place for fact in facts],
        list(doings),
    )
    return all(len(set(column)) == len(column) for column in columns)


LABELLED: dict[str, Callable[[Dice, int], Row]] = {
    "sentiment": sentiment,
    "entailment": entailment,
    "paraphrase": paraphrase,
    "acceptability": acceptability,
}
OPEN: dict[str, Callable[[Dice], Row]] = {"similarity": similarity, "qa": qa}
