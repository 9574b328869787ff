"""The head loss: results in all types, layouts and for all upstream gradients; options."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import gfocal

from . import golden
from .head_scene import (
    BINS,
    CLASSES,
    FLOATS,
    LAYOUTS,
    SIZES,
    STRIDES,
    call,
    check,
    expected,
    gradients,
    leaves,
    scene,
    upstreams,
)
from .tolerance import assert_close


@pytest.fixture(params=["eager", "compiled"])
def compiled(request: pytest.FixtureRequest) -> Any:
    if request.param == "eager":
        return lambda call: call
    torch._dynamo.reset()
    return lambda call: torch.compile(call, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", golden.names("head_"))
def test_as_mmdetection(name: str, dtype: torch.dtype) -> None:
    tensors, case = golden.read(name)
    levels, weights = range(len(case["strides"])), case["weights"]
    of_case = {key: [tensors[f"level{level}.{key}"] for level in levels] for key in (
        "cls_logits", "box_logits", "labels", "box_targets", "label_weights", "anchors", "grad_cls_logits",
        "grad_box_logits",
    )}  # fmt: skip
    want = torch.tensor(
        [[tensors[f"level{level}.loss_{kind}"].item() for kind in ("cls", "bbox", "dfl")] for level in levels],
        dtype=torch.float64,
    )
    exact = all((logits.to(dtype) == logits).all() for logits in of_case["cls_logits"] + of_case["box_logits"])
    assert exact, "the files are for every type"
    centres = [(anchors[..., :2] + anchors[..., 2:]) / 2 for anchors in of_case["anchors"]]
    for points in ((), centres, [of_level[0] for of_level in centres]):
        cls = leaves([logits.to(dtype) for logits in of_case["cls_logits"]])
        boxes = leaves([logits.to(dtype) for logits in of_case["box_logits"]])
        losses = gfocal.head_loss(
            cls, boxes, of_case["labels"], of_case["box_targets"], case["strides"], points=points,
            label_weights=of_case["label_weights"], reg_max=case["reg_max"], beta=case["beta"],
            cls_weight=weights["qfl"], box_weight=weights["giou"], dfl_weight=weights["dfl"],
        )  # fmt: skip
        assert losses.dtype is (dtype if dtype is torch.float64 else torch.float32)
        losses.sum().backward()
        assert_close(losses.detach(), want, f"{name}, losses")
        for logits, grads in ((cls, of_case["grad_cls_logits"]), (boxes, of_case["grad_box_logits"])):
            for ours, theirs in zip(logits, grads):
                assert ours.grad is not None and ours.grad.dtype is dtype
                assert_close(ours.grad, theirs, f"{name}, gradient in {dtype}")


@pytest.mark.parametrize("box_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", FLOATS)
def test_upstream_gradients(dtype: torch.dtype, box_dtype: torch.dtype | None, compiled: Any) -> None:
    """Whatever they are: ones, multiples, of each loss its own. In f16 and traced they are in the gradient before it is
    rounded; else one that is multiplied is rounded twice."""
    stored = scene(dtype)
    cls, boxes = leaves(stored["cls_scores"]), leaves(scene(box_dtype or dtype)["bbox_preds"])
    run = compiled(call)
    for name, upstream in upstreams().items():
        losses = run(cls, boxes)
        got = gradients(losses, [*cls, *boxes], upstream.to(losses.dtype))
        want_losses, want = expected(cls, boxes, upstream)
        assert_close(losses.detach(), want_losses, f"losses, {name}")
        check(got, want, f"gradients, {name}", relative=2.0**-8 if dtype is torch.bfloat16 else 1e-5)


def test_saved_gradients_are_given_as_they_are() -> None:
    """And stay right: who gets them twice, scales the loss, or changes them in place."""
    stored = scene()
    logits = leaves(stored["cls_scores"]) + leaves(stored["bbox_preds"])
    losses = call(logits[:2], logits[2:])
    first = gradients(losses, logits, retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = gradients(losses, logits, torch.full((2, 3), 2.0), retain_graph=True)
    for a, b, c in zip(first, second, kept):
        assert torch.equal(a, c) and torch.equal(b, 2 * c)
    mixed = gradients(losses, logits, upstreams()["by loss"], retain_graph=True)
    check(mixed, expected(logits[:2], logits[2:], upstreams()["by loss"])[1], "recomputed")
    (call(logits[:2], logits[2:]).sum() + call(logits[:2], logits[2:]).sum()).backward()
    for tensor, grad in zip(logits, kept):
        assert tensor.grad is not None
        assert_close(tensor.grad, 2 * grad.double(), "the sum of two")
    first[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(losses, logits)


def test_a_loss_scale_is_in_float16_gradients_before_they_are_rounded() -> None:
    stored = scene(torch.float16)
    cls = leaves([torch.full_like(logits, -6.5) for logits in stored["cls_scores"]])
    background = [torch.full_like(labels, CLASSES) for labels in stored["labels"]]
    losses = call(cls, stored["bbox_preds"], labels=background)
    assert all((grad == 0).any() for grad in gradients(losses, cls, retain_graph=True))
    scaled = gradients(losses, cls, torch.full((2, 3), 65536.0))
    assert all(((grad != 0) | (weights.view(grad.shape[0], 1, *grad.shape[2:]) == 0)).all()
               for grad, weights in zip(scaled, stored["label_weights"]))  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_where_they_are(layout: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    stored, upstream = scene(dtype), upstreams()["any"]
    plain = leaves(stored["cls_scores"] + stored["bbox_preds"])
    losses = call(plain[:2], plain[2:])
    want = gradients(losses, plain, upstream)
    placed = [layout(logits).detach() for logits in plain]
    before = [logits.clone() for logits in placed]
    views = [logits.requires_grad_() for logits in placed]
    got_losses = call(views[:2], views[2:])
    got = gradients(got_losses, views, upstream, retain_graph=True)
    assert_close(got_losses.detach(), losses.detach(), "losses", relative=1e-6)
    check(got, want, "gradients", relative=1e-6)
    for grad, logits, was in zip(got, views, before):
        assert torch.equal(logits, was)
        assert grad.stride() == torch.empty_like(logits).stride(), "as PyTorch's own elementwise gradients"
    ones = gradients(got_losses, views)
    check(ones, gradients(call(plain[:2], plain[2:]), plain), "gradients of the sum", relative=1e-6)


def test_levels_and_outputs_in_one_tensor() -> None:
    """``[B, 4·K + C, A]``, as Ultralytics has it: levels as views, and all anchors as one level with points."""
    stored = scene()
    flat = [
        torch.cat([boxes.flatten(2), cls.flatten(2)], 1)
        for cls, boxes in zip(stored["cls_scores"], stored["bbox_preds"])
    ]
    whole = torch.cat(flat, 2).requires_grad_()
    views = [part.unflatten(2, size) for part, size in zip(whole.split([24, 6], 2), SIZES)]
    losses = call([view[:, 4 * BINS :] for view in views], [view[:, : 4 * BINS] for view in views])
    plain = leaves(stored["cls_scores"] + stored["bbox_preds"])
    want = call(plain[:2], plain[2:])
    assert torch.equal(losses, want)
    (got,) = torch.autograd.grad(losses.sum(), whole)
    grads = gradients(want, plain)
    theirs = torch.cat([torch.cat([b.flatten(2), c.flatten(2)], 1) for c, b in zip(grads[:2], grads[2:])], 2)
    assert torch.equal(got, theirs)

    # Boxes and points in strides, so that all levels have a stride of 1.
    points = []
    for (height, width), _ in zip(SIZES, STRIDES):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points.append(torch.stack([x, y], -1).view(-1, 2).float())
    targets = torch.cat([boxes / stride for boxes, stride in zip(stored["box_targets"], STRIDES)], 1)
    one = gfocal.head_loss(
        [whole[:, 4 * BINS :]], [whole[:, : 4 * BINS]], [torch.cat(stored["labels"], 1)], [targets], [1.0],
        points=[torch.cat(points)], label_weights=[torch.cat(stored["label_weights"], 1)], bins=BINS,
    )  # fmt: skip
    assert_close(one.detach()[0], want.detach().sum(0), "one level", relative=1e-6)
    (got,) = torch.autograd.grad(one.sum(), whole)
    assert_close(got, theirs, "gradient of one level", relative=1e-6)


def test_expanded_logits() -> None:
    stored = scene()
    single = [logits[:1].detach().clone().requires_grad_() for logits in stored["cls_scores"]]
    both = [logits.expand(2, -1, -1, -1) for logits in single]
    losses = call(both, stored["bbox_preds"])
    copies = leaves(both)
    want = call(copies, stored["bbox_preds"])
    assert torch.equal(losses, want)
    for grad, theirs in zip(gradients(losses, single), gradients(want, copies)):
        assert_close(grad, theirs.double().sum(0, keepdim=True), "an expanded tensor's", relative=1e-6)


def test_options_override_the_profile() -> None:
    stored = scene()
    cls, boxes = stored["cls_scores"], stored["bbox_preds"]
    count = [height * width for height, width in SIZES]
    quality = [torch.rand(2, n) for n in count]
    as_mmdetection = {
        "beta": 2.0, "cls_weight": 1.0, "iou": "giou", "box_weight": 2.0, "iou_eps": 1e-6, "dfl_weight": 0.25,
        "target_eps": 0.1, "quality_source": "iou", "box_weighting": "max_score", "normaliser": "mmdetection",
        "offset": 0.0,
    }  # fmt: skip
    want = call(cls, boxes)
    for profile in ("nanodet", "ultralytics"):
        assert torch.equal(call(cls, boxes, profile=profile, **as_mmdetection), want)
        assert not torch.equal(call(cls, boxes, profile=profile, quality=quality), want)
    others = {
        "beta": 1.0, "cls_weight": 3.0, "iou": "ciou", "box_weight": 1.0, "dfl_weight": 1.0,
        "target_eps": 1.0, "quality_source": "given", "box_weighting": "quality", "normaliser": "ultralytics",
        "offset": 0.5, "alpha": 0.25, "class_weights": torch.rand(CLASSES), "box_weights": quality,
        "scores": [torch.rand(2, n, CLASSES) for n in count], "ignore_label": 1,
        "element_weights": [torch.rand(2, n, CLASSES) for n in count],
    }  # fmt: skip
    for name, value in others.items():
        assert not torch.equal(call(cls, boxes, quality=quality, **{name: value}), want), name
    assert not torch.equal(*(call(cls, boxes, iou="ciou_ultralytics", iou_eps=eps) for eps in (1e-7, 1.0)))
    triple = call(cls, boxes, cls_weight=3.0)
    assert_close(triple[:, 0], 3 * want[:, 0].double(), "cls_weight", relative=1e-6)
    assert torch.equal(triple[:, 1:], want[:, 1:])
    first = [torch.where(labels == CLASSES, 0, labels + 1) for labels in stored["labels"]]
    assert torch.equal(call(cls, boxes, labels=first, background="first"), want)
    assert torch.equal(call(cls, boxes, labels=[labels.int() for labels in stored["labels"]]), want)
    sides = [boxes[:, :4] for boxes in stored["bbox_preds"]]
    for coding in ("exp", "relu"):
        losses = gfocal.head_loss(cls, sides, stored["labels"], stored["box_targets"], STRIDES, coding=coding)
        assert (losses[:, :2] > 0).all() and (losses[:, 2] == 0).all()


def test_normalisers() -> None:
    stored = scene()
    logits = leaves(stored["cls_scores"] + stored["bbox_preds"])
    seen = []

    def halved(normalisers: Tensor) -> Tensor:
        seen.append(normalisers.clone())
        return normalisers / 2

    reduced = call(logits[:2], logits[2:], reduce=halved)
    assert len(seen) == 1 and seen[0].shape == (2,) and seen[0].dtype is torch.float64
    positives = sum(int((labels < CLASSES).sum()) for labels in stored["labels"])
    assert seen[0][0] == positives and seen[0][1] > 2
    upstream = upstreams()["any"]
    losses, grads = expected(logits[:2], logits[2:], upstream, normalisers=(seen[0][0] / 2, seen[0][1] / 2))
    given = call(logits[:2], logits[2:], normalisers=seen[0].float() / 2)
    for ours in (reduced, given):
        assert_close(ours.detach(), losses, "losses")
        check(gradients(ours, logits, upstream, retain_graph=True), grads, "gradients")
        ones = expected(logits[:2], logits[2:], torch.ones(2, 3), normalisers=(seen[0][0] / 2, seen[0][1] / 2))[1]
        check(gradients(ours, logits), ones, "gradients of the sum")
    plain = call(logits[:2], logits[2:])
    assert torch.equal(call(logits[:2], logits[2:], reduce=False), plain)
    assert torch.equal(call(logits[:2], logits[2:], reduce=lambda normalisers: normalisers), plain)


def test_status() -> None:
    stored = scene()
    labels = copy.deepcopy(stored["labels"])
    labels[0][0, 0], labels[1][1, 2] = 9, 7
    for reduce in (False, lambda normalisers: normalisers):
        status = gfocal.Status()
        losses = call(
            leaves(stored["cls_scores"]),
            stored["bbox_preds"],
            labels=labels,
            label_weights=(),
            status=status,
            reduce=reduce,
        )
        assert status.bad_labels == 2 and status.first_bad_row == 0 and losses.isfinite().all()
        before = status.counts()
        losses.sum().backward()
        assert status.counts() == before
    call(stored["cls_scores"], stored["bbox_preds"], status=status)
    assert status.bad_labels == 2


def test_nothing_to_learn_from() -> None:
    stored = scene()
    cls, boxes = leaves(stored["cls_scores"]), leaves(stored["bbox_preds"])
    background = [torch.full_like(labels, CLASSES) for labels in stored["labels"]]
    losses = call(cls, boxes, labels=background)
    losses.sum().backward()
    assert (losses[:, 0] > 0).all() and (losses[:, 1:] == 0).all()
    assert all(logits.grad is not None and (logits.grad == 0).all() for logits in boxes)
    empty = {name: [tensor[:0] for tensor in tensors] for name, tensors in stored.items()}
    cls, boxes = leaves(empty.pop("cls_scores")), leaves(empty.pop("bbox_preds"))
    losses = call(cls, boxes, **empty)
    losses.sum().backward()
    assert losses.shape == (2, 3) and (losses == 0).all()
    assert cls[0].grad is not None and cls[0].grad.shape == (0, CLASSES, 4, 6)


def test_masked_by_nan_in_logits() -> None:
    stored = scene()
    cls = copy.deepcopy(stored["cls_scores"])
    cls[0][0, :, 0, 0] = float("nan")
    labels, weights = copy.deepcopy(stored["labels"]), copy.deepcopy(stored["label_weights"])
    labels[0][0, 0], weights[0][0, 0] = CLASSES, 0.0
    logits = leaves(cls)
    losses = call(logits, stored["bbox_preds"], labels=labels, label_weights=weights)
    (grad, _) = gradients(losses, logits)
    assert losses.isfinite().all() and grad.isfinite().all() and (grad[0, :, 0, 0] == 0).all()


def test_autocast_changes_nothing() -> None:
    stored = scene(torch.bfloat16)
    want = call(stored["cls_scores"], stored["bbox_preds"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = call(stored["cls_scores"], stored["bbox_preds"])
    assert torch.equal(got, want) and got.dtype is torch.float32
