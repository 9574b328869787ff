"""The head loss, as an operation of PyTorch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import gfocal

from . import golden
from .head_reference import gfl_head
from .tolerance import assert_close

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
CLASSES, BINS, STRIDES = 3, 5, [8.0, 16.0]
SIZES = [(4, 6), (2, 3)]
NAMES = ("cls_scores", "bbox_preds", "labels", "box_targets")


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scene(dtype: torch.dtype = torch.float32) -> dict[str, list[Tensor]]:
    """Two images, two levels, a third of all anchors positive; numbers that every type holds."""

    def short(values: Tensor) -> Tensor:
        return (8 * values).round() / 8

    made: dict[str, list[Tensor]] = {name: [] for name in (*NAMES, "label_weights")}
    for level, (height, width) in enumerate(SIZES):
        count, stride = height * width, STRIDES[level]
        made["cls_scores"].append(short(2 * numbers(2, CLASSES, height, width, seed=level)).to(dtype))
        made["bbox_preds"].append(short(numbers(2, 4 * BINS, height, width, seed=10 + level)).to(dtype))
        labels = torch.randint(0, 3 * CLASSES, (2, count), generator=torch.Generator().manual_seed(20 + level))
        made["labels"].append(labels.clamp(max=CLASSES))
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points = torch.stack([x, y], -1).view(1, count, 2) * stride
        sides = short(3 * numbers(2, count, 4, seed=30 + level).abs() + 0.25) * stride
        made["box_targets"].append(torch.cat([points - sides[..., :2], points + sides[..., 2:]], -1).float())
        made["label_weights"].append(short(numbers(2, count, seed=40 + level).abs()).float())
    return made


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def call(cls: Sequence[Tensor], boxes: Sequence[Tensor], **options: Any) -> Tensor:
    given = {**scene(), **options}
    return gfocal.head_loss(cls, boxes, given.pop("labels"), given.pop("box_targets"), STRIDES, bins=BINS, **{
        name: value for name, value in given.items() if name not in NAMES
    })  # fmt: skip


def truth(cls: Sequence[Tensor], boxes: Sequence[Tensor], **options: Any) -> Tensor:
    given = scene()
    return gfl_head(
        cls, boxes, given["labels"], given["box_targets"], STRIDES, label_weights=given["label_weights"], **options
    )


def gradients(
    losses: Tensor, logits: Sequence[Tensor], upstream: Tensor | None = None, **how: Any
) -> tuple[Tensor, ...]:
    """Of weighted losses."""
    return torch.autograd.grad(losses, logits, torch.ones_like(losses) if upstream is None else upstream, **how)


def expected(
    cls: Sequence[Tensor], boxes: Sequence[Tensor], upstream: Tensor, **options: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    doubles = [logits.double() for logits in (*cls, *boxes)]
    logits = leaves(doubles)
    losses = truth(logits[: len(cls)], logits[len(cls) :], **options)
    return losses.detach(), gradients(losses, logits, upstream.double())


def check(got: Sequence[Tensor], want: Sequence[Tensor], what: str, relative: float = 1e-5) -> None:
    for number, (ours, theirs) in enumerate(zip(got, want)):
        assert_close(ours.detach(), theirs, f"{what}, {number}", relative=relative)


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


def upstreams() -> dict[str, Tensor]:
    return {
        "ones": torch.ones(2, 3),
        "equal": torch.full((2, 3), 0.375),
        "by loss": torch.tensor([[1.0, 2.0, 0.5]]).expand(2, 3),
        "by level": torch.tensor([[1.0], [3.0]]).expand(2, 3),
        "zero": torch.zeros(2, 3),
        "any": numbers(2, 3, seed=7).float(),
    }


@pytest.mark.parametrize("box_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", FLOATS)
def test_upstream_gradients(dtype: torch.dtype, box_dtype: torch.dtype | None, compiled: Any) -> None:
    """Whatever they are: ones, multiples, of each loss its own. In f16 and traced they are in the gradient before it is
    rounded; else one that is multiplied is rounded twice."""
    stored = scene(dtype)
    cls, boxes = leaves(stored["cls_scores"]), leaves(scene(box_dtype or dtype)["bbox_preds"])
    run = compiled(lambda cls, boxes: call(cls, boxes))
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
    cls = leaves([torch.full_like(logits, -10.0) for logits in stored["cls_scores"]])
    background = [torch.full_like(labels, CLASSES) for labels in stored["labels"]]
    losses = call(cls, stored["bbox_preds"], labels=background)
    assert all((grad == 0).any() for grad in gradients(losses, cls, retain_graph=True))
    scaled = gradients(losses, cls, torch.full((2, 3), 65536.0))
    assert all(((grad != 0) | (weights.view(grad.shape[0], 1, *grad.shape[2:]) == 0)).all()
               for grad, weights in zip(scaled, stored["label_weights"]))  # fmt: skip


def nchw(logits: Tensor) -> Tensor:
    return logits.clone()


def channels_last(logits: Tensor) -> Tensor:
    return logits.clone(memory_format=torch.channels_last)


def slice_of_channels(logits: Tensor) -> Tensor:
    wide = torch.zeros(logits.shape[0], logits.shape[1] + 7, *logits.shape[2:], dtype=logits.dtype)
    wide[:, 4:-3] = logits
    return wide[:, 4:-3]


def slice_of_last_channels(logits: Tensor) -> Tensor:
    wide = torch.zeros(logits.shape[0], logits.shape[1] + 7, *logits.shape[2:], dtype=logits.dtype)
    wide = wide.to(memory_format=torch.channels_last)
    wide[:, 4:-3] = logits
    return wide[:, 4:-3]


def crop(logits: Tensor) -> Tensor:
    wide = torch.zeros(*logits.shape[:2], logits.shape[2] + 3, logits.shape[3] + 2, dtype=logits.dtype)
    wide[:, :, 1:-2, 1:-1] = logits
    return wide[:, :, 1:-2, 1:-1]


def every_second(logits: Tensor) -> Tensor:
    wide = torch.zeros(*logits.shape, 2, dtype=logits.dtype)
    wide[..., 0] = logits
    return wide[..., 0]


LAYOUTS = [nchw, channels_last, slice_of_channels, slice_of_last_channels, crop, every_second]


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


def test_transforms() -> None:
    for dtype in (torch.float32, torch.float16):
        stored = scene(dtype)
        cls, boxes = stored["cls_scores"], stored["bbox_preds"]

        def total(cls: list[Tensor], boxes: list[Tensor]) -> Tensor:
            return (call(cls, boxes) * upstreams()["any"]).sum()

        got = torch.func.grad(total, argnums=(0, 1))(cls, boxes)
        logits = leaves(cls + boxes)
        want = gradients(call(logits[:2], logits[2:]), logits, upstreams()["any"])
        for ours, theirs in zip([*got[0], *got[1]], want):
            assert torch.equal(ours, theirs)
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.func.grad(lambda cls: torch.func.grad(total)(cls, boxes)[0].sum())(cls)
        with pytest.raises(RuntimeError, match="vmap"):
            torch.func.vmap(lambda one: call([one, cls[1]], boxes))(cls[0].unsqueeze(0).repeat(2, 1, 1, 1, 1))
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(lambda one: call([one, cls[1]], boxes), (cls[0],), (torch.ones_like(cls[0]),))
        with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
            call([torch.autograd.forward_ad.make_dual(cls[0], torch.ones_like(cls[0])), cls[1]], boxes)


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
        STRIDES, 0.5, "nanodet", "bins", BINS, 1.5, 0.25, 2.0, "last", -1, "ciou", 3.0, 1e-7, 0.5, 0.25, "given", "given",
        "ultralytics",
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
        torch.library.opcheck(operator, arguments)


def test_operators_refuse_to_lose_a_gradient() -> None:
    for operator, (cls, *rest) in operator_samples():
        tracked = leaves(cls)
        with pytest.raises(RuntimeError, match="has no gradient of its own"):
            operator(tracked, *rest)
        with torch.no_grad():
            operator(tracked, *rest)


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
        "beta": 1.0, "cls_weight": 3.0, "iou": "ciou", "box_weight": 1.0, "iou_eps": 1.0, "dfl_weight": 1.0,
        "target_eps": 1.0, "quality_source": "given", "box_weighting": "quality", "normaliser": "ultralytics",
        "offset": 0.5, "alpha": 0.25, "class_weights": torch.rand(CLASSES), "box_weights": quality,
        "scores": [torch.rand(2, n, CLASSES) for n in count], "ignore_label": 1,
        "element_weights": [torch.rand(2, n, CLASSES) for n in count],
    }  # fmt: skip
    for name, value in others.items():
        assert not torch.equal(call(cls, boxes, quality=quality, **{name: value}), want), name
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
    stored, status = scene(), gfocal.Status()
    labels = copy.deepcopy(stored["labels"])
    labels[0][0, 0], labels[1][1, 2] = -7, 9
    for reduce in (False, lambda normalisers: normalisers):
        status = gfocal.Status()
        losses = call(leaves(stored["cls_scores"]), stored["bbox_preds"], labels=labels, status=status, reduce=reduce)
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


ONE = torch.ones(2, 24)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": [ONE.long()]}, gfocal.ShapeError, "labels has 1 levels, cls_scores 2"),
        ({"labels": [ONE.long(), ONE.long()]}, gfocal.ShapeError,
         r"labels\[1\] has shape \[2, 24\], cls_scores\[1\] \[2, 3, 2, 3\] needs \[2, 6\]"),
        ({"labels": [ONE, ONE]}, TypeError, r"labels\[0\] is torch.float32"),
        ({"labels": ONE.long()}, TypeError, "labels must be a list"),
        ({"box_targets": [torch.zeros(2, 24, 5), torch.zeros(2, 6, 4)]}, gfocal.ShapeError, r"box_targets\[0\] has shape"),
        ({"label_weights": [ONE, ONE]}, gfocal.ShapeError, r"label_weights\[1\] has shape"),
        ({"class_weights": torch.ones(4)}, gfocal.ShapeError, r"class_weights has shape \[4\], 3 classes needs \[3\]"),
        ({"scores": [ONE, ONE]}, gfocal.ShapeError, r"scores\[0\] has shape"),
        ({"points": [ONE, ONE]}, gfocal.ShapeError, r"points\[0\] has shape"),
        ({"normalisers": torch.ones(3)}, gfocal.ShapeError, r"normalisers has shape \[3\]"),
        ({"normalisers": torch.tensor([-1.0, 1.0])}, ValueError, r"normalisers\[0\] is -1"),
        ({"normalisers": torch.ones(2), "reduce": torch.clone}, ValueError, "normalisers are given"),
        ({"reduce": lambda _: 1}, TypeError, "what reduce gives must be a torch.Tensor, not int"),
        ({"quality_source": "given"}, ValueError, "level 0: .*quality"),
        ({"box_weighting": "given"}, ValueError, "level 0: .*box_scores"),
        ({"label_weights": [ONE.clone().requires_grad_(), torch.ones(2, 6)]}, ValueError,
         r"label_weights\[0\] requires a gradient"),
        ({"profile": "yolo"}, ValueError, 'profile is "yolo", it must be one of "mmdetection", "nanodet", "ultralytics"'),
        ({"iou": "siou"}, ValueError, 'iou is "siou"'),
        ({"coding": "log"}, ValueError, "coding='log'"),
        ({"quality_source": "x"}, ValueError, 'quality_source is "x"'),
        ({"box_weighting": "x"}, ValueError, 'box_weighting is "x"'),
        ({"normaliser": "x"}, ValueError, 'normaliser is "x"'),
        ({"background": "x"}, ValueError, 'background is "x"'),
        ({"reg_max": 4}, ValueError, "bins is 5 and reg_max 4"),
        ({"beta": -1.0}, ValueError, "beta is -1"),
        ({"iou_eps": 0.0}, ValueError, "iou_eps is 0"),
        ({"box_weight": float("nan")}, ValueError, "iou_weight is NaN"),
    ],
)  # fmt: skip
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    stored = scene()
    with pytest.raises(error, match=message):
        call(stored["cls_scores"], stored["bbox_preds"], **options)


def test_errors_of_logits() -> None:
    stored = scene()
    cls, boxes = stored["cls_scores"], stored["bbox_preds"]
    for given, error, message in [
        (([], boxes), gfocal.ShapeError, "cls_scores has no levels"),
        ((cls, boxes[:1]), gfocal.ShapeError, "bbox_preds has 1 levels, cls_scores 2"),
        ((cls[0], boxes), TypeError, "cls_scores must be a list of torch.Tensor, one a level, not Tensor"),
        (([1, 2], boxes), TypeError, r"cls_scores\[0\] must be a torch.Tensor, not int"),
        ((cls, [logits[:, 1:] for logits in boxes]), gfocal.ShapeError,
         r"bbox_preds\[0\] has shape \[2, 19, 4, 6\], .* 5 logits a side needs \[2, 20, 4, 6\]"),
        (([cls[0][0], cls[1]], boxes), gfocal.ShapeError, "without rows it needs points|needs"),
        (([cls[0][0, 0], cls[1]], boxes), gfocal.ShapeError, r"it must be \[B, C, H, W\] or \[B, C, anchors\]"),
        (([cls[0], cls[1][:, 1:]], boxes), gfocal.ShapeError, r"cls_scores\[1\] has shape"),
        (([cls[0], cls[1].half()], boxes), TypeError, r"cls_scores\[1\] is float16, cls_scores\[0\] needs float32"),
        (([logits.long() for logits in cls], boxes), TypeError, r"cls_scores\[0\] is int64"),
        (([logits.to("meta") for logits in cls], boxes), ValueError, "no memory|meta"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call(*given)
    nine = [torch.zeros(1, 3, 1, 1)] * 9
    with pytest.raises(gfocal.ShapeError, match="cls_scores has 9 levels, there can be 8"):
        gfocal.head_loss(nine, [torch.zeros(1, 8, 1, 1)] * 9, [ONE.long()] * 9, [ONE] * 9, [8.0] * 9, bins=2)
    with pytest.raises(gfocal.ShapeError, match="there are 1 strides, cls_scores has 2 levels"):
        gfocal.head_loss(cls, boxes, stored["labels"], stored["box_targets"], [8.0], bins=BINS)
    with pytest.raises(ValueError, match="stride is 0"):
        gfocal.head_loss(cls, boxes, stored["labels"], stored["box_targets"], [8.0, 0.0], bins=BINS)


def of_file(name: str) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor], dict[str, Any]]:
    tensors, case = golden.read(name)
    levels = range(len(case["strides"]))
    return (
        leaves([tensors[f"level{level}.cls_logits"] for level in levels]),
        leaves([tensors[f"level{level}.box_logits"] for level in levels]),
        tensors,
        case,
    )


@pytest.mark.parametrize("name", golden.names("head_"))
def test_module_as_mmdetection(name: str) -> None:
    cls, boxes, tensors, case = of_file(name)
    head = gfocal.GFLHeadLoss(
        case["strides"], case["num_classes"], case["reg_max"], topk=case["atss_topk"], octave_scale=case["anchor_scale"]
    )
    truth_of = [tensors["gt_boxes"], tensors["gt_labels"], tensors["gt_image"]]
    losses = head(cls, boxes, *truth_of)
    for kind, of_levels in losses._asdict().items():
        want = torch.cat([tensors[f"level{level}.loss_{kind}"] for level in range(len(cls))])
        assert_close(of_levels.detach(), want, kind)
    sum(of_levels.sum() for of_levels in losses).backward()
    for level, (of_cls, of_boxes) in enumerate(zip(cls, boxes)):
        assert of_cls.grad is not None and of_boxes.grad is not None
        assert_close(of_cls.grad, tensors[f"level{level}.grad_cls_logits"], "class logits' gradient")
        assert_close(of_boxes.grad, tensors[f"level{level}.grad_box_logits"], "box logits' gradient")
    whole = torch.tensor([case["image_hw"]] * cls[0].shape[0])
    same = head(cls, boxes, *truth_of, image_sizes=whole)
    assert all(torch.equal(one, other) for one, other in zip(same, losses))
    if case["num_classes"] == 4:
        part = head(cls, boxes, *truth_of, image_sizes=whole // 2, status=gfocal.Status())
        assert (part.cls[0] < losses.cls[0]) if name == "head_no_gt" else part.cls.isfinite().all()


def test_module() -> None:
    cls, boxes, tensors, case = of_file("head_small")
    head = gfocal.GFLHeadLoss(case["strides"], case["num_classes"], beta=1.5, iou="diou", sync_normalisers=False)
    assert not list(head.parameters()) and not head.state_dict()
    truth_of = (tensors["gt_boxes"], tensors["gt_labels"], tensors["gt_image"])
    want = head(cls, boxes, *truth_of)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert all(torch.equal(a, b) for a, b in zip(other(cls, boxes, *truth_of), want))
    assert "num_classes=4" in repr(head)
    for profile in ("nanodet", "ultralytics"):
        bins = {"reg_max": 17} if profile == "ultralytics" else {}
        other = gfocal.GFLHeadLoss(case["strides"], 4, profile=profile, **bins)
        assert all(losses.isfinite().all() for losses in other(cls, boxes, *truth_of))
    doubles = [[logits.detach().double() for logits in of_kind] for of_kind in (cls, boxes)]
    in_double = head(*doubles, *truth_of)
    assert in_double.cls.dtype is torch.float64
    assert_close(want.cls.detach(), in_double.cls, "float64")
    with pytest.raises(gfocal.ShapeError, match="cls_scores has 4 channels, the head 5 classes"):
        gfocal.GFLHeadLoss(case["strides"], 5)(cls, boxes, *truth_of)
    with pytest.raises(ValueError, match="topk is 0"):
        gfocal.GFLHeadLoss([8], 4, topk=0)
    with pytest.raises(ValueError, match='iou is "x"'):
        gfocal.GFLHeadLoss([8], 4, iou="x")


def test_module_compiled() -> None:
    cls, boxes, tensors, case = of_file("head_small")
    head = gfocal.GFLHeadLoss(case["strides"], case["num_classes"])
    truth_of = (tensors["gt_boxes"], tensors["gt_labels"], tensors["gt_image"])
    want = torch.stack(head(cls, boxes, *truth_of))
    grads = torch.autograd.grad(want.sum(), [*cls, *boxes])
    torch._dynamo.reset()
    got = torch.stack(torch.compile(head, fullgraph=True, backend="aot_eager")(cls, boxes, *truth_of))
    assert torch.equal(got, want)
    for ours, theirs in zip(torch.autograd.grad(got.sum(), [*cls, *boxes]), grads):
        assert torch.equal(ours, theirs)


def test_autocast_changes_nothing() -> None:
    stored = scene(torch.bfloat16)
    want = call(stored["cls_scores"], stored["bbox_preds"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = call(stored["cls_scores"], stored["bbox_preds"])
    assert torch.equal(got, want) and got.dtype is torch.float32


def process(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    stored = scene()
    image = slice(rank, rank + 1)
    logits = leaves([tensor[image] for tensor in stored["cls_scores"] + stored["bbox_preds"]])
    given = {name: [tensor[image] for tensor in stored[name]] for name in ("labels", "box_targets", "label_weights")}
    losses = call(logits[:2], logits[2:], **given)
    alone = call(logits[:2], logits[2:], **given, reduce=False)
    grads = gradients(losses, logits, upstreams()["any"])
    torch.save((losses.detach(), alone.detach(), [grad.clone() for grad in grads]), f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Any) -> None:
    """Each divides by the mean of both: the mean of their losses is that of the whole batch."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    stored = scene()
    logits = leaves(stored["cls_scores"] + stored["bbox_preds"])
    whole = call(logits[:2], logits[2:])
    assert_close((parts[0][0] + parts[1][0]) / 2, whole.detach(), "losses")
    assert all(not torch.equal(losses, alone) for losses, alone, _ in parts)
    for number, grad in enumerate(gradients(whole, logits, upstreams()["any"])):
        assert_close(torch.cat([part[2][number] for part in parts]) / 2, grad, f"gradient {number}")
