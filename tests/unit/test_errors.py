"""Every error survives the way between two replicas and says what to do."""

import inspect
import pickle

import pytest

from app import errors
from app.errors import MindFuError

EXAMPLES: list[MindFuError] = [
    errors.InvalidRequest("no", "messages"),
    errors.UnsupportedOption("no", "n"),
    errors.UnknownPreviousResponse("resp_1"),
    errors.ContextTooLong(3000, 100, 2048),
    errors.Unauthorized(),
    errors.Forbidden("Origin", "http://evil.example"),
    errors.ModelNotFound("gpt-9", ("mindfu-demo",)),
    errors.NotFound("document", "doc_1"),
    errors.Conflict("A promotion is under way."),
    errors.NotPromoted("demo@v1", "it is no LoRA adapter."),
    errors.TooLarge("The request body", 9, 8, "bytes", "gateway.max_body_bytes"),
    errors.TooSlow(17, 60.0),
    errors.NothingToLearn("conversations", 1, 2, "Rate some."),
    errors.UnsupportedMedia("a.exe", "a Windows program", ("PDF",)),
    errors.UnreadableDocument("a.pdf", "it is encrypted"),
    errors.Overloaded(64, 64, 3.0),
    errors.Starting("language model", "waiting for a node for 41 s", 50.0, ""),
    errors.RateLimited("requests per minute", 60, 60, 12.0),
    errors.ScopeMissing("train", ("chat", "documents")),
    errors.EngineFailed("decode returned -1"),
    errors.Unavailable("document store", "connection refused"),
    errors.Misconfigured("llm.model", "no such file", "Give a path."),
]


def test_every_error_class_has_an_example_here():
    """A new error class cannot be added without the checks below."""
    classes = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, MindFuError)}
    assert classes - {type(example) for example in EXAMPLES} == {MindFuError}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: MindFuError):
    """Ray pickles errors; class, text, status and wait come out as they went in."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.status, copy.param, copy.retry_after_s) == (
        str(error),
        error.status,
        error.param,
        error.retry_after_s,
    )


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_has_a_message_for_people(error: MindFuError):
    """Nobody is shown an empty text or a tuple of arguments."""
    assert len(str(error)) > 1
    assert not str(error).startswith("(")


def test_context_overflow_names_both_numbers():
    """Clients look for this very wording."""
    assert "maximum context length is 2048 tokens" in str(errors.ContextTooLong(3000, 100, 2048))
    assert "3100 tokens" in str(errors.ContextTooLong(3000, 100, 2048))
