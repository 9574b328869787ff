"""The golden files: inputs and results in float64 of mmdetection's own functions, and under family of others'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "tests" / "golden"


def names(prefix: str) -> list[str]:
    """Those that begin so."""
    found = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob(f"{prefix}*.safetensors"))
    assert found, f"no {prefix}* in {FOLDER}"
    return found


def read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and the parameters of the case."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["case"])


def exact(case: dict[str, Any], dtype: torch.dtype) -> bool:
    """Whether a type holds the inputs of a case as they are; else the truth is that of the rounded ones."""
    return dtype in {torch.float64, torch.float32} or bool(case.get("exact_in_half"))
