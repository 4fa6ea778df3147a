"""Reading a corpus file, gzipped or not, so that whatever is wrong with it is said in one line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge_ray import storage
from bridge_ray.errors import UserError


def read_text(path: Path | str) -> str:
    """The text of a file, or of an object by its URL. Raises UserError if it is missing, unreadable or not UTF-8."""
    try:
        data = storage.read_bytes(storage.locate(str(path))) if "://" in str(path) else Path(path).read_bytes()
        if data is None:
            raise FileNotFoundError
        return (gzip.decompress(data) if str(path).endswith(".gz") else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; set corpus.path") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def json_lines(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, object) for every line that is not blank; the label names file and line for messages."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        label = f"{path} line {number}"
        row = parse_json(line, label)
        if not isinstance(row, dict):
            raise UserError(f"{label}: expected a JSON object, got {type(row).__name__}")
        yield label, row


def parse_json(text: str, label: str) -> Any:
    """The parsed JSON. Raises UserError that starts with the label."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{label}: not valid JSON: {error}") from error


def find(path: str | None, *names: str) -> Path:
    """The path itself if it is a file, else the first of the names that is in the folder.

    Raises UserError that lists the names.
    """
    root = Path(path or ".")
    candidates = [root, *(root / name for name in names)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(f"{root}: no such file, nor a folder with {' or '.join(names)}; set corpus.path")
