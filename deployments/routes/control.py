"""GET /models, POST /model/switch, /command and /shutdown: what people who look after a server tell it."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from app.dialects.events import Json
from app.dialects.sessions import CommandRequest, Switched, SwitchRequest, Told, device, model_entry
from app.errors import Conflict, ScopeMissing, Unavailable
from app.machine import Machine
from app.messages import ModelFile
from app.registry import Training
from app.steering import place, steer
from deployments.calls import call
from deployments.routes.bodies import Route
from deployments.routes.callers import operator

if TYPE_CHECKING:
    from deployments.gateway import Gateway

ENGINE = "language model"


def routes(gateway: "Gateway") -> APIRouter:
    """The routes that look at the server as a whole, and change it."""
    router = APIRouter(tags=["control"], route_class=Route)

    @router.get("/models")
    async def models() -> Json:
        """What may be switched to, and what of it exists."""
        await gateway.look()
        files = await gateway.files()
        trainings: dict[str, Training] = {}
        with suppress(Unavailable):  # what is only told
            trainings = await gateway.recorder.read(gateway.registry.trainings())
        entries = [entry for file in files for entry in _entries(gateway, file, trainings)]
        return {"current": gateway.current, "models": entries}

    @router.post("/model/switch")
    async def switch(body: SwitchRequest) -> Switched:
        """Let /chat and /generate ask another model. Returns when it is loaded, and every gateway asks it."""
        started, wanted = time.perf_counter(), gateway.served(body.model_key)
        await call(ENGINE, gateway.llm, "load", gateway.root(wanted), gateway.adapter(wanted))
        previous = gateway.current
        await steer(gateway.registry, lambda control: control.model_copy(update={"model": wanted}))
        seconds = round(time.perf_counter() - started, 3)
        return Switched(
            message=f"{wanted} answers; it was loaded in {seconds:g} s.",
            current_value=wanted,
            model_key=wanted,
            previous_model_key=previous,
            load_time=seconds,
        )

    @router.post("/command")
    async def command(request: Request, body: CommandRequest) -> Told:
        """Tell or set the system prompt, the layers on GPUs, the tools; tell what the machine does."""
        if body.value is not None:
            operator(request)
        commands = {"system": _system, "layers": _layers, "mem": _mem, "tools": _tools}
        return await commands[body.command](gateway, body)

    @router.post("/shutdown")
    async def shutdown(request: Request) -> Told:
        """End the server, for those who have a key for it, on this machine too."""
        if request.state.caller.anonymous:
            raise ScopeMissing("admin", ())
        await asyncio.to_thread(gateway.shutdown)
        return Told(message="The server ends as soon as its answers have.")

    return router


async def _system(gateway: "Gateway", body: CommandRequest) -> Told:
    if body.value is not None:
        prompt = body.prompt() or None
        await steer(gateway.registry, lambda control: control.model_copy(update={"system_prompt": prompt}))
        prompt = gateway.settings.chat.system_prompt if prompt is None else prompt
        return Told(message="The system prompt was set.", current_value=prompt)
    return Told(message=gateway.system_prompt or "There is no system prompt.", current_value=gateway.system_prompt)


async def _layers(gateway: "Gateway", body: CommandRequest) -> Told:
    name = gateway.root(gateway.current)
    if body.value is not None:
        layers = body.layers()
        await call(ENGINE, gateway.llm, "check_layers", name, layers)
        await place(gateway.registry, name, layers)
        return Told(message=f"{name} runs on: {device(layers)}.", current_value=layers)
    layers = gateway.layers(name)
    return Told(message=f"{name} runs on: {device(layers)}.", current_value=layers)


async def _mem(gateway: "Gateway", body: CommandRequest) -> Told:
    body.only_tells()
    told: Machine = await call(ENGINE, gateway.llm, "machine")
    return Told(message=told.line(), current_value=told.model_dump(mode="json"))


async def _tools(gateway: "Gateway", body: CommandRequest) -> Told:
    if body.value is not None:
        on = body.switch()
        if on and gateway.tools is None:
            raise Conflict("This server runs no tools: its setting tools.enabled is false.")
        await steer(gateway.registry, lambda control: control.model_copy(update={"tools": on}))
    else:
        on = bool(gateway.follower.desired.control.tools)
    state = "on" if on else "off"
    return Told(message=f"Tools are {state}.", current_value=state)


def _entries(gateway: "Gateway", file: ModelFile, trainings: Mapping[str, Training]) -> list[dict[str, Any]]:
    """A model, and its adapters as models of their own."""
    card = gateway.cards[file.name]
    entry = model_entry(
        file,
        window=card.window,
        described=card.description,
        loaded=card.loaded,
        current=gateway.current == file.name,
    ) | {"layers": gateway.layers(file.name), "device": device(gateway.layers(file.name))}
    adapters = [adapter for adapter in gateway.follower.desired.adapters if adapter.model == file.name]
    return [entry] + [
        entry
        | {
            "key": key,
            "name": key,
            "filename": adapter.path.rpartition("/")[2],
            "exists": file.exists and (gateway.home / adapter.path).is_file(),
            "size_bytes": adapter.size,
            "description": f"{file.name} with the adapter {adapter.version}",
            "recommended": gateway.adapter(file.name) == adapter.version,
            "loaded": card.loaded and adapter.version in card.adapters,
            "current": gateway.current == key,
            "source": adapter.path,
            "is_finetuned": True,
            "base_model": file.name,
            "training_data": training._asdict() if (training := trainings.get(adapter.name)) else None,
        }
        for adapter in adapters
        for key in (f"{file.name}:{adapter.version}",)
    ]
