"""Takes back what does worse than what it replaced: the error rate or the ratings fall, for certain.

An adapter on trial as a canary is held against the champion, which answers the other conversations of the same time; a
new champion, for some hours, against the answers of the one before it. What was taken back is blocked from then on, so
that only --force brings it again, and the history has the numbers. Every gateway looks; who comes second changes
nothing. While PostgreSQL is away nothing is taken back.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import sqrt
from typing import NamedTuple

from app.desired import BARE, Desired, Serving
from app.errors import Conflict, NotPromoted
from app.promotion import Promoted, rollback
from app.registry import Member, Registry
from app.settings import WatchSettings
from app.trials import Standing, Trials

Z = 3.0  # standard errors: looked at every few seconds, chance must not get its way in the end

log = logging.getLogger(__name__)


class Case(NamedTuple):
    """What is watched: a version that answers `since`, against another one that answered in (begin, end)."""

    model: str
    version: str
    since: datetime
    control: str | None
    begin: datetime
    end: datetime


class Watch:
    """Looks at what is on trial, and at new champions."""

    def __init__(self, registry: Registry, trials: Trials, settings: WatchSettings) -> None:
        self._registry, self._trials, self._settings = registry, trials, settings

    async def look(self, desired: Desired) -> tuple[Promoted, ...]:
        """Take back what does worse. Returns what was done. Raises Unavailable."""
        members: Sequence[Member] | None = None
        done = []
        for serving in desired.servings:
            case = await self.case(serving)
            if case is None:
                continue
            members = await self._registry.members() if members is None else members
            reason = _broken(case, members) or worse(*await self.standings(case), self._settings)
            if reason and (taken := await self._take_back(case, reason)):
                done.append(taken)
        return tuple(done)

    async def case(self, serving: Serving) -> Case | None:
        """What is watched of a model. None: nothing was changed lately."""
        now, model, trial = datetime.now(UTC), serving.model, serving.trial
        if trial is not None:
            if trial.kind == "shadow":
                return None
            return Case(model, trial.version, trial.since, serving.champion, trial.since, now)
        hours = timedelta(hours=self._settings.hours)
        last = next(iter(await self._registry.changes(model, 1)), None)
        if last is None or last.kind != "promote" or last.version is None or last.at < now - hours:
            return None
        if last.version != serving.champion or last.before == last.version:
            return None
        return Case(model, last.version, last.at, last.before, last.at - hours, last.at)

    async def standings(self, case: Case) -> tuple[Standing, Standing]:
        """How what is watched does, and how the other one did."""
        ours = await self._trials.standing(case.model, case.version, case.since, datetime.now(UTC))
        return ours, await self._trials.standing(case.model, case.control, case.begin, case.end)

    async def _take_back(self, case: Case, reason: str) -> Promoted | None:
        told = f"taken back automatically: {reason}"
        await self._registry.judge(case.model, case.version, "blocked", [told])
        try:
            done = await rollback(self._registry, case.model, reason=told, only=case.version)
        except (Conflict, NotPromoted) as error:  # somebody else was faster
            log.info("%s@%s was not taken back here: %s", case.model, case.version, error)
            return None
        log.error("%s@%s was %s. %s answers now.", case.model, case.version, told, done.champion or BARE)
        return done


def worse(ours: Standing, theirs: Standing, settings: WatchSettings) -> str:
    """In what an adapter does worse for certain than another one; empty: in nothing.

    Where the other one has answered too little to be compared with, it is taken to have brought every answer to its
    end; and no ratings of it are none.
    """
    if ours.turns >= settings.min_turns:
        known = theirs if theirs.turns >= settings.min_turns else Standing(turns=settings.min_turns)
        rise = lowest_rise((ours.unfinished, ours.turns), (known.unfinished, known.turns))
        if rise > settings.max_error_rise:
            return (
                f"{ours.unfinished} of {ours.turns} answers failed or did not end, before {theirs.unfinished} of "
                f"{theirs.turns}: a rise by {rise:.3f} at least, {settings.max_error_rise:g} is allowed."
            )
    if min(ours.judged, theirs.judged) >= settings.min_ratings:
        rise = lowest_rise((ours.disliked, ours.judged), (theirs.disliked, theirs.judged))
        if rise > settings.max_dislike_rise:
            return (
                f"people disliked {ours.disliked} of {ours.judged} answers, before {theirs.disliked} of "
                f"{theirs.judged}: a rise by {rise:.3f} at least, {settings.max_dislike_rise:g} is allowed."
            )
    return ""


def lowest_rise(ours: tuple[int, int], theirs: tuple[int, int]) -> float:
    """The least by which the first share (count, size) is above the second, at Z standard errors.

    Newcombe's interval of a difference, of Wilson's of each (Newcombe 1998, Statistics in Medicine 17:873, method 10).
    """
    first, second = ours[0] / ours[1], theirs[0] / theirs[1]
    low, _ = _wilson(*ours)
    _, high = _wilson(*theirs)
    return first - second - sqrt((first - low) ** 2 + (high - second) ** 2)


def _wilson(count: int, size: int) -> tuple[float, float]:
    share, square = count / size, Z * Z
    middle = (share + square / (2 * size)) / (1 + square / size)
    reach = Z / (1 + square / size) * sqrt(share * (1 - share) / size + square / (4 * size * size))
    return middle - reach, middle + reach


def _broken(case: Case, members: Sequence[Member]) -> str:
    """Why an engine does not have what is watched, where it has what was there before."""
    for member in members:
        failed = member.models[case.model].failed if case.model in member.models else {}
        if case.version in failed and case.control not in failed:
            return f"an engine cannot load it: {failed[case.version]}"
    return ""
