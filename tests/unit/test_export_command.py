"""A trained model leaves its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge_ray import storage
from bridge_ray.errors import UserError
from bridge_ray.export import export


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run whose student and TA were trained where the storage was before it was copied here."""
    root = tmp_path / "storage"
    stages = {}
    for stage in ("train_student", "train_ta"):
        place = root / "stages" / stage / "abc"
        (place / "model").mkdir(parents=True)
        (place / "model" / "model.safetensors").write_text(stage)
        stages[stage] = {"location": f"/elsewhere/stages/{stage}/abc"}
    fingerprints = dict.fromkeys(stages, "abc")
    storage.write_json(str(root / "runs" / "mine" / "manifest.json"), {"stages": stages, "fingerprints": fingerprints})
    (root / "runs" / "mine" / "model_card.md").write_text("# card")
    return root


def test_the_student_comes_with_its_card(root: Path, tmp_path: Path) -> None:
    export(str(root), "mine", "bridge", tmp_path / "out" / "student")
    found = {path.name: path.read_text() for path in (tmp_path / "out" / "student").iterdir()}
    assert found == {"model.safetensors": "train_student", "README.md": "# card"}


def test_another_model_has_no_card_of_the_students(root: Path, tmp_path: Path) -> None:
    export(str(root), "mine", "ta", tmp_path / "ta")
    assert {path.name: path.read_text() for path in (tmp_path / "ta").iterdir()} == {"model.safetensors": "train_ta"}


def test_a_model_that_is_gone_leaves_nothing_behind(root: Path, tmp_path: Path) -> None:
    storage.delete(str(root / "stages" / "train_ta" / "abc" / "model"))
    with pytest.raises(UserError, match="train_ta/abc/model: no model is there; run mine again"):
        export(str(root), "mine", "ta", tmp_path / "ta")
    assert not (tmp_path / "ta").exists()


@pytest.mark.parametrize(
    ("name", "system", "said"),
    [
        ("other", "bridge", "no such run; start it with: bridge-ray run RECIPE --name other"),
        ("../mine", "bridge", "is not one; see the folders in"),
        ("mine", "teacher", "--system teacher: no such model; a run trains bridge, direct, direct_labels, labels, ta"),
        ("mine", "direct", "run mine has no direct \\(yet\\): its stage train_direct is not done"),
    ],
)
def test_what_is_not_there_is_said(root: Path, tmp_path: Path, name: str, system: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        export(str(root), name, system, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        export(str(root), "mine", "bridge", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
