"""POST /v1/feedback: the request, in words of our own. Pure.

{"request_id": "chatcmpl-…", "rating": "up", "comment": "…", "correction": "As it should have been."}
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.dialects.openai_messages import ChatMessage, Exact, internal
from app.errors import InvalidRequest
from app.feedback import Opinion
from app.messages import Message

WORDS = {"up": 1.0, "good": 1.0, "down": -1.0, "bad": -1.0}
MOST_CHARS = 100_000


class FeedbackRequest(Exact):
    """rating: a word, or a number from -1 to 1. stars: the same from 1 to 5. user: who says so, by default nobody.

    What is absent stays as the same user said it before; what is null is withdrawn.
    """

    turn_id: str | None = None
    request_id: str | None = Field(None, min_length=1, max_length=1000)
    rating: Literal["up", "down", "good", "bad"] | Annotated[float, Field(ge=-1, le=1)] | None = None
    stars: Annotated[int, Field(ge=1, le=5)] | None = None
    comment: str | None = Field(None, max_length=MOST_CHARS)
    correction: str | ChatMessage | None = None
    user: str | None = Field(None, max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _stars_are_no_rating(cls, given: object) -> object:
        """1 would be both the best and the worst, so each scale has a name."""
        rating = given.get("rating") if isinstance(given, dict) else None
        if isinstance(rating, int | float) and rating > 1:
            raise InvalidRequest(
                f"'rating' goes from -1 to 1, this is {rating}. Stars, 1 to 5, go into 'stars'.", "rating"
            )
        return given

    def opinion(self) -> Opinion:
        """What it says. Raises InvalidRequest where it says nothing, or not of one turn."""
        if (self.turn_id is None) == (self.request_id is None):
            raise InvalidRequest("Name the turn by one of 'turn_id' and 'request_id'.", "turn_id")
        if self.rating is not None and self.stars is not None:
            raise InvalidRequest("'rating' and 'stars' are the same on two scales. Send one of them.", "stars")
        opinion = Opinion()
        if {"rating", "stars"} & self.model_fields_set:
            opinion["rating"] = self._rating()
        if "comment" in self.model_fields_set:
            opinion["comment"] = self.comment
        if "correction" in self.model_fields_set:
            opinion["correction"] = self._correction()
        if not opinion:
            raise InvalidRequest("It says nothing. Send 'rating', 'stars', 'comment' or 'correction'.", "rating")
        return opinion

    def _rating(self) -> float | None:
        if self.stars is not None:
            return (self.stars - 3) / 2
        return WORDS[self.rating] if isinstance(self.rating, str) else self.rating

    def _correction(self) -> Message | None:
        if self.correction is None:
            return None
        if isinstance(self.correction, str):
            message = Message(role="assistant", content=self.correction)
        elif self.correction.role != "assistant":
            raise InvalidRequest("A correction is a message of the role 'assistant'.", "correction.role")
        else:
            message = _parsed(self.correction)
        if not message.content.strip() and not message.tool_calls:
            raise InvalidRequest("A correction has text or tool calls; this one is empty.", "correction")
        return message


def _parsed(message: ChatMessage) -> Message:
    try:
        return internal([message])[0]
    except InvalidRequest as exc:
        param = (exc.param or "").replace("messages[0]", "correction")
        raise type(exc)(str(exc).replace("messages[0]", "correction"), param) from exc
