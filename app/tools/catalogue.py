"""The tools that MindFu brings. Another one is a function here, or one that `tools.functions` names."""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from app.errors import Misconfigured
from app.settings import ToolSettings
from app.tools import documents, files, web
from app.tools.registry import ServerTool, by_name, from_function, imported

BUILT_IN: tuple[Callable[..., Any], ...] = (
    web.lookup_hostname,
    web.measure_http_latency,
    files.read_file,
    files.write_file,
    files.list_contents,
    files.search_files,
    files.calculate_directory_size,
    files.get_file_info,
    files.create_directory,
    files.move_file,
    files.copy_file,
    files.delete_file,
    files.get_current_directory,
    files.find_in_files,
    documents.search_documents,
)


def own(settings: ToolSettings, executor: Executor | None = None) -> dict[str, ServerTool]:
    """Those and the ones that the settings name, by name; `without` takes some away, MCP servers bring others.

    executor: whose threads run plain functions. Raises Misconfigured.
    """
    functions = (*BUILT_IN, *map(imported, settings.functions))
    tools = by_name(from_function(function, executor) for function in functions)
    prefixes = tuple(f"{name}__" for name in settings.mcp)
    for name in settings.without:
        if name not in tools and not (prefixes and name.startswith(prefixes)):
            raise Misconfigured("tools.without", f"there is no tool '{name}'", f"There are: {', '.join(tools)}.")
    return tools
