"""The head loss as mmdetection 3.3 composes it (GFLHead.loss_by_feat), as plain PyTorch operations; what it works
on; and the same in float64 to compare with.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import formulas

STRIDES = (8, 16, 32, 64, 128)
COCO = ((100, 167), (50, 84), (25, 42), (13, 21), (7, 11))  # height and width of the levels of 800x1333 pixels
COCO_ANCHORS = sum(height * width for height, width in COCO)
BINS = 17
EPS = torch.finfo(torch.float32).eps
POSITIVES = 0.005


def pyramid(anchors):
    """Images and their levels, (height, width, stride) each, as `gfocal bench --help` has them. Its twin is
    cli/src/bench/head/pyramid.rs."""
    if anchors % COCO_ANCHORS == 0:
        return anchors // COCO_ANCHORS, [(*size, stride) for size, stride in zip(COCO, STRIDES)]
    coarser = [anchors * parts // 341 for parts in (64, 16, 4, 1)]
    levels = []
    for positions, stride in zip((anchors - sum(coarser), *coarser), STRIDES):
        if positions:
            height = next(h for h in range(math.isqrt(positions), 0, -1) if positions % h == 0)
            levels.append((height, positions // height, stride))
    return 1, levels


def positives_of(anchors, share=POSITIVES):
    """Of the anchors of a level."""
    return max(1, math.floor(anchors * share + 0.5))


def least_bytes(anchors, positives, classes, element, with_grad=True):
    """What a step must move: class logits, labels and label weights of all, box logits and targets of positives; and
    both gradients. Its twin is `bytes` in cli/src/bench/head/mod.rs."""
    read = anchors * (classes * element + 8 + 4) + positives * (4 * BINS * element + 16)
    return read + (anchors * (classes + 4 * BINS) * element if with_grad else 0)


def bytes_of(rows, columns, element, with_grad):
    images, levels = pyramid(rows)
    positives = sum(positives_of(images * height * width) for height, width, _ in levels)
    return least_bytes(rows, positives, columns, element, with_grad)


@dataclass
class Level:
    """Logits as convolutions give them, and targets of [images * positions]."""

    cls: torch.Tensor
    boxes: torch.Tensor
    anchors: torch.Tensor
    labels: torch.Tensor
    label_weights: torch.Tensor
    targets: torch.Tensor
    stride: int
    positives: torch.Tensor  # their indices, for those who do not look for them


@dataclass
class Step:
    levels: list
    count: int  # of positives, with one at least for each image, as the assigner counts them
    scale: float  # of the loss


def data(rows, classes, dtype, device):
    """The distribution of `gfocal bench --help`, from a seed."""
    rng = torch.Generator().manual_seed(7)
    images, sizes = pyramid(rows)
    levels, of_images = [], [0] * images
    for height, width, stride in sizes:
        positions = height * width
        cls = torch.randn(images, classes, height, width, generator=rng) - 4.6
        boxes = torch.randn(images, 4 * BINS, height, width, generator=rng)
        weights = torch.ones(images * positions)
        labels, targets = torch.full((images * positions,), classes), torch.zeros(images * positions, 4)
        for anchor, label, target in objects(rng, images, height, width, classes):
            labels[anchor], targets[anchor] = label, torch.tensor(target) * stride
            of_images[anchor // positions] += 1
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers = torch.stack((x, y), dim=-1).reshape(-1, 2).repeat(images, 1) * float(stride)
        anchors = torch.cat((centers - 4 * stride, centers + 4 * stride), dim=1)
        positives = (labels < classes).nonzero().squeeze(1)
        tensors = (cls.to(dtype), boxes.to(dtype), anchors, labels, weights, targets)
        levels.append(Level(*(t.to(device) for t in tensors), stride, positives.to(device)))
    total = sum(len(level.positives) for level in levels)
    return Step(levels, sum(max(n, 1) for n in of_images), 1024.0 * 2 ** math.ceil(math.log2(total)))


def objects(rng, images, height, width, classes):
    """Anchor, class and target box, in strides, of each positive: up to nine around an object's centre."""

    def below(end):
        return int(torch.randint(end, (), generator=rng))

    taken, wanted = set(), positives_of(images * height * width)
    while len(taken) < wanted:
        image, label, center_y, center_x = below(images), below(classes), below(height), below(width)
        left, top, right, bottom = (2 + 6 * torch.rand(4, generator=rng)).tolist()
        target = (center_x - left, center_y - top, center_x + right, center_y + bottom)
        for y in range(max(center_y - 1, 0), min(center_y + 2, height)):
            for x in range(max(center_x - 1, 0), min(center_x + 2, width)):
                anchor = (image * height + y) * width + x
                if len(taken) < wanted and anchor not in taken:
                    taken.add(anchor)
                    yield anchor, label, target


def nonzero(level):
    """The positives, as mmdetection finds them: the host waits for their number."""
    classes = level.cls.shape[1]
    return ((level.labels >= 0) & (level.labels < classes)).nonzero().squeeze(1)


def given(level):
    return level.positives


def quality_focal_loss(pred, labels, score, positives, beta=2.0):
    sigmoid = pred.sigmoid()
    zeros = sigmoid.new_zeros(pred.shape)
    loss = F.binary_cross_entropy_with_logits(pred, zeros, reduction="none") * sigmoid.pow(beta)
    columns, score = labels[positives], score[positives].to(pred.dtype)
    factor = score - sigmoid[positives, columns]
    entropy = F.binary_cross_entropy_with_logits(pred[positives, columns], score, reduction="none")
    loss[positives, columns] = entropy * factor.abs().pow(beta)
    return loss.sum(dim=1, keepdim=False)


def distribution_focal_loss(pred, label):
    left = label.long()
    right = left + 1
    weight_left = right.float() - label
    weight_right = label - left.float()
    return (
        F.cross_entropy(pred, left, reduction="none") * weight_left
        + F.cross_entropy(pred, right, reduction="none") * weight_right
    )


def overlaps(pred, target, eps=1e-6):
    """IoU, and the union."""
    area = (pred[:, 2] - pred[:, 0]) * (pred[:, 3] - pred[:, 1])
    target_area = (target[:, 2] - target[:, 0]) * (target[:, 3] - target[:, 1])
    wh = (torch.min(pred[:, 2:], target[:, 2:]) - torch.max(pred[:, :2], target[:, :2])).clamp(min=0)
    overlap = wh[:, 0] * wh[:, 1]
    union = (area + target_area - overlap).clamp(min=eps)
    return overlap / union, union


def giou_loss(pred, target, eps=1e-6):
    iou, union = overlaps(pred, target, eps)
    wh = (torch.max(pred[:, 2:], target[:, 2:]) - torch.min(pred[:, :2], target[:, :2])).clamp(min=0)
    hull = (wh[:, 0] * wh[:, 1]).clamp(min=eps)
    return 1 - (iou - (hull - union) / hull)


def level_losses(level, count, find):
    """GFLHead.loss_by_feat_single; `find` gives the positives."""
    cls = level.cls.permute(0, 2, 3, 1).reshape(-1, level.cls.shape[1])
    boxes = level.boxes.permute(0, 2, 3, 1).reshape(-1, 4 * BINS)
    positives = find(level)
    score = level.label_weights.new_zeros(level.label_weights.shape)
    targets = level.targets[positives] / level.stride
    pred, anchors = boxes[positives], level.anchors[positives]
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2 / level.stride
    weights = cls.detach().sigmoid().max(dim=1)[0][positives]
    project = torch.arange(BINS, dtype=pred.dtype, device=pred.device)
    distances = F.linear(F.softmax(pred.reshape(-1, BINS), dim=1), project[None]).reshape(-1, 4)
    decoded = torch.cat((centers - distances[:, :2], centers + distances[:, 2:]), dim=-1)
    score[positives] = overlaps(decoded.detach(), targets)[0]
    sides = torch.cat((centers - targets[:, :2], targets[:, 2:] - centers), dim=-1).clamp(min=0, max=BINS - 1 - 0.1)
    of_sides = distribution_focal_loss(pred.reshape(-1, BINS), sides.reshape(-1))
    loss_bbox = 2.0 * ((giou_loss(decoded, targets) * weights).sum() / (1.0 + EPS))
    loss_dfl = 0.25 * ((of_sides * weights[:, None].expand(-1, 4).reshape(-1)).sum() / (4.0 + EPS))
    of_anchors = quality_focal_loss(cls, level.labels, score, find(level))
    loss_cls = (of_anchors * level.label_weights).sum() / (count + EPS)
    return loss_cls, loss_bbox, loss_dfl, weights.sum()


def loss_by_feat(levels, count, find, on_host):
    """GFLHead.loss_by_feat: three losses of each level. `on_host`: the host reads what to divide by, as there."""
    cls, bbox, dfl, weights = zip(*(level_losses(level, count, find) for level in levels))
    total = sum(weights).clamp(min=1)
    total = total.item() if on_host else total
    return list(cls), [loss / total for loss in bbox], [loss / total for loss in dfl]


def eager(levels, count):
    return sum(map(sum, loss_by_feat(levels, count, nonzero, on_host=True)))


def indexed(levels, count):
    """For the compiler, which cannot know how many positives there are: they are given."""
    return sum(map(sum, loss_by_feat(levels, count, given, on_host=False)))


class Call:
    """A step on tensors of its own, with PyTorch's own gradient. `run` gives the loss, `grads` are scaled."""

    def __init__(self, loss, step, with_grad):
        def leaf(tensor):
            return tensor.detach().clone().requires_grad_(with_grad)

        self.loss, self.with_grad, self.count, self.scale = loss, with_grad, step.count, step.scale
        self.levels = [replace(level, cls=leaf(level.cls), boxes=leaf(level.boxes)) for level in step.levels]
        self.leaves = [tensor for level in self.levels for tensor in (level.cls, level.boxes)]
        self.grads = ()

    def run(self):
        if not self.with_grad:
            with torch.no_grad():
                return self.loss(self.levels, self.count)
        loss = self.loss(self.levels, self.count)
        self.grads = torch.autograd.grad(loss * self.scale, self.leaves)
        return loss.detach()


def truth(step):
    """Loss and scaled gradients in float64, by the formulas and not by mmdetection's operations."""
    boxes = [true_boxes(level) for level in step.levels]
    by = sum(of.weights.sum() for of in boxes).clamp(min=1)
    box_loss = sum(of.loss for of in boxes) / by
    box_grads = torch.autograd.grad(box_loss * step.scale, [of.logits for of in boxes])
    loss, grads = box_loss.detach(), []
    for level, of, box_grad in zip(step.levels, boxes, box_grads):
        quality = torch.zeros(len(level.labels), dtype=torch.float64, device=level.labels.device)
        quality[of.positives] = of.quality
        part, cls_grad = formulas.truth("qfl", (as_rows(level.cls), level.labels, quality, level.label_weights))
        loss = loss + part / (step.count + EPS)
        of_rows = torch.zeros_like(as_rows(level.boxes))
        of_rows[of.positives] = box_grad.flatten(1)
        grads += [as_images(cls_grad * (step.scale / (step.count + EPS)), level.cls), as_images(of_rows, level.boxes)]
    return loss, grads


@dataclass
class Boxes:
    """Of the positives of a level, in float64."""

    positives: torch.Tensor
    weights: torch.Tensor
    quality: torch.Tensor
    logits: torch.Tensor  # [positives, 4, bins], a leaf
    loss: torch.Tensor  # the sum, before it is divided


def true_boxes(level):
    at = (level.labels != level.cls.shape[1]).nonzero().squeeze(1)
    weights = as_rows(level.cls)[at].amax(dim=1).sigmoid()
    logits = as_rows(level.boxes)[at].unflatten(1, (4, BINS)).requires_grad_(True)
    bins = torch.arange(BINS, device=logits.device, dtype=logits.dtype)
    found = (logits.softmax(dim=2) * bins).sum(dim=2)  # left, top, right, bottom
    anchors, targets = level.anchors[at].double() / level.stride, level.targets[at].double() / level.stride
    x, y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
    wanted = torch.stack((x - targets[:, 0], y - targets[:, 1], targets[:, 2] - x, targets[:, 3] - y), dim=1)

    def area(sides):
        return (sides[:, 0] + sides[:, 2]).clamp(min=0) * (sides[:, 1] + sides[:, 3]).clamp(min=0)

    shared, hull = area(torch.minimum(found, wanted)), area(torch.maximum(found, wanted))
    union = area(found) + area(wanted) - shared
    giou = shared / union - (hull - union) / hull
    two_hot = (1 - (wanted.clamp(0, BINS - 1 - 0.1)[..., None] - bins).abs()).clamp(min=0)
    of_sides = -(two_hot * logits.log_softmax(dim=2)).sum(dim=(1, 2))
    loss = (weights * (2 * (1 - giou) / (1 + EPS) + 0.25 * of_sides / (4 + EPS))).sum()
    return Boxes(at, weights, (shared / union).detach(), logits, loss)


def as_rows(tensor):
    """[images, channels, height, width] as [images * positions, channels], in float64."""
    return tensor.detach().double().flatten(2).transpose(1, 2).flatten(0, 1)


def as_images(of_rows, like):
    """The way back."""
    return of_rows.unflatten(0, (len(like), -1)).transpose(1, 2).reshape(like.shape)
