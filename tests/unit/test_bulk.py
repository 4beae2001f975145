"""Documents on their way through the stages of bulk ingestion."""

from pathlib import Path

from app.ingestion import Outcome
from app.messages import Chunk
from app.reading import ReadText
from app.sources import Content, Source
from deployments.bulk import BULK_BYTES, BULK_DOCUMENTS, worth_the_start
from deployments.joining import address_of, noted
from deployments.stages import PARCEL_BYTES, PARCEL_CHUNKS, Read, parcels


def document(chunks: int, size: int = 10) -> Read:
    """A text that was read."""
    cut = tuple(Chunk(number=number, text="x", start=0, end=1) for number in range(chunks))
    text = ReadText(text="", title="t", kind="text", media_type="text/plain", page_starts=(), chunks=cut)
    return Read(Source("file:///x"), Content(b"x" * size, "x", None), text)


def test_parcels_are_large_enough_to_sort_and_small_enough_to_carry():
    """A pass sorts by length within one; many small documents share one, a large one has its own."""
    small, large = document(PARCEL_CHUNKS // 4), document(3 * PARCEL_CHUNKS)
    failure = Outcome("file:///y", "failed", "broken")
    done = [small, failure, small, small, small, large, small]
    assert [len(parcel) for parcel in parcels(done)] == [5, 1, 1]
    assert [one for parcel in parcels(done) for one in parcel] == done
    assert [len(parcel) for parcel in parcels([document(1, PARCEL_BYTES // 2)] * 4)] == [2, 2]
    assert list(parcels([])) == []


def test_the_stages_are_started_for_much_text_in_several_documents():
    """One process is sooner done with little text, and is all that one document can have."""
    small, large, page = Source("file:///s", 100), Source("file:///l", BULK_BYTES), Source("https://example.org/")
    assert not worth_the_start([small] * 1000)
    assert not worth_the_start([large])
    assert worth_the_start([large, *[small] * BULK_DOCUMENTS])
    assert not worth_the_start([page] * BULK_DOCUMENTS)
    assert worth_the_start([page] * 50)


def test_a_home_says_where_its_ray_is_while_it_runs(tmp_path: Path):
    """Nobody is sent to one that has ended, even where a killed server left its note."""
    with noted(tmp_path, "127.0.0.1:1"):
        assert (tmp_path / "ray_address").read_text() == "127.0.0.1:1"
        assert address_of(tmp_path) is None  # nobody listens there
    assert list(tmp_path.iterdir()) == []
    assert address_of(tmp_path) is None
