"""The `mindfu` command in this process."""

import pytest

from deployments import cli


def mindfu(*arguments: str) -> int:
    """Its exit status."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(end.value.code or 0)
