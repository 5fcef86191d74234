"""Writes the OpenAPI document, or checks it and the dashboard's bundle.

    python -m services.analytics_api.generate [--check | --built]

The bundle is checked in. A build notes, with `--built`, what it was made from and what came out, so that
whoever changes either without the other is told, and nothing has to be built for that.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from services.analytics_api.app import describe
from services.analytics_api.pages import STATIC

FILE = Path(__file__).with_name("openapi.json")
SOURCES = Path(__file__).with_name("dashboard")
NOTE = STATIC / "built.json"


def document() -> str:
    """The OpenAPI document as text."""
    return json.dumps(describe().openapi(), indent=2, ensure_ascii=False) + "\n"


def _digest(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def note() -> str:
    """What the dashboard is made from, and what came out."""
    sources = [file for file in SOURCES.iterdir() if file.is_file()]
    sources += [file for file in (SOURCES / "src").rglob("*") if file.is_file()]
    built = [file for file in STATIC.rglob("*") if file.is_file() and file != NOTE]
    digests = {"sources": _digest(SOURCES, sources), "bundle": _digest(STATIC, built)}
    return json.dumps(digests, indent=2) + "\n"


def _is(file: Path, text: str) -> bool:
    return file.exists() and file.read_text(encoding="utf-8") == text


def main() -> None:
    """Writes or checks."""
    match sys.argv[1:]:
        case ["--check"]:
            if not _is(FILE, document()):
                sys.exit(f"{FILE.name} is not what the routes say: run `make generate`")
            if not _is(NOTE, note()):
                sys.exit("the dashboard's bundle is not of these sources: run `make dashboard`")
        case ["--built"]:
            NOTE.write_text(note(), encoding="utf-8")
        case []:
            FILE.write_text(document(), encoding="utf-8")
        case other:
            sys.exit(f"unknown: {' '.join(other)}; --check and --built are known")


if __name__ == "__main__":
    main()
