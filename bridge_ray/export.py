"""A model that a run has trained, and its card, in one folder to hand on."""

from __future__ import annotations

from pathlib import Path

from bridge_ray import storage
from bridge_ray.errors import UserError
from bridge_ray.report.status import recorded

STAGES = {
    "bridge": "train_student",
    "direct": "train_direct",
    "direct_labels": "train_direct_labels",
    "labels": "train_labels",
    "ta": "train_ta",
}
CARD = "README.md"  # where the hub and people look for a card


def export(root: str, name: str, system: str, to: Path) -> None:
    """Copy a system's model, a plain transformers directory, to a new folder; the student's comes with its card.

    Raises UserError for a run, a system or a folder that will not do; then nothing is written.
    """
    if system not in STAGES:
        raise UserError(f"--system {system}: no such model; a run trains {', '.join(STAGES)}")
    home, manifest = recorded(root, name)
    if STAGES[system] not in manifest["stages"]:
        raise UserError(f"run {name} has no {system} (yet): its stage {STAGES[system]} is not done")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to} is not empty; name a new folder")
    stage = STAGES[system]  # where it is now: a storage may have been copied or mounted elsewhere since
    model = storage.join(storage.root(root), "stages", stage, manifest["fingerprints"][stage], "model")
    if not storage.files(model, ".safetensors"):
        raise UserError(f"{model}: no model is there; run {name} again (bridge-ray run) to make what is missing")
    storage.download(model, to)
    card = storage.read_bytes(storage.join(home, "model_card.md"))
    if system == "bridge" and card is not None:
        (to / CARD).write_bytes(card)
