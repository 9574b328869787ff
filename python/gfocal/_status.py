"""Counts of inputs that could not be used as they were."""

from __future__ import annotations

from torch import Tensor

from . import _native

WORDS = 9


class Status:
    """Counts of unusable labels, scores, targets and boxes, for the ``status`` argument of losses and assignments.

    Such values never stop a computation: a row with a label that is neither a class nor background, or with a score
    that is NaN, gives no loss and no gradient; a DFL target outside the bins is clamped; a box that is not finite or
    empty takes no part in an assignment. Each is counted here. Counts stay on the device until they are asked for: to
    read one waits for the device, to be given to a call does not.

    A status may be given to several calls, whose counts are added up, until ``reset``.

    >>> import torch, gfocal
    >>> status = gfocal.Status()
    >>> labels, score = torch.tensor([0, 7]), torch.tensor([0.5, 0.5])
    >>> _ = gfocal.quality_focal_loss(torch.zeros(2, 3), (labels, score), status=status)
    >>> status
    Status(bad_labels=1, first_bad_row=1)
    """

    def __init__(self) -> None:
        self._words: list[Tensor] = []

    def add(self, words: Tensor | None) -> None:
        """What an operator of ``torch.ops.gfocal`` gave as its status."""
        if words is not None:
            self._words.append(words)

    def reset(self) -> None:
        """Forgets all counts."""
        self._words.clear()

    def counts(self) -> dict[str, int | None]:
        """All counts by name, and under ``first_…`` the row or box of the first, or None. Waits for the device."""
        total: dict[str, int | None] = _native.read_status([0] * WORDS)
        for words in self._words:
            for name, count in _native.read_status(words.tolist()).items():
                before = total[name]
                if name.startswith("first_"):
                    total[name] = count if before is None else before
                else:
                    total[name] = (before or 0) + (count or 0)
        return total

    def __getattr__(self, name: str) -> int | None:
        counts = {} if name.startswith("_") else self.counts()
        if name not in counts:
            raise AttributeError(f"a Status has no {name!r}; it has {', '.join(counts)}")
        return counts[name]

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong. Waits for the device."""
        return not any(self.counts().values())

    def __repr__(self) -> str:
        wrong = ", ".join(f"{name}={count}" for name, count in self.counts().items() if count not in {0, None})
        return f"Status({wrong or 'ok'})"


def is_counted(status: Status | None) -> bool:
    """Whether a call is given one."""
    if status is None:
        return False
    if not isinstance(status, Status):
        raise TypeError(f"status must be a gfocal.Status, not {type(status).__name__}")
    return True
