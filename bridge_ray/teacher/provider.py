"""Who answers: a provider at its address, or our own stand-in, started for as long as it is needed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from bridge_ray.config import Corpus, Teacher
from bridge_ray.corpus.sources import RECORDED
from bridge_ray.errors import UserError
from bridge_ray.objects import Store
from bridge_ray.teacher import client, standin
from bridge_ray.teacher.batch import BatchClient
from bridge_ray.teacher.client import Client
from bridge_ray.teacher.prices import price


def check(teacher: Teacher, corpus: Corpus) -> None:
    """Raise UserError when the teacher cannot be asked: no price, no key, nobody there. Spends nothing."""
    price(teacher.model, teacher.price)
    key = client.api_key(teacher)
    with connected(teacher, corpus) as base_url:
        client.check(base_url, key, batch=teacher.mode == "batch")


def client_of(
    teacher: Teacher, base_url: str, store: Store, account: str, on_state: Callable[[str], None] | None = None
) -> Client | BatchClient:
    """The client for the configured mode. ``account`` names what is found again after a crash, in a batch's metadata.

    ``on_state`` is called with a line on where a batch stands. Raises UserError when there is no key.
    """
    chat = client.connect(teacher, base_url)
    return chat if teacher.mode == "chat" else BatchClient(chat, store, account, on_state=on_state)


def identity(teacher: Teacher, corpus: Corpus) -> str:
    """Names the provider in the keys of paid answers; a stand-in by what it knows, as its address changes. A slash at
    an address's end makes no other provider."""
    if teacher.standin is None:
        return (teacher.base_url or client.DEFAULT_URL).rstrip("/")
    with _recorded_file(teacher, corpus) as file:
        return standin.identity(teacher.standin.answers, file, teacher.standin.styles)


@contextmanager
def connected(teacher: Teacher, corpus: Corpus, address: str | None = None) -> Iterator[str]:
    """The base_url to ask at; a stand-in runs for the length of the block, unless one listens at ``address``."""
    if teacher.standin is not None and address is not None:
        yield address
        return
    if teacher.standin is None:
        yield teacher.base_url or client.DEFAULT_URL
        return
    known = teacher.standin
    with _recorded_file(teacher, corpus) as file, standin.running(known.answers, file, known.styles) as base_url:
        yield base_url


@contextmanager
def _recorded_file(teacher: Teacher, corpus: Corpus) -> Iterator[str | None]:
    """The stand-in's file of recorded rationales: the config's, or those that came with the corpus."""
    assert teacher.standin is not None
    if teacher.standin.answers != "recorded" or teacher.standin.file:
        yield teacher.standin.file
        return
    if corpus.source not in RECORDED or corpus.path is None:
        raise UserError(f"teacher.standin.file: corpus.source {corpus.source} has no recorded rationales; give a file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recorded.jsonl"
        rows = RECORDED[corpus.source](corpus.path)
        path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
        yield str(path)
