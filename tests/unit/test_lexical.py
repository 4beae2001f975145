"""Words as sparse vectors: stems, stop words, identifiers, and what repeats."""

import pytest

from app.lexical import chunk_words, coverage, near_duplicates, query_words


def shared(query: str, text: str) -> int:
    return len(set(query_words(query, "english").indices) & set(chunk_words(text, "english").indices))


def test_words_are_compared_by_their_stems():
    """Case, endings and stop words make no difference; other words do."""
    assert shared("Retrying the requests", "a request is retried") == 2
    assert shared("the of and", "the of and") == 0
    assert shared("retry", "invoice") == 0


@pytest.mark.parametrize("query", ["retryCount", "retry_count", "RetryCount", "retry count", "self.retry_count"])
@pytest.mark.parametrize("name", ["retryCount", "retry_count", "RetryCount", "retry count"])
def test_identifiers_find_each_other_however_they_are_written(query: str, name: str):
    """camelCase, snake_case and words apart have their parts in common."""
    assert shared(query, f"set {name} to 3") >= 2


def test_acronyms_and_paths_are_cut_into_their_parts():
    """HTTPServer holds a server, app/llama/engine.py an engine."""
    assert shared("server", "class HTTPServerError") == 1
    assert shared("llama engine", "see app/llama/engine.py") == 2


def test_a_rare_word_said_often_weighs_more_but_not_without_end():
    """Term frequency saturates in a chunk, and counts as it is in a query."""
    once, often = (chunk_words(text, "english").values[0] for text in ("spool", "spool " * 50))
    assert once < often < 2.2
    assert query_words("spool spool spool", "english").values == pytest.approx((3,), rel=1e-4)


def test_stems_follow_the_language():
    """German endings fall in German, and stay in English."""
    for language, expected in (("german", 1.0), ("english", 0.0)):
        assert coverage(query_words("Häuser", language), "Hauses", language) == expected


def test_coverage_is_the_share_of_different_words_found():
    """Stop words are not asked for; an empty query covers nothing."""
    asked = query_words("Where do visitors park?", "english")
    assert coverage(asked, "Visitors leave their car behind the house.", "english") == 0.5
    assert coverage(query_words("?", "english"), "anything", "english") == 0.0


def test_texts_that_repeat_an_earlier_one_are_named():
    """A copy with another ending is a repetition, whatever its case; two empty texts are none."""
    texts = ["The pump runs at night.", "the pump runs, at night", "The pump stops at noon.", "", ""]
    assert near_duplicates(texts, "english", similarity=0.9) == {1}
