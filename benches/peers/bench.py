"""Times other ways to compute QFL, DFL and the head loss, as `gfocal bench` times its own: see README.md."""

import argparse
import json
import math
import platform
import statistics
import sys
import time

import torch

import formulas
import head

SIZES = {
    "qfl": [(8400, 80), (33600, 80), (134400, 80)],
    "dfl": [(4096, 17), (33600, 17), (262144, 17)],
    "head": [(22300, 80), (89200, 80), (356800, 80)],
}
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
IMPLS = ("mmdet-eager", "torch.compile", "triton", "copy")


def note(text):
    print(f"peers: {text}", file=sys.stderr)


def data(op, rows, columns, dtype, device):
    """The distribution of `gfocal bench --help`, from a seed; logits, targets and weight. Of the head: a step."""
    if op == "head":
        return head.data(rows, columns, dtype, device)
    rng = torch.Generator().manual_seed(7)
    mean = -4.6 if op == "qfl" else 0.0
    logits = (torch.randn(rows, columns, generator=rng) + mean).to(dtype)
    weight = 0.5 + torch.rand(rows, generator=rng)
    if op == "qfl":
        positive = torch.rand(rows, generator=rng) < 0.01
        labels = torch.where(positive, torch.randint(columns, (rows,), generator=rng), columns)
        tensors = (logits, labels, 0.3 + 0.7 * torch.rand(rows, generator=rng), weight)
    else:
        tensors = (logits, torch.rand(rows, generator=rng) * (columns - 1) * 0.999999, weight)
    return tuple(tensor.to(device) for tensor in tensors)


def size_of(op, passed, rows, columns, dtype):
    if op == "head":
        return head.bytes_of(rows, columns, DTYPES[dtype].itemsize, passed != "forward")
    tensor = rows * columns * DTYPES[dtype].itemsize
    return tensor * (1 if passed == "forward" else 2) + rows * (12 if op == "qfl" else 8)


class Autograd:
    """A formula, with PyTorch's own gradient."""

    def __init__(self, formula, tensors, with_grad):
        self.formula, self.with_grad, self.grads = formula, with_grad, ()
        self.logits = tensors[0].detach().clone().requires_grad_(with_grad)
        self.rest = tensors[1:]

    def run(self):
        if not self.with_grad:
            with torch.no_grad():
                return self.formula(self.logits, *self.rest)
        loss = self.formula(self.logits, *self.rest)
        self.grads = torch.autograd.grad(loss, [self.logits])
        return loss.detach()


class Copy:
    def __init__(self, count, device):
        half = max((count + 1) // 2, 1)
        self.source = torch.ones(half, dtype=torch.uint8, device=device)
        self.target = torch.zeros_like(self.source)

    def run(self):
        self.target.copy_(self.source)


EAGER = {"qfl": formulas.qfl_eager, "dfl": formulas.dfl_eager, "head": head.eager}


def make(impl, op, tensors, with_grad, compiled):
    """A call on logits of its own."""
    if impl == "triton":
        import fused

        return fused.Fused(op, (tensors[0].clone(), *tensors[1:]), with_grad)
    loss = compiled[op] if impl == "torch.compile" else EAGER[op]
    return (head.Call if op == "head" else Autograd)(loss, tensors, with_grad)


def truth(op, tensors):
    if op == "head":
        return head.truth(tensors)
    loss, grad = formulas.truth(op, tensors)
    return loss, [grad]


def check(impl, op, tensors, call, dtype):
    loss, grads = truth(op, tensors)
    relative = {"f32": 1e-4, "f16": 2e-2, "bf16": 8e-2}[dtype]
    found = call.run()
    if not abs(found.double() - loss) <= relative * abs(loss):
        raise ArithmeticError(f"the loss of {impl} is {found.item()} and not {loss.item()}")
    if call.with_grad:
        for i, (found, grad) in enumerate(zip(call.grads, grads, strict=True)):
            error = (found.double() - grad).norm() / grad.norm()
            if not error <= relative:
                raise ArithmeticError(f"gradient {i} of {impl} is off by {error.item():.2g} of its norm")


def samples(once, seconds):
    """Seconds of a call: warmed up, then for so long and at least ten times."""
    start = time.perf_counter()
    once()
    while time.perf_counter() - start < 0.1 * seconds:
        once()
    start, found = time.perf_counter(), []
    while len(found) < 10 or time.perf_counter() - start < seconds:
        found.append(once())
    return found


def wall_clock(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_cpu(make_call, count, seconds):
    call = make_call()
    return samples(lambda: wall_clock(call.run), seconds), "wall clock"


def time_cuda(make_call, count, seconds):
    """One call for each set of buffers, past the L2 cache; a graph of them where it can be captured."""
    l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
    free, _ = torch.cuda.mem_get_info()
    sets = max(1, min(max(2, -(-4 * l2 // count)), free // (8 * count), 128))
    calls = [make_call() for _ in range(sets)]

    def run_all():
        for call in calls:
            call.run()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run_all()
    torch.cuda.synchronize()
    replay, method = run_all, "CUDA events around launches without a graph"
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run_all()
        replay, method = graph.replay, "CUDA events around replays of a graph"
    except RuntimeError as error:
        torch.cuda.synchronize()
        note(f"cannot be captured in a graph, so launches are timed: {str(error).splitlines()[0]}")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def once():
        start.record()
        replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / sets

    return samples(once, seconds), method


def record(impl, case, found, method, bytes_moved, copy, device):
    op, passed, dtype, rows, columns = case
    middle = statistics.median(found)
    p20, _, _, p80 = statistics.quantiles(found, n=5, method="inclusive")
    return {
        "impl": impl, "op": op, "pass": passed, "dtype": dtype, "rows": rows, "columns": columns,
        "device": "cuda:0" if device == "cuda" else "cpu",
        "device_name": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "samples": len(found), "median_us": middle * 1e6, "p20_us": p20 * 1e6, "p80_us": p80 * 1e6,
        "bytes": bytes_moved, "gbytes_per_s": bytes_moved / middle / 1e9,
        "copy_gbytes_per_s": bytes_moved / copy / 1e9, "percent_of_copy": 100 * copy / middle,
        "elements_per_s": rows * columns / middle, "method": method,
    }  # fmt: skip


def run_case(case, args, impls, compiled):
    op, passed, dtype, rows, columns = case
    tensors = data(op, rows, columns, DTYPES[dtype], args.device)
    moved = size_of(op, passed, rows, columns, dtype)
    timed = time_cuda if args.device == "cuda" else time_cpu
    found, method = timed(lambda: Copy(moved, args.device), moved, args.seconds)
    copy = statistics.median(found)
    if "copy" in impls:
        yield record("copy", case, found, method, moved, copy, args.device)
    for impl in impls:
        if impl == "copy" or (impl, op) == ("triton", "head"):  # nobody has a fused head to compare with
            continue

        def make_call():
            return make(impl, op, tensors, passed != "forward", compiled)

        try:
            check(impl, op, tensors, make_call(), dtype)
            found, method = timed(make_call, moved, args.seconds)
        except Exception as error:  # a peer that does not work is told of, and the others are timed
            note(f"{impl} {op} {passed} {dtype} is skipped: {str(error).strip().splitlines()[0]}")
            continue
        yield record(impl, case, found, method, moved, copy, args.device)


def main():
    def many(text):
        return text.split(",")

    def sizes(text):
        return [tuple(int(number) for number in size.split("x")) for size in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ops", type=many, default=["qfl", "dfl"])
    parser.add_argument("--passes", type=many, default=["forward", "forward_backward"])
    parser.add_argument("--sizes", type=sizes, help="ROWSxCOLUMNS,...")
    parser.add_argument("--dtype", type=many, default=["f32", "f16", "bf16"])
    parser.add_argument("--impls", type=many, default=list(IMPLS))
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--budget", type=float, default=math.inf, help="begin no case after so many seconds")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; use --device cpu")
    impls = list(args.impls)
    if args.device == "cpu" and "triton" in impls:
        note("triton is skipped: its kernels need a GPU")
        impls.remove("triton")
    compiled = {
        "qfl": torch.compile(formulas.qfl_masked),
        "dfl": torch.compile(formulas.dfl_eager),
        "head": torch.compile(head.indexed),
    }
    records, start = [], time.monotonic()
    for op in args.ops:
        for rows, columns in args.sizes or SIZES[op]:
            for dtype in args.dtype:
                for passed in args.passes:
                    if time.monotonic() - start > args.budget:
                        note(f"{op} {passed} {dtype} {rows}x{columns} is left out: the budget is used up")
                        continue
                    torch.compiler.reset()
                    records += run_case((op, passed, dtype, rows, columns), args, impls, compiled)
    print("[\n" + ",\n".join(json.dumps(one) for one in records) + "\n]")


if __name__ == "__main__":
    main()
