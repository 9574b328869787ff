"""Bytes that a training step of GFL's head loss moves, operation by operation, in PyTorch.

    python benches/peers/head_bytes.py [--dtype f32] [--batch 16] [--classes 80] [--image 800x1333] [--positives 0.005]

Runs mmdetection 3.3's composition (GFLHead.loss_by_feat: permute, reshape, sigmoid, QFL, integral,
GIoU, DFL, and the backward of their sum) on tensors without data, and adds up what every operation
reads and writes. Nothing is computed and no memory is needed. Views are free. Beside it: what
gfocal's two launches move, and what nobody can do without.
"""
import argparse
import math

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STRIDES = (8, 16, 32, 64, 128)
BINS = 17
TILE_CHANNELS = 20  # twin in src/cuda/raw/head.rs
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def size(tensor):
    """Bytes of the elements that exist; an expanded tensor has fewer than its shape says."""
    extent = 1
    for length, stride in zip(tensor.shape, tensor.stride()):
        extent *= length if stride else 1
    return extent * tensor.element_size()


class Bytes(TorchDispatchMode):
    """Counts what operations read, write, and keep for the backward pass or the next one."""

    def __init__(self):
        super().__init__()
        self.read = self.written = self.launches = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        schema = function._schema
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if not is_view and function.overloadpacket not in (torch.ops.aten.empty, torch.ops.aten.empty_like,
                                                           torch.ops.aten.detach):
            self.read += sum(map(size, inputs))
            self.written += sum(map(size, outputs))
            self.launches += 1
        return out


def qfl(pred, positives, labels, score, beta=2.0):
    """quality_focal_loss, with the positives' indices given, since there is no data to find them in."""
    sigmoid = pred.sigmoid()
    zeros = sigmoid.new_zeros(pred.shape)
    loss = F.binary_cross_entropy_with_logits(pred, zeros, reduction="none") * sigmoid.pow(beta)
    factor = score[positives] - sigmoid[positives, labels]
    loss[positives, labels] = F.binary_cross_entropy_with_logits(
        pred[positives, labels], score[positives], reduction="none") * factor.abs().pow(beta)
    return loss.sum(dim=1, keepdim=False)


def dfl(pred, label):
    left = label.long()
    right = left + 1
    weight_left = right.float() - label
    weight_right = label - left.float()
    return (F.cross_entropy(pred, left, reduction="none") * weight_left
            + F.cross_entropy(pred, right, reduction="none") * weight_right)


def giou_loss(pred, target, eps=1e-6):
    lt = torch.max(pred[:, :2], target[:, :2])
    rb = torch.min(pred[:, 2:], target[:, 2:])
    wh = (rb - lt).clamp(min=0)
    overlap = wh[:, 0] * wh[:, 1]
    area = (pred[:, 2] - pred[:, 0]) * (pred[:, 3] - pred[:, 1])
    area = area + (target[:, 2] - target[:, 0]) * (target[:, 3] - target[:, 1])
    union = (area - overlap).clamp(min=eps)
    hull = (torch.max(pred[:, 2:], target[:, 2:]) - torch.min(pred[:, :2], target[:, :2])).clamp(min=0)
    hull = (hull[:, 0] * hull[:, 1]).clamp(min=eps)
    return 1 - (overlap / union - (hull - union) / hull)


def level(cls, box, positives, labels, targets, weights):
    cls = cls.permute(0, 2, 3, 1).reshape(-1, cls.shape[1])
    box = box.permute(0, 2, 3, 1).reshape(-1, 4 * BINS)
    score = cls.new_zeros(cls.shape[0], dtype=torch.float32)
    weight_targets = cls.detach().sigmoid().max(dim=1)[0][positives]
    box = box[positives]
    corners = F.softmax(box.reshape(-1, BINS), dim=1)
    corners = F.linear(corners, torch.arange(BINS, dtype=box.dtype, device="meta")[None]).reshape(-1, 4)
    decoded = torch.cat((-corners[:, :2], corners[:, 2:]), dim=-1)
    score[positives] = giou_loss(decoded.detach(), targets).float()  # an IoU, of about as many bytes
    loss_bbox = (giou_loss(decoded, targets) * weight_targets).sum()
    loss_dfl = (dfl(box.reshape(-1, BINS), targets.reshape(-1)) * weight_targets[:, None].expand(-1, 4).reshape(-1)).sum()
    loss_cls = (qfl(cls, positives, labels, score.to(cls.dtype)) * weights).sum()
    return loss_cls, loss_bbox, loss_dfl


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--image", default="800x1333", help="height x width in pixels")
    parser.add_argument("--positives", type=float, default=0.005, help="share of the anchors")
    args = parser.parse_args()
    height, width = map(int, args.image.split("x"))
    dtype, kind = DTYPES[args.dtype], torch.device("meta")
    element = torch.empty((), dtype=dtype).element_size()

    count = Bytes()
    anchors = positives = 0
    losses, leaves = [], []
    for stride in STRIDES:
        h, w = math.ceil(height / stride), math.ceil(width / stride)
        n = args.batch * h * w
        p = max(1, round(n * args.positives))
        anchors, positives = anchors + n, positives + p
        cls = torch.empty(args.batch, args.classes, h, w, dtype=dtype, device=kind, requires_grad=True)
        box = torch.empty(args.batch, 4 * BINS, h, w, dtype=dtype, device=kind, requires_grad=True)
        index = torch.empty(p, dtype=torch.int64, device=kind)
        targets = torch.empty(p, 4, device=kind)
        weights = torch.empty(n, device=kind)
        with count:
            losses += level(cls, box, index, index, targets, weights)
        leaves += [cls, box]
    with count:
        total = sum(loss / 2 for loss in losses)
        torch.autograd.grad(total, leaves)

    cls, box = anchors * args.classes * element, anchors * 4 * BINS * element
    labels, weights = 8 * anchors, 4 * anchors
    # Of a positive: its class logits (for the largest), its box logits, its target box.
    gathered = positives * ((args.classes + 4 * BINS) * element + 16)
    least = 2 * cls + box + labels + weights + gathered - positives * args.classes * element
    # A code for each anchor instead of its label, written once, and read with its weight for every tile of
    # channels and once more for the boxes; a record of 24 bytes for each positive, written and read; its box
    # logits a second time. What the caches hold is counted too.
    tiles = math.ceil(args.classes / TILE_CHANNELS)
    codes = 4 * anchors
    ours = 2 * cls + box + labels + (2 + tiles) * codes + tiles * weights + gathered
    ours += positives * (4 * BINS * element + 2 * 24)
    theirs = count.read + count.written
    print(f"{args.batch} images of {args.image}, {args.classes} classes, {args.dtype}: "
          f"{anchors} anchors, {positives} positives")
    print(f"{'':36}{'MB':>10}{'of the least':>14}{'launches':>10}")
    for name, moved, launches in (
        ("least possible", least, ""),
        ("gfocal, two launches", ours, 2),
        ("PyTorch, mmdetection's composition", theirs, count.launches),
        ("  of which written", count.written, ""),
    ):
        print(f"{name:36}{moved / 1e6:>10.1f}{moved / least:>14.2f}{launches:>10}")


if __name__ == "__main__":
    main()
