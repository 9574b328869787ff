"""What must hold of every loss of rows and every map; an operation says how it is called, and what the truth is."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, library

import gfocal

from .tolerance import assert_close

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


class OpTester:
    """An operation adds ``inputs``, ``call``, ``expected`` and ``samples``."""

    reductions: tuple[str, ...] = ("mean", "sum", "none")

    def inputs(self) -> Tensor:
        """What has a gradient, float64."""
        raise NotImplementedError

    def call(self, pred: Tensor, reduction: str = "mean", **options: Any) -> Tensor:
        raise NotImplementedError

    def expected(self, pred: Tensor, reduction: str = "mean") -> Tensor:
        """The same by PyTorch's operations, in float64."""
        raise NotImplementedError

    def samples(self) -> list[tuple[Any, tuple[Any, ...]]]:
        """Operators, and arguments for them."""
        raise NotImplementedError

    def dtypes(self) -> list[torch.dtype]:
        return FLOATS

    @pytest.fixture(params=["eager", "compiled"])
    def compiled(self, request: pytest.FixtureRequest) -> Any:
        if request.param == "eager":
            return lambda call: call

        def compile(call: Any) -> Any:
            torch._dynamo.reset()
            return torch.compile(call, fullgraph=True, backend="aot_eager")

        return compile

    def test_loss_and_gradient(self, compiled: Any) -> None:
        """By random upstream gradients, in every type; compiled to the same bits."""
        for dtype in self.dtypes():
            for reduction in self.reductions:
                stored = self.inputs().to(dtype)
                truth = stored.double().clone().requires_grad_()
                want = self.expected(truth, reduction)
                upstream = torch.rand_like(want) + 0.5
                want.backward(upstream)
                pred = stored.clone().requires_grad_()
                call = compiled(lambda pred, reduction=reduction: self.call(pred, reduction))
                got = call(pred)
                got.backward(upstream.to(got.dtype))
                what = f"{reduction}, {dtype}"
                assert_close(got.detach(), want.detach(), f"loss, {what}")
                assert pred.grad is not None and truth.grad is not None and pred.grad.dtype is dtype
                # A 16-bit gradient that is scaled after it was rounded is rounded twice.
                twice = 2.0**-8 if dtype is torch.bfloat16 and reduction != "none" else 1e-5
                assert_close(pred.grad, truth.grad, f"gradient, {what}", relative=twice)

    def test_gradcheck(self) -> None:
        for reduction in self.reductions:
            assert torch.autograd.gradcheck(
                lambda pred, of=reduction: self.call(pred, of), self.inputs().requires_grad_()
            )

    def test_opcheck(self) -> None:
        for operator, arguments in self.samples():
            library.opcheck(operator, arguments)

    def test_operators_refuse_to_lose_a_gradient(self) -> None:
        for operator, (pred, *rest) in self.samples():
            with pytest.raises(RuntimeError, match="has no gradient of its own"):
                operator(pred.clone().requires_grad_(), *rest)
            with torch.no_grad():
                operator(pred.clone().requires_grad_(), *rest)

    def test_backward_twice(self) -> None:
        for dtype in self.dtypes():
            pred = self.inputs().to(dtype).requires_grad_()
            loss = self.call(pred).sum()
            (first,) = torch.autograd.grad(loss, pred, retain_graph=True)
            kept = first.clone()
            (second,) = torch.autograd.grad(2 * loss, pred)
            assert torch.equal(first, kept)
            assert_close(second, 2 * kept.double(), "twice", relative=2.0**-7 if dtype.itemsize == 2 else 1e-6)

    def test_gradients_are_summed(self) -> None:
        pred = self.inputs().float().requires_grad_()
        (self.call(pred).sum() + self.call(pred).sum()).backward()
        (once,) = torch.autograd.grad(self.call(pred).sum(), pred)
        assert pred.grad is not None
        assert_close(pred.grad, 2 * once, "sum", relative=1e-6)

    def test_strides_make_no_difference(self) -> None:
        stored = self.inputs().float()
        wide = torch.zeros(stored.shape[0], 2 * stored.shape[1])
        wide[:, ::2] = stored
        for pred in (wide[:, ::2], stored.t().contiguous().t()):
            strided = pred.detach().requires_grad_()
            loss = self.call(strided).sum()
            (grad,) = torch.autograd.grad(loss, strided)
            plain = stored.clone().requires_grad_()
            assert torch.equal(loss, self.call(plain).sum())
            assert torch.equal(grad, torch.autograd.grad(self.call(plain).sum(), plain)[0])

    def test_second_derivatives_raise(self) -> None:
        for reduction in self.reductions:
            for dtype in (torch.float32, torch.float16):
                pred = self.inputs().to(dtype).requires_grad_()
                (grad,) = torch.autograd.grad(self.call(pred, reduction).sum(), pred, create_graph=True)
                assert grad.requires_grad
                with pytest.raises(RuntimeError, match="no second derivative"):
                    grad.sum().backward()
        pred = self.inputs().float().requires_grad_()
        self.call(pred).sum().backward(create_graph=True)  # which asks for it, and does not use it
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.gradgradcheck(self.call, self.inputs().requires_grad_())

    def test_transforms(self) -> None:
        pred = self.inputs().float()
        for dtype in (torch.float32, torch.float16):
            stored = pred.to(dtype)
            grad = torch.func.grad(lambda pred: self.call(pred).sum())(stored)
            plain = stored.clone().requires_grad_()
            assert torch.equal(grad, torch.autograd.grad(self.call(plain).sum(), plain)[0])
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.func.grad(lambda pred: torch.func.grad(lambda pred: self.call(pred).sum())(pred).sum())(pred)
        with pytest.raises(RuntimeError, match="vmap"):
            torch.func.vmap(self.call)(pred.unsqueeze(0).repeat(2, 1, 1))
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(self.call, (pred,), (torch.ones_like(pred),))
        with (
            torch.autograd.forward_ad.dual_level(),
            pytest.raises(NotImplementedError, match="jvp"),
        ):
            self.call(torch.autograd.forward_ad.make_dual(pred, torch.ones_like(pred)))

    def test_fake_tensors(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        for reduction in self.reductions:
            real = self.call(self.inputs().float(), reduction)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                pred = mode.from_tensor(self.inputs().float().requires_grad_())
                fake = self.call(pred, reduction)
                assert fake.shape == real.shape and fake.dtype is real.dtype
                fake.sum().backward()
                assert pred.grad is not None and pred.grad.shape == pred.shape
            meta = self.call(self.inputs().float().to("meta"), reduction)
            assert meta.is_meta and meta.shape == real.shape and meta.dtype is real.dtype

    def test_export(self) -> None:
        class Program(torch.nn.Module):
            def forward(program, pred: Tensor) -> Tensor:
                return self.call(pred)

        pred = self.inputs().float()
        exported = torch.export.export(Program(), (pred,))
        assert torch.equal(exported.module()(pred), self.call(pred))
        calls = [node for node in exported.graph.nodes if "gfocal" in str(node.target)]
        assert len(calls) == 1, exported.graph

    def test_autocast_changes_nothing(self) -> None:
        pred = self.inputs().to(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(self.call(pred), self.call(pred.clone()))
            assert self.call(pred).dtype is torch.float32

    def test_no_rows(self) -> None:
        raise NotImplementedError

    def test_upstream_of_zero_and_inf(self) -> None:
        for dtype in (torch.float32, torch.float16):
            pred = self.inputs().to(dtype).requires_grad_()
            loss = self.call(pred).sum()
            (zero,) = torch.autograd.grad(loss * 0, pred, retain_graph=True)
            assert (zero == 0).all()
            (large,) = torch.autograd.grad(loss * float("inf"), pred)
            assert not large.isfinite().all()


def check_module(module: torch.nn.Module, *arguments: Any) -> None:
    """Modules hold numbers alone: they can be copied and pickled, and have nothing to save."""
    assert not list(module.parameters()) and not module.state_dict()
    want = module(*arguments)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(*arguments), want)
    assert type(module).__name__ in repr(module)
    assert gfocal.__version__
