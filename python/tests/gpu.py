"""What only a real GPU shows of the Python package: `python gpu.py`, for the GPU kit. Needs PyTorch and gfocal alone.

Each check prints a line; the exit status is that of the worst.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gfocal

CUDA = torch.device("cuda")


def scene(rows: int = 33_600, classes: int = 80, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    pred = (torch.randn(rows, classes, generator=source) * 3 - 3).to(dtype)
    return pred, torch.randint(0, classes + 1, (rows,), generator=source), torch.rand(rows, generator=source)


def near(got: Tensor, want: Tensor, relative: float, what: str) -> None:
    error = ((got.double().cpu() - want.double()).abs().max() / want.double().abs().max()).item()
    assert error <= relative, f"{what}: {error} of the largest, at most {relative} is right"


def loss_and_gradient(device: torch.device | str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    pred, labels, score = (tensor.to(device) for tensor in scene(dtype=dtype))
    pred.requires_grad_()
    loss = gfocal.quality_focal_loss(pred, (labels, score), avg_factor=score.sum())
    (3 * loss).backward()
    assert pred.grad is not None
    return loss.detach(), pred.grad


def as_on_the_cpu() -> None:
    for dtype, step in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)):
        (loss, grad), (want, want_grad) = loss_and_gradient(CUDA, dtype), loss_and_gradient("cpu", dtype)
        near(loss, want, 4e-6, f"loss, {dtype}")
        near(grad, want_grad, step, f"gradient, {dtype}")


def head_outputs(device: torch.device | str) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    source = torch.Generator().manual_seed(1)
    shapes = [(40, 60), (20, 30), (10, 15)]
    cls = [(torch.randn(4, 20, *shape, generator=source) - 3).to(device).requires_grad_() for shape in shapes]
    boxes = [torch.randn(4, 68, *shape, generator=source).to(device).requires_grad_() for shape in shapes]
    corner = torch.rand(24, 2, generator=source) * torch.tensor([380.0, 220.0])
    truth = {
        "gt_boxes": torch.cat([corner, corner + 20 + 80 * torch.rand(24, 2, generator=source)], 1),
        "gt_labels": torch.randint(0, 20, (24,), generator=source),
        "gt_image": torch.arange(24) // 6,
    }
    return cls, boxes, {name: tensor.to(device) for name, tensor in truth.items()}


def head_as_on_the_cpu() -> None:
    head = gfocal.GFLHeadLoss([8, 16, 32], 20)
    results = []
    for device in (CUDA, "cpu"):
        cls, boxes, truth = head_outputs(device)
        losses = torch.stack(head(cls, boxes, **truth))
        losses.sum().backward()
        grads = torch.cat([x.grad.flatten() for x in (*cls, *boxes) if x.grad is not None])
        results.append((losses.detach(), grads))
    near(results[0][0], results[1][0], 1e-5, "losses")
    near(results[0][1], results[1][1], 1e-5, "gradients")


def nothing_waits() -> None:
    pred, labels, score = (tensor.to(CUDA) for tensor in scene())
    cls, boxes, truth = head_outputs(CUDA)
    head, status = gfocal.GFLHeadLoss([8, 16, 32], 20), gfocal.Status()
    pred.requires_grad_()

    def step() -> None:
        loss = gfocal.quality_focal_loss(pred, (labels, score), avg_factor=score.sum(), status=status)
        (loss + sum(of_level.sum() for of_level in head(cls, boxes, **truth))).backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert status.ok


def graph() -> None:
    """Captured once, replayed on other logits: the same as without."""
    pred, labels, score = (tensor.to(CUDA) for tensor in scene())
    pred.requires_grad_()
    cls, boxes, truth = head_outputs(CUDA)
    head = gfocal.GFLHeadLoss([8, 16, 32], 20)

    def step() -> Tensor:
        for leaf in (pred, *cls, *boxes):
            leaf.grad = None
        loss = gfocal.quality_focal_loss(pred, (labels, score)) + sum(x.sum() for x in head(cls, boxes, **truth))
        loss.backward()
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        loss = step()
    grads = [leaf.grad for leaf in (pred, cls[0], boxes[0])]
    for seed in range(3):
        with torch.no_grad():
            pred.copy_(torch.randn(pred.shape, generator=torch.Generator().manual_seed(seed)))
        captured.replay()
        got, got_grads = loss.clone(), [grad.clone() for grad in grads if grad is not None]
        want = step().detach()
        assert torch.equal(got, want), f"replay {seed}: {got.item()}, without a graph {want.item()}"
        for got_grad, leaf in zip(got_grads, (pred, cls[0], boxes[0])):
            assert leaf.grad is not None and torch.equal(got_grad, leaf.grad), f"gradients of replay {seed}"


def two_streams() -> None:
    want = loss_and_gradient(CUDA, torch.float32)
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for _ in range(20):
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                results.append(loss_and_gradient(CUDA, torch.float32))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, want))


def mixed_precision_training() -> None:
    """Autocast and GradScaler: the loss falls, and one planted overflow is skipped."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 80)).to(CUDA)
    x = torch.randn(4096, 64, device=CUDA)
    labels = x[:, :80].argmax(1)
    score = torch.rand(4096, device=CUDA)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**16)
    losses = []
    for step in range(60):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.float16):
            pred = net(x)
        assert pred.dtype is torch.float16
        loss = gfocal.quality_focal_loss(pred, (labels, score), avg_factor=4096.0)
        planted = 1e9 if step == 20 else 1.0
        before = scaler.get_scale()
        scaler.scale(loss * planted).backward()
        scaler.step(optimizer)
        scaler.update()
        if step == 20:
            assert scaler.get_scale() < before, "the overflow was not seen"
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], f"the loss went from {losses[0]} to {losses[-1]}"


def speed() -> None:
    """QFL 33600 x 80 beside mmdetection's formula in PyTorch's operations; no limit."""
    pred, labels, score = (tensor.to(CUDA) for tensor in scene())
    pred.requires_grad_()

    def eager() -> Tensor:
        sigmoid = pred.sigmoid()
        zeros = torch.zeros_like(pred)
        loss = nn.functional.binary_cross_entropy_with_logits(pred, zeros, reduction="none") * sigmoid**2
        rows = torch.nonzero(labels < pred.shape[1]).squeeze(1)
        at = labels[rows]
        factor = (score[rows] - sigmoid[rows, at]).abs() ** 2
        of_labels = (
            nn.functional.binary_cross_entropy_with_logits(pred[rows, at], score[rows], reduction="none") * factor
        )
        return loss.index_put((rows, at), of_labels).sum(1).mean()

    def ours() -> Tensor:
        return gfocal.quality_focal_loss(pred, (labels, score))

    found = {}
    for name, loss in (("eager", eager), ("gfocal", ours)):
        times = []
        for _ in range(30):
            pred.grad = None
            torch.cuda.synchronize()
            start = time.perf_counter()
            loss().backward()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
        found[name] = sorted(times)[len(times) // 2]
    print(f"   QFL 33600 x 80 f32, ms: {found}, {found['eager'] / found['gfocal']:.1f} times")


CHECKS: list[Callable[[], Any]] = [
    as_on_the_cpu, head_as_on_the_cpu, nothing_waits, graph, two_streams, mixed_precision_training, speed,
]  # fmt: skip


def main() -> int:
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU", file=sys.stderr)
        return 2
    print(f"gfocal {gfocal.__version__}, PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    failed = 0
    for check in CHECKS:
        try:
            check()
            print(f"good    {check.__name__}")
        except Exception:
            failed = 1
            print(f"FAILED  {check.__name__}")
            traceback.print_exc()
    return failed


if __name__ == "__main__":
    sys.exit(main())
