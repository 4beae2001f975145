"""Every error that MindFu raises on purpose.

    MindFuError
    ├── InvalidRequest          400  the caller's fault, with the parameter at fault
    │   ├── UnsupportedOption   400  an option that we do not honour, refused rather than ignored
    │   └── UnknownPreviousResponse  400  the response to go on from is not there
    ├── ContextTooLong          400  prompt and answer do not fit the model's window
    ├── Unauthorized            401
    ├── Forbidden               403  a keyless server was called from elsewhere
    ├── ScopeMissing            403  the key is not for this
    ├── ModelNotFound           404
    ├── NotFound                404
    ├── TooSlow                 408  the body did not come in time
    ├── Conflict                409  it does not go with what is there
    │   └── NotPromoted         409  an adapter does not get to answer, and why
    ├── NothingToLearn          409  too little data, or all of one kind
    ├── TooLarge                413
    ├── UnsupportedMedia        415
    ├── UnreadableDocument      422  broken, empty, encrypted, or over a reading limit
    ├── Overloaded              429  the queue is full; comes with a time to wait
    ├── RateLimited             429  the key has done what it may; likewise
    ├── EngineFailed            500  the engine broke while answering: our fault
    ├── Unavailable             503  a part that we need is away; comes with a time to wait
    │   └── Starting            503  it has no replica yet; comes with how far it is
    └── Misconfigured           500  start-up refuses, naming the setting and the remedy

The status number is the only HTTP fact outside the gateway. `__init__` arguments are always the same positional
values as `.args`, because Ray pickles errors between replicas.
"""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from app.limits import Standing


STARTING_RETRY_S = 10.0  # what is asked for again is held again, so that soon is soon enough


class MindFuError(Exception):
    """An error with a message for the person who called."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    param: str | None = None
    retry_after_s: float | None = None
    progress: dict[str, str | float] | None = None  # of what is waited for; stands beside `error` in the body


class InvalidRequest(MindFuError):
    """The request cannot be honoured as it stands."""

    status, code = 400, "invalid_value"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message, self.param = message, param

    def __str__(self) -> str:
        return self.message


class UnsupportedOption(InvalidRequest):
    """An option that would change the answer and that MindFu does not honour."""

    code = "unsupported_parameter"


class UnknownPreviousResponse(InvalidRequest):
    """The response that a request goes on from does not exist, is not stored, or belongs to someone else."""

    code = "previous_response_not_found"

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Previous response with id '{response_id}' not found.", "previous_response_id")
        self.args = (response_id,)


class ContextTooLong(MindFuError):
    """Prompt and answer do not fit the model's window."""

    status, code, param = 400, "context_length_exceeded", "messages"

    def __init__(self, prompt_tokens: int, answer_tokens: int, window: int) -> None:
        super().__init__(prompt_tokens, answer_tokens, window)
        self.prompt_tokens, self.answer_tokens, self.window = prompt_tokens, answer_tokens, window

    def __str__(self) -> str:
        total = self.prompt_tokens + self.answer_tokens
        return (
            f"This model's maximum context length is {self.window} tokens. However, you requested {total} tokens "
            f"({self.prompt_tokens} in the prompt, {self.answer_tokens} for the answer). "
            "Shorten the messages or lower max_tokens."
        )


class Unauthorized(MindFuError):
    """No valid API key came with the request."""

    status, code = 401, "invalid_api_key"

    def __str__(self) -> str:
        return "Missing or unknown API key. Send it as 'Authorization: Bearer <key>'."


class Forbidden(MindFuError):
    """A server without a key was called by something other than a local client."""

    status, code = 403, "forbidden"

    def __init__(self, header: str, value: str) -> None:
        super().__init__(header, value)
        self.header, self.value = header, value

    def __str__(self) -> str:
        return (
            f"This server has no API key, so it answers local clients only, and '{self.header}: {self.value}' is not "
            "one of them. Set MINDFU_API_KEY and send it as a bearer token."
        )


class ModelNotFound(MindFuError):
    """No served model has this name."""

    status, code, param = 404, "model_not_found", "model"

    def __init__(self, model: str, known: tuple[str, ...]) -> None:
        super().__init__(model, known)
        self.model, self.known = model, known

    def __str__(self) -> str:
        return f"The model '{self.model}' is not served here. Served: {', '.join(self.known)}."


class NotFound(MindFuError):
    """The named thing does not exist, or belongs to someone else."""

    status, code = 404, "not_found"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"No {self.kind} '{self.name}'."


class Conflict(MindFuError):
    """The request does not go with what is there. message: with the remedy."""

    status, code = 409, "conflict"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class NotPromoted(Conflict):
    """An adapter does not get to answer; what answered before goes on."""

    code = "not_promoted"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is not promoted: {reason}")
        self.args = (name, reason)


class NothingToLearn(MindFuError):
    """There is too little to train or to judge a model with. remedy: a sentence."""

    status, code = 409, "nothing_to_learn"

    def __init__(self, what: str, found: int, needed: int, remedy: str) -> None:
        super().__init__(what, found, needed, remedy)
        self.what, self.found, self.needed, self.remedy = what, found, needed, remedy

    def __str__(self) -> str:
        return f"Found {self.found} {self.what}, needed {self.needed}. {self.remedy}"


class TooLarge(MindFuError):
    """Over a size limit, both numbers named."""

    status, code = 413, "too_large"

    def __init__(self, what: str, size: int, limit: int, unit: str, setting: str) -> None:
        super().__init__(what, size, limit, unit, setting)
        self.what, self.size, self.limit, self.unit, self.setting = what, size, limit, unit, setting

    def __str__(self) -> str:
        return (
            f"{self.what} has {self.size} {self.unit}, the limit is {self.limit}. "
            f"Send less, or raise '{self.setting}' in serve_config.yaml."
        )


class TooSlow(MindFuError):
    """The body did not come in time."""

    status, code = 408, "request_timeout"

    def __init__(self, size: int, limit_s: float) -> None:
        super().__init__(size, limit_s)
        self.size, self.limit_s = size, limit_s

    def __str__(self) -> str:
        return f"The request body did not arrive within {self.limit_s:g} s, {self.size} bytes of it did. Send it again."


class UnsupportedMedia(MindFuError):
    """A kind of file that we do not read."""

    status, code, param = 415, "unsupported_media_type", "file"

    def __init__(self, name: str, kind: str, supported: tuple[str, ...]) -> None:
        super().__init__(name, kind, supported)
        self.name, self.kind, self.supported = name, kind, supported

    def __str__(self) -> str:
        return f"'{self.name}' is {self.kind}, which is not read here. Supported: {', '.join(self.supported)}."


class UnreadableDocument(MindFuError):
    """A file of a supported kind that could not be read within the limits."""

    status, code, param = 422, "unreadable_document", "file"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"'{self.name}' could not be read: {self.reason}."


class Overloaded(MindFuError):
    """The queue is full."""

    status, code = 429, "rate_limit_exceeded"

    def __init__(self, waiting: int, limit: int, retry_after_s: float) -> None:
        super().__init__(waiting, limit, retry_after_s)
        self.waiting, self.limit, self.retry_after_s = waiting, limit, retry_after_s

    def __str__(self) -> str:
        return f"{self.waiting} requests wait already, the limit is {self.limit}. Retry in {self.retry_after_s:.0f} s."


class RateLimited(MindFuError):
    """A key has done what it may do. standing: what it did, by the limiter."""

    status, code = 429, "rate_limit_exceeded"
    standing: "Standing | None" = None

    def __init__(self, what: str, limit: int, used: int, retry_after_s: float) -> None:
        super().__init__(what, limit, used, retry_after_s)
        self.what, self.limit, self.used, self.retry_after_s = what, limit, used, retry_after_s

    def __str__(self) -> str:
        return f"This key may make {self.limit} {self.what} and made {self.used}. Retry in {self.retry_after_s:.0f} s."


class ScopeMissing(MindFuError):
    """A key is not for this. has: the scopes of the key; empty: none came."""

    status, code = 403, "insufficient_scope"

    def __init__(self, scope: str, has: tuple[str, ...]) -> None:
        super().__init__(scope, has)
        self.scope, self.has = scope, has

    def __str__(self) -> str:
        needed = f"This needs a key with the scope '{self.scope}'"
        if self.has:
            return f"{needed}; yours has {', '.join(self.has)}."
        return f"{needed}, and none came. `mindfu keys create --scope {self.scope}` makes one."


class EngineFailed(MindFuError):
    """The engine broke while it answered."""

    code = "engine_failed"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The model failed while answering: {self.reason}."


class Unavailable(MindFuError):
    """A part that this request needs is away."""

    status, code = 503, "unavailable"

    def __init__(self, part: str, reason: str, retry_after_s: float = 2.0) -> None:
        super().__init__(part, reason, retry_after_s)
        self.part, self.reason, self.retry_after_s = part, reason, retry_after_s

    def __str__(self) -> str:
        return f"The {self.part} is not available: {self.reason}. Retry in {self.retry_after_s:.0f} s."


class Starting(Unavailable):
    """A part has no replica yet. stage: how far it is; waited_s: how long the request was held.

    trouble: why its replicas do not start, empty if they do.
    """

    code = "starting"

    def __init__(self, part: str, stage: str, waited_s: float, trouble: str) -> None:
        super().__init__(part, stage, STARTING_RETRY_S)
        self.args = (part, stage, waited_s, trouble)
        self.stage, self.waited_s, self.trouble = stage, waited_s, trouble
        self.progress = {"part": part, "stage": stage, "waited_s": round(waited_s, 1)}

    def __str__(self) -> str:
        trouble = " Its replicas fail to start: GET /health says why." if self.trouble else ""
        return (
            f"The {self.part} is being started: {self.stage}.{trouble} "
            f"This request was held for {self.waited_s:.0f} s. Retry in {self.retry_after_s:.0f} s."
        )


class Misconfigured(MindFuError):
    """Start-up refuses this configuration."""

    code = "misconfigured"

    def __init__(self, setting: str, problem: str, remedy: str) -> None:
        super().__init__(setting, problem, remedy)
        self.setting, self.problem, self.remedy = setting, problem, remedy

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}. {self.remedy}"
