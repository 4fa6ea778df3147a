"""What was sent in batches: ``sent/<nonce>.json`` lists the keys of a batch, written before the batch is created.

So any run finds in the store which batches may have the answers that it wants, whoever had them made, and a query that
is in none of the lists was certainly never sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from bridge_ray.objects import Store, gather


async def note(store: Store, keys: Iterable[str]) -> str:
    """Write down what is about to be sent. Gives the nonce by which the batch is known to the provider."""
    listed = json.dumps(sorted(keys)).encode()
    nonce = hashlib.sha256(listed).hexdigest()
    await store.create(f"sent/{nonce}.json", listed)  # the same keys may go into another batch: the list is the same
    return nonce


async def batches(store: Store) -> dict[str, frozenset[str]]:
    """Nonce -> keys, of all batches that may have been created from this store."""

    async def one(path: str) -> frozenset[str]:
        return frozenset(json.loads(await store.get(path) or b"[]"))

    found = await gather(one, await store.paths("sent"))
    return {path.rpartition("/")[2].removesuffix(".json"): keys for path, keys in found.items()}
