"""A found chunk is shown with what stands around it, and nothing is shown twice."""

from app.messages import Chunk, Passage
from app.neighbours import Place, around, widened

TEXT = "One two.\n\nThree four. Five six.\nSeven."
#       0         10          22        32
SPANS = [(0, 8), (10, 21), (16, 31), (32, 38)]  # the second and third overlap in "four."
CHUNKS = [
    Chunk(number=number, text=TEXT[start:end], start=start, end=end, page=1 + number // 2)
    for number, (start, end) in enumerate(SPANS)
]
KEPT = {Place("c", "d", chunk.number): chunk for chunk in CHUNKS}


def hit(number: int, score: float = 0.9, document: str = "d") -> Passage:
    chunk = CHUNKS[number]
    return Passage(
        document_id=document, collection="c", title="T", chunk=number, score=score, page=chunk.page,
        text=chunk.text, start=chunk.start, end=chunk.end,
    )  # fmt: skip


def test_a_passage_is_joined_with_its_neighbours():
    """Overlaps are shown once, and it says which piece of the document's text it is; the score stays."""
    (found,) = widened([hit(1)], KEPT, 1)
    assert found.text == "One two.\n\nThree four. Five six." == TEXT[found.start : found.end]
    assert (found.chunk, found.score, found.page) == (1, 0.9, 1)


def test_a_chunk_is_shown_with_the_better_of_two_passages():
    """The third is found too, but stands behind the second already; the fourth is free for nobody but itself."""
    assert [found.text for found in widened([hit(1), hit(2, 0.8)], KEPT, 1)] == [TEXT[:31]]
    assert [found.text for found in widened([hit(1), hit(3, 0.8)], KEPT, 1)] == [TEXT[:31], "Seven."]


def test_documents_do_not_mix():
    """The same number in another document is another chunk."""
    assert [found.text for found in widened([hit(1), hit(1, 0.8, "other")], KEPT, 1)] == [TEXT[:31], "Three four."]


def test_no_run_leaps_over_a_missing_chunk():
    """Where a neighbour is gone, the passage ends; where the chunk itself is, it stays as it was found."""
    without = {place: chunk for place, chunk in KEPT.items() if place.chunk != 1}
    assert [found.text for found in widened([hit(3)], without, 3)] == [TEXT[16:]]
    assert widened([hit(1)], without, 1) == (hit(1),)


def test_each_place_is_asked_for_once():
    """And none before the first chunk."""
    places = around([hit(0), hit(1)], 1)
    assert [place.chunk for place in places] == [0, 1, 2]
    assert around([hit(2)], 0) == (Place("c", "d", 2),)
