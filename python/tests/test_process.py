"""Processes and threads: forks, threads at once, other threads' turns, distributed training."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

import gfocal

ROWS, CLASSES = 4096, 80


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    pred = torch.randn(ROWS, CLASSES, generator=source)
    return pred, torch.randint(0, CLASSES + 1, (ROWS,), generator=source), torch.rand(ROWS, generator=source)


def gradient(seed: int = 0) -> torch.Tensor:
    pred, labels, score = scene(seed)
    pred.requires_grad_()
    gfocal.quality_focal_loss(pred, (labels, score)).backward()
    assert pred.grad is not None
    return pred.grad


def few() -> list[float]:
    # PyTorch's own parallel operations, as a sum of many, do hang in a forked child.
    found: list[float] = gradient()[::512, 0].tolist()
    return found


def _in_child(queue: Any) -> None:
    queue.put(few())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork() -> None:
    """A child has none of its parent's threads: a call in it must not wait for them."""
    want = few()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == want
    child.join(60)
    assert child.exitcode == 0
    assert few() == want


def test_threads() -> None:
    want = [gradient(seed) for seed in range(4)]
    wrong: list[int] = []

    def run(seed: int) -> None:
        wrong.extend(seed for _ in range(10) if not torch.equal(gradient(seed), want[seed]))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_threads_run_meanwhile() -> None:
    pred = torch.randn(200_000, CLASSES)
    labels, score = torch.full((len(pred),), CLASSES), torch.zeros(len(pred))
    counted, stop = 0, threading.Event()

    def count() -> None:
        nonlocal counted
        while not stop.is_set():
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    while counted == 0:
        time.sleep(0.001)
    before = counted
    gfocal.quality_focal_loss(pred, (labels, score))
    during = counted - before
    stop.set()
    thread.join()
    assert during > 100


def test_the_number_of_threads_makes_no_difference() -> None:
    want = gradient()
    try:
        for threads in (1, 2, 3, 0):
            gfocal.set_num_threads(threads)
            assert torch.equal(gradient(), want)
    finally:
        gfocal.set_num_threads(torch.get_num_threads())


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(9)
    x = torch.randn(8, 8, generator=source)
    return x, torch.randint(0, 6, (8,), generator=source), torch.rand(8, generator=source)


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = torch.nn.parallel.DistributedDataParallel(Net())
    x, labels, score = (part.chunk(2)[rank] for part in batch())
    gfocal.quality_focal_loss(net(x), (labels, score)).backward()
    if rank == 0:
        torch.save(net.module.layer.weight.grad, f"{folder}/grad.pt")
    dist.destroy_process_group()


def test_ddp(tmp_path: Any) -> None:
    """Two processes with half a batch each have the gradient of one with all of it."""
    torch.multiprocessing.spawn(_worker, args=(str(tmp_path),), nprocs=2)
    net = Net()
    x, labels, score = batch()
    gfocal.quality_focal_loss(net(x), (labels, score)).backward()
    assert net.layer.weight.grad is not None
    grad = torch.load(f"{tmp_path}/grad.pt")
    assert (grad - net.layer.weight.grad).abs().max() <= 1e-6 * net.layer.weight.grad.abs().max()
    assert os.path.exists(f"{tmp_path}/store")


def test_grad_scaler_skips_an_overflow() -> None:
    """What overflows in float16 is seen by PyTorch's scaler, which takes the step back and halves its scale."""
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)
    x, labels, score = batch()
    scales, losses = [], []
    for _ in range(12):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = gfocal.quality_focal_loss(net(x), (labels, score), reduction="sum")
        assert loss.dtype is torch.float32
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        losses.append(loss.item())
    assert scales[0] < 2.0**18 and scales[-1] == scales[-2]
    assert losses[-1] < losses[0]
