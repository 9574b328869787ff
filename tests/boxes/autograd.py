"""Makes autograd.safetensors: 1 - IoU, GIoU, DIoU and CIoU by mmdetection 3's formulas (bbox_overlaps, diou_loss,
ciou_loss), and 1 - CIoU by Ultralytics 8's (bbox_iou), in float64, with PyTorch's autograd for the gradients with
respect to the predictions. Made with PyTorch 2.15:

    python tests/boxes/autograd.py tests/boxes/autograd.safetensors
"""
import json
import math
import random
import struct
import sys

import torch

torch.set_default_dtype(torch.float64)
EPS = 1e-6


def bbox_overlaps(a, b, mode, eps):
    area1 = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area2 = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    wh = (torch.min(a[:, 2:], b[:, 2:]) - torch.max(a[:, :2], b[:, :2])).clamp(min=0)
    overlap = wh[:, 0] * wh[:, 1]
    eps = a.new_tensor([eps])
    union = torch.max(area1 + area2 - overlap, eps)
    ious = overlap / union
    if mode == "iou":
        return ious
    hull_wh = (torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])).clamp(min=0)
    hull = torch.max(hull_wh[:, 0] * hull_wh[:, 1], eps)
    return ious - (hull - union) / hull


def diou_or_ciou_loss(pred, target, eps, complete):
    wh = (torch.min(pred[:, 2:], target[:, 2:]) - torch.max(pred[:, :2], target[:, :2])).clamp(min=0)
    overlap = wh[:, 0] * wh[:, 1]
    w1, h1 = pred[:, 2] - pred[:, 0], pred[:, 3] - pred[:, 1]
    w2, h2 = target[:, 2] - target[:, 0], target[:, 3] - target[:, 1]
    ious = overlap / (w1 * h1 + w2 * h2 - overlap + eps)
    hull_wh = (torch.max(pred[:, 2:], target[:, 2:]) - torch.min(pred[:, :2], target[:, :2])).clamp(min=0)
    c2 = hull_wh[:, 0] ** 2 + hull_wh[:, 1] ** 2 + eps
    left = ((target[:, 0] + target[:, 2]) - (pred[:, 0] + pred[:, 2])) ** 2 / 4
    right = ((target[:, 1] + target[:, 3]) - (pred[:, 1] + pred[:, 3])) ** 2 / 4
    rho2 = left + right
    if not complete:
        return 1 - (ious - rho2 / c2)
    v = 4 / math.pi**2 * torch.pow(torch.atan(w2 / (h2 + eps)) - torch.atan(w1 / (h1 + eps)), 2)
    with torch.no_grad():
        alpha = (ious > 0.5).to(v) * v / (1 - ious + v)
    return 1 - (ious - (rho2 / c2 + alpha * v)).clamp(min=-1.0, max=1.0)


def ultralytics_ciou_loss(pred, target, eps):
    (x1, y1, x2, y2), (tx1, ty1, tx2, ty2) = pred.unbind(1), target.unbind(1)
    w1, h1 = x2 - x1, y2 - y1 + eps
    w2, h2 = tx2 - tx1, ty2 - ty1 + eps
    inter = (x2.minimum(tx2) - x1.maximum(tx1)).clamp(0) * (y2.minimum(ty2) - y1.maximum(ty1)).clamp(0)
    iou = inter / (w1 * h1 + w2 * h2 - inter + eps)
    cw, ch = x2.maximum(tx2) - x1.minimum(tx1), y2.maximum(ty2) - y1.minimum(ty1)
    c2 = cw.pow(2) + ch.pow(2) + eps
    rho2 = ((tx1 + tx2 - x1 - x2).pow(2) + (ty1 + ty2 - y1 - y2).pow(2)) / 4
    v = (4 / math.pi**2) * ((w2 / h2).atan() - (w1 / h1).atan()).pow(2)
    with torch.no_grad():
        alpha = v / (v - iou + (1 + eps))
    return 1 - (iou - (rho2 / c2 + v * alpha))


def pairs():
    r = random.Random(5)

    def box(size):
        x, y = r.uniform(0, 20), r.uniform(0, 20)
        return [x, y, x + r.uniform(0.1, size), y + r.uniform(0.1, size)]

    for _ in range(24):
        yield "random", box(20), box(20)
    for _ in range(12):
        target = box(20)
        yield "near", [c + r.uniform(-0.4, 0.4) for c in target], target
    for _ in range(4):
        yield "far", box(3), [c + 1000 for c in box(3)]
    q, small = [2, 3, 7, 11], [0.5, 0.5, 0.5078125, 0.515625]
    yield "identical", q, q
    yield "identical and small", small, small
    yield "one side in common", [2, 4, 9, 12], q
    yield "a corner in common", [2, 3, 5, 5], q
    yield "inside", [3, 4, 6, 9], q
    yield "touching", [7, 3, 10, 11], q
    yield "touching at a corner", [7, 11, 8, 12], q
    yield "no width", [4, 4, 4, 8], q
    yield "no height", [3, 5, 6, 5], q
    yield "a point", [4, 4, 4, 4], q
    yield "a point at the corner", [2, 3, 2, 3], q
    yield "the target is a point", q, [4, 4, 4, 4]
    yield "two points", [1, 1, 1, 1], [2, 2, 2, 2]
    yield "the same point", [1, 1, 1, 1], [1, 1, 1, 1]
    yield "the same line", [1, 1, 1, 3], [1, 1, 1, 3]
    yield "inverted in x", [7, 3, 2, 11], q
    yield "inverted in y", [2, 11, 7, 3], q
    yield "inverted", [7, 11, 2, 3], q
    yield "inverted and far", [900, 11, 700, 3], q
    yield "huge", [-1e18, -1e18, 1e18, 1e18], q
    yield "both huge", [-1e15, -2e15, 1e15, 1e15], [-1e15, -1e15, 2e15, 1e15]
    yield "tiny", [1e-6, 1e-6, 3e-6, 2e-6], [1e-6, 0, 2e-6, 2e-6]
    yield "one tiny", [4, 4, 4.0000152587890625, 4.0000152587890625], q
    yield "another aspect", [0, 0, 8, 2], [0, 0, 7, 2.5]
    yield "quite another aspect", [0, 0, 8, 2], [0, 0, 2, 8]
    yield "thin", [0, 0, 1000, 0.001953125], [0, 0, 900, 0.001953125]


def main(path):
    names, pred, target = zip(*pairs())
    # Exact in f32.
    pred, target = (torch.tensor(boxes).float().double() for boxes in (pred, target))
    tensors = {"pred": pred, "target": target, "iou": bbox_overlaps(pred, target, "iou", EPS)}
    for kind in ["iou", "giou", "diou", "ciou", "ciouultralytics"]:
        leaf = pred.clone().requires_grad_()
        if kind in ("iou", "giou"):
            loss = 1 - bbox_overlaps(leaf, target, kind, EPS)
        elif kind == "ciouultralytics":
            loss = ultralytics_ciou_loss(leaf, target, EPS)
        else:
            loss = diou_or_ciou_loss(leaf, target, EPS, kind == "ciou")
        loss.sum().backward()
        tensors[f"{kind}.loss"], tensors[f"{kind}.grad"] = loss.detach(), leaf.grad
    header = {"__metadata__": {"case": json.dumps({"op": "boxes", "eps": EPS, "names": names})}}
    data = b""
    for name, tensor in tensors.items():
        start = len(data)
        data += struct.pack(f"<{tensor.numel()}d", *tensor.flatten().tolist())
        header[name] = {"dtype": "F64", "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + data)


main(sys.argv[1])
