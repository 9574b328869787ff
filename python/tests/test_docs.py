"""Examples in docstrings, and those of the README."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import gfocal

MODULES = sorted(module.name for module in pkgutil.iter_modules(gfocal.__path__) if module.name != "_native")
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("_")])
def test_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"gfocal.{name}")).failed == 0


def test_public_names_are_documented() -> None:
    for name in gfocal.__all__:
        value = getattr(gfocal, name)
        assert isinstance(value, str) or (value.__doc__ or "").strip(), name


def test_operations_open_with_their_formula() -> None:
    for name in (
        "quality_focal_loss",
        "distribution_focal_loss",
        "gfl",
        "integral",
        "box_loss",
        "iou",
        "decode",
        "head_loss",
        "atss",
    ):
        text = getattr(gfocal, name).__doc__
        assert "::\n" in text.partition("Args:")[0] and ">>> " in text, name


def test_readme_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        if "# not run" not in block:
            exec(compile(block, str(README), "exec"), {})
