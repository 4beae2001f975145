"""Files and vector stores in OpenAI's form: what requests say, and what is told of them. Pure functions.

After https://platform.openai.com/docs/api-reference/files and …/vector-stores. What we do not do is refused by name.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from app.dialects.events import Json
from app.dialects.openai_filters import Filter, check
from app.dialects.openai_requests import at_most
from app.errors import InvalidRequest, NotFound, UnsupportedOption
from app.messages import Passage, Strict
from app.shelves import Batch, Chunking, Counts, Put, Shelf, Shelved
from app.uploads import Purpose, Upload

PURPOSES: tuple[Purpose, ...] = ("assistants", "user_data", "fine-tune")
OTHERS = frozenset({"batch", "vision", "evals"})  # of OpenAI's, for what there is nothing here
EXPIRES_S = range(3600, 2_592_000 + 1)

Name = Annotated[str, Field(max_length=256)]
Text = Annotated[str, Field(max_length=512)]
Key = Annotated[str, Field(max_length=64)]
Metadata = Annotated[dict[Key, Text], at_most(16)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Attributed = Annotated[dict[Key, Text | bool | Number], at_most(16)]
FileIds = Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=2000)]


class ExpiresAfter(Strict):
    """When a vector store goes: days after it was last used."""

    anchor: Literal["last_active_at"]
    days: int = Field(ge=1, le=365)


class StaticCut(Strict):
    max_chunk_size_tokens: int = Field(ge=100, le=4096)
    chunk_overlap_tokens: int = Field(ge=0)

    @model_validator(mode="after")
    def overlap_is_at_most_half(self) -> Self:
        if 2 * self.chunk_overlap_tokens > self.max_chunk_size_tokens:
            message = (
                f"chunk_overlap_tokens is {self.chunk_overlap_tokens}, it must not be above half of "
                f"max_chunk_size_tokens, {self.max_chunk_size_tokens}"
            )
            raise ValueError(message)
        return self


class ChunkingStrategy(Strict):
    """auto: as this server's settings say. static: by tokens, of which we take one for four characters."""

    type: Literal["auto", "static"]
    static: StaticCut | None = None

    @model_validator(mode="after")
    def whole(self) -> Self:
        if (self.static is not None) != (self.type == "static"):
            message = "'static' belongs to the type static, and it needs it"
            raise ValueError(message)
        return self

    def cut(self) -> Chunking | None:
        """None: as the settings say."""
        static = self.static
        if static is None:
            return None
        return Chunking(tokens=static.max_chunk_size_tokens, overlap=static.chunk_overlap_tokens)


class NewShelf(Strict):
    """POST /v1/vector_stores."""

    name: Name | None = None
    description: Text | None = None
    file_ids: FileIds | None = Field(None, max_length=500)
    chunking_strategy: ChunkingStrategy | None = None
    expires_after: ExpiresAfter | None = None
    metadata: Metadata | None = None

    def puts(self) -> tuple[Put, ...]:
        """Its files."""
        cut = self.chunking_strategy.cut() if self.chunking_strategy else None
        return tuple(Put(upload_id=id_, attributes={}, chunking=cut) for id_ in self.file_ids or ())


class ChangedShelf(Strict):
    """POST /v1/vector_stores/{id}. What is absent or null stays, but for expires_after, which null takes away."""

    name: Name | None = None
    expires_after: ExpiresAfter | None = None
    metadata: Metadata | None = None


class NewFile(Strict):
    """POST /v1/vector_stores/{id}/files."""

    file_id: str = Field(max_length=128)
    attributes: Attributed | None = None
    chunking_strategy: ChunkingStrategy | None = None

    def put(self) -> Put:
        cut = self.chunking_strategy.cut() if self.chunking_strategy else None
        return Put(upload_id=self.file_id, attributes=self.attributes or {}, chunking=cut)


class ChangedFile(Strict):
    """POST /v1/vector_stores/{id}/files/{file_id}."""

    attributes: Attributed | None


class NewBatch(Strict):
    """POST /v1/vector_stores/{id}/file_batches: ids with what holds for all of them, or files with their own."""

    file_ids: FileIds | None = Field(None, min_length=1)
    files: list[NewFile] | None = Field(None, min_length=1, max_length=2000)
    attributes: Attributed | None = None
    chunking_strategy: ChunkingStrategy | None = None

    def puts(self) -> tuple[Put, ...]:
        """Its files. Raises InvalidRequest where it says twice or not what they are."""
        if (self.file_ids is None) == (self.files is None):
            raise InvalidRequest("Send either 'file_ids' or 'files'.", "file_ids")
        if self.files is not None and (self.attributes is not None or self.chunking_strategy is not None):
            message = "'attributes' and 'chunking_strategy' stand in each of 'files', or beside 'file_ids'."
            raise InvalidRequest(message, "files")
        common = {"attributes": self.attributes, "chunking_strategy": self.chunking_strategy}
        files = self.files or [NewFile.model_validate({"file_id": id_, **common}) for id_ in self.file_ids or ()]
        return tuple(file.put() for file in files)


class HybridSearch(Strict):
    embedding_weight: Number
    text_weight: Number


class RankingOptions(Strict):
    """ranker: there is one, which all names mean."""

    ranker: Literal["none", "auto", "default-2024-11-15", "default_2024_08_21"] | None = None
    score_threshold: Annotated[Number, Field(ge=0.0, le=1.0)] | None = None
    hybrid_search: HybridSearch | None = None


class ShelfSearch(Strict):
    """POST /v1/vector_stores/{id}/search."""

    query: (
        Annotated[str, Field(min_length=1)] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
    )
    filters: Filter | None = None
    max_num_results: int = Field(10, ge=1, le=50)
    ranking_options: RankingOptions | None = None
    rewrite_query: bool | None = None

    @field_validator("query")
    @classmethod
    def there_is_a_query(cls, given: str | list[str]) -> str | list[str]:
        if not given:
            message = "at least one query is needed"
            raise ValueError(message)
        return given

    @property
    def queries(self) -> tuple[str, ...]:
        return (self.query,) if isinstance(self.query, str) else tuple(self.query)

    @property
    def threshold(self) -> float:
        """Of a score, below which nothing is told."""
        return (self.ranking_options and self.ranking_options.score_threshold) or 0.0

    def require_supported(self) -> None:
        """Raises UnsupportedOption, InvalidRequest."""
        if self.rewrite_query:
            message = "'rewrite_query' is not supported: queries are searched for as they are. Leave it out."
            raise UnsupportedOption(message, "rewrite_query")
        require_known_ranking(self.ranking_options)
        if self.filters is not None:
            check(self.filters)


def require_known_ranking(options: RankingOptions | None) -> None:
    """Raises UnsupportedOption for weights, which are fixed here."""
    if options and options.hybrid_search:
        message = "'ranking_options.hybrid_search' is not supported: the weights are measured, and fixed. Leave it out."
        raise UnsupportedOption(message, "ranking_options.hybrid_search")


def purpose_of(given: str) -> Purpose:
    """A purpose that we know. Raises InvalidRequest."""
    known = next((purpose for purpose in PURPOSES if purpose == given), None)
    if known is None:
        why = "nothing here uses such files" if given in OTHERS else "there is no such purpose"
        error = UnsupportedOption if given in OTHERS else InvalidRequest
        raise error(f"Invalid 'purpose': '{given[:80]}', {why}. Take one of {', '.join(PURPOSES)}.", "purpose")
    return known


def life_of(anchor: str | None, seconds: str | None) -> int | None:
    """Seconds that a file lives, from the two parts of `expires_after` in a form. None: for ever."""
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest("Invalid 'expires_after[anchor]': it must be 'created_at'.", "expires_after[anchor]")
    if seconds is None or not seconds.isascii() or not seconds.isdigit() or int(seconds[:9]) not in EXPIRES_S:
        message = f"Invalid 'expires_after[seconds]': it must be from {EXPIRES_S[0]} to {EXPIRES_S[-1]}."
        raise InvalidRequest(message, "expires_after[seconds]")
    return int(seconds)


def upload(kept: Upload) -> Json:
    """A file."""
    told: Json = {
        "id": kept.id,
        "object": "file",
        "bytes": kept.bytes,
        "created_at": _unix(kept.created_at),
        "filename": kept.name,
        "purpose": kept.purpose,
        "status": "processed",
    }
    return told | ({"expires_at": _unix(kept.expires_at)} if kept.expires_at else {})


def shelf(kept: Shelf) -> Json:
    """A vector store."""
    told: Json = {
        "id": kept.id,
        "object": "vector_store",
        "created_at": _unix(kept.created_at),
        "name": kept.name,
        "description": kept.description,
        "usage_bytes": kept.bytes,
        "file_counts": _counts(kept.counts),
        "status": kept.status,
        "expires_at": kept.expires_at and _unix(kept.expires_at),
        "last_active_at": _unix(kept.active_at),
        "metadata": kept.metadata,
    }
    after = {"anchor": "last_active_at", "days": kept.expires_days}
    return told | ({"expires_after": after} if kept.expires_days else {})


def shelved(kept: Shelved) -> Json:
    """A file of a vector store."""
    code, message = kept.error or (None, None)
    cut = kept.chunking
    static = cut and {"max_chunk_size_tokens": cut.tokens, "chunk_overlap_tokens": cut.overlap}
    return {
        "id": kept.upload_id,
        "object": "vector_store.file",
        "usage_bytes": kept.bytes,
        "created_at": _unix(kept.created_at),
        "vector_store_id": kept.shelf_id,
        "status": kept.status,
        "last_error": code and {"code": code, "message": message},
        "attributes": kept.attributes,
        "chunking_strategy": {"type": "static", "static": static} if static else {"type": "other"},
    }


def batch(kept: Batch) -> Json:
    """A batch of files."""
    counts = kept.counts
    status = "cancelled" if kept.cancelled else "in_progress" if counts.in_progress else "completed"
    return {
        "id": kept.id,
        "object": "vector_store.files_batch",
        "created_at": _unix(kept.created_at),
        "vector_store_id": kept.shelf_id,
        "status": status,
        "file_counts": _counts(counts),
    }


def search_page(queries: Sequence[str], found: Sequence[tuple[Passage, Shelved]]) -> Json:
    """What a search found, best first."""
    results = [
        {
            "file_id": file.upload_id,
            "filename": file.name,
            "score": passage.score,
            "attributes": file.attributes,
            "content": [{"type": "text", "text": passage.text}],
        }
        for passage, file in found
    ]
    return _page("vector_store.search_results.page", results) | {"search_query": list(queries)}


def content_page(texts: Sequence[str]) -> Json:
    """What was read of a file."""
    return _page("vector_store.file_content.page", [{"type": "text", "text": text} for text in texts])


def deleted(kind: str, id_: str) -> Json:
    """What a deletion answers."""
    return {"id": id_, "object": kind, "deleted": True}


def listed(
    items: Sequence[Json], *, limit: int, order: Literal["asc", "desc"], after: str | None, before: str | None
) -> Json:
    """A page of a list. items: the oldest first. Raises NotFound for a cursor that is not in it."""
    ordered = list(items) if order == "asc" else list(items)[::-1]
    places = {item["id"]: number for number, item in enumerate(ordered)}
    for cursor in (after, before):
        if cursor is not None and cursor not in places:
            raise NotFound("place in the list", cursor[:80])
    if before is not None:
        ordered = ordered[: places[before]]
        page = ordered[-limit:] if after is None else ordered[places[after] + 1 :][:limit]
        more = len(ordered) > len(page)
    else:
        rest = ordered[places[after] + 1 :] if after is not None else ordered
        page, more = rest[:limit], len(rest) > limit
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": more,
    }


def _page(kind: str, data: list[Any]) -> Json:
    return {"object": kind, "data": data, "has_more": False, "next_page": None}


def _counts(counts: Counts) -> Json:
    return counts._asdict() | {"total": sum(counts)}


def _unix(time: datetime) -> int:
    return int(time.timestamp())
