"""Text with NUL characters in a database that refuses them.

PostgreSQL stores every character but U+0000, in text and in jsonb alike. Models and people do produce it. NUL becomes
DLE "0", and DLE itself DLE "D" (DLE, U+0010, is nearly as rare), so that what is read is what was written.
"""

import re

DLE = "\x10"
JSON_ESCAPE = re.compile(r"\\(?:u0000|u0010|.)")  # JSON text has a backslash only where an escape begins
HIDDEN_ESCAPE = re.compile(r"\\(?:u0010[0D]|.)")


def hide(text: str) -> str:
    """The text without NUL."""
    return text.replace(DLE, f"{DLE}D").replace("\0", f"{DLE}0")


def show(text: str) -> str:
    """The text that was hidden."""
    return text.replace(f"{DLE}0", "\0").replace(f"{DLE}D", DLE) if DLE in text else text


def hide_json(text: str) -> str:
    """The same for every string of a JSON text."""
    written = {r"\u0000": r"\u00100", r"\u0010": r"\u0010D"}
    return JSON_ESCAPE.sub(lambda found: written.get(found[0], found[0]), text)


def show_json(text: str) -> str:
    """The JSON text that was hidden, as PostgreSQL prints it."""
    written = {r"\u00100": r"\u0000", r"\u0010D": r"\u0010"}
    return HIDDEN_ESCAPE.sub(lambda found: written.get(found[0], found[0]), text)
