"""The head with its assignment, and in several processes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import gfocal

from . import golden
from .head_scene import call, gradients, leaves, scene, upstreams
from .tolerance import assert_close


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
