"""Device memory without PyTorch: buffers by the driver's own functions, behind ``__dlpack__``.

For the emulated driver, which PyTorch does not take for a GPU; it works on a real one as well.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("dims", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class Counters(ctypes.Structure):
    """What the calling thread has asked of the emulated driver."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("allocations", "frees", "waits", "launches", "copies_to_host")]


CODES = {
    "float32": (2, 32),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "int64": (0, 64),
    "int32": (0, 32),
    "uint8": (1, 8),
}
KINDS = {"bfloat16": np.dtype(np.uint16)}


class Driver:
    """One device, with its primary context current and a stream of its own."""

    def __init__(self, ordinal: int = 0) -> None:
        self.cuda, self.ordinal = ctypes.CDLL("libcuda.so.1"), ordinal
        self.context, self.stream = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), ordinal)
        self.make_current()
        self.call("cuStreamCreate", ctypes.byref(self.stream), 1)

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self.cuda, name)(*arguments)
        assert code == 0, f"{name} gave error {code}"

    def make_current(self) -> None:
        self.call("cuCtxSetCurrent", self.context)

    def current(self) -> int | None:
        found = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(found))
        return found.value

    @property
    def address(self) -> int:
        """Of the stream."""
        assert self.stream.value is not None
        return self.stream.value

    def is_emulated(self) -> bool:
        return hasattr(self.cuda, "gfocal_emulator_counters")

    def counters(self) -> Counters:
        found = Counters()
        self.cuda.gfocal_emulator_counters(ctypes.byref(found))
        return found

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        return Array(self, shape, dtype)

    def upload(self, values: Any, dtype: str | None = None) -> Array:
        """``bfloat16`` as the upper halves of float32."""
        values = np.asarray(values)
        dtype = dtype or str(values.dtype)
        if dtype == "bfloat16":
            values = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        array = Array(self, values.shape, dtype)
        array.fill(np.ascontiguousarray(values, KINDS.get(dtype, dtype)))
        return array

    def wait(self) -> None:
        self.call("cuStreamSynchronize", self.stream)


class Array:
    """Elements in device memory, row after row."""

    def __init__(self, driver: Driver, shape: tuple[int, ...], dtype: str) -> None:
        self.driver, self.shape, self.dtype = driver, tuple(shape), dtype
        self.kind = KINDS.get(dtype, np.dtype(dtype if dtype != "bfloat16" else "uint16"))
        self.bytes = int(np.prod(self.shape, dtype=np.int64)) * self.kind.itemsize
        self.memory = ctypes.c_uint64()
        driver.make_current()
        driver.call("cuMemAlloc_v2", ctypes.byref(self.memory), ctypes.c_size_t(max(self.bytes, 16)))
        self._keep: list[Any] = []

    def fill(self, values: np.ndarray[Any, Any]) -> None:
        assert values.nbytes == self.bytes
        pointer = values.ctypes.data_as(ctypes.c_void_p)
        self.driver.make_current()
        self.driver.call("cuMemcpyHtoDAsync_v2", self.memory, pointer, ctypes.c_size_t(self.bytes), self.driver.stream)
        self.driver.wait()

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy on the host, of ``bfloat16`` as float32."""
        values = np.empty(self.shape, self.kind)
        pointer = values.ctypes.data_as(ctypes.c_void_p)
        self.driver.make_current()
        self.driver.call("cuMemcpyDtoHAsync_v2", pointer, self.memory, ctypes.c_size_t(self.bytes), self.driver.stream)
        self.driver.wait()
        return (values.astype(np.uint32) << 16).view(np.float32) if self.dtype == "bfloat16" else values

    def __float__(self) -> float:
        raise AssertionError("the host would wait for the device")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.driver.ordinal

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        code, bits = CODES[self.dtype]
        shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        tensor = _Tensor(self.memory.value, 2, self.driver.ordinal, len(self.shape), code, bits, 1, shape, None, 0)
        managed = _Managed(tensor, None, None)
        self._keep = [shape, managed]
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(managed), b"dltensor", None)
