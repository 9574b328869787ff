"""Bytes that a training step of GFL's head loss moves, operation by operation, in PyTorch.

    python benches/peers/head_bytes.py [--dtype f32] [--batch 16] [--classes 80] [--image 800x1333] [--positives 0.005]

Runs mmdetection 3.3's composition (head.py: permute, reshape, sigmoid, QFL, integral, GIoU, DFL, and the
backward of their sum) on tensors without data, and adds up what every operation reads and writes. Which
anchors are positives is given, since there is no data to find it in. Nothing is computed and no memory is
needed. Views are free. Beside it: what gfocal's two launches move, and what nobody can do without.
"""
import argparse
import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import head

MOST_STEPS = 32  # channels that a lane goes along; twin in src/head/launch/plan.rs
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def size(tensor):
    """Bytes of the elements that exist; an expanded tensor has fewer than its shape says."""
    extent = 1
    for length, stride in zip(tensor.shape, tensor.stride()):
        extent *= length if stride else 1
    return extent * tensor.element_size()


aten = torch.ops.aten
FREE = (aten.empty, aten.empty_like, aten.detach, aten._unsafe_view)
FILLS = (aten.new_zeros, aten.zeros_like, aten.zeros)
# Backward of a choice by index is index_put into zeros, which PyTorch does in place unless it is watched, as here.
SCATTERS = (aten.index_put_, aten._index_put_impl_, aten.index_put)


class Bytes(TorchDispatchMode):
    """Counts what operations read and write."""

    def __init__(self):
        super().__init__()
        self.read = self.written = self.launches = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        schema, packet = function._schema, function.overloadpacket
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if not is_view and packet not in FREE:
            read, written = self.moved(packet, args, kwargs, out)
            self.read, self.written, self.launches = self.read + read, self.written + written, self.launches + 1
        return out

    @staticmethod
    def moved(packet, args, kwargs, out):
        def sizes(tree):
            return sum(size(x) for x in tree_leaves(tree) if isinstance(x, torch.Tensor))

        accumulate = len(args) > 3 and args[3]
        if packet in FILLS:
            return 0, sizes(out)
        if packet is aten.index:  # reads what it chooses
            return sizes(out) + sizes(args[1]), sizes(out)
        if packet in SCATTERS and (packet is not aten.index_put or accumulate):
            values = sizes(args[2])
            return sizes(args[1]) + values * (2 if accumulate else 1), values
        return sizes((args, kwargs)), sizes(out)


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

    levels, anchors, positives = [], 0, 0
    for stride in head.STRIDES:
        h, w = math.ceil(height / stride), math.ceil(width / stride)
        n = args.batch * h * w
        p = head.positives_of(n, args.positives)
        anchors, positives = anchors + n, positives + p

        def logits(channels, h=h, w=w):
            return torch.empty(args.batch, channels, h, w, dtype=dtype, device=kind, requires_grad=True)

        levels.append(head.Level(
            cls=logits(args.classes), boxes=logits(4 * head.BINS), stride=stride,
            anchors=torch.empty(n, 4, device=kind), labels=torch.empty(n, dtype=torch.int64, device=kind),
            label_weights=torch.empty(n, device=kind), targets=torch.empty(n, 4, device=kind),
            positives=torch.empty(p, dtype=torch.int64, device=kind),
        ))  # fmt: skip
    count = Bytes()
    with count:
        loss = head.indexed(levels, positives)
        torch.autograd.grad(loss, [tensor for level in levels for tensor in (level.cls, level.boxes)])

    cls, box = anchors * args.classes * element, anchors * 4 * head.BINS * element
    labels, weights = 8 * anchors, 4 * anchors
    least = head.least_bytes(anchors, positives, args.classes, element)
    # Of a positive: its class logits (for the largest), its box logits, its target box.
    gathered = positives * ((args.classes + 4 * head.BINS) * element + 16)
    # A code and a weight for each anchor, written once; the weight is read for every chunk of channels, the code for
    # each side of the boxes; a record of 24 bytes for each positive, written and read; its box logits a second
    # time. What the caches hold is counted too.
    chunks = math.ceil(args.classes / MOST_STEPS)
    codes = 4 * anchors
    ours = 2 * cls + box + labels + weights + (1 + 4) * codes + (1 + chunks) * weights + gathered
    ours += positives * (4 * head.BINS * element + 2 * 24)
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
