"""Whose data a request may touch: the tenant of the key that it came with. Every route that touches data asks here."""

from typing import Annotated

from fastapi import Depends, Request

from app.errors import ScopeMissing


def tenant(request: Request) -> str:
    """The caller's tenant, as the guard found it."""
    found: str = request.state.caller.tenant
    return found


def operator(request: Request) -> None:
    """Raises ScopeMissing for whoever may not change what everybody gets."""
    caller = request.state.caller
    if not caller.may("admin"):
        raise ScopeMissing("admin", tuple(sorted(caller.scopes)))


Tenant = Annotated[str, Depends(tenant)]
