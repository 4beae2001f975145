"""Stage 1 of the demo model: collect text from permissively licensed Python code on this machine.

    python -m train.demo_collect --out .mindfu/demo

Writes documents.jsonl (source, title, text) and manifest.json (what was read, its version, licence and size).
"""

# ruff: noqa: S311 - chance here picks titles, it guards nothing
import argparse
import json
import random
from pathlib import Path

from train import demo_text

DOCUMENT_CHARACTERS = 40_000  # of one file; keeps one huge module from outweighing a package
SOURCE_CHARACTERS = 1_500_000  # of one package


def main(out: Path) -> None:
    """Read, write, and print what was found."""
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    manifest = []
    with (out / "documents.jsonl").open("w", encoding="utf-8") as lines:
        for name, version, licence, paths in demo_text.sources():
            characters = documents = 0
            for path in paths:
                for text in demo_text.collect([path]):
                    if characters > SOURCE_CHARACTERS:
                        break
                    kept = text[:DOCUMENT_CHARACTERS]
                    record = {"source": name, "title": demo_text.file_title(rng, name, path), "text": kept}
                    lines.write(json.dumps(record) + "\n")
                    characters, documents = characters + len(kept), documents + 1
            if documents:
                manifest.append(
                    {
                        "source": name,
                        "version": version,
                        "licence": licence,
                        "files": documents,
                        "characters": characters,
                    }
                )
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    total = sum(int(str(entry["characters"])) for entry in manifest)
    print(f"{len(manifest)} sources, {total:,} characters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(".mindfu/demo"))
    main(parser.parse_args().out)
