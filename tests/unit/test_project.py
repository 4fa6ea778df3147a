"""The project's own files agree with one another: pins, extras, addresses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(extra: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{extra}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_what_pyproject_fixes_is_pinned_the_same(extra: str) -> None:
    fixed = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"][extra]]
    exact = [re.fullmatch(r"([\w-]+)(?:\[.*\])?==(\S+)", requirement) for requirement in fixed]
    expected = {found[1]: found[2] for found in exact if found}
    found = {name: pins(extra)[name].removesuffix("+cpu") for name in expected}
    assert found == expected
    assert {"ray", "deepspeed", "torch"} <= set(expected)


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_pins_carry_no_addresses_and_every_package_once(extra: str) -> None:
    text = (ROOT / "requirements" / f"{extra}.txt").read_text()
    assert re.fullmatch(r"(?:[a-z0-9-]+==[\w.+]+\n)+", text)
    assert len(pins(extra)) == len(text.splitlines())


def test_the_extras_are_declared_as_conflicting() -> None:
    assert PROJECT["tool"]["uv"]["conflicts"] == [[{"extra": "cpu"}, {"extra": "gpu"}]]
