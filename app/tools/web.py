"""The tools that look at hosts, within what the caller's network allows."""

from typing import Annotated

from pydantic import Field

from app.tools.context import Context, Json
from app.tools.registry import reads

Hostname = Annotated[str, Field(max_length=253, description="A name like 'example.org'.")]


@reads
def lookup_hostname(context: Context, hostname: Hostname) -> Json:
    """Find the IP address of a host, and how long a TCP handshake with it takes in ms; null if it does not answer."""
    address = context.network.resolve(hostname)
    took_s = context.network.ping(address)
    return {"ip": address, "ping_ms": None if took_s is None else round(took_s * 1000, 2)}


@reads
def measure_http_latency(context: Context, hostname: Hostname) -> Json:
    """Measure how long a web server takes to answer, connecting included, in ms. Redirects are not followed."""
    answered = context.network.head(hostname)
    return {"latency_ms": round(answered.latency_s * 1000, 2), "status": answered.status, "url": answered.url}
