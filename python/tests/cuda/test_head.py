"""The head loss and assignments on CUDA, by their native calls: what the CPU gives, in one pass or in phases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gfocal import _native

from .device import Array, Driver

pytestmark = pytest.mark.cuda
CLASSES, BINS, STRIDES = 5, 9, [8.0, 16.0]
SIZES = [(8, 12), (4, 6)]
PROFILE = ("mmdetection", "bins", BINS, *[None] * 3, "last", *[None] * 9)
HEAD = _native.Head(*PROFILE)
LISTS = ("cls", "boxes", "labels", "targets")


@pytest.fixture
def driver() -> Driver:
    _native.set_allocator(None)
    return Driver()


def scene() -> dict[str, list[np.ndarray[Any, Any]]]:
    random = np.random.default_rng(0)
    made: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in (*LISTS, "label_weights")}
    for (height, width), stride in zip(SIZES, STRIDES):
        count = height * width
        made["cls"].append(random.normal(-1, 2, (2, CLASSES, height, width)).astype(np.float32))
        made["boxes"].append(random.normal(0, 1, (2, 4 * BINS, height, width)).astype(np.float32))
        made["labels"].append(np.minimum(random.integers(0, 3 * CLASSES, (2, count)), CLASSES))
        y, x = np.divmod(np.arange(count), width)
        points = np.stack([x, y], -1) * stride
        sides = (3 * np.abs(random.normal(size=(2, count, 4))) + 0.25) * stride
        corners = np.concatenate([points - sides[..., :2], points + sides[..., 2:]], -1)
        made["targets"].append(corners.astype(np.float32))
        made["label_weights"].append(random.uniform(0, 2, (2, count)).astype(np.float32))
    return made


def on_host(given: dict[str, list[np.ndarray[Any, Any]]], **others: Any) -> list[np.ndarray[Any, Any]]:
    """Losses, then gradients."""
    losses = np.empty((2, 3), np.float32)
    grads = [np.empty_like(logits) for logits in (*given["cls"], *given["boxes"])]
    HEAD.run(
        *[given[name] for name in LISTS], STRIDES, label_weights=given["label_weights"], losses=losses,
        cls_grads=grads[:2], box_grads=grads[2:], **others,
    )  # fmt: skip
    return [losses, *grads]


class OnDevice:
    """A scene in device memory, class and box logits in types of their own."""

    def __init__(self, driver: Driver, given: dict[str, list[np.ndarray[Any, Any]]], types: tuple[str, str]) -> None:
        self.driver = driver
        of = dict(zip(("cls", "boxes"), types))
        self.lists = {
            name: [driver.upload(values, of.get(name)) for values in arrays] for name, arrays in given.items()
        }
        logits = (*given["cls"], *given["boxes"])
        kinds = [types[0]] * 2 + [types[1]] * 2
        self.grads = [driver.empty(values.shape, kind) for values, kind in zip(logits, kinds)]
        self.losses = driver.empty((2, 3), "float32")

    def run(self, **others: Any) -> None:
        HEAD.run(
            *[self.lists[name] for name in LISTS], STRIDES, label_weights=self.lists["label_weights"],
            stream=self.driver.address, **others,
        )  # fmt: skip

    def gradients(self) -> dict[str, Any]:
        return {"cls_grads": self.grads[:2], "box_grads": self.grads[2:]}

    def results(self) -> list[np.ndarray[Any, Any]]:
        return [array.numpy().astype(np.float64) for array in (self.losses, *self.grads)]


def stored(given: dict[str, list[np.ndarray[Any, Any]]], driver: Driver, types: tuple[str, str]) -> Any:
    """The logits as a type holds them, in float32."""
    of = dict(zip(("cls", "boxes"), types))
    return {
        name: [driver.upload(values, of[name]).numpy().astype(np.float32) for values in arrays]
        if name in of
        else arrays
        for name, arrays in given.items()
    }


def check(got: list[np.ndarray[Any, Any]], want: list[np.ndarray[Any, Any]], types: tuple[str, str]) -> None:
    steps = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}
    kinds = ["float32", *[types[0]] * 2, *[types[1]] * 2]
    for number, (ours, theirs, kind) in enumerate(zip(got, want, kinds)):
        limit = steps[kind] * np.abs(theirs) + (6e-8 if kind == "float16" else 2e-7)
        assert (np.abs(ours - theirs) <= limit).all(), (number, np.abs(ours - theirs).max())


TYPES = [("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16"), ("float16", "float32")]


@pytest.mark.parametrize("types", TYPES)
def test_one_pass_and_two(driver: Driver, types: tuple[str, str]) -> None:
    given = scene()
    upstream = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    want = on_host(stored(given, driver, types), upstream=upstream)
    device = OnDevice(driver, given, types)
    of_device = driver.upload(upstream)
    device.run(losses=device.losses, upstream=of_device, **device.gradients())
    check(device.results(), want, types)
    one_pass = device.results()

    device = OnDevice(driver, given, types)
    workspace = driver.empty((2**19,), "uint8")
    device.run(losses=device.losses, workspace=workspace)
    before = driver.counters() if driver.is_emulated() else None
    device.run(upstream=of_device, workspace=workspace, resume=True, **device.gradients())
    if before is not None:
        after = driver.counters()
        assert after.launches == before.launches + 1 and after.allocations == before.allocations
        assert after.waits == before.waits
    for ours, theirs in zip(device.results(), one_pass):
        assert np.array_equal(ours, theirs)
    device.run(upstream=of_device, workspace=workspace, resume=True, **device.gradients())
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(device.results(), one_pass)), "once more"


def test_normalisers(driver: Driver) -> None:
    given, types = scene(), ("float32", "float32")
    counted = np.empty(2)
    HEAD.run(*[given[name] for name in LISTS], STRIDES, label_weights=given["label_weights"], counted=counted)
    want = on_host(given, normalisers=counted / 2)
    device = OnDevice(driver, given, types)
    on_device, workspace = driver.empty((2,), "float32"), driver.empty((2**19,), "uint8")
    status = driver.upload(np.full(9, -1))
    device.run(counted=on_device, workspace=workspace, status=status)
    assert np.allclose(on_device.numpy(), counted, rtol=1e-6)
    assert _native.read_status(status.numpy().tolist())["bad_labels"] == 0
    half = driver.upload((counted / 2).astype(np.float32))
    device.run(normalisers=half, workspace=workspace, resume=True, losses=device.losses)
    device.run(normalisers=half, workspace=workspace, resume=True, **device.gradients())
    check(device.results(), want, types)
    assert np.allclose(half.numpy(), counted / 2), "they are read alone"
    device = OnDevice(driver, given, types)
    device.run(normalisers=half, losses=device.losses, **device.gradients())
    check(device.results(), want, types)


def test_status(driver: Driver) -> None:
    given = scene()
    given["labels"][1][0, 3] = 77
    device, words = OnDevice(driver, given, TYPES[0]), driver.upload(np.full(9, -1))
    device.run(losses=device.losses, status=words)
    want = np.empty(9, np.int64)
    on_host(given, status=want)
    counts = _native.read_status(words.numpy().tolist())
    assert counts["bad_labels"] == 1 and counts == _native.read_status(want.tolist())


def test_context_stays(driver: Driver) -> None:
    device, workspace = OnDevice(driver, scene(), TYPES[0]), driver.empty((2**19,), "uint8")
    device.run(losses=device.losses, workspace=workspace)
    driver.call("cuCtxSetCurrent", None)
    device.run(losses=device.losses, workspace=workspace, **device.gradients())
    assert driver.current() is None
    driver.make_current()


def test_errors(driver: Driver) -> None:
    given = scene()
    device = OnDevice(driver, given, TYPES[0])
    with pytest.raises(ValueError, match=r"labels\[0\] is on cpu, cls_scores\[0\] on cuda:0"):
        device.lists["labels"] = given["labels"]  # type: ignore[assignment]
        device.run(losses=device.losses)
    device = OnDevice(driver, given, TYPES[0])
    with pytest.raises(ValueError, match=r"the workspace of a head loss needs \d+ bytes"):
        device.run(losses=device.losses, workspace=driver.empty((64,), "uint8"))
    with pytest.raises(ValueError, match=r"losses overlaps cls_scores\[0\]|overlaps"):
        device.run(losses=device.losses, cls_grads=device.lists["cls"], box_grads=device.grads[2:])


BOXES = np.array([[4, 4, 60, 44], [30, 10, 70, 62], [0, 0, 30, 30]], np.float32)
RULES = {
    "atss": _native.Assigner.atss(9, 8.0, 0.0, 0.5, 1, "last"),
    "fcos": _native.Assigner.fcos([(-1.0, 32.0), (32.0, float("inf"))], 1.5, 0.5, 0.5, 1, "last"),
}


@pytest.mark.parametrize("integers", ["int64", "int32"])
@pytest.mark.parametrize("rule", RULES)
def test_assignment(driver: Driver, rule: str, integers: str) -> None:
    total = 2 * sum(height * width for height, width in SIZES)
    inputs = {
        "gt_boxes": BOXES,
        "gt_labels": np.array([1, 0, 2], integers),
        "gt_image": np.array([0, 0, 1], integers),
        "weights": np.array([0.5, 1.0, 2.0], np.float32),
        "ignore_boxes": np.array([[0, 0, 40, 40]], np.float32),
        "ignore_image": np.array([1], integers),
        "image_sizes": np.array([[64, 96], [40, 56]], integers),
    }
    results = {
        "labels": np.empty(total, integers),
        "boxes": np.empty((total, 4), np.float32),
        "label_weights": np.empty(total, np.float32),
        "box_weights": np.empty(total, np.float32),
        "status": np.empty(9, np.int64),
    }
    if rule == "fcos":
        results["centerness"] = np.empty(total, np.float32)
    how = {"sizes": SIZES, "strides": STRIDES, "images": 2, "classes": 3}
    RULES[rule].run(**inputs, **results, **how)
    assert len(set(results["labels"])) == 4 and 0 < results["label_weights"].mean() < 1
    ours: dict[str, Array] = {name: driver.upload(np.full_like(values, 7)) for name, values in results.items()}
    on_device = {name: driver.upload(values) for name, values in inputs.items()}
    RULES[rule].run(**on_device, **ours, **how, stream=driver.address)
    for name, array in ours.items():
        assert np.array_equal(array.numpy(), results[name]), name
