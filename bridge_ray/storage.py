"""One place that knows where bytes live: a local or NFS path, or an object-store URL such as ``s3://bucket/prefix``.

Small objects go through obstore (atomic puts), Parquet through pyarrow's filesystems, the same that Ray Data uses.
Locations are plain strings; local ones are absolute paths, so that every process and node reads them alike.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore.store import ObjectStore
    from pyarrow.fs import FileSystem


def locate(location: str) -> str:
    """Absolute form of a location: URLs are kept, paths are resolved against the working directory."""
    return location.rstrip("/") if "://" in location else str(Path(location).expanduser().resolve())


def join(location: str, *parts: str) -> str:
    return "/".join([location.rstrip("/"), *parts])


def object_store(location: str) -> ObjectStore:
    """The obstore store rooted at a location; a local root is made when it is first written to."""
    from obstore.store import LocalStore, from_url

    return from_url(location) if "://" in location else LocalStore(prefix=location, mkdir=True)


def filesystem(location: str) -> tuple[FileSystem, str]:
    """pyarrow's filesystem of a location, and the location's path in it."""
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(location)


def write_bytes(location: str, data: bytes) -> None:
    """Write a small object atomically: readers see the old bytes or the new ones."""
    parent, _, name = location.rpartition("/")
    object_store(parent).put(name, data)


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


def read_table(location: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file or a folder of them, whole."""
    import pyarrow.parquet as pq

    fs, path = filesystem(location)
    return pq.read_table(path, columns=columns, filesystem=fs)


def count_rows(location: str) -> int:
    """Rows of a Parquet file or folder, from the footers alone."""
    import pyarrow.dataset as ds

    fs, path = filesystem(location)
    return int(ds.dataset(path, filesystem=fs, format="parquet").count_rows())


def write_table(location: str, table: pa.Table, row_group_size: int | None = None) -> None:
    """Write one Parquet file, making its folder."""
    import pyarrow.parquet as pq

    fs, path = filesystem(location)
    fs.create_dir(path.rpartition("/")[0], recursive=True)
    pq.write_table(table, path, filesystem=fs, row_group_size=row_group_size)


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


def localise(location: str) -> str:
    """A local folder with a location's files: the location itself, or a copy of the object store's."""
    if "://" not in location:
        return location
    from pyarrow.fs import LocalFileSystem, copy_files

    fs, path = filesystem(location)
    folder = tempfile.mkdtemp(prefix="bridge-ray-")
    copy_files(path, folder, source_filesystem=fs, destination_filesystem=LocalFileSystem())
    return folder
