"""A search by TPE: which points come next, given the results of those before them.

Bergstra et al. (2011), "Algorithms for Hyper-Parameter Optimization", section 4; computed by Optuna. Nothing is kept
but results. The study is made anew from them each time, so a run that was killed, another process on the same folder
and a suite with more trials all ask for the same points. What decides trial n: the suite, its search seed, and the
results of the batches before the one that holds n. Within a batch the trials asked before count as bad ones ("constant
liar"), so that the points of a batch lie apart.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.results import Result, dev_selection
from harness.suite import Cell, Range, Search

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Settings = dict[str, Any]
"""A point: searched setting -> its value."""
REPEATS = 20
"""Times that Optuna is asked for a point which no trial has had. A cell of the same settings would be the same run, so
it would spend nothing of the budget."""


class Study:
    """The trials of one table entry."""

    def __init__(self, search: Search, stored: Sequence[Cell], where: str = "") -> None:
        """`stored` are cells that earlier runs have trained for this search, which fix the points of their trials.

        So a result that was made again, with another score, moves no trial that was asked before. `where` is where the
        suite asks for the search.
        """
        self.search = search
        self.where = where
        self.known = {cell.grid_index: cell.grid for cell in stored if set(cell.grid) == set(search.space)}

    def next_points(self, points: Sequence[Settings], results: Sequence[Result | None]) -> list[Settings]:
        """Return the points of the next batch, behind trials with these points and results.

        There are none while a result that they follow from is missing, and none after trials which all do not fit the
        backbone. Raises UserError if Optuna is not installed.
        """
        first = len(points)
        batch = range(first, self.search.end_of_batch(first))
        is_settled = None not in results
        if not is_settled and any(number not in self.known for number in batch):
            return []
        if is_settled and all(result is not None and result.status == "unfit" for result in results):
            return []
        made = list(points)
        for number in batch:
            made.append(self.known.get(number) or self._ask(number, made, results))
        return made[first:]

    def _ask(self, number: int, points: Sequence[Settings], results: Sequence[Result | None]) -> Settings:
        """The point of one trial. Those before it without a result are in training beside it."""
        require_optuna(self.where)
        tried = list(points)
        for repeat in range(REPEATS):
            point = asked_point(self.search, f"{number}.{repeat}" if repeat else str(number), tried, results)
            if point not in points:
                return point
            tried.append(point)
        fresh = self.search.random_points(min(self.search.trials, number + 1))
        return next(point for point in fresh if point not in points)


def asked_point(search: Search, name: str, points: Sequence[Settings], results: Sequence[Result | None]) -> Settings:
    """The point that Optuna proposes behind trials with these points, the first of which have these results.

    `name` seeds its random numbers, with the seed of the search.
    """
    optuna = _optuna()
    with warnings.catch_warnings():  # Optuna calls some of what it offers experimental, at every call
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(
            seed=trial_seed(search, name), n_startup_trials=1, multivariate=True, constant_liar=True
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        padded = [*results, *[None] * (len(points) - len(results))]
        study.add_trials([told(search, point, result) for point, result in zip(points, padded, strict=True)])
        return point_of(search, study.ask(distributions(search)).params)


def told(search: Search, point: Settings, result: Result | None) -> FrozenTrial:
    """A trial as Optuna is told of it: done, failed, left early at a mark, or without a result in training."""
    optuna = _optuna()
    states = optuna.trial.TrialState
    known: dict[str, Any] = {"state": states.RUNNING}
    if result is not None and result.raced_out_at is not None:
        best = max((score.selection for score in result.dev_history), default=0.0)
        known = {"state": states.PRUNED, "intermediate_values": {result.raced_out_at: best}}
    elif result is not None:
        value = dev_selection(result)
        is_failed = value == float("-inf")
        known = {"state": states.FAIL} if is_failed else {"state": states.COMPLETE, "value": value}
    made: FrozenTrial = optuna.trial.create_trial(
        params=inner_params(search, point), distributions=distributions(search), **known
    )
    return made


def distributions(search: Search) -> dict[str, BaseDistribution]:
    """The space in Optuna's words. A list of values is searched by place, since a value may be of any kind."""
    optuna = _optuna()
    made: dict[str, BaseDistribution] = {}
    for key, item in search.space.items():
        if not isinstance(item, Range):
            made[key] = optuna.distributions.CategoricalDistribution(range(len(item)))
        elif item.is_whole:
            made[key] = optuna.distributions.IntDistribution(int(item.low), int(item.high), log=item.log)
        else:
            made[key] = optuna.distributions.FloatDistribution(item.low, item.high, log=item.log)
    return made


def inner_params(search: Search, point: Settings) -> Settings:
    """A point in Optuna's words."""
    space = search.space.items()
    return {key: point[key] if isinstance(item, Range) else item.index(point[key]) for key, item in space}


def point_of(search: Search, params: Settings) -> Settings:
    """A point of Optuna's in ours, rounded."""
    space = search.space.items()
    return {key: item.rounded(params[key]) if isinstance(item, Range) else item[params[key]] for key, item in space}


def trial_seed(search: Search, name: str) -> int:
    """The seed of one trial's random numbers, below 2^32."""
    return int.from_bytes(hashlib.sha256(f"{search.seed} {name}".encode()).digest()[:4])


def require_optuna(where: str) -> None:
    """Raise UserError unless Optuna can be imported; it is not imported yet."""
    if importlib.util.find_spec("optuna") is None:
        hint = "pip install 'peft-harness[tuning]'; random needs no package."
        raise UserError("tpe needs the package optuna", where=where, field="tuning.strategy", hint=hint)


def _optuna() -> Any:
    require_optuna("")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
