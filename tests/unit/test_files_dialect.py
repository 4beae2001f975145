"""OpenAI's files and vector stores, parsed and told: pure functions."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from app.dialects.openai_files import ChunkingStrategy, NewBatch, life_of, listed, purpose_of
from app.dialects.openai_filters import Filter, check, matches
from app.errors import InvalidRequest, NotFound, UnsupportedOption
from app.messages import Chunk
from app.shelves import Chunking
from deployments.routes.vector_stores import apart

FILTER: TypeAdapter[Any] = TypeAdapter(Filter)
TRUE: dict[str, Any] = {"year": 2026, "kind": "report", "final": True, "pages": 1.5}


def compared(type_: str, key: str, value: Any) -> dict[str, Any]:
    return {"type": type_, "key": key, "value": value}


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        (compared("eq", "year", 2026), True),
        (compared("eq", "year", "2026"), False),
        (compared("eq", "final", 1), False),  # true is not 1
        (compared("eq", "final", True), True),
        (compared("ne", "year", 2025), True),
        (compared("ne", "absent", 1), True),
        (compared("eq", "absent", 1), False),
        (compared("gt", "pages", 1), True),
        (compared("gte", "year", 2026), True),
        (compared("lt", "year", 2026), False),
        (compared("lte", "kind", "report"), True),
        (compared("gt", "kind", "book"), True),
        (compared("gt", "kind", 1), False),
        (compared("gt", "absent", 1), False),
        (compared("lt", "final", 2), False),
        (compared("in", "year", [2025, 2026]), True),
        (compared("nin", "year", [2025, 2026]), False),
        (compared("nin", "absent", ["a"]), True),
        ({"type": "and", "filters": [compared("eq", "year", 2026), compared("eq", "kind", "x")]}, False),
        ({"type": "or", "filters": [compared("eq", "year", 2026), compared("eq", "kind", "x")]}, True),
        ({"type": "and", "filters": []}, True),
        ({"type": "or", "filters": []}, False),
    ],
)
def test_filters_compare_as_json_does(given: dict[str, Any], passes: bool):
    """Numbers with numbers, text with text; what is not there equals nothing."""
    wanted = FILTER.validate_python(given)
    check(wanted)
    assert matches(wanted, TRUE) is passes


def test_filters_that_make_no_sense_are_refused():
    """One value where a list belongs, a list where one value does, and nesting without end."""
    deep: dict[str, Any] = compared("eq", "a", 1)
    for _ in range(20):
        deep = {"type": "and", "filters": [deep]}
    for given in (compared("in", "a", 1), compared("gt", "a", [1]), deep):
        with pytest.raises(InvalidRequest, match=r"filter"):
            check(FILTER.validate_python(given))


def test_a_chunking_strategy_is_a_size_in_tokens_or_nothing():
    """Auto is the settings'."""
    static = {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}
    assert ChunkingStrategy(type="auto").cut() is None
    assert ChunkingStrategy.model_validate({"type": "static", "static": static}).cut() == Chunking(
        tokens=100, overlap=50
    )
    for wrong in (
        {"type": "static"},
        {"type": "auto", "static": static},
        {"type": "static", "static": static | {"chunk_overlap_tokens": 51}},
        {"type": "static", "static": static | {"max_chunk_size_tokens": 99}},
    ):
        with pytest.raises(ValueError, match="static"):
            ChunkingStrategy.model_validate(wrong)


def test_a_batch_says_its_files_in_one_of_two_ways():
    """Ids with what holds for all, or files with their own."""
    common = NewBatch(file_ids=["a", "b"], attributes={"x": 1}).puts()
    assert [(put.upload_id, put.attributes) for put in common] == [("a", {"x": 1}), ("b", {"x": 1})]
    own = NewBatch.model_validate({"files": [{"file_id": "a", "attributes": {"y": "z"}}, {"file_id": "b"}]}).puts()
    assert [(put.upload_id, put.attributes) for put in own] == [("a", {"y": "z"}), ("b", {})]
    for wrong in (
        {},
        {"file_ids": ["a"], "files": [{"file_id": "a"}]},
        {"files": [{"file_id": "a"}], "attributes": {}},
    ):
        with pytest.raises(InvalidRequest):
            NewBatch.model_validate(wrong).puts()


def test_purposes_that_nothing_here_serves_are_refused_by_name():
    """OpenAI's own as not supported, others as wrong."""
    assert purpose_of("fine-tune") == "fine-tune"
    with pytest.raises(UnsupportedOption, match="vision"):
        purpose_of("vision")
    with pytest.raises(InvalidRequest, match="nonsense"):
        purpose_of("nonsense")


@pytest.mark.parametrize(("anchor", "seconds", "life"), [(None, None, None), ("created_at", "3600", 3600)])
def test_a_file_lives_for_ever_or_for_seconds(anchor, seconds, life):
    """Within OpenAI's bounds."""
    assert life_of(anchor, seconds) == life


@pytest.mark.parametrize(
    ("anchor", "seconds"), [("created_at", None), (None, "3600"), ("created_at", "3599"), ("created_at", "٣٦٠٠")]
)
def test_other_lives_are_refused(anchor, seconds):
    """By the field of the form that is wrong."""
    with pytest.raises(InvalidRequest, match="expires_after"):
        life_of(anchor, seconds)


@pytest.mark.parametrize(
    ("order", "after", "before", "page", "more"),
    [
        ("asc", None, None, "ab", True),
        ("desc", None, None, "ed", True),
        ("asc", "c", None, "de", False),
        ("desc", "c", None, "ba", False),
        ("asc", None, "d", "bc", True),
        ("asc", None, "c", "ab", False),
        ("asc", "a", "d", "bc", True),
    ],
)
def test_a_page_begins_behind_one_cursor_and_ends_before_the_other(order, after, before, page, more):
    """Two of the five at a time."""
    told = listed([{"id": id_} for id_ in "abcde"], limit=2, order=order, after=after, before=before)
    assert ("".join(one["id"] for one in told["data"]), told["has_more"]) == (page, more)
    assert (told["first_id"], told["last_id"]) == (page[0], page[-1])


def test_a_cursor_that_is_gone_is_not_found():
    """Rather than taken for the beginning."""
    with pytest.raises(NotFound):
        listed([], limit=1, order="asc", after="a", before=None)


def test_the_text_of_a_file_repeats_no_overlap():
    """Chunks overlap so that nothing is torn; a reader wants each word once."""
    chunks = (Chunk(number=1, text="cd ef", start=3, end=8), Chunk(number=0, text="ab cd", start=0, end=5))
    assert apart(chunks) == ["ab cd", " ef"]
