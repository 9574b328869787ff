"""What all tests have in common."""

from __future__ import annotations

import ctypes

import pytest
import torch


def pytest_report_header() -> str:
    import gfocal

    return f"gfocal {gfocal.__version__} of {gfocal.__path__[0]}, torch {torch.__version__}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of device memory need a driver: the emulated one, or a real one."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        reason = "no CUDA driver: run them by `cargo run -p gfocal-emulator -- python -m pytest python/tests/cuda`"
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=reason))
