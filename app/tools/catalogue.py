"""The tools that MindFu brings. Another one is a function here, or one that `tools.functions` names."""

from collections.abc import Callable
from typing import Any

from app.tools import documents, files, web

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
