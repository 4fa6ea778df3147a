"""Small objects in a local or NFS folder, or in an object store: paid answers, accounts, and who is at work on what.

What matters is created if absent and never overwritten, which every one of these stores can do atomically: all that
is built on it (``teacher/answers``, ``teacher/ledger``, ``claims``) needs no lock and no server. obstore does not
fsync: what is written survives the death of a process, not of a machine's power.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from bridge_ray import storage
from bridge_ray.errors import UserError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

READS = 64  # at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """Objects under a location. All of its methods raise UserError when the store cannot be read or written."""

    objects: ObjectStore
    location: str
    field: str = "teacher.store"  # of the config, in errors

    async def get(self, path: str) -> bytes | None:
        """The object's bytes, or None where there is none."""
        import obstore

        with self._reachable():
            try:
                return bytes(await (await obstore.get_async(self.objects, path)).bytes_async())
            except FileNotFoundError:
                return None

    async def create(self, path: str, data: bytes) -> bool:
        """Whether the object was absent, and so is ours."""
        import obstore

        with self._reachable():
            try:
                await obstore.put_async(self.objects, path, data, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    async def put(self, path: str, data: bytes) -> None:
        """Write an object whether it is there or not."""
        import obstore

        with self._reachable():
            await obstore.put_async(self.objects, path, data)

    async def delete(self, path: str) -> None:
        import obstore

        with self._reachable():
            await obstore.delete_async(self.objects, path)

    async def paths(self, prefix: str, after: str | None = None) -> list[str]:
        """Sorted paths of the objects in a folder; only those behind ``after`` if given."""
        import obstore

        with self._reachable():
            batches = obstore.list(self.objects, prefix=prefix, offset=after)
            return sorted([entry["path"] async for batch in batches for entry in batch])

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        import obstore

        try:
            yield
        except (obstore.exceptions.BaseError, OSError) as error:
            reason = str(error).splitlines()[0][:300]
            raise UserError(
                f"{self.field} {self.location}: {type(error).__name__}: {reason}; answers, accounts and stages written "
                "before are whole: mend the store and run again to go on"
            ) from error


def open_store(location: str, there: bool = False, field: str = "teacher.store") -> Store:
    """The store at a local path or an object-store URL (s3://, gs://), which a user knows as the config's ``field``;
    ``there``: it must be there already, and is not made.

    Raises UserError when the location cannot be opened.
    """
    place = storage.locate(location)
    if there and not storage.exists(storage.root(location)):
        raise UserError(f"teacher.store {location}: there is none; a run's is STORAGE/teacher, or its teacher.store")
    try:
        return Store(storage.object_store(place), place, field)
    except Exception as error:  # obstore raises its own and Python's, by kind of location
        raise UserError(f"{field} {location}: cannot be opened: {str(error).splitlines()[0]}") from error


async def gather(read: Callable[[str], Awaitable[T]], names: Iterable[str]) -> dict[str, T]:
    """Name -> what ``read`` gives, a few at a time."""
    slots = asyncio.Semaphore(READS)

    async def one(name: str) -> tuple[str, T]:
        async with slots:
            return name, await read(name)

    return dict(await asyncio.gather(*map(one, names)))
