"""Render docs/*.mmd beside them as SVG: `make diagrams`. Needs node, and Chromium or Chrome.

Each SVG says of which source it was made, so that a test notices one that was forgotten.
"""  # noqa: INP001

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MERMAID = "@mermaid-js/mermaid-cli@11.17.0"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOOKS = {  # labels are text, which every viewer shows, and file names are not broken
    "theme": "neutral",
    "htmlLabels": False,
    "flowchart": {"htmlLabels": False, "wrappingWidth": 420, "curve": "linear"},
}

LONG = re.compile(r"-?\d+\.\d{2,}")  # coordinates of sixteen digits


def mark(source: Path) -> str:
    """What the SVG of a source ends with."""
    return f"<!-- {source.name} {hashlib.sha256(source.read_bytes()).hexdigest()} -->\n"


def main() -> int:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None or shutil.which("npx") is None:
        sys.stderr.write("This needs npx (of node) and Chromium: apt-get install npm chromium.\n")
        return 1
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium refuses to root
    with tempfile.TemporaryDirectory() as folder:
        looks, starts = Path(folder, "looks.json"), Path(folder, "starts.json")
        looks.write_text(json.dumps(LOOKS))
        starts.write_text(json.dumps({"executablePath": browser, "args": sandbox}))
        for source in sorted(Path(__file__).parent.glob("*.mmd")):
            target = source.with_suffix(".svg")
            told = ["-q", "-c", str(looks), "-p", str(starts), "-i", str(source), "-o", str(target), "-I", source.stem]
            command = ["npx", "--yes", "--package", MERMAID, "mmdc", *told]
            environment = os.environ | {"PUPPETEER_SKIP_DOWNLOAD": "1"}
            subprocess.run(command, check=True, env=environment)  # noqa: S603 - our own files
            drawn = LONG.sub(lambda number: f"{float(number[0]):.1f}", target.read_text(encoding="utf-8"))
            target.write_text(f"{drawn.rstrip()}\n{mark(source)}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
