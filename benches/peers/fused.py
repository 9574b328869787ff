"""QFL and DFL as fused Triton kernels: one pass over the logits, arithmetic in f32, beta 2 without a power.

A program takes a block of whole elements (QFL) or rows (DFL), writes the gradient and its part of the
loss; the parts are added up by one small reduction.
"""

import torch
import triton
import triton.language as tl

QFL_BLOCK = 2048
DFL_ROWS = 64


@triton.jit
def qfl_kernel(
    logits, labels, quality, weight, grad, parts, elements,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr, WITH_GRAD: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = start + tl.arange(0, BLOCK)
    inside = at < elements
    x = tl.load(logits + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    row = at // CLASSES
    label = tl.load(labels + row, mask=inside, other=-1)
    w = tl.load(weight + row, mask=inside, other=0.0)
    positive = (at - row * CLASSES) == label
    y = tl.load(quality + row, mask=inside & positive, other=0.0)
    e = tl.exp(-tl.abs(x))
    inverse = 1.0 / (1.0 + e)
    sigmoid = tl.where(x >= 0, inverse, e * inverse)
    # log1p(e): below 1e-4 its series, where 1 + e has lost the digits of e.
    log1p = tl.where(e < 1e-4, e - 0.5 * e * e, tl.log(1.0 + e))
    entropy = tl.maximum(x, 0.0) + log1p - x * y
    distance = sigmoid - y
    square = distance * distance
    loss = tl.where(inside, w * square * entropy, 0.0)
    tl.store(parts + tl.program_id(0), tl.sum(loss, axis=0))
    if WITH_GRAD:
        slope = w * distance * (square + 2.0 * sigmoid * (1.0 - sigmoid) * entropy)
        tl.store(grad + at, slope.to(grad.dtype.element_ty), mask=inside, eviction_policy="evict_first")


@triton.jit
def dfl_kernel(
    logits, target, weight, grad, parts, rows,
    BINS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, WITH_GRAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    there = row < rows
    inside = there[:, None] & (column < BINS)[None, :]
    at = row[:, None] * BINS + column[None, :]
    z = tl.load(logits + at, mask=inside, other=-float("inf"), eviction_policy="evict_first").to(tl.float32)
    z = tl.where(there[:, None], z, 0.0)
    t = tl.load(target + row, mask=there, other=0.0)
    w = tl.load(weight + row, mask=there, other=0.0)
    two_hot = tl.maximum(1.0 - tl.abs(t[:, None] - column[None, :].to(tl.float32)), 0.0)
    peak = tl.max(z, axis=1)
    e = tl.exp(z - peak[:, None])
    total = tl.sum(e, axis=1)
    hit = tl.sum(tl.where(two_hot > 0, two_hot * (z - peak[:, None]), 0.0), axis=1)
    loss = w * (tl.log(total) - hit)
    tl.store(parts + tl.program_id(0), tl.sum(loss, axis=0))
    if WITH_GRAD:
        slope = w[:, None] * (e / total[:, None] - two_hot)
        tl.store(grad + at, slope.to(grad.dtype.element_ty), mask=inside, eviction_policy="evict_first")


class Fused:
    """Calls of one case, with memory that is allocated once. `run` gives the loss, a tensor."""

    def __init__(self, op, tensors, with_grad):
        self.op, self.tensors, self.with_grad = op, tensors, with_grad
        logits = tensors[0]
        self.rows, self.columns = logits.shape
        count = triton.cdiv(logits.numel(), QFL_BLOCK) if op == "qfl" else triton.cdiv(self.rows, DFL_ROWS)
        self.parts = torch.empty(count, device=logits.device, dtype=torch.float32)
        self.loss = torch.empty((), device=logits.device, dtype=torch.float32)
        self.grad = torch.empty_like(logits) if with_grad else logits
        self.grads = (self.grad,)

    def run(self):
        grid = (self.parts.numel(),)
        if self.op == "qfl":
            logits, labels, quality, weight = self.tensors
            qfl_kernel[grid](
                logits, labels, quality, weight, self.grad, self.parts, logits.numel(),
                CLASSES=self.columns, BLOCK=QFL_BLOCK, WITH_GRAD=self.with_grad, num_warps=4,
            )
        else:
            logits, target, weight = self.tensors
            dfl_kernel[grid](
                logits, target, weight, self.grad, self.parts, self.rows,
                BINS=self.columns, WIDTH=triton.next_power_of_2(self.columns), ROWS=DFL_ROWS,
                WITH_GRAD=self.with_grad, num_warps=4,
            )
        torch.sum(self.parts, dim=0, out=self.loss)
        return self.loss
