"""The ledger: never over its cap, whoever writes at once and whenever a writer dies; and what a person reads of it."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.json
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bridge_ray import cli
from bridge_ray.claims import Claims
from bridge_ray.errors import UserError
from bridge_ray.objects import Store, open_store
from bridge_ray.teacher import ledger, statement
from bridge_ray.teacher.ledger import Account, Balance, Cap, balance, segments


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "teacher"))


UNBOUNDED = Cap()


def account(store: Store, cap: Cap = UNBOUNDED, name: str = "team", buyer: str = "b") -> Account:
    return Account(store, name, cap, buyer=buyer, run=f"run-{buyer}", model="gpt-4o")


def do(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def pair(one: Account, key: str, worst: float, cost: float | None) -> str | None:
    """Reserve, and settle at ``cost`` if given."""
    name = await one.reserve(key, worst)
    if name is not None and cost is not None:
        await one.settle(name, cost, prompt_tokens=10, completion_tokens=5)
    return name


async def all_segments(store: Store, name: str = "team") -> list[ledger.Segment]:
    return [segment async for segment in segments(store, name)]


def test_reserve_settle_release_and_lose_add_up(store: Store) -> None:
    async def work() -> None:
        one = await account(store, Cap(usd=1.0)).open()
        first, second = await one.reserve("a", 0.4), await one.reserve("b", 0.3)
        third = await one.reserve("c", 0.2)
        assert first and second and third
        assert await one.reserve("d", 0.2) is None  # 0.9 + 0.2
        await one.settle(first, 0.1, 10, 5)
        await one.release(second, "refused")
        await one.lose(third, "ReadTimeout")
        assert await one.reserve("d", 0.7)  # 0.1 settled + 0.2 lost + 0.7

    do(work())
    found = do(balance(store, "team"))
    assert (found.queries, found.settled, found.reserved) == (3, ledger.exact(0.1), ledger.exact(0.9))
    assert [query.lost for query in found.open.values()] == [True, False]


def test_entries_that_wait_are_written_together(store: Store) -> None:
    async def work() -> None:
        one = await account(store).open()
        await asyncio.gather(*[pair(one, str(number), 0.01, 0.005) for number in range(200)])

    do(work())
    found = do(all_segments(store))
    assert len(found) < 20 and sum(len(segment.entries) for segment in found) == 400
    assert do(balance(store, "team")).settled == 200 * ledger.exact(0.005)


@settings(max_examples=25, deadline=None)
@given(
    worsts=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    share=st.floats(0.1, 1.2),
    writers=st.integers(1, 4),
    settled=st.booleans(),
)
def test_writers_at_once_never_exceed_the_cap_and_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, worsts: list[int], share: float, writers: int, settled: bool
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("teacher")))
    cap = Cap(usd=sum(worsts) * share)

    async def work() -> list[str | None]:
        open_ones = [await account(store, cap, buyer=str(number)).open() for number in range(writers)]
        asks = [
            pair(open_ones[number % writers], str(number), worst, worst if settled else None)
            for number, worst in enumerate(worsts)
        ]
        return await asyncio.gather(*asks)

    names = do(work())
    granted = [worst for worst, name in zip(worsts, names, strict=True) if name]
    found = do(balance(store, "team"))
    assert found.settled + found.reserved == ledger.exact(sum(granted)) <= ledger.exact(cap.usd or 0)
    assert found.queries == len(granted)
    if writers == 1:  # nobody was turned away who had room
        refused = [worst for worst, name in zip(worsts, names, strict=True) if not name]
        assert all(sum(granted) + worst > (cap.usd or 0) for worst in refused)
    assert do(statement.statement(store, "team")).broken == []


def test_writers_at_once_on_an_object_store(s3: str) -> None:
    """A real S3 server over HTTP: its conditional writes put the writers in order."""
    store = open_store(s3)

    async def work() -> list[str | None]:
        writers = [await account(store, Cap(usd=1.0), buyer=str(number)).open() for number in range(3)]
        return await asyncio.gather(*[pair(writers[n % 3], str(n), 0.03, 0.03) for n in range(60)])

    names = do(work())
    found = do(statement.statement(store, "team"))
    assert len([name for name in names if name]) == found.total.settled == 33  # 33 * 0.03 <= 1 < 34 * 0.03
    assert found.broken == [] and do(balance(store, "team")).settled == 33 * ledger.exact(0.03)


class LostAcknowledgement(Store):
    """Writes a segment, and then says what a client hears whose first try was written and whose second was refused."""

    async def create(self, path: str, data: bytes) -> bool:
        return await super().create(path, data) and "0000000002" not in path


def test_a_segment_whose_acknowledgement_was_lost_is_recognised(store: Store) -> None:
    lossy = LostAcknowledgement(**vars(store))

    async def work() -> None:
        one = await account(lossy).open()
        for number in range(3):
            assert await pair(one, str(number), 0.5, 0.2)

    do(work())
    assert do(balance(store, "team")).settled == 3 * ledger.exact(0.2)
    assert len(do(all_segments(store))) == 6


def test_a_snapshot_saves_reading_and_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SNAPSHOT_EVERY", 4)

    async def work() -> None:
        one = await account(store, Cap(usd=9)).open()
        for number in range(9):
            await pair(one, str(number), 0.3, 0.1 if number % 3 else None)

    do(work())
    found, replayed = do(balance(store, "team")), Balance()
    for segment in do(all_segments(store)):
        for entry in segment.entries:
            replayed.apply(entry)
        replayed.number = segment.number
    assert asdict(found) == asdict(replayed) and found.number == 15
    root = Path(store.location)
    assert len(list((root / "snapshots/team").iterdir())) == 3
    for snapshot in (root / "snapshots/team").iterdir():
        snapshot.write_bytes(b'{"number": 3')
    assert asdict(do(balance(store, "team"))) == asdict(found)


def test_what_is_before_the_last_snapshot_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SNAPSHOT_EVERY", 2)
    do(spend(store))
    (Path(store.location) / "accounts/team/0000000001.jsonl").write_bytes(b"gone")
    assert do(balance(store, "team")).settled == ledger.exact(0.2)


async def spend(store: Store, cost: float | None = 0.2) -> None:
    assert await pair(await account(store, Cap(usd=1)).open(), "a", 0.5, cost)


@pytest.mark.parametrize("cut", [2, 20, 120])
def test_a_torn_last_segment_is_an_error_that_says_what_is_safe(store: Store, cut: int) -> None:
    do(spend(store))
    last = Path(store.location) / "accounts/team/0000000002.jsonl"
    last.write_bytes(last.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"0000000002.jsonl is damaged.*Answers and all segments before it are whole"):
        do(account(store).open())
    last.unlink()
    found = do(balance(store, "team"))
    assert (found.settled, found.reserved) == (0, ledger.exact(0.5))  # counted at its worst again, never forgotten


def test_a_missing_segment_is_an_error(store: Store) -> None:
    do(spend(store))
    (Path(store.location) / "accounts/team/0000000001.jsonl").unlink()
    with pytest.raises(UserError, match=r"0000000001.jsonl is missing"):
        do(account(store).open())


def test_a_store_that_goes_away_is_an_error_that_says_what_is_safe(store: Store) -> None:
    async def work() -> None:
        one = await account(store, Cap(usd=9)).open()
        assert await pair(one, "a", 0.5, 0.2)
        root = Path(store.location)
        root.rename(root.with_name("elsewhere"))
        root.write_text("not a folder")
        with pytest.raises(UserError, match=r"teacher.store .*written before are whole"):
            await one.reserve("b", 0.5)
        root.unlink()
        root.with_name("elsewhere").rename(root)
        assert await pair(one, "b", 0.5, 0.1)  # the same writer goes on when the store is back

    do(work())
    assert do(balance(store, "team")).settled == ledger.exact(0.3)


def test_a_full_disk_is_an_error_and_keeps_what_was_settled(store: Store) -> None:
    do(spend(store))
    script = (
        "import asyncio, resource, sys\n"
        "from test_ledger import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # a write past it fails as on a full disk\n"
        "asyncio.run(spend(open_store(sys.argv[1])))\n"
    )
    here = Path(__file__).parent
    command = [sys.executable, "-c", script, store.location]
    failed = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=60, check=False)
    assert "UserError: teacher.store" in failed.stderr and "written before are whole" in failed.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100
    assert do(balance(store, "team")).settled == ledger.exact(0.2)
    do(spend(store, 0.1))
    assert do(balance(store, "team")).settled == ledger.exact(0.3)


def test_segments_can_be_read_as_tables(store: Store) -> None:
    do(spend(store))
    rows = pyarrow.json.read_json(Path(store.location) / "accounts/team/0000000002.jsonl").to_pylist()
    assert [row["op"] for row in rows] == ["settle", "end"] and rows[0]["usd"] == 0.2


# --- what a person reads


def command(store: Store, *arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["ledger", "--store", store.location, *arguments], catch_exceptions=True)


@pytest.mark.parametrize("arguments", [[], ["--verify"], ["release", "team"]])
def test_a_store_that_is_not_there_is_not_made_and_proves_nothing(tmp_path: Path, arguments: list[str]) -> None:
    place = tmp_path / "typo"
    with pytest.raises(UserError, match="typo: there is none; a run's is STORAGE/teacher"):
        CliRunner().invoke(cli.app, ["ledger", "--store", str(place), *arguments], catch_exceptions=False)
    assert not place.exists()


def test_release_takes_the_store_where_people_write_it(store: Store) -> None:
    do(spend(store, None))
    asked = ["ledger", "release", "team", "--store", store.location]
    result = CliRunner().invoke(cli.app, asked, catch_exceptions=False)
    assert "account team: released 1 open queries" in result.stdout


def test_totals_by_model_run_and_day(store: Store) -> None:
    async def work() -> None:
        for buyer, cost in (("x", 0.1), ("y", 0.25)):
            one = await account(store, Cap(usd=2.0), buyer=buyer).open()
            await pair(one, "a", 0.5, cost)
            await pair(one, "b", 0.5, None)

    do(work())
    result = command(store, "--json", "--verify")
    assert result.exit_code == 0
    [found] = json.loads(result.stdout)
    assert found["total"] | {"released": 0} == {
        "queries": 4,
        "settled": 2,
        "released": 0,
        "open": 2,
        "lost": 0,
        "settled_usd": 0.35,
        "open_usd": 1.0,
        "prompt_tokens": 20,
        "completion_tokens": 10,
    }
    assert found["by_run"]["run-x"]["settled_usd"] == 0.1 and found["by_run"]["run-y"]["open_usd"] == 0.5
    assert list(found["by_model"]) == ["gpt-4o"] and len(found["by_day"]) == 1
    assert (found["cap_usd"], found["broken"]) == (2.0, [])
    shown = command(store)
    assert "$0.3500" in shown.stdout and "2 ($1.0000)" in shown.stdout


def test_verify_finds_a_cap_that_was_exceeded(store: Store) -> None:
    """A forged ledger: a second writer that kept to no cap, and then one that claims a lower one."""
    do(spend(store))

    async def work() -> None:
        await pair(await account(store).open(), "b", 5.0, 4.0)
        await account(store, Cap(usd=1.0)).open()

    do(work())
    path = Path(store.location) / "accounts/team/0000000003.jsonl"
    path.write_text(path.read_text().replace('"cap_usd": null', '"cap_usd": 1.0'))
    result = command(store, "--verify")
    assert result.exit_code == 1
    assert "segment 3: $5.200000 settled and open, over the cap of $1.0" in result.stderr


def test_a_person_releases_what_was_lost(store: Store) -> None:
    async def work() -> None:
        one = await account(store, Cap(usd=1.0)).open()
        await pair(one, "aaa", 0.4, None)
        await pair(one, "bbb", 0.4, None)
        assert await one.reserve("ccc", 0.4) is None

    do(work())
    assert "released 1 open" in command(store, "release", "team", "aa").stdout
    assert do(statement.statement(store, "team")).cap_usd == 1.0, "who gives back has no cap of his own"
    assert do(balance(store, "team")).reserved == ledger.exact(0.4)
    assert isinstance(command(store, "release", "team", "aa").exception, UserError)
    assert isinstance(command(store, "release", "nobody").exception, UserError)
    assert "released 1 open" in command(store, "release", "team").stdout
    found = do(balance(store, "team"))
    assert (found.queries, found.reserved) == (0, 0)


# --- claims


def claims(store: Store, beat: float = 0.02, lapse: float = 20.0) -> Claims:
    return Claims(store, beat, lapse)


def test_a_claim_is_one_process_s_until_it_ends_or_gives_it_up(store: Store) -> None:
    async def work() -> None:
        async with claims(store) as first, claims(store) as second:
            assert await first.take("k") and not await second.take("k")
            assert await second.take("other")
            await first.give_up("k")
            assert await second.take("k") and not await first.take("k")
            async with claims(store) as third:
                assert await third.take("m")
            assert await first.take("m")  # its owner has ended

    do(work())


def test_a_claim_lapses_when_its_owner_s_pulse_stops(store: Store) -> None:
    async def work() -> None:
        async with claims(store, lapse=0.3) as alive, claims(store, beat=99.0) as killed:
            assert await alive.take("k") and await killed.take("m")
            watcher = claims(store, lapse=0.3)
            async with watcher:
                assert not await watcher.take("k") and not await watcher.take("m")
                await asyncio.sleep(0.5)
                assert not await watcher.take("k") and await watcher.take("m")

    do(work())


class Counting(Store):
    """Counts the pulses that are written, and is away for the second one."""

    pulses: ClassVar[list[str]] = []

    async def put(self, path: str, data: bytes) -> None:
        self.pulses.append(path)
        if len(self.pulses) == 2:
            raise UserError("the store is away")
        await asyncio.sleep(0.01)
        await super().put(path, data)


def test_many_claims_at_once_have_one_pulse_which_outlives_a_store_that_is_away_for_a_moment(store: Store) -> None:
    counting = Counting(store.objects, store.location)
    counting.pulses.clear()

    async def work() -> None:
        began = time.monotonic()
        async with claims(counting, beat=0.1) as many, claims(store, lapse=0.8) as watcher:
            assert all(await asyncio.gather(*[many.take(f"k{number}") for number in range(30)]))
            for _ in range(14):
                assert not await watcher.take("k0")
                await asyncio.sleep(0.1)
            assert 4 <= len(counting.pulses) <= (time.monotonic() - began) / 0.1 + 2
        assert await store.paths("pulses") == []

    do(work())


def test_only_one_of_many_takes_over_a_claim(store: Store) -> None:
    async def work() -> None:
        async with claims(store) as gone:
            assert await gone.take("k")
        heirs = [claims(store) for _ in range(8)]
        taken = await asyncio.gather(*[heir.take("k") for heir in heirs])
        assert sum(taken) == 1
        for heir in heirs:
            await heir.__aexit__(None, None, None)

    do(work())


# --- writers that wait together


class Slow(Store):
    """Takes a moment for each object, so that entries queue up; fails for those that hold ``broken``."""

    async def create(self, path: str, data: bytes) -> bool:
        await asyncio.sleep(0.05)
        if b'"broken"' in data:
            raise UserError("the store is gone")
        return await super().create(path, data)


def test_an_error_of_the_store_reaches_everybody_who_waits_and_nobody_waits_for_ever(store: Store) -> None:
    async def work() -> list[Any]:
        one = await account(Slow(**vars(store))).open()
        first = asyncio.create_task(one.reserve("broken", 0.1))
        await asyncio.sleep(0.01)  # it is being written; what comes now waits for the next segment
        others = [asyncio.create_task(one.reserve(key, 0.1)) for key in ("a", "b")]
        async with asyncio.timeout(5):
            return await asyncio.gather(first, *others, return_exceptions=True)

    failed, *written = do(work())
    assert isinstance(failed, UserError) and all(isinstance(name, str) for name in written)


def test_one_who_stops_waiting_does_not_stop_the_others(store: Store) -> None:
    async def work() -> list[Any]:
        one = await account(Slow(**vars(store))).open()
        tasks = [asyncio.create_task(one.reserve(key, 0.1)) for key in ("a", "b", "c")]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        async with asyncio.timeout(5):
            return await asyncio.gather(*tasks, return_exceptions=True)

    cancelled, *written = do(work())
    assert isinstance(cancelled, asyncio.CancelledError) and all(isinstance(name, str) for name in written)
    assert len(do(balance(store, "team")).open) == 3  # it may have been sent: it stays counted


def test_a_snapshot_on_its_way_takes_no_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SNAPSHOT_EVERY", 1)

    async def work() -> None:
        one = await account(Slow(**vars(store)), Cap(usd=0.2)).open()
        first = asyncio.create_task(one.reserve("a", 0.1))
        await asyncio.sleep(0.07)  # the segment is written, the snapshot is not
        assert await one.reserve("b", 0.1) and await first

    do(work())
