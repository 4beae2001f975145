"""Show a found chunk with the chunks around it, so that a sentence is not read without the one before it. Pure."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from app.messages import Chunk, Passage


class Place(NamedTuple):
    """Which chunk of which document."""

    collection: str
    document_id: str
    chunk: int


def around(passages: Sequence[Passage], neighbours: int) -> tuple[Place, ...]:
    """The places of so many chunks before and behind each passage, and of its own; some may not exist."""
    places = {
        Place(passage.collection, passage.document_id, number): None
        for passage in passages
        for number in range(max(0, passage.chunk - neighbours), passage.chunk + neighbours + 1)
    }
    return tuple(places)


def widened(passages: Sequence[Passage], kept: Mapping[Place, Chunk], neighbours: int) -> tuple[Passage, ...]:
    """The passages with their neighbours' text. passages: best first, and no chunk is shown twice: a better passage
    has it, and one whose own chunk is shown already is left out.

    A passage keeps its score and the number of the chunk that was found; text, start, end, page and heading become
    those of the whole.
    """
    shown: set[Place] = set()
    found = []
    for passage in passages:
        place = Place(passage.collection, passage.document_id, passage.chunk)
        if place in shown:
            continue
        run = [place] if place in kept else []
        for step in (-1, 1):
            for distance in range(1, neighbours + 1):
                near = place._replace(chunk=place.chunk + step * distance)
                if not run or near not in kept or near in shown:
                    break
                run.append(near)
        shown |= {place, *run}
        found.append(_joined(passage, [kept[near] for near in sorted(run)]) if run else passage)
    return tuple(found)


def _joined(passage: Passage, chunks: Sequence[Chunk]) -> Passage:
    """chunks: in order, without a gap in their numbers."""
    text = chunks[0].text
    for before, behind in pairwise(chunks):
        overlap = before.end - behind.start
        text += behind.text[overlap:] if overlap >= 0 else "\n" * min(-overlap, 2) + behind.text
    return passage.model_copy(
        update={"text": text, "start": chunks[0].start, "end": chunks[-1].end, "page": chunks[0].page}
    )
