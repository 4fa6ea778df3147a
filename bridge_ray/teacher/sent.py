"""What was sent in batches: ``sent/<nonce>.json`` lists the keys of a batch, written before the batch is created.

So any run finds in the store which batches may have the answers that it wants, whoever had them made, and a query that
is in none of its own lists was certainly never sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bridge_ray.objects import Store, gather


@dataclass(frozen=True)
class Sent:
    """A batch that may have been created: who made it, and of which keys."""

    owner: str
    keys: frozenset[str]


async def note(store: Store, owner: str, keys: Iterable[str]) -> str:
    """Write down what is about to be sent. Gives the nonce by which the batch is known to the provider."""
    listed = json.dumps({"owner": owner, "keys": sorted(keys)}).encode()
    nonce = hashlib.sha256(listed).hexdigest()
    await store.create(f"sent/{nonce}.json", listed)  # the same keys may go into another batch: the list is the same
    return nonce


async def batches(store: Store, known: Collection[str] = ()) -> dict[str, Sent]:
    """Nonce -> batch, of those that may have been created from this store and are not ``known``."""

    async def one(nonce: str) -> Sent:
        found = json.loads(await store.get(f"sent/{nonce}.json") or b"")
        return Sent(found["owner"], frozenset(found["keys"]))

    nonces = (path.rpartition("/")[2].removesuffix(".json") for path in await store.paths("sent"))
    return await gather(one, [nonce for nonce in nonces if nonce not in known])
