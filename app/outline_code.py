"""Where a source text has classes and functions, by tree-sitter. Pure; runs in the reading child.

A text that is no valid program is outlined as far as the grammar understands it.
"""

import importlib
from collections.abc import Sequence

from tree_sitter import Language, Parser, Query, QueryCursor

from app.outline import Span

GRAMMARS = {  # module and function of the tree-sitter grammar
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "java": ("tree_sitter_java", "language"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
}
SCRIPT = ("class_declaration", "function_declaration", "method_definition")
TYPED = (*SCRIPT, "abstract_class_declaration", "interface_declaration", "enum_declaration", "internal_module")
DEFINITIONS = {  # nodes whose first line says what is inside of them
    "python": ("class_definition", "function_definition"),
    "javascript": SCRIPT,
    "typescript": TYPED,
    "tsx": TYPED,
    "java": (
        "class_declaration", "interface_declaration", "enum_declaration", "record_declaration", "method_declaration",
        "constructor_declaration",
    ),
    "go": ("function_declaration", "method_declaration", "type_declaration"),
    "rust": ("impl_item", "trait_item", "mod_item", "struct_item", "enum_item", "function_item"),
    "c": ("function_definition", "struct_specifier", "enum_specifier"),
    "cpp": ("function_definition", "class_specifier", "struct_specifier", "enum_specifier", "namespace_definition"),
}  # fmt: skip


def grammar(kind: str) -> object:
    """The grammar as a capsule, as tree-sitter and the splitter take it."""
    module, language = GRAMMARS[kind]
    return getattr(importlib.import_module(module), language)()


def definitions(source: str, kind: str) -> tuple[Span, ...]:
    """The spans of the classes and functions of a text, in order; they nest."""
    language, data = Language(grammar(kind)), source.encode()
    wanted = Query(language, "[" + " ".join(f"({node})" for node in DEFINITIONS[kind]) + "] @definition")
    found = QueryCursor(wanted).captures(Parser(language).parse(data).root_node)
    spans = sorted((node.start_byte, node.end_byte) for node in found.get("definition", ()))
    place = _characters(data, sorted({offset for span in spans for offset in span}))
    return tuple((place[start], place[end]) for start, end in spans)


def _characters(data: bytes, offsets: Sequence[int]) -> dict[int, int]:
    """Which character begins at each byte. offsets: ascending."""
    places, before, count = dict[int, int](), 0, 0
    for offset in offsets:
        count += len(data[before:offset].decode())
        places[offset], before = count, offset
    return places
