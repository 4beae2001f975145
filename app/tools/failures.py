"""What goes wrong in a tool, told to the model, which may try again or say so."""


class ToolFailed(Exception):
    """A tool could not do it. The message is for the model: what was wrong, and what would be right."""
