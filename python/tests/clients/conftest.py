"""mmdetection without the compiled operators of mmcv, none of which these tests call."""

from __future__ import annotations

import sys
import types
from typing import Any


class _Operators(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def operator(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(f"mmcv's compiled operator {name}")

        return operator


sys.modules.setdefault("mmcv._ext", _Operators("mmcv._ext"))
