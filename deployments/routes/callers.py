"""Whose data a request may touch: the tenant of the key that it came with. Every route that touches data asks here."""

from typing import Annotated

from fastapi import Depends, Request


def tenant(request: Request) -> str:
    """The caller's tenant, as the guard found it."""
    found: str = request.state.caller.tenant
    return found


Tenant = Annotated[str, Depends(tenant)]
