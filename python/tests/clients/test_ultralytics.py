"""Ultralytics' loss beside gfocal's, on their own models."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

os.environ.setdefault("YOLO_OFFLINE", "true")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.loss import v8DetectionLoss

    from gfocal.ultralytics import DetectionLoss

SIZE = 192


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=20, verbose=False)
    model.args = get_cfg()
    return model.train()


def batch(seed: int, empty: bool = False) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    count = 0 if empty else 9
    centre = 0.2 + 0.6 * torch.rand(count, 2, generator=source)
    return {
        "img": torch.rand(2, 3, SIZE, SIZE, generator=source),
        "batch_idx": torch.arange(count) * 2 // max(count, 1),
        "cls": torch.randint(0, 20, (count, 1), generator=source).float(),
        "bboxes": torch.cat([centre, 0.1 + 0.3 * torch.rand(count, 2, generator=source)], 1),
    }


def difference(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-12)).item()


LOSS, LOGITS, WEIGHTS = 4e-6, 8e-6, 2e-5


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n"])
def test_ten_steps(name: str) -> None:
    """Ten steps of the original; each is taken by the swapped loss, too, from the same weights. (Left to themselves
    they part after six: batch normalisation of two images makes much of any difference in the last bit.)"""
    models = [model_of(name), model_of(name)]
    criteria = [v8DetectionLoss(models[0]), DetectionLoss(models[1])]
    optimizer = torch.optim.SGD(models[0].parameters(), lr=0.001, momentum=0.9)
    for step in range(10):
        models[1].load_state_dict(models[0].state_dict())
        results = []
        for model, criterion in zip(models, criteria):
            inputs = batch(step)
            preds = model(inputs["img"])
            for key in ("boxes", "scores"):
                preds[key].retain_grad()
            loss, items = criterion(preds, inputs)
            model.zero_grad()
            loss.sum().backward()
            logits = torch.cat([preds[key].grad.flatten() for key in ("boxes", "scores")])
            weights = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            results.append((loss.detach(), logits, weights))
            assert set(items) == {"box_loss", "cls_loss", "dfl_loss"}
        optimizer.step()
        loss, logits, weights = (difference(got, want) for want, got in zip(*results))
        assert loss <= LOSS and logits <= LOGITS and weights <= WEIGHTS, (step, loss, logits, weights)


def test_class_weights() -> None:
    model = model_of("yolov8n")
    model.class_weights = torch.linspace(0.5, 2.0, 20)
    preds = model(batch(0)["img"])
    want, _ = v8DetectionLoss(model)(preds, batch(0))
    got, _ = DetectionLoss(model)(preds, batch(0))
    assert difference(got, want) <= LOSS


def test_no_objects() -> None:
    """Logits are about -10 here, where PyTorch's cross entropy has lost digits: the truth is that of float64."""
    model = model_of("yolov8n")
    preds = model(batch(0)["img"])
    got, _ = DetectionLoss(model)(preds, batch(0, empty=True))
    want, _ = v8DetectionLoss(model)(preds, batch(0, empty=True))
    truth = 2 * model.args.cls * torch.nn.functional.softplus(preds["scores"].double()).sum()
    assert got[0] == got[2] == want[0] == want[2] == 0
    assert abs(got[1] - truth) <= 2e-6 * truth and difference(got, want) <= 2e-5
