"""The head loss as an operation of PyTorch: operators, derivatives, transforms, fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, library

from .head_scene import (
    BINS,
    CLASSES,
    LAYOUTS,
    NAMES,
    SIZES,
    STRIDES,
    call,
    channels_last,
    gradients,
    leaves,
    nchw,
    numbers,
    scene,
    upstreams,
)


def test_gradcheck() -> None:
    """Where what is detached does not depend on the logits."""
    stored = scene(torch.float64)
    count = [height * width for height, width in SIZES]
    given = {
        "quality": [numbers(2, n, seed=50).abs().clamp(max=1) for n in count],
        "box_scores": [numbers(2, n, seed=60).abs() for n in count],
        "box_weights": [numbers(2, n, seed=70).abs() for n in count],
        "element_weights": [numbers(2, n, CLASSES, seed=80).abs() for n in count],
        "class_weights": numbers(CLASSES, seed=90).abs(),
        "quality_source": "given",
        "box_weighting": "given",
    }
    for iou in ("iou", "giou", "diou"):

        def of(*logits: Tensor, iou: str = iou) -> Tensor:
            return call(logits[:2], logits[2:], iou=iou, **given)

        assert torch.autograd.gradcheck(of, leaves(stored["cls_scores"] + stored["bbox_preds"]), fast_mode=True)


def test_second_derivatives_raise() -> None:
    for dtype in (torch.float32, torch.float16):
        stored = scene(dtype)
        logits = leaves(stored["cls_scores"] + stored["bbox_preds"])
        for upstream in (None, upstreams()["any"]):
            grads = gradients(call(logits[:2], logits[2:]), logits, upstream, create_graph=True)
            assert all(grad.requires_grad for grad in grads)
            for grad in grads:
                with pytest.raises(RuntimeError, match="no second derivative"):
                    grad.sum().backward()
        call(logits[:2], logits[2:]).sum().backward(create_graph=True)  # which asks for it, and does not use it
    doubles = scene(torch.float64)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.gradgradcheck(
            lambda *logits: call(logits[:2], logits[2:]), leaves(doubles["cls_scores"] + doubles["bbox_preds"])
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_transforms(dtype: torch.dtype) -> None:
    stored = scene(dtype)
    cls, boxes = stored["cls_scores"], stored["bbox_preds"]

    def total(cls: list[Tensor], boxes: list[Tensor]) -> Tensor:
        return (call(cls, boxes) * upstreams()["any"]).sum()

    def of_first(first: Tensor) -> Tensor:
        return call([first, cls[1]], boxes)

    got = torch.func.grad(total, argnums=(0, 1))(cls, boxes)
    logits = leaves(cls + boxes)
    want = gradients(call(logits[:2], logits[2:]), logits, upstreams()["any"])
    for ours, theirs in zip([*got[0], *got[1]], want):
        assert torch.equal(ours, theirs)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda cls: torch.func.grad(total)(cls, boxes)[0].sum())(cls)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(of_first)(cls[0].unsqueeze(0).repeat(2, 1, 1, 1, 1))
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(of_first, (cls[0],), (torch.ones_like(cls[0]),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        of_first(torch.autograd.forward_ad.make_dual(cls[0], torch.ones_like(cls[0])))


def test_fake_tensors() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for layout in LAYOUTS:
        stored = scene()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            logits = [
                mode.from_tensor(layout(tensor).detach().requires_grad_())
                for tensor in stored["cls_scores"] + stored["bbox_preds"]
            ]
            losses = call(logits[:2], logits[2:])
            assert losses.shape == (2, 3) and losses.dtype is torch.float32
            losses.sum().backward()
            for tensor in logits:
                assert tensor.grad is not None and tensor.grad.shape == tensor.shape


def operator_samples() -> list[tuple[Any, tuple[Any, ...]]]:
    stored, ops = scene(), torch.ops.gfocal
    count = [height * width for height, width in SIZES]
    of_anchors = [torch.rand(2, n) for n in count]
    of_elements = [torch.rand(2, n, CLASSES) for n in count]
    points = [torch.rand(n, 2) for n in count]
    none: list[Tensor] = []
    logits = [[layout(tensor) for tensor in stored[name]] for name, layout in zip(NAMES[:2], (nchw, channels_last))]
    plain = (*logits, stored["labels"], stored["box_targets"], *[none] * 7, None)
    full = (
        *logits, stored["labels"], stored["box_targets"], stored["label_weights"], of_anchors, of_anchors, of_anchors,
        of_elements, of_elements, points, torch.rand(CLASSES),
    )  # fmt: skip
    of_plain = (STRIDES, 0.0, "mmdetection", "bins", BINS, *[None] * 3, "last", *[None] * 9)
    of_full = (
        STRIDES, 0.5, "nanodet", "bins", BINS, 1.5, 0.25, 2.0, "last", -1, "ciou", 3.0, 1e-7, 0.5, 0.25, "given",
        "given", "ultralytics",
    )  # fmt: skip
    samples = []
    for tensors, options in ((plain, of_plain), (full, of_full)):
        for divisors in (None, torch.tensor([3.0, 1.5], dtype=torch.float64)):
            samples.append((ops.head.default, (*tensors, divisors, None, *options, False, False)))
            samples.append((ops.head.default, (*tensors, divisors, None, *options, True, True)))
            samples.append((ops.head_backward.default, (*tensors, divisors, None, *options, torch.rand(2, 3))))
        samples.append((ops.head_normalisers.default, (*tensors, *options, False)))
    return samples


def test_opcheck() -> None:
    for operator, arguments in operator_samples():
        library.opcheck(operator, arguments)


def test_operators_refuse_to_lose_a_gradient() -> None:
    for operator, (cls, *rest) in operator_samples():
        tracked = leaves(cls)
        with pytest.raises(RuntimeError, match="has no gradient of its own"):
            operator(tracked, *rest)
        with torch.no_grad():
            operator(tracked, *rest)
