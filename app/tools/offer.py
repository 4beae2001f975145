"""Which of the server's tools a request may call. It names them in `server_tools`: true is all. Pure functions."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from app.errors import InvalidRequest
from app.messages import Strict, Tool

PARAM = "server_tools"
Name = Annotated[str, Field(min_length=1, max_length=128)]
ServerTools = Annotated[
    Annotated[bool, Tag("[bool]")] | Annotated[list[Name], Field(max_length=256), Tag("[list]")],
    Discriminator(lambda given: "[list]" if isinstance(given, list) else "[bool]"),
]


class Offered(Strict):
    """A tool that there is. reads: it changes nothing."""

    tool: Tool
    reads: bool = False


class Whose(Strict):
    """For whom a tool works. collections: in which documents are searched."""

    tenant: str
    collections: tuple[str, ...]


def wanted(names: ServerTools | None, offered: Sequence[Offered], param: str = PARAM) -> tuple[Offered, ...]:
    """The tools that a request asks for, each by its name or a pattern like `github__*`. param: the field that does.

    Raises InvalidRequest for a name that none has.
    """
    if not isinstance(names, list):
        return tuple(offered) if names else ()
    for name in names:
        if not any(fnmatchcase(one.tool.name, name) for one in offered):
            known = ", ".join(one.tool.name for one in offered)
            message = f"'{param}' names '{name[:80]}', which is no tool of this server. There are: {known}."
            raise InvalidRequest(message, param)
    return tuple(one for one in offered if any(fnmatchcase(one.tool.name, name) for name in names))


def beside(clients: Sequence[Tool], served: Sequence[Tool]) -> tuple[Tool, ...]:
    """The client's own tools and the server's. Raises InvalidRequest where one name would mean both."""
    names = {tool.name for tool in served}
    if taken := next((tool.name for tool in clients if tool.name in names), None):
        message = (
            f"'{taken}' is one of your 'tools' and one of the server's: rename yours, or list others in '{PARAM}'."
        )
        raise InvalidRequest(message, PARAM)
    return (*clients, *served)
