"""The native calls on device memory, beside the same on the CPU: emulated, unless the driver is a real one.

cargo run -p gfocal-emulator -- python -m pytest python/tests/cuda
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import gfocal
from gfocal import _native

from .device import Array, Driver

pytestmark = pytest.mark.cuda
DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture
def driver() -> Iterator[Driver]:
    torch.manual_seed(0)
    _native.set_allocator(None)
    yield Driver()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def values(array: Array) -> torch.Tensor:
    return torch.from_numpy(array.numpy().astype(np.float32 if array.dtype != "int64" else np.int64))


def upload(driver: Driver, tensor: torch.Tensor, dtype: str | None = None) -> Array:
    """In a type, rounded as PyTorch does."""
    if dtype in {"float16", "bfloat16"}:
        tensor = tensor.to(getattr(torch, dtype)).float()
    return driver.upload(tensor.numpy(), dtype)


class Both:
    """A call on the CPU and on CUDA, by the same arguments, which neither waits nor allocates."""

    def __init__(self, driver: Driver, dtype: str) -> None:
        self.driver, self.dtype, self.kind = driver, dtype, getattr(torch, dtype)

    def __call__(self, run: Callable[..., Any], inputs: dict[str, Any], outputs: dict[str, tuple[int, ...]]) -> None:
        """``inputs`` named as ``stored`` says are in the storage type."""
        stored = {"pred", "logits", "grad", "sides", "side_grad"}
        host: dict[str, Any] = dict(inputs)
        for name in stored & host.keys():
            host[name] = host[name].to(self.kind)
        on_device: dict[str, Any] = {
            name: upload(self.driver, value, self.dtype if name in stored else None)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in inputs.items()
        }
        for name, shape in outputs.items():
            counts = name in {"status", "side_status"}
            kind = torch.int64 if counts else self.kind if name in stored else torch.float32
            host[name] = torch.full(shape, -1, dtype=kind)
            word = str(kind).removeprefix("torch.")
            zeros = np.zeros(shape, np.float32 if kind.is_floating_point else np.int64)
            on_device[name] = (
                self.driver.upload(zeros, word) if word == "bfloat16" else self.driver.upload(zeros.astype(word))
            )
        run(**host)
        run(**on_device, stream=self.driver.address)
        before, context = self.driver.counters(), self.driver.current()
        run(**on_device, stream=self.driver.address)
        after = self.driver.counters()
        assert (after.waits, after.copies_to_host, after.allocations) == (
            before.waits, before.copies_to_host, before.allocations,
        )  # fmt: skip
        assert after.launches > before.launches and self.driver.current() == context
        for name in outputs:
            got, want = values(on_device[name]), host[name]
            want = want if want.dtype is torch.int64 else want.float()
            step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(self.dtype, 4e-6) if name in stored else 4e-6
            assert (got - want).abs().max() <= step * want.abs().max() + 1e-7, name


LABELS = torch.randint(-1, 21, (70,), generator=torch.Generator().manual_seed(3))
SCORE = torch.rand(70, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows(driver: Driver, dtype: str) -> None:
    both = Both(driver, dtype)
    pred, weight = random(70, 20), torch.rand(70)
    qfl = _native.Qfl(2.0, 1.5, None, False, "last", None)
    one, rows = {"loss": (1,), "grad": (70, 20), "status": (9,)}, {"loss": (70,), "grad": (70, 20)}
    inputs = dict(pred=pred, labels=LABELS, target=SCORE)
    both(qfl.run, dict(**inputs, weight=weight, avg_factor=torch.tensor([3.0]), grad_scale=torch.tensor([2.0])), one)
    both(qfl.run, dict(**inputs, reduction="none", upstream=weight), rows)
    both(qfl.run, dict(pred=pred, labels=None, target=torch.rand(70, 20), avg_factor=7.0), one)
    probabilities = _native.Qfl(1.5, 1.0, 0.25, True, "last", None)
    both(
        probabilities.run, dict(inputs | {"pred": 0.02 + 0.96 * torch.rand(70, 20)}, class_weights=torch.rand(20)), one
    )
    dfl = _native.Dfl(0.25, 0.1)
    both(dfl.run, dict(pred=random(70, 17), label=16 * SCORE, reduction="sum"), one | {"grad": (70, 17)})
    together = dict(**inputs, weight=weight, sides=random(30, 17, seed=1), label=16 * SCORE[:30])
    scales = dict(pred_scale=torch.tensor([2.0]), side_scale=torch.tensor([0.5]), dfl_avg_factor=torch.tensor([3.0]))
    results = {"losses": (3,), "grad": (70, 20), "side_grad": (30, 17), "status": (9,), "side_status": (9,)}
    both(_native.Gfl(qfl, dfl).run, together | scales, results)
    both(_native.Gfl(probabilities, dfl).run, together | {"pred": 0.02 + 0.96 * torch.rand(70, 20)}, {"losses": (3,)})
    both(_native.integral, dict(logits=random(70, 17)), {"expectation": (70,)})
    both(_native.integral_backward, dict(logits=random(70, 17), upstream=weight), {"grad": (70, 17)})


def test_boxes(driver: Driver) -> None:
    corner, both = random(50, 2), Both(driver, "float32")
    boxes = torch.cat([corner, corner + 1 + 3 * torch.rand(50, 2)], 1)
    for kind in ("iou", "giou", "diou", "ciou", "ciou_ultralytics"):
        inputs = dict(pred=boxes, target=boxes + 0.3 * random(50, 4, seed=1), upstream=torch.rand(50))
        both(_native.Boxes(kind, 1e-6).run, inputs, {"loss": (50,), "grad": (50, 4)})


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(driver: Driver, dtype: str) -> None:
    stored = random(100).to(getattr(torch, dtype))
    for factor in (1.0, 0.37):
        grad = upload(driver, stored.float(), dtype)
        _native.scale(grad, driver.upload(np.array([factor], np.float32)), stream=driver.address)
        assert torch.equal(values(grad), (stored.float() * factor).to(stored.dtype).float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_assignment_and_head(driver: Driver, dtype: str) -> None:
    sizes, strides, classes, images, bins = [(8, 12), (4, 6)], [8.0, 16.0], 5, 2, 17
    gt = torch.tensor([[4.0, 4, 60, 44], [20, 8, 90, 60], [1, 2, 30, 40]])
    gt_labels, gt_image = torch.tensor([1, 4, 0]), torch.tensor([0, 0, 1])
    targets = gfocal.atss(sizes, strides, gt, gt_labels, gt_image, images, classes)
    atss = _native.Assigner.atss(9, 8.0, 0.0, -1.0, 0, "last")
    anchors = sum(h * w for h, w in sizes)
    labels = driver.empty((images * anchors,), "int64")
    boxes = driver.empty((images * anchors, 4), "float32")
    before = driver.counters()
    atss.run(
        driver.upload(gt.numpy()), driver.upload(gt_labels.numpy()), driver.upload(gt_image.numpy()), sizes, strides,
        images, classes, labels=labels, boxes=boxes, stream=driver.address,
    )  # fmt: skip
    assert driver.counters().launches > before.launches
    flat = torch.cat([level.flatten() for level in targets.labels])
    assert torch.equal(values(labels), flat) and (flat < classes).any()
    assert torch.equal(values(boxes), torch.cat([level.reshape(-1, 4) for level in targets.boxes]))

    head = _native.Head("mmdetection", "bins", bins, *[None] * 3, "last", *[None] * 9)
    cls = [random(images, classes, h, w, seed=h).to(getattr(torch, dtype)) for h, w in sizes]
    box = [random(images, 4 * bins, h, w, seed=w).to(getattr(torch, dtype)) for h, w in sizes]
    want = {"losses": torch.empty(2, 3), "cls_grads": [torch.empty_like(x) for x in cls],
            "box_grads": [torch.empty_like(x) for x in box]}  # fmt: skip
    upstream = torch.rand(2, 3)
    head.run(cls, box, targets.labels, targets.boxes, strides, upstream=upstream, **want)
    up = lambda tensors: [upload(driver, tensor.float(), dtype) for tensor in tensors]  # noqa: E731
    losses, cls_grads, box_grads = driver.empty((2, 3), "float32"), up(want["cls_grads"]), up(want["box_grads"])
    rest = (
        up(cls), up(box), [driver.upload(x.numpy()) for x in targets.labels],
        [driver.upload(x.numpy()) for x in targets.boxes], strides,
    )  # fmt: skip
    workspace = driver.empty((1 << 20,), "uint8")
    options: dict[str, Any] = dict(
        upstream=driver.upload(upstream.numpy()), losses=losses, cls_grads=cls_grads, box_grads=box_grads,
        workspace=workspace, stream=driver.address,
    )  # fmt: skip
    head.run(*rest, **options)
    before = driver.counters()
    head.run(*rest, **options)
    after = driver.counters()
    assert (after.waits, after.copies_to_host, after.allocations) == (
        before.waits, before.copies_to_host, before.allocations,
    )  # fmt: skip
    assert (values(losses) - want["losses"]).abs().max() <= 4e-6 * want["losses"].abs().max()
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 4e-6)
    for got, of_cpu in zip([*cls_grads, *box_grads], [*want["cls_grads"], *want["box_grads"]]):
        assert (values(got) - of_cpu.float()).abs().max() <= step * of_cpu.float().abs().max() + 1e-7


def test_second_device_while_the_first_is_current(driver: Driver) -> None:
    other = Driver(1)
    driver.make_current()
    current = driver.current()
    qfl = _native.Qfl(2.0, 1.0, None, False, "last", None)
    results = []
    for place in (driver, other):
        pred, loss = place.upload(random(70, 20).numpy()), place.upload(np.zeros(1, np.float32))
        labels, score = place.upload(LABELS.numpy()), place.upload(SCORE.numpy())
        driver.make_current()
        qfl.run(pred, labels, score, loss=loss, stream=place.address)
        assert driver.current() == current
        results.append(values(loss))
    assert torch.equal(results[0], results[1]) and results[0] > 0
    with pytest.raises(ValueError, match="score is on cuda:1, pred on cuda:0; move it there"):
        qfl.run(driver.upload(random(70, 20).numpy()), driver.upload(LABELS.numpy()), score, loss=loss)
    with pytest.raises(ValueError, match="labels is on cpu, pred on cuda:1"):
        qfl.run(pred, LABELS, score, loss=loss)


def test_no_context_is_current(driver: Driver) -> None:
    """The head's own workspace is given back after each call: in its context, though the thread has none."""
    head = _native.Head("mmdetection", "bins", 17, *[None] * 3, "last", *[None] * 9)
    cls, boxes = driver.upload(np.zeros((1, 3, 4, 4), np.float32)), driver.upload(np.zeros((1, 68, 4, 4), np.float32))
    labels = driver.upload(np.ones((1, 16), np.int64))
    targets = driver.upload(np.tile(np.array([0, 0, 20, 20], np.float32), (1, 16, 1)))
    losses = driver.empty((1, 3), "float32")
    for call in range(4):
        driver.call("cuCtxSetCurrent", None)
        head.run([cls], [boxes], [labels], [targets], [8.0], losses=losses, stream=driver.address)
        assert call == 0 or driver.current() is None
    assert (values(losses) > 0).all()


def test_mistakes(driver: Driver) -> None:
    qfl = _native.Qfl(2.0, 1.0, None, False, "last", None)
    loss = driver.upload(np.zeros(1, np.float32))
    labels, score = driver.upload(LABELS.numpy()), driver.upload(SCORE.numpy())
    with pytest.raises(TypeError, match="pred is float64, on CUDA it must be float32"):
        wide = driver.empty((70, 20), "int64")
        wide.dtype = "float64"
        from . import device

        device.CODES["float64"] = (2, 64)
        qfl.run(wide, labels, score, loss=loss, stream=driver.address)
    pred = driver.upload(random(70, 20).numpy())
    with pytest.raises(ValueError, match="grad overlaps pred by 5600 bytes"):
        qfl.run(pred, labels, score, grad=pred, stream=driver.address)
    with pytest.raises(ValueError, match="upstream is on the CPU, grad on cuda:0"):
        _native.scale(pred, 2.0, stream=driver.address)


def test_the_stream_of_tensors_without_the_table(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int | None] = []

    class Torchs(Array):
        """What a tensor of an older PyTorch is."""

        requires_grad = False

        def __dlpack__(self, *, stream: int | None = None) -> Any:
            told.append(stream)
            return super().__dlpack__()

    def put(tensor: torch.Tensor) -> Torchs:
        array = Torchs(driver, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        array.fill(tensor.numpy())
        return array

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=driver.address))
    pred, qfl = random(70, 20), _native.Qfl(2.0, 1.0, None, False, "last", None)
    loss, want = put(torch.zeros(1)), torch.zeros(1)
    qfl.run(put(pred), put(LABELS), put(SCORE), loss=loss)
    qfl.run(pred, LABELS, SCORE, loss=want)
    assert told == 4 * [driver.address] and (values(loss) - want).abs() <= 4e-6 * want


def begin(driver: Driver) -> None:
    driver.make_current()
    driver.call("cuStreamBeginCapture_v2", driver.stream, 2)  # relaxed


def end(driver: Driver) -> ctypes.c_void_p:
    graph = ctypes.c_void_p()
    driver.call("cuStreamEndCapture", driver.stream, ctypes.byref(graph))
    return graph


def test_a_first_call_in_a_capture(driver: Driver) -> None:
    """Nothing can be allocated or loaded there: an error says what to do, and the capture stays whole."""
    qfl = _native.Qfl(0.75, 1.0, None, False, "last", None)
    pred, loss = upload(driver, random(70, 20), "bfloat16"), driver.upload(np.zeros(1, np.float32))
    labels, score = driver.upload(LABELS.numpy()), driver.upload(SCORE.numpy())
    begin(driver)
    with pytest.raises(RuntimeError, match="make such a call once before the capture"):
        qfl.run(pred, labels, score, loss=loss, stream=driver.address)
    end(driver)


def test_capture_and_replay(driver: Driver) -> None:
    """A stream that no call has been on before takes its memory from the allocator, as PyTorch's captures do."""
    taken: list[int] = []
    qfl = _native.Qfl(2.0, 1.0, None, False, "last", None)
    pred, loss = driver.upload(random(70, 20).numpy()), driver.upload(np.zeros(1, np.float32))
    grad = driver.upload(np.zeros((70, 20), np.float32))
    labels, score = driver.upload(LABELS.numpy()), driver.upload(SCORE.numpy())
    options: dict[str, Any] = dict(loss=loss, grad=grad)
    qfl.run(pred, labels, score, **options, stream=Driver().address)  # loads the kernels
    scratch = driver.empty((1 << 16,), "uint8")
    _native.set_allocator(lambda device, size: taken.append(size) or scratch)  # type: ignore[func-returns-value]
    begin(driver)
    qfl.run(pred, labels, score, **options, stream=driver.address)
    graph, program = end(driver), ctypes.c_void_p()
    assert taken
    driver.call("cuGraphInstantiateWithFlags", ctypes.byref(program), graph, ctypes.c_uint64(0))
    for seed in range(3):
        stored = random(70, 20, seed=seed)
        pred.fill(stored.numpy())
        driver.call("cuGraphLaunch", program, driver.stream)
        driver.wait()
        want, of_cpu = torch.empty(1), torch.empty(70, 20)
        qfl.run(stored, LABELS, SCORE, loss=want, grad=of_cpu)
        assert (values(loss) - want).abs() <= 4e-6 * want
        assert (values(grad) - of_cpu).abs().max() <= 4e-6 * of_cpu.abs().max()


def test_cuda_errors_carry_the_drivers_code() -> None:
    class Far:
        """Of a device that there is not."""

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 77

        def __dlpack__(self, *, stream: int | None = None) -> Any:
            return array.__dlpack__()

    array = Driver().empty((70, 20), "float32")
    array.driver = type("Other", (), {"ordinal": 77})()  # type: ignore[assignment]
    with pytest.raises(gfocal.CudaError, match="there is no CUDA device 77") as caught:
        _native.scale(Far(), Driver().empty((1,), "float32"))
    assert caught.value.code is None and caught.value.name is None
