"""The desired state of serving: which adapters there are, and which one answers for which name. Plain values.

A client's `model` names a served model (`<model>`: its champion answers, or the bare base where it has none), the bare
base (`<model>:base`), or one adapter (`<model>:<version>`). Every gateway and every engine holds this state as it was
last read, so all of them come to the same answer (app/following.py).

An adapter may be on trial beside the champion: as a canary it answers a share of the conversations, always the same
ones; as a shadow it is asked what they were answered already, and nobody sees what it says.
"""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from app.control import Control
from app.messages import Strict

BARE = "base"  # `<model>:base`
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Verdict = Literal["passed", "blocked"]
TrialKind = Literal["canary", "shadow"]
Share = Annotated[float, Field(gt=0, le=1)]


class Adapter(Strict):
    """A version of a model: a GGUF LoRA on its base. verdict: of the gates, None where it was never evaluated."""

    model: str
    version: Version
    path: str  # absolute, or beneath the home folder
    sha256: str
    size: int  # bytes
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()  # of a block
    details: dict[str, JsonValue] = Field(default_factory=dict)  # where it came from; not in the desired state
    created_at: datetime
    retired_at: datetime | None = None

    @property
    def name(self) -> str:
        """As commands take it."""
        return f"{self.model}@{self.version}"


class Trial(Strict):
    """An adapter that is tried beside the champion. share: of the conversations."""

    version: str
    kind: TrialKind
    share: Share
    since: datetime

    def takes(self, conversation: str) -> bool:
        """Whether a conversation is one of them, by a hash of its id: all of it is, and a larger share adds others."""
        hashed = hashlib.sha256(f"{self.version}\n{conversation}".encode()).digest()
        return int.from_bytes(hashed[:8], "big") < self.share * 2**64


class Serving(Strict):
    """What is served of one model: adapter versions, None for the bare base."""

    model: str
    champion: str | None = None
    previous: str | None = None  # stays loaded for a rollback
    staged: str | None = None  # gets loaded for a promotion
    trial: Trial | None = None

    @property
    def resident(self) -> tuple[str, ...]:
        """The versions that every engine keeps loaded."""
        wanted = (self.champion, self.previous, self.staged, self.trial.version if self.trial else None)
        return tuple(dict.fromkeys(version for version in wanted if version is not None))


class Desired(Strict):
    """All of it, at one revision. adapters: those that may be served, the oldest first."""

    revision: int = 0  # nothing was ever changed
    servings: tuple[Serving, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    control: Control = Control()

    def of(self, model: str) -> Serving:
        """What is served of a model."""
        return next((serving for serving in self.servings if serving.model == model), Serving(model=model))

    def adapter(self, model: str, version: str) -> Adapter | None:
        """One adapter."""
        return next((one for one in self.adapters if (one.model, one.version) == (model, version)), None)

    def versions(self, model: str) -> tuple[str, ...]:
        """Those of a model that may be asked for."""
        return tuple(adapter.version for adapter in self.adapters if adapter.model == model)

    def names(self, models: Iterable[str]) -> tuple[str, ...]:
        """What clients may put in `model`: each model, its bare base, its adapters."""
        return tuple(name for model in models for name in (model, *self.names_of(model)))

    def names_of(self, model: str) -> tuple[str, ...]:
        """The names beside a model's own."""
        return tuple(f"{model}:{version}" for version in (BARE, *self.versions(model)))

    def answering(self, model: str, suffix: str, conversation: str | None = None) -> str | None:
        """The version that answers for `<model>` or `<model>:<suffix>`, None: the bare base. Both are known.

        conversation: its id, None where nobody knows it: then the champion answers, whatever is on trial.
        """
        if suffix:
            return None if suffix == BARE else suffix
        return self.trying(model, "canary", conversation) or self.of(model).champion

    def trying(self, model: str, kind: TrialKind, conversation: str | None) -> str | None:
        """The version that is tried on a conversation in this way."""
        trial = self.of(model).trial
        tried = trial and trial.kind == kind and conversation and trial.takes(conversation)
        return trial.version if trial and tried else None
