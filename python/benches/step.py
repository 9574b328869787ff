"""How long calls take beside the originals: medians, and ratios within one run.

    python python/benches/step.py [--quick]

Needs mmdetection (see tests/requirements.txt). Run it on a quiet machine: the variants are timed in turn, some calls of
each in a row, so that what disturbs one disturbs the others.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

import gfocal

sys.path.append(str(Path(__file__).parents[1]))
importlib.import_module("tests.clients.conftest")  # in place of mmcv's compiled operators
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmdet.models.losses import QualityFocalLoss
    from mmdet.registry import MODELS
    from mmengine.structures import InstanceData

    import gfocal.mmdet

warnings.simplefilter("ignore")


def medians(variants: dict[str, Callable[[], Any]], repeats: int, inner: int = 1) -> dict[str, float]:
    """Milliseconds of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(repeats):
        for name, run in variants.items():
            start = time.perf_counter()
            for _ in range(inner):
                run()
            times[name].append((time.perf_counter() - start) / inner * 1e3)
    return {name: statistics.median(of) for name, of in times.items()}


def table(title: str, found: dict[str, float], base: str, unit: str = "ms") -> None:
    print(f"\n{title}")
    for name, milliseconds in found.items():
        shown = milliseconds * 1e3 if unit == "µs" else milliseconds
        print(f"  {name:34} {shown:9.2f} {unit}   {found[base] / milliseconds:6.2f} times as fast as {base}")


class Empty(Function):
    """An autograd function that does nothing."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor) -> Tensor:
        ctx.save_for_backward(pred)
        return pred.new_empty(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return ctx.saved_tensors[0]


def scene(rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    pred = torch.randn(rows, classes, requires_grad=True)
    return pred, torch.randint(0, classes + 1, (rows,)), torch.rand(rows)


def overhead(repeats: int) -> None:
    pred, labels, score = scene(16, 20)
    original = QualityFocalLoss()

    def empty() -> None:
        pred.grad = None
        Empty.apply(pred).backward()

    def ours() -> None:
        pred.grad = None
        gfocal.quality_focal_loss(pred, (labels, score)).backward()

    def theirs() -> None:
        pred.grad = None
        original(pred, (labels, score)).backward()

    found = medians({"an empty autograd.Function": empty, "gfocal": ours, "mmdetection": theirs}, repeats, 15)
    table("QFL 16 x 20, forward and backward", found, "mmdetection", "µs")
    print(f"  gfocal over the empty function: {(found['gfocal'] - found['an empty autograd.Function']) * 1e3:.1f} µs")


def qfl(repeats: int, compiled: bool) -> None:
    pred, labels, score = scene(20_000, 80)
    original = QualityFocalLoss()
    variants: dict[str, Callable[[], Any]] = {}

    def add(name: str, loss: Callable[..., Tensor]) -> None:
        def run() -> None:
            pred.grad = None
            loss(pred, (labels, score)).backward()

        variants[name] = run

    add("mmdetection", original)
    if compiled:
        add("mmdetection, torch.compile", torch.compile(original))
    add("gfocal", gfocal.quality_focal_loss)
    table("QFL 20000 x 80, forward and backward", medians(variants, repeats), "mmdetection")


STRIDES, SIZE, CLASSES = [8, 16, 32, 64, 128], (320, 480), 80


def step(repeats: int) -> None:
    """Assignment, loss and gradients of the outputs, of four padded images."""
    torch.manual_seed(0)
    shapes = [(-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in STRIDES]
    cls = [(torch.randn(4, CLASSES, *shape) - 3).requires_grad_() for shape in shapes]
    boxes = [torch.randn(4, 68, *shape).requires_grad_() for shape in shapes]
    sizes = [(320, 480), (300, 480), (320, 400), (256, 448)]
    instances = []
    for height, width in sizes:
        corner = torch.rand(8, 2) * torch.tensor([width - 120.0, height - 120.0])
        box = torch.cat([corner, corner + 20 + 100 * torch.rand(8, 2)], 1)
        instances.append(InstanceData(bboxes=box, labels=torch.randint(0, CLASSES, (8,))))
    metas = [dict(img_shape=size, pad_shape=size) for size in sizes]
    variants: dict[str, Callable[[], Any]] = {}
    for name, kind, prefix in [
        ("mmdetection", "GFLHead", ""),
        ("gfocal, losses by type name", "GFLHead", "Gfocal"),
        ("gfocal, whole head", "GfocalGFLHead", ""),
    ]:
        head = MODELS.build(
            dict(
                type=kind, num_classes=CLASSES, in_channels=8, feat_channels=8, stacked_convs=1,
                norm_cfg=dict(type="GN", num_groups=2),
                anchor_generator=dict(
                    type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=STRIDES
                ),
                loss_cls=dict(type=f"{prefix}QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
                loss_dfl=dict(type=f"{prefix}DistributionFocalLoss", loss_weight=0.25),
                loss_bbox=dict(type=f"{prefix}GIoULoss", loss_weight=2.0),
                train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1),
            )
        )  # fmt: skip

        def run(head: Any = head) -> None:
            for output in (*cls, *boxes):
                output.grad = None
            losses = head.loss_by_feat(cls, boxes, instances, metas)
            sum(value for values in losses.values() for value in values).backward()

        variants[name] = run
    table("Loss step: 4 images of 320 x 480, 80 classes, ATSS", medians(variants, repeats, 5), "mmdetection")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repeats, no torch.compile: to see that it runs")
    quick = parser.parse_args().quick
    print(f"gfocal {gfocal.__version__}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    overhead(3 if quick else 200)
    qfl(2 if quick else 30, not quick)
    step(2 if quick else 15)


if __name__ == "__main__":
    main()
