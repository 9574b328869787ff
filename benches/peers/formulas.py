"""The losses as mmdetection has them, as plain PyTorch operations, and in float64 to compare with.

Each takes the tensors of a case and gives the weighted sum of the rows' losses, a scalar.
"""

import torch
import torch.nn.functional as F


def qfl_eager(logits, labels, quality, weight):
    """Every logit against zero, then the positives against their quality, chosen by index."""
    classes = logits.shape[1]
    sigmoid = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none") * sigmoid.pow(2.0)
    rows = ((labels >= 0) & (labels < classes)).nonzero().squeeze(1)
    columns = labels[rows].long()
    target = quality[rows].to(logits.dtype)
    distance = target - sigmoid[rows, columns]
    entropy = F.binary_cross_entropy_with_logits(logits[rows, columns], target, reduction="none")
    loss[rows, columns] = entropy * distance.abs().pow(2.0)
    return (loss.sum(dim=1) * weight).sum()


def qfl_masked(logits, labels, quality, weight):
    """The same without indices, whose number the compiler cannot know; in f32."""
    logits = logits.float()
    positive = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    target = torch.where(positive, quality[:, None], torch.zeros((), device=logits.device))
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = entropy * (target - logits.sigmoid()).square()
    return (loss.sum(dim=1) * weight).sum()


def dfl_eager(logits, target, weight):
    """Two cross entropies, with the bins to the left and to the right of the target."""
    left = target.long()
    right = left + 1
    left_share, right_share = right.float() - target, target - left.float()
    loss = (
        F.cross_entropy(logits, left, reduction="none") * left_share
        + F.cross_entropy(logits, right, reduction="none") * right_share
    )
    return (loss * weight).sum()


def truth(op, tensors):
    """Loss and gradient in float64, by the formulas of both."""
    logits = tensors[0].detach().double()
    if op == "qfl":
        _, labels, quality, weight = tensors
        columns = torch.arange(logits.shape[1], device=logits.device)
        target = torch.where(columns == labels[:, None], quality.double()[:, None], 0.0)
        sigmoid = logits.sigmoid()
        entropy = logits.clamp(min=0) + torch.log1p((-logits.abs()).exp()) - logits * target
        distance = sigmoid - target
        loss = (distance.square() * entropy).sum(dim=1)
        grad = distance * (distance.square() + 2 * sigmoid * (1 - sigmoid) * entropy)
    else:
        _, target, weight = tensors
        target = target.double()[:, None]
        columns = torch.arange(logits.shape[1], device=logits.device)
        two_hot = (1 - (target - columns).abs()).clamp(min=0)
        logs = logits.log_softmax(dim=1)
        loss = -(two_hot * logs).sum(dim=1)
        grad = logs.exp() - two_hot
    weight = weight.double()
    return (loss * weight).sum(), grad * weight[:, None]
