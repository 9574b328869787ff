//! An operation on any number of tensors, in candle's graph.
//!
//! candle's own operations take three tensors at most, and read and write them in the forward pass. Here the result
//! is there before it joins the graph, and an operation of n tensors is a chain of n nodes:
//!
//! ```text
//! tensor 1 ─ node 1 ─ token ─┐
//! tensor 2 ───────── node 2 ─┴ token ─┐
//! tensor 3 ───────────────── node 3 ──┴ result
//! ```
//!
//! In the backward pass the last node comes first: it computes all gradients, gives its tensor the one that is its, and
//! leaves the others for the nodes before, which follow in the same call of `backward`, and so on the same thread.
//! Tokens are single zeros, and so are their gradients. Tensors that depend on no variable have no node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Device, Error, Layout, Result, Shape, Storage, Tensor,
};

/// What an operation gives: elements in the order of the shape.
pub(crate) type Output = (Storage, Shape);

pub(crate) trait Op: Send + Sync + 'static {
    const NAME: &'static str;

    fn forward(&self) -> Result<Output>;

    /// The gradient of each tensor, given that of the result.
    fn backward(&self, upstream: &Tensor) -> Result<Vec<Tensor>>;
}

/// A tensor without a graph.
pub(crate) fn constant((storage, shape): Output) -> Tensor {
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

/// The result of an operation on tensors, with a gradient for each of them.
pub(crate) fn record<O: Op>(op: O, tensors: &[&Tensor]) -> Result<Tensor> {
    let result = op.forward()?;
    let tracked: Vec<usize> = (0..tensors.len()).filter(|&i| tensors[i].track_op()).collect();
    let Some((&last, before)) = tracked.split_last() else { return Ok(constant(result)) };
    let shared = Arc::new(Shared { op, tracked: tracked.clone(), gradients: Mutex::default() });
    let node = |tensor, output, token: Option<&Tensor>| {
        let shared = shared.clone();
        let node = Node { shared, tensor, is_last: tensor == last, output: Mutex::new(Some(output)) };
        match token {
            Some(token) => tensors[tensor].apply_op2(token, node),
            None => tensors[tensor].apply_op1(node),
        }
    };
    let mut token = None;
    for &tensor in before {
        token = Some(node(tensor, zero(tensors[tensor].device())?, token.as_ref())?);
    }
    node(last, result, token.as_ref())
}

fn zero(device: &Device) -> Result<Output> {
    let storage = match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            Storage::Cuda(CudaStorage::wrap_cuda_slice(device.alloc_zeros::<f32>(1)?, device.clone()))
        }
        _ => Storage::Cpu(CpuStorage::F32(vec![0.0])),
    };
    Ok((storage, 1.into()))
}

struct Shared<O> {
    op: O,
    /// Which tensors have a node.
    tracked: Vec<usize>,
    /// Those that a backward pass has left for nodes to come, by tensor.
    gradients: Mutex<HashMap<ThreadId, HashMap<usize, Tensor>>>,
}

struct Node<O> {
    shared: Arc<Shared<O>>,
    tensor: usize,
    is_last: bool,
    /// Until it is in the graph.
    output: Mutex<Option<Output>>,
}

impl<O: Op> Node<O> {
    fn output(&self) -> Result<Output> {
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        output.ok_or_else(|| Error::msg(format!("{} runs once", O::NAME)))
    }

    fn on_host(&self) -> Result<(CpuStorage, Shape)> {
        match self.output()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => Err(Error::msg(format!("the result of {} is not on the CPU", O::NAME))),
        }
    }

    fn on_device(&self) -> Result<(CudaStorage, Shape)> {
        match self.output()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => Err(Error::msg(format!("the result of {} is not on CUDA", O::NAME))),
        }
    }

    fn gradient(&self, upstream: &Tensor) -> Result<Tensor> {
        let Shared { op, tracked, gradients } = &*self.shared;
        let computed = if self.is_last { Some(op.backward(upstream)?) } else { None };
        let mut left = gradients.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = thread::current().id();
        if let Some(computed) = computed {
            let of_nodes = computed.into_iter().enumerate().filter(|(tensor, _)| tracked.contains(tensor));
            left.insert(thread, of_nodes.collect());
        }
        let of_thread = left.entry(thread).or_default();
        let gradient = of_thread.remove(&self.tensor);
        if of_thread.is_empty() {
            left.remove(&thread);
        }
        gradient.ok_or_else(|| Error::msg(format!("{} has no gradient of tensor {}", O::NAME, self.tensor)))
    }
}

impl<O: Op> CustomOp1 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_host()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_device()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, upstream: &Tensor) -> Result<Option<Tensor>> {
        self.gradient(upstream).map(Some)
    }
}

impl<O: Op> CustomOp2 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_host()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_device()
    }

    fn bwd(
        &self,
        _: &Tensor,
        token: &Tensor,
        _: &Tensor,
        upstream: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(self.gradient(upstream)?), Some(token.detach())))
    }
}
