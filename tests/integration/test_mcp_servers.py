"""Tools of real MCP servers, made with the official package: by standard streams and by HTTP, well and not."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import McpSettings
from app.tools.context import Context
from app.tools.mcp_servers import McpServer
from app.tools.outcome import Outcome, outcome
from tests.mcp_server import TOKEN

pytestmark = pytest.mark.integration
ANY: Any = None
ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.mcp_server")
CONTEXT = Context(ANY, ANY, ANY)


@asynccontextmanager
async def connected(settings: McpSettings, **variables: str) -> AsyncIterator[McpServer]:
    server = McpServer("test", settings, variables)
    connection = asyncio.create_task(server.forever())
    try:
        async with asyncio.timeout(30):
            await server.known.wait()
        yield server
    finally:
        connection.cancel()
        await asyncio.gather(connection, return_exceptions=True)


async def call(server: McpServer, name: str, arguments: str = "{}") -> str:
    tool = next(tool for tool in server.tools if tool.name == f"test__{name}")
    return (await told(tool, arguments)).text


async def told(tool: Any, arguments: str) -> Outcome:
    return await outcome(tool, arguments, CONTEXT, max_chars=10_000)


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 – nobody tells
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
async def program() -> AsyncIterator[McpServer]:
    """A server that is started here."""
    settings = McpSettings(command=COMMAND, cwd=ROOT, env={"GIVEN": "yes"}, pass_env=("PASSED",), timeout_s=10.0)
    async with connected(settings, PASSED="too", SECRET="never") as server:
        yield server


async def test_its_tools_are_offered_under_its_name_with_their_own_schemas(program):
    """What only reads is known by what the server says; names are what OpenAI's clients take."""
    tools = {tool.name: tool for tool in program.tools}
    assert {"test__add", "test__fail", "test__odd_name_"} <= tools.keys()
    add = tools["test__add"]
    assert (add.told.description, add.reads, tools["test__fail"].reads) == ("Add two numbers.", True, False)
    assert add.told.parameters["required"] == ["a", "b"]
    assert add.told.parameters["properties"]["a"]["type"] == "integer"
    assert await call(program, "odd_name_") == '{"result":"odd"}'


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("add", '{"a": 2, "b": 3}', '{"result":5}'),
        ("plain", "", '{"content":"hello"}'),
        ("picture", "{}", '{"content":"[image, which this model cannot read]"}'),
        ("fail", "{}", '{"status":"error","error":"Error executing tool fail: not today"}'),
        ("add", '{"a": "two"}', '"status":"error","error":"'),
        ("add", '{"a": ', '"error":"The arguments are not JSON'),
        ("add", "[1]", '"error":"The arguments must be an object.'),
        ("hang", "{}", "did not answer within 10 s"),
    ],
)
async def test_its_calls_come_to_what_it_says(program, name, arguments, expected):
    """Structured results as they are, text as text; what fails is told, a tool that hangs is given up."""
    assert expected in await call(program, name, arguments)
    assert await call(program, "add", '{"a": 1, "b": 1}') == '{"result":2}', "and it goes on"


async def test_a_program_gets_the_variables_that_its_settings_name_and_no_others(program):
    """Beside PATH, HOME and the like: no key of ours."""
    found = {name: await call(program, "variable", f'{{"name": "{name}"}}') for name in ("GIVEN", "PASSED", "SECRET")}
    assert found == {"GIVEN": '{"result":"yes"}', "PASSED": '{"result":"too"}', "SECRET": '{"result":"not set"}'}


async def test_what_comes_later_is_offered_later(program):
    """As soon as the server says that its tools changed."""
    await call(program, "grow")
    await until(lambda: any(tool.name == "test__grown" for tool in program.tools))


async def test_a_server_that_dies_is_started_again():
    """The call that it died of says so, those meanwhile too, and the next ones are answered."""
    async with connected(McpSettings(command=COMMAND, cwd=ROOT)) as server:
        assert "ended while it worked on this" in await call(server, "die")
        await until(lambda: server.state != "ok")
        assert "is away" in await call(server, "add", '{"a": 2, "b": 2}')
        await until(lambda: server.state == "ok")
        assert await call(server, "add", '{"a": 2, "b": 2}') == '{"result":4}'


@asynccontextmanager
async def listening(port: int) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(*COMMAND, str(port), cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def test_a_server_by_url_is_reached_with_its_token_and_again_when_it_is_back():
    """It need not be there at the beginning; without the token it is away, and says why."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    settings = McpSettings(url=f"http://127.0.0.1:{port}/mcp", token_env="TEST_TOKEN", only=("add",))
    async with connected(settings, TEST_TOKEN=TOKEN) as server, connected(settings, TEST_TOKEN="wrong") as stranger:
        assert (server.tools, server.state) == ((), server.state)
        assert server.state != "ok"
        for _ in range(2):
            async with listening(port):
                await until(lambda: server.state == "ok")
                assert [tool.name for tool in server.tools] == ["test__add"]
                assert await call(server, "add", '{"a": 2, "b": 2}') == '{"result":4}'
                assert stranger.state != "ok"
            assert '"status":"error"' in await call(server, "add", '{"a": 2, "b": 2}')
            await until(lambda: server.state != "ok")


async def test_what_cannot_be_started_is_away_with_the_reason():
    """A program that is not there, a variable that is not set, one that speaks no MCP."""
    for settings, reason in (
        (McpSettings(command=("/nowhere/at-all",)), "No such file"),
        (McpSettings(command=COMMAND, pass_env=("NOT_SET",)), "NOT_SET is not set"),
        (McpSettings(command=(sys.executable, "-c", "print('hello')")), ""),
    ):
        async with connected(settings) as server:
            assert (server.state != "ok", reason in server.state) == (True, True), server.state


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"command": ["x"], "url": "http://x"},
        {"url": "ftp://x"},
        {"url": "http://x", "pass_env": ["A"]},
        {"command": ["x"], "token_env": "A"},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    """Rather than ignored."""
    with pytest.raises(ValidationError):
        McpSettings.model_validate(settings)
