"""ATSS and FCOS, as operations of PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, library

import gfocal

from . import golden

SIZES, STRIDES = [(8, 10), (4, 5)], [8.0, 16.0]
BOXES = torch.tensor([[4.0, 4.0, 60.0, 44.0], [30.0, 10.0, 70.0, 62.0], [0.0, 0.0, 30.0, 30.0]])
LABELS, IMAGE = torch.tensor([1, 0, 2]), torch.tensor([0, 0, 1])
RANGES = [(-1.0, 32.0), (32.0, float("inf"))]


def atss(**options: Any) -> gfocal.Assignment:
    given = {"gt_boxes": BOXES, "gt_labels": LABELS, "gt_image": IMAGE, "images": 2, "classes": 3}
    return gfocal.atss(SIZES, STRIDES, **{**given, **options})


def fcos(**options: Any) -> gfocal.Assignment:
    given = {"gt_boxes": BOXES, "gt_labels": LABELS, "gt_image": IMAGE, "images": 2, "classes": 3}
    return gfocal.fcos(SIZES, STRIDES, **{**given, "regress_ranges": RANGES, **options})


def same(one: gfocal.Assignment, other: gfocal.Assignment) -> bool:
    lists = zip(one, other)
    return all(
        (a is None and b is None) or all(torch.equal(x.double(), y.double()) for x, y in zip(a, b)) for a, b in lists
    )


def of_case(tensors: dict[str, Tensor], name: str, levels: int) -> list[Tensor]:
    return [tensors[f"level{level}.{name}"] for level in range(levels)]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("name", golden.names("head_"))
def test_atss_as_mmdetection(name: str, dtype: torch.dtype) -> None:
    tensors, case = golden.read(name)
    levels = len(case["strides"])
    want = of_case(tensors, "labels", levels)
    got = gfocal.atss(
        [tuple(logits.shape[2:]) for logits in of_case(tensors, "cls_logits", levels)],
        case["strides"],
        tensors["gt_boxes"],
        tensors["gt_labels"].to(dtype),
        tensors["gt_image"],
        want[0].shape[0],
        case["num_classes"],
        topk=case["atss_topk"],
        scale=case["anchor_scale"],
    )
    for level in range(levels):
        assert got.labels[level].dtype is dtype
        assert torch.equal(got.labels[level], want[level].to(dtype))
        assert torch.equal(got.boxes[level], of_case(tensors, "box_targets", levels)[level])
        assert torch.equal(got.label_weights[level], of_case(tensors, "label_weights", levels)[level])
        positive = want[level] < case["num_classes"]
        assert torch.equal(got.box_weights[level], positive.float())
    assert got.centerness is None


@pytest.mark.parametrize("name", golden.names("fcos_"))
def test_fcos_as_mmdetection(name: str) -> None:
    tensors, case = golden.read(name)
    levels = len(case["strides"])
    want = of_case(tensors, "labels", levels)
    got = gfocal.fcos(
        [tuple(-(-side // stride) for side in case["image_hw"]) for stride in case["strides"]],
        case["strides"],
        tensors["gt_boxes"],
        tensors["gt_labels"],
        tensors["gt_image"],
        want[0].shape[0],
        case["num_classes"] if "num_classes" in case else int(want[0].max()),
        regress_ranges=case["regress_ranges"],
        center_sampling=case["center_sample_radius"] if case["center_sampling"] else None,
        offset=case["offset"],
    )
    assert got.centerness is not None
    eps = torch.finfo(torch.float32).eps
    for level in range(levels):
        assert torch.equal(got.labels[level], want[level])
        boxes, centerness = (of_case(tensors, key, levels)[level] for key in ("box_targets", "centerness"))
        # Theirs are points and distances put together in float32, at the scale of the image.
        assert ((got.boxes[level] - boxes).abs() <= eps * 192).all()
        assert ((got.centerness[level] - centerness).abs() <= eps * centerness).all()


def test_images_that_are_smaller() -> None:
    for rule in (atss, fcos):
        got = rule(image_sizes=torch.tensor([[64, 80], [32, 24]]))
        first, second = got.label_weights[0].view(2, 8, 10)
        assert (first == 1).all()
        assert (second[:4, :3] == 1).all() and second.sum() == 12
        assert (got.labels[0][1][second.flatten() == 0] == 3).all()
        assert same(rule(image_sizes=torch.tensor([[64, 80], [64, 80]])), rule())


def test_weights_ignored_boxes_and_backgrounds() -> None:
    for rule in (atss, fcos):
        plain = rule()
        weighted = rule(weights=torch.tensor([0.5, 1.0, 2.0]))
        for labels, weights in zip(plain.labels, weighted.box_weights):
            of_label = torch.tensor([1.0, 0.5, 2.0, 0.0])
            assert torch.equal(weights, of_label[labels])
        crowd = {"ignore_boxes": torch.tensor([[-80.0, -80.0, 200.0, 200.0]]), "ignore_image": torch.tensor([1])}
        ignored = rule(**crowd, ignore_iof=0.5)
        for weights, labels in zip(ignored.label_weights, ignored.labels):
            assert (weights[0] == 1).all() and (weights[1] == 0).all() and (labels[1] == 3).all()
        assert same(rule(**crowd), plain)
        first = rule(gt_labels=LABELS + 1, background="first")
        for labels, want in zip(first.labels, plain.labels):
            assert torch.equal(labels, torch.where(want == 3, 0, want + 1))


def test_status_and_fallback() -> None:
    tiny = {"gt_boxes": torch.tensor([[17.0, 17.0, 18.0, 18.0]]), "gt_labels": LABELS[:1], "gt_image": IMAGE[:1]}
    for rule in (atss, fcos):
        status = gfocal.Status()
        assert all((labels == 3).all() for labels in rule(**tiny, status=status).labels)
        assert status.unassigned_boxes == 1 and status.first_unassigned_box == 0 and not status.ok
        status = gfocal.Status()
        got = rule(**tiny, fallback=2, status=status)
        assert sum(int((labels == 1).sum()) for labels in got.labels) == 2 and status.ok
    status = gfocal.Status()
    broken = BOXES.clone()
    broken[1, 2] = float("nan")
    got = atss(gt_boxes=broken, gt_labels=torch.tensor([1, 0, 7]), gt_image=torch.tensor([5, 0, 1]), status=status)
    assert all((labels == 3).all() for labels in got.labels)
    assert (status.bad_boxes, status.bad_box_labels, status.bad_box_images) == (1, 1, 1)
    assert (status.first_bad_box, status.first_bad_box_label, status.first_bad_box_image) == (1, 2, 0)


def test_types_are_converted() -> None:
    for rule in (atss, fcos):
        plain = rule()
        assert same(rule(gt_boxes=BOXES.double(), gt_image=IMAGE.int()), plain)
        assert same(rule(gt_boxes=BOXES.half(), gt_labels=LABELS.int()), plain)
        assert same(rule(gt_boxes=BOXES.t().contiguous().t(), gt_labels=LABELS.byte()), plain)
        assert rule(gt_boxes=BOXES.double()).boxes[0].dtype is torch.float32


def test_no_boxes_and_no_images() -> None:
    none = {"gt_boxes": torch.zeros(0, 4), "gt_labels": LABELS[:0], "gt_image": IMAGE[:0]}
    for rule in (atss, fcos):
        got = rule(**none)
        for labels, boxes, weights in zip(got.labels, got.boxes, got.label_weights):
            assert (labels == 3).all() and (boxes == 0).all() and (weights == 1).all()
        got = rule(**none, images=0)
        assert [list(labels.shape) for labels in got.labels] == [[0, 80], [0, 20]]
        padding = rule(gt_image=torch.full((3,), -1))
        assert same(padding, rule(**none))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gt_boxes": torch.zeros(3, 5)}, gfocal.ShapeError, r"gt_boxes has shape \[3, 5\], it must be \[N, 4\]"),
        ({"gt_labels": LABELS[:2]}, gfocal.ShapeError, r"gt_labels has shape \[2\], gt_boxes \[3, 4\] needs \[3\]"),
        ({"gt_image": IMAGE[:2]}, gfocal.ShapeError, "gt_image has shape"),
        ({"weights": torch.ones(4)}, gfocal.ShapeError, "weights has shape"),
        ({"image_sizes": torch.zeros(1, 2).long()}, gfocal.ShapeError, "image_sizes has shape .*a batch of 2"),
        ({"ignore_boxes": torch.zeros(1, 4)}, gfocal.ShapeError, "ignore_boxes and ignore_image"),
        ({"gt_labels": LABELS.float()}, TypeError, "gt_labels is torch.float32, it must be torch.int64 or torch.int32"),
        ({"gt_boxes": [1, 2]}, TypeError, "gt_boxes must be a torch.Tensor, not list"),
        ({"gt_boxes": BOXES.clone().requires_grad_()}, ValueError, "gt_boxes requires a gradient"),
        ({"background": "middle"}, ValueError, 'background is "middle"'),
        ({"ignore_iof": 2.0}, ValueError, "ignore_iof is 2"),
        ({"fallback": 2**31}, ValueError, "fallback is 2147483648"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    for rule in (atss, fcos):
        with pytest.raises(error, match=message):
            rule(**options)


def test_errors_of_one_rule() -> None:
    with pytest.raises(ValueError, match="topk is 0, it must be from 1 to 256"):
        atss(topk=0)
    with pytest.raises(ValueError, match="center_sampling is -1"):
        fcos(center_sampling=-1.0)
    with pytest.raises(gfocal.ShapeError, match="2 levels of anchors, but regress ranges for 1"):
        fcos(regress_ranges=[(0, 1)])
    with pytest.raises(gfocal.ShapeError, match="sizes has 2 levels, strides 1"):
        gfocal.atss(SIZES, [8.0], BOXES, LABELS, IMAGE, 2, 3)
    with pytest.raises(gfocal.ShapeError, match=r"sizes\[1\] is \(4,\)"):
        gfocal.atss([(8, 10), (4,)], STRIDES, BOXES, LABELS, IMAGE, 2, 3)


def test_opcheck() -> None:
    tensors = (BOXES, LABELS, IMAGE, torch.ones(3), BOXES[:1].clone(), IMAGE[:1].clone(), torch.tensor([[64, 80]] * 2))
    plain = (BOXES, LABELS, IMAGE, None, None, None, None)
    sizes = ([8, 10, 4, 5], STRIDES, 2, 3)
    for given in (tensors, plain):
        for counts in (False, True):
            of_atss = (9, 8.0, 0.0, 0.5, 0, "last", counts)
            library.opcheck(torch.ops.gfocal.atss.default, (*given, *sizes, *of_atss))
            of_fcos = ([-1.0, 32.0, 32.0, 1e8], 1.5, 0.5, -1.0, 0, "last", counts)
            library.opcheck(torch.ops.gfocal.fcos.default, (*given, *sizes, *of_fcos))


def test_compiled_and_fake() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for rule in (atss, fcos):
        torch._dynamo.reset()
        compiled = torch.compile(lambda boxes, rule=rule: rule(gt_boxes=boxes), fullgraph=True, backend="aot_eager")
        assert same(compiled(BOXES), rule())
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = rule(gt_boxes=mode.from_tensor(BOXES))
        for ours, real in zip(fake[:4], rule()[:4]):
            assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in real]


def test_results_are_of_no_one_else() -> None:
    first = atss()
    kept = copy.deepcopy(first)
    first.labels[0].zero_()
    first.boxes[0].zero_()
    assert torch.equal(first.labels[1], kept.labels[1]) and torch.equal(first.boxes[1], kept.boxes[1])
    assert same(atss(), kept)
