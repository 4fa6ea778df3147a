"""One place for bytes: a local folder and a real S3 server behave alike."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from bridge_ray import copies, logs, storage
from bridge_ray.errors import UserError
from bridge_ray.inference import models


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3")) if request.param == "s3" else str(tmp_path / "deep" / "place")


def test_small_objects(place: str) -> None:
    here = storage.join(place, "runs", "demo", "manifest.json")
    assert storage.read_json(here) is None and not storage.exists(here)
    storage.write_json(here, {"a": 1})
    storage.write_json(here, {"a": 2})
    assert storage.read_json(here) == {"a": 2} and storage.exists(here)


def test_a_place_that_cannot_be_written_is_said_in_one_line(s3: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for nowhere in ("s3://no-such-bucket/x", str(tmp_path / "file")):
        with pytest.raises(UserError, match=rf"^storage {nowhere}/a: cannot be written: .*; mend the storage") as found:
            storage.write_bytes(f"{nowhere}/a", b"a")
        assert "\n" not in str(found.value)
    with (
        pytest.raises(UserError, match="file/logs: cannot be made: Not a directory"),
        logs.captured(tmp_path / "file/logs"),
    ):
        pass


def test_tables(place: str) -> None:
    table = pa.table({"id": [0, 1, 2], "text": ["a", "b", "c"]})
    storage.write_table(storage.join(place, "rows", "one.parquet"), table)
    storage.write_table(storage.join(place, "rows", "two.parquet"), table)
    assert storage.count_rows(storage.files(storage.join(place, "rows"))) == 6
    assert storage.read_table(storage.join(place, "rows"), ["id"])["id"].to_pylist() == [0, 1, 2, 0, 1, 2]


def test_folders_are_listed_and_deleted(place: str) -> None:
    for name in ("b", "a"):
        storage.write_json(storage.join(place, "stages", name, "manifest.json"), {})
    assert storage.folders(storage.join(place, "stages")) == ["a", "b"]
    storage.delete(storage.join(place, "stages", "a"))
    storage.delete(storage.join(place, "stages", "never"))
    assert storage.folders(storage.join(place, "stages")) == ["b"]
    assert storage.folders(storage.join(place, "nowhere")) == []


def test_a_model_directory_goes_up_and_comes_down_once(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "weights.safetensors").write_bytes(b"1234")
    storage.upload(model, storage.join(place, "model"))
    copy = Path(copies.localise(storage.join(place, "model")))
    assert (copy / "config.json").read_text() == "{}" and (copy / "sub" / "weights.safetensors").read_bytes() == b"1234"
    assert copies.localise(storage.join(place, "model")) == str(copy)
    (model / "config.json").write_text('{"changed": 1}')
    storage.upload(model, storage.join(place, "model"))
    assert (Path(copies.localise(storage.join(place, "model"))) / "config.json").read_text() == '{"changed": 1}'


def test_a_model_that_was_replaced_at_its_url_is_another_one(tmp_path: Path) -> None:
    """Else what was made with the old one would be taken for the new one's."""
    url, config = f"file://{tmp_path}/model", tmp_path / "model" / "config.json"
    config.parent.mkdir()
    config.write_text("{}")
    first = models.identity(url)
    assert models.identity(url) == first and url in first
    config.write_text("{ }")
    assert models.identity(url) != first


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/model"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("pyarrow.fs.copy_files", full)
        with pytest.raises(OSError, match="no space left"):
            copies.localise(url)
    assert [path for path in (tmp_path / "cache" / "bridge_ray" / "copies").iterdir() if path.is_dir()] == []
    assert (Path(copies.localise(url)) / "config.json").read_text() == "{}"


def test_copies_make_room_for_others_on_a_full_disk_but_not_what_may_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 100 bytes, which holds three copies of 30."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "bridge_ray" / "copies"

    def disk(_: Path) -> Any:
        used = 30 * sum(path.is_dir() for path in folder.iterdir())
        return SimpleNamespace(total=100, used=used, free=100 - used)

    def copy(name: str, hours: float) -> Path:
        """A copy that was last used so long ago."""
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "weights").write_bytes(b"0" * 30)
        made = Path(copies.localise(f"file://{tmp_path}/{name}"))
        os.utime(made, (0, time.time() - 3600 * hours))
        return made

    monkeypatch.setattr("shutil.disk_usage", disk)
    first, second, third = copy("first", 3), copy("second", 9), copy("third", 0.5)
    copies.localise(f"file://{tmp_path}/second")  # used again: now the first is the one that was not for longest
    fourth = copy("fourth", 0.5)
    assert [path.is_dir() for path in (first, second, third, fourth)] == [False, True, True, True]
    fifth = copy("fifth", 0)  # all others were used within the hour: it does not fit, and nothing is taken away
    assert all(path.is_dir() for path in (second, third, fourth, fifth))


def test_a_process_that_dies_while_it_makes_room_leaves_no_half_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"0" * 30)
        (tmp_path / name / "config.json").write_text("{}")
    old = Path(copies.localise(f"file://{tmp_path}/old"))
    os.utime(old, (0, 0))

    def killed(path: Path, **_: object) -> None:
        next(path.rglob("config.json")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr("shutil.rmtree", killed)
        dying.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=40, used=30, free=10))
        with pytest.raises(KeyboardInterrupt):
            copies.localise(f"file://{tmp_path}/new")
    again = Path(copies.localise(f"file://{tmp_path}/old"))
    assert sorted(path.name for path in again.iterdir()) == ["config.json", "weights"]


def test_a_disk_that_others_have_filled_costs_no_copies_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing all of them would not leave a twentieth of it free either."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=100_000, used=99_900, free=100))
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"0" * 30)
        os.utime(copy := Path(copies.localise(f"file://{tmp_path}/{name}")), (0, 0))
        assert copy.is_dir()
    assert len([path for path in copy.parent.iterdir() if path.is_dir()]) == 2


def test_keys_may_come_from_a_mounted_file(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both libraries must find them: without keys, each would ask the cloud's metadata service and fail."""
    keys = tmp_path / "credentials"
    keys.write_text("[default]\naws_access_key_id = testing\naws_secret_access_key = s3-test-secret\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    storage.write_json(storage.join(s3, "small.json"), {"a": 1})
    assert storage.read_json(storage.join(s3, "small.json")) == {"a": 1}
