"""Nothing is imported from the source tree that was not built: pytest's `pythonpath` is not set."""

from __future__ import annotations

import torch


def pytest_report_header() -> str:
    import gfocal

    return f"gfocal {gfocal.__version__} of {gfocal.__path__[0]}, torch {torch.__version__}"
