"""mmdetection's GFLHead beside the same with gfocal's losses, and beside gfocal's whole head."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmdet.registry import MODELS
    from mmengine.structures import InstanceData

    import gfocal.mmdet  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore:DeprecationWarning:UserWarning")  # of mmdetection's own calls
CLASSES = 20
STEP_0 = 2e-6
"""Of losses and gradients before the weights differ: relative to the largest of a tensor."""
LATER = 2e-3
"""Of gradients ten steps later, when the weights differ as rounding made them."""


def config(kind: str, swapped: bool) -> dict[str, Any]:
    prefix = "Gfocal" if swapped else ""
    return dict(
        type=kind, num_classes=CLASSES, in_channels=16, feat_channels=16, stacked_convs=1, reg_max=16,
        norm_cfg=dict(type="GN", num_groups=4, requires_grad=True),
        anchor_generator=dict(
            type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32]
        ),
        loss_cls=dict(type=f"{prefix}QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type=f"{prefix}DistributionFocalLoss", loss_weight=0.25),
        loss_bbox=dict(type=f"{prefix}GIoULoss", loss_weight=2.0),
        train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False),
        test_cfg=dict(nms_pre=100),
    )  # fmt: skip


class Net(nn.Module):
    """A small pyramid, and a head."""

    def __init__(self, kind: str, swapped: bool, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, stride=8, padding=1)
        self.down = nn.ModuleList([nn.Conv2d(16, 16, 3, stride=2, padding=1) for _ in range(2)])
        settings = config(kind, swapped)
        settings["train_cfg"] |= options
        self.head: Any = MODELS.build(settings)
        self.head.init_weights()
        torch.manual_seed(1)
        for parameter in self.head.parameters():
            nn.init.normal_(parameter, std=0.1) if parameter.dim() > 1 else None

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        features = [self.stem(images).relu()]
        for layer in self.down:
            features.append(layer(features[-1]).relu())
        outputs: tuple[list[Tensor], list[Tensor]] = self.head(features)
        return outputs


def batch(seed: int, height: int = 192, width: int = 256) -> tuple[Tensor, list[Any], list[dict[str, Any]]]:
    """Four images of different sizes, the last without an object."""
    source = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, height, width, generator=source)
    shapes = [(height, width), (height - 40, width), (height, width - 90), (height - 64, width - 64)]
    instances = []
    for image, shape in enumerate(shapes):
        count = 0 if image == 3 else 6
        corner = torch.rand(count, 2, generator=source) * torch.tensor([shape[1] - 60.0, shape[0] - 60.0])
        size = 12 + 48 * torch.rand(count, 2, generator=source)
        labels = torch.randint(0, CLASSES, (count,), generator=source)
        instances.append(InstanceData(bboxes=torch.cat([corner, corner + size], 1), labels=labels))
    return images, instances, [dict(img_shape=shape, pad_shape=shape) for shape in shapes]


def difference(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max().clamp(min=1e-12)).item()


def steps(nets: list[Net], count: int) -> list[dict[str, float]]:
    """The largest differences of the second net from the first, step by step."""
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9) for net in nets]
    found = []
    for step in range(count):
        images, instances, metas = batch(step)
        results = []
        for net, optimizer in zip(nets, optimizers):
            cls, boxes = net(images)
            for output in (*cls, *boxes):
                output.retain_grad()
            losses = net.head.loss_by_feat(cls, boxes, instances, metas)
            of_levels = torch.stack([torch.stack(list(losses[key])) for key in ("loss_cls", "loss_bbox", "loss_dfl")])
            optimizer.zero_grad()
            of_levels.sum().backward()
            logits = torch.cat([output.grad.flatten() for output in (*cls, *boxes) if output.grad is not None])
            weights = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
            results.append((of_levels.detach(), of_levels.detach().sum(), logits, weights))
            optimizer.step()
        names = ("levels", "loss", "logits", "weights")
        found.append({name: difference(got, want) for name, want, got in zip(names, *results)})
    return found


@pytest.mark.parametrize("kind", ["GFLHead", "GfocalGFLHead"])
def test_ten_steps(kind: str) -> None:
    nets = [Net("GFLHead", False), Net(kind, True)]
    found = steps(nets, 10)
    assert all(value <= STEP_0 for value in found[0].values()), found[0]
    for differences in found:
        assert differences["loss"] <= 2e-6 and differences["logits"] <= LATER and differences["weights"] <= LATER, found


def test_weights_of_positives() -> None:
    found = steps([Net("GFLHead", False, pos_weight=2.5), Net("GfocalGFLHead", False, pos_weight=2.5)], 1)
    assert all(value <= STEP_0 for value in found[0].values()), found


def test_half_precision_class_logits() -> None:
    """As autocast leaves them: class logits of 16 bits, box logits of 32."""
    net = Net("GfocalGFLHead", False)
    images, instances, metas = batch(0)
    with torch.no_grad():
        cls, boxes = net(images)
    want = net.head.loss_by_feat(cls, boxes, instances, metas)
    halves = [scores.bfloat16().requires_grad_() for scores in cls]
    got = net.head.loss_by_feat(halves, boxes, instances, metas)
    sum(got["loss_cls"]).backward()
    assert all(scores.grad is not None and scores.grad.dtype is torch.bfloat16 for scores in halves)
    for key, values in want.items():
        for of_level, of_want in zip(got[key], values):
            assert abs(of_level - of_want) <= 2e-2 * of_want.abs() + 1e-6, key


def test_no_objects_at_all() -> None:
    images, instances, metas = batch(0)
    empty = [InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)) for _ in instances]
    results = []
    for net in (Net("GFLHead", False), Net("GfocalGFLHead", False)):
        losses = net.head.loss_by_feat(*net(images), empty, metas)
        results.append(torch.stack([value.detach() for values in losses.values() for value in values]))
    assert difference(results[1], results[0]) <= STEP_0


def test_what_gfocal_has_not_is_left_to_the_head() -> None:
    images, instances, metas = batch(0)
    net, original = Net("GfocalGFLHead", False, allowed_border=0), Net("GFLHead", False, allowed_border=0)
    with pytest.warns(UserWarning, match="leaves the loss to GFLHead: allowed_border=0"):
        got = net.head.loss_by_feat(*net(images), instances, metas)
    want = original.head.loss_by_feat(*original(images), instances, metas)
    assert all(torch.equal(a, b) for key in want for a, b in zip(got[key], want[key]))
    net.head.loss_by_feat(*net(images), instances, metas)  # told once
