"""One place that knows where bytes live: a local or NFS path, or an object-store URL such as ``s3://bucket/prefix``.

Small objects go through obstore (atomic puts), Parquet through pyarrow's filesystems, the same that Ray Data uses.
Locations are plain strings; local ones are absolute paths, so that every process and node reads them alike.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore.store import ObjectStore
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs", "abfs", "abfss", "file")  # that both pyarrow and obstore know


def locate(location: str) -> str:
    """Absolute form of a location: URLs are kept, paths are resolved against the working directory.

    Raises UserError for a URL of no object store, and for no location at all.
    """
    if not location:
        raise UserError("storage: is empty; give a folder, or the URL of an object store")
    scheme, separator, _ = location.partition("://")
    if separator and scheme not in SCHEMES:
        raise UserError(f"{location}: {scheme}:// is no storage; give a path or one of {', '.join(SCHEMES)}")
    return location.rstrip("/") if separator else str(Path(location).expanduser().resolve())


def root(location: str) -> str:
    """Absolute form of a place for runs and stages. Raises UserError where it is a file, or cannot be reached."""
    from pyarrow.fs import FileType

    place = locate(location)
    try:
        fs, path = filesystem(place)
        kind = fs.get_file_info(path).type
    except (OSError, ValueError) as error:
        raise UserError(f"storage {location}: cannot be reached: {' '.join(str(error).split())}") from error
    if kind == FileType.File:
        raise UserError(f"storage {location}: is a file; give a folder")
    return place


def join(location: str, *parts: str) -> str:
    return "/".join([location.rstrip("/"), *parts])


def object_store(location: str) -> ObjectStore:
    """The obstore store rooted at a location; a local root is made when it is first written to."""
    from obstore.store import LocalStore, from_url

    if "://" not in location:
        return LocalStore(prefix=location, mkdir=True)
    return from_url(location, **(_s3_keys() if location.startswith("s3://") else {}))


def _s3_keys() -> dict[str, Any]:
    """Keys from the file that AWS_SHARED_CREDENTIALS_FILE names (a mounted secret): pyarrow reads it, obstore does not.

    Keys in the environment come first, as everywhere.
    """
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", ""))
    if "AWS_ACCESS_KEY_ID" in os.environ or not path.is_file():
        return {}
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(path)
    profile = os.environ.get("AWS_PROFILE", "default")
    found = dict(parser[profile]) if parser.has_section(profile) else {}
    fields = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    return {field.removeprefix("aws_"): found[field] for field in fields if field in found}


def filesystem(location: str) -> tuple[FileSystem, str]:
    """pyarrow's filesystem of a location, and the location's path in it."""
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(location)


def write_bytes(location: str, data: bytes) -> None:
    """Write a small object atomically: readers see the old bytes or the new ones. Raises UserError where it cannot be
    written: every stage leaves one, and a run begins with one."""
    from obstore.exceptions import BaseError

    parent, _, name = location.rpartition("/")
    try:
        object_store(parent).put(name, data)
    except (BaseError, OSError) as error:
        reason = str(error).splitlines()[0][:300]
        raise UserError(
            f"storage {location}: cannot be written: {reason}; mend the storage and run it again to go on"
        ) from error


def read_bytes(location: str) -> bytes | None:
    """The object's bytes, or None where there is none."""
    fs, path = filesystem(location)
    try:
        with fs.open_input_stream(path) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        return None


def write_json(location: str, value: Any) -> None:
    write_bytes(location, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode())


def read_json(location: str) -> Any:
    """The object's value, or None where there is none."""
    data = read_bytes(location)
    return None if data is None else json.loads(data)


def exists(location: str) -> bool:
    from pyarrow.fs import FileType

    fs, path = filesystem(location)
    return bool(fs.get_file_info(path).type != FileType.NotFound)


def folders(location: str) -> list[str]:
    """Sorted names of the folders in a folder; none where there is no such folder."""
    from pyarrow.fs import FileSelector, FileType

    fs, path = filesystem(location)
    found = fs.get_file_info(FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == FileType.Directory)


def files(location: str, suffix: str = ".parquet") -> list[str]:
    """Locations of the files with that ending below a folder, sorted; the location itself where it is a file."""
    from pyarrow.fs import FileSelector, FileType

    fs, path = filesystem(location)
    if fs.get_file_info(path).type == FileType.File:
        return [location]
    found = fs.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
    scheme = location.partition("://")[0] + "://" if "://" in location else ""
    return sorted(scheme + info.path for info in found if info.type == FileType.File and info.path.endswith(suffix))


def read_table(location: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file or a folder of them, whole."""
    import pyarrow.parquet as pq

    fs, path = filesystem(location)
    return pq.read_table(path, columns=columns, filesystem=fs)


def head(location: str, rows: int) -> pa.Table:
    """The first rows of a Parquet file or folder."""
    import pyarrow.dataset as ds

    fs, path = filesystem(location)
    return ds.dataset(path, filesystem=fs, format="parquet").head(rows)


def count_rows(files: Sequence[str]) -> int:
    """Rows of Parquet files, from their footers alone."""
    import pyarrow.dataset as ds

    if not files:
        return 0
    fs, _ = filesystem(files[0])
    paths = [filesystem(file)[1] for file in files]
    return int(ds.dataset(paths, filesystem=fs, format="parquet").count_rows())


def write_table(location: str, table: pa.Table, row_group_size: int | None = None) -> None:
    """Write one Parquet file, making its folder."""
    import pyarrow.parquet as pq

    fs, path = filesystem(location)
    fs.create_dir(path.rpartition("/")[0], recursive=True)
    pq.write_table(table, path, filesystem=fs, row_group_size=row_group_size)


def replace_table(location: str, table: pa.Table) -> None:
    """Write a small Parquet file atomically: readers see the old rows or the new ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    write_bytes(location, buffer.getvalue().to_pybytes())


def remove(location: str) -> None:
    """Remove a file; nothing happens where there is none."""
    if exists(location):
        fs, path = filesystem(location)
        fs.delete_file(path)


def delete(location: str) -> None:
    """Remove a folder and all in it; nothing happens where there is none."""
    from pyarrow.fs import FileType

    fs, path = filesystem(location)
    if fs.get_file_info(path).type == FileType.Directory:
        fs.delete_dir(path)


def upload(folder: Path, location: str) -> None:
    """Copy a local folder's files to a location."""
    from pyarrow.fs import LocalFileSystem, copy_files

    fs, path = filesystem(location)
    fs.create_dir(path, recursive=True)
    copy_files(str(folder), path, source_filesystem=LocalFileSystem(), destination_filesystem=fs)


def download(location: str, folder: Path) -> None:
    """Copy a location's files to a local folder."""
    from pyarrow.fs import LocalFileSystem, copy_files

    fs, path = filesystem(location)
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(path, str(folder.resolve()), source_filesystem=fs, destination_filesystem=LocalFileSystem())


def size(location: str) -> int:
    """Bytes of all files in a folder."""
    from pyarrow.fs import FileSelector

    fs, path = filesystem(location)
    return sum(file.size or 0 for file in fs.get_file_info(FileSelector(path, allow_not_found=True, recursive=True)))


def listed(location: str) -> str:
    """16 hex digits over the names, sizes and times of a folder's files: others where it was written anew."""
    from pyarrow.fs import FileSelector

    fs, path = filesystem(location)
    files = fs.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
    content = sorted(f"{file.path}:{file.size}:{file.mtime_ns}" for file in files)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]
