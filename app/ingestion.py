"""Bring a collection up to date with places: what is new or changed comes in, what is gone goes.

Nothing is remembered here. A document's metadata say where it came from (`source`) and which version it was
(`source_version`), so the documents themselves are the state: a run that was killed is resumed by running it again, and
what it did is not done twice. deployments/bulk.py and deployments/uploading.py are the two libraries.
"""

import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from app.errors import MindFuError, UnsupportedMedia
from app.messages import Added, Document, Metadata
from app.sources import Found, Skipped, Source, Unfound, find, roots

State = Literal["added", "unchanged", "duplicate", "deleted", "skipped", "failed"]

SOURCE, VERSION = "source", "source_version"  # in a document's metadata


class Outcome(NamedTuple):
    """What became of one source. why: of a failure or an omission; document: the one that holds the content now."""

    uri: str
    state: State
    why: str = ""
    document: str | None = None
    chunks: int = 0
    size: int = 0


class Held(NamedTuple):
    """A document that is there."""

    id: str
    sha256: str
    size: int
    source: str | None
    version: str | None


class Library(Protocol):
    """Where documents go: one collection of one tenant. Every method may raise MindFuError."""

    def held(self) -> Iterator[Held]:
        """All documents of the collection."""

    def send(self, sources: Sequence[Source], known: Mapping[str, str]) -> Iterator[Outcome]:
        """Read and take in, in any order; an outcome for each. known: ids of what is there already, by SHA-256."""

    def delete(self, document: str) -> None:
        """Forget a document. One that is gone is forgotten."""


@dataclass
class Report:
    """What a run did. outcomes: but for those unchanged, which are only counted."""

    counts: Counter[State] = field(default_factory=Counter)
    outcomes: list[Outcome] = field(default_factory=list)
    chunks: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def note(self, outcome: Outcome) -> None:
        """Count it."""
        self.counts[outcome.state] += 1
        if outcome.state != "unchanged":
            self.outcomes.append(outcome)
        if outcome.state == "added":
            self.chunks += outcome.chunks
            self.bytes += outcome.size

    def of(self, state: State) -> list[Outcome]:
        """The outcomes of one kind."""
        return [outcome for outcome in self.outcomes if outcome.state == state]


class Watcher(Protocol):
    """Who follows a run."""

    def planned(self, documents: int) -> None:
        """So many will be read."""

    def saw(self, outcome: Outcome) -> None:
        """One more is done."""


class Ingestion:
    """Runs over the same places, one after the other. keep: nothing is deleted."""

    def __init__(self, places: Sequence[str], library: Library, *, keep: bool = False) -> None:
        self._places, self._library, self._keep = places, library, keep
        self._held: dict[str, Held] = {held.id: held for held in library.held()}
        self._failed: dict[Source, Outcome] = {}  # by the version that failed: not to be tried again and again

    def run(self, watcher: Watcher) -> Report:
        """Bring the collection up to date. Failures are outcomes, and do not end it."""
        began, report = time.monotonic(), Report()

        def note(outcome: Outcome) -> None:
            report.note(outcome)
            watcher.saw(outcome)

        below = roots(self._places)
        found = list(find(self._places))
        for outcome in _not_sources(found):
            note(outcome)
        sources = {source.uri: source for source in found if isinstance(source, Source)}
        by_source = {held.source: held for held in self._held.values() if held.source}
        current = {uri: by_source[uri].id for uri, source in sources.items() if _unchanged(source, by_source.get(uri))}
        for uri, document in current.items():
            note(Outcome(uri, "unchanged", document=document))
        due = [source for uri, source in sources.items() if uri not in current and source not in self._failed]
        watcher.planned(len(due))
        self._failed = {source: self._failed[source] for source in sources.values() if source in self._failed}
        known = {held.sha256: held.id for held in self._held.values()}
        for outcome in self._library.send(due, known) if due else ():
            if outcome.document:
                current[outcome.uri] = outcome.document
            elif outcome.state == "skipped":
                del sources[outcome.uri]
            if outcome.state == "failed" and sources[outcome.uri].version is not None:
                self._failed[sources[outcome.uri]] = outcome
            note(outcome)
        if not self._keep:
            unseen = tuple(one.uri for one in found if isinstance(one, Unfound))
            # A folder in which nothing is found at all may be one that is not mounted.
            folders = tuple(folder for folder in below if any(one.uri.startswith(folder) for one in found))
            for outcome in self._delete(
                current, lambda uri: uri.startswith(folders) and not uri.startswith(unseen), sources
            ):
                note(outcome)
        report.seconds = time.monotonic() - began
        return report

    def learn(self) -> None:
        """See what the collection holds now, before another run."""
        self._held = {held.id: held for held in self._library.held()}

    def _delete(
        self, current: Mapping[str, str], watched: Callable[[str], bool], here: Container[str]
    ) -> Iterator[Outcome]:
        """Let go what no source holds any more: it is gone from where we looked, or has another content by now.

        current: documents by the source that holds them now.
        """
        wanted = set(current.values())
        for held in list(self._held.values()):
            if held.source is None or held.id in wanted:
                continue
            gone = held.source not in here and watched(held.source)
            if gone or held.source in current:
                try:
                    self._library.delete(held.id)
                except MindFuError as error:
                    yield Outcome(held.source, "failed", f"its old document {held.id} could not be deleted: {error}")
                    continue
                del self._held[held.id]
                if gone:
                    yield Outcome(held.source, "deleted", document=held.id)


def held_of(document: Document) -> Held:
    """What a run needs to know of a document."""
    source, version = (document.metadata.get(name) for name in (SOURCE, VERSION))
    return Held(
        document.id,
        document.sha256,
        document.size,
        source if isinstance(source, str) else None,
        version if isinstance(version, str) else None,
    )


def metadata_of(source: Source, metadata: Metadata) -> Metadata:
    """A document's metadata: where it came from, and what the user says of all."""
    return {**metadata, SOURCE: source.uri} | ({VERSION: source.version} if source.version else {})


def taken(source: Source, added: Added) -> Outcome:
    """The outcome of a source that the library has."""
    document = added.document
    state: State = "duplicate" if added.duplicate else "added"
    return Outcome(source.uri, state, document=document.id, chunks=document.chunks, size=document.size)


def refused(source: Source, error: MindFuError, status: int | None = None) -> Outcome:
    """The outcome of one that it has not. What was only found, and is no kind that is read here, is skipped.

    status: of the error, where its class does not tell.
    """
    omitted = not source.named and (status or error.status) == UnsupportedMedia.status
    return Outcome(source.uri, "skipped" if omitted else "failed", str(error))


def _unchanged(source: Source, held: Held | None) -> bool:
    if held is None or source.version is None:
        return False
    return (held.version, held.size) == (source.version, source.size)


def _not_sources(found: Iterable[Found]) -> Iterator[Outcome]:
    for one in found:
        if isinstance(one, Skipped):
            yield Outcome(one.uri, "skipped", one.why)
        elif isinstance(one, Unfound):
            yield Outcome(one.uri, "failed", str(one.error))
