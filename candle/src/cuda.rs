//! candle on CUDA: its buffers as gfocal takes them, and what calls run on.
//!
//! candle's and gfocal's cudarc are one, so that buffers and streams are the same types. What a call works in is cached
//! by device and thread: the stream of `Device::new_cuda` is another one on each thread, under one name.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::backend::BackendDevice;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::cuda::{CudaDType, CudaStorageSlice, DeviceId};
use candle_core::{CudaDevice, CudaStorage, Result, Shape, Storage, Tensor};
use gfocal::Status;
use gfocal::assign::AssignWorkspace;
use gfocal::cuda::{Handle, Kernels, StatusBlock, StorageElement};
use gfocal::head::HeadWorkspace;

use crate::record::{Output, constant};
use crate::tensor::{Float, Held, wrap};

/// A storage type of logits on CUDA.
pub(crate) trait CudaFloat: Float + StorageElement + CudaDType + DeviceRepr {}

impl CudaFloat for f32 {}
impl CudaFloat for gfocal::f16 {}
impl CudaFloat for gfocal::bf16 {}

/// As [`for_floats`](crate::tensor::for_floats), of those on CUDA.
macro_rules! for_floats {
    ($name:expr, $tensor:expr, $type:ident => $body:expr) => {
        $crate::tensor::for_floats!(but F64: $name, $tensor, "f32, f16 or bf16", $type => $body)
    };
}
pub(crate) use for_floats;

/// A part of a buffer.
pub(crate) type View<'t, T> = CudaView<'t, T>;

/// What is held of a tensor that may not be given.
pub(crate) fn view<'h, T: CudaDType>(held: &'h Option<Held<'_>>) -> Result<Option<View<'h, T>>> {
    held.as_ref().map(Held::device).transpose()
}

/// How many elements logits have.
pub(crate) fn elements(storage: &CudaStorage) -> usize {
    match &storage.slice {
        CudaStorageSlice::F32(elements) => elements.len(),
        CudaStorageSlice::F16(elements) => elements.len(),
        CudaStorageSlice::BF16(elements) => elements.len(),
        _ => 0,
    }
}

/// A buffer that a call writes all of, of one element at least: the driver has none without.
pub(crate) fn alloc<T: CudaFloat>(device: &CudaDevice, count: usize) -> Result<CudaSlice<T>> {
    // SAFETY: any bits are a float, and the call that it is for writes all of them before anything reads them, in the
    // stream's order.
    unsafe { device.alloc(count.max(1)) }
}

pub(crate) fn output<T: CudaDType>(buffer: CudaSlice<T>, shape: Shape, device: &CudaDevice) -> Output {
    (Storage::Cuda(CudaStorage::wrap_cuda_slice(buffer, device.clone())), shape)
}

/// What calls of a thread on a device run on.
pub(crate) struct Work {
    pub handle: Handle,
    head: Option<(HeadWorkspace, HeadRoom)>,
    assign: Option<(AssignWorkspace, AssignRoom)>,
}

/// What a workspace of the head has room for, and the head whose forward pass has left its own there.
#[derive(Clone, Copy)]
struct HeadRoom {
    batch: usize,
    anchors: usize,
    head: Option<u64>,
}

#[derive(Clone, Copy)]
struct AssignRoom {
    images: usize,
    anchors: usize,
    boxes: usize,
}

impl Work {
    fn new(device: &CudaDevice) -> Result<Self> {
        let handle = Handle::with_kernels(&device.cuda_stream(), kernels(device)?).map_err(wrap)?;
        Ok(Work { handle, head: None, assign: None })
    }

    /// The workspace of the head, which grows, and whether this head's forward pass was the last to work in it. From
    /// now on it is.
    pub fn of_head(
        &mut self,
        head: u64,
        batch: usize,
        anchors: usize,
    ) -> Result<(&Handle, &mut HeadWorkspace, bool)> {
        let Work { handle, head: known, .. } = self;
        let mut room = HeadRoom { batch, anchors, head: None };
        if let Some((_, old)) = known {
            room.batch = old.batch.max(batch);
            // A workspace counts the anchors of all images.
            room.anchors = (old.batch * old.anchors).max(batch * anchors).div_ceil(room.batch.max(1));
        }
        let has_room = |old: &HeadRoom| batch <= old.batch && batch * anchors <= old.batch * old.anchors;
        // One that is too small goes before there is another.
        let (workspace, room) = match known.take().filter(|(_, old)| has_room(old)) {
            Some(enough) => known.insert(enough),
            None => {
                let workspace = HeadWorkspace::new(handle, room.batch, room.anchors).map_err(wrap)?;
                known.insert((workspace, room))
            }
        };
        let resumed = room.head == Some(head);
        room.head = Some(head);
        Ok((handle, workspace, resumed))
    }

    /// The workspace of assignments, which grows.
    pub fn of_assignment(
        &mut self,
        images: usize,
        anchors: usize,
        boxes: usize,
    ) -> Result<(&Handle, &mut AssignWorkspace)> {
        let Work { handle, assign: known, .. } = self;
        let mut room = AssignRoom { images, anchors, boxes };
        if let Some((_, old)) = known {
            if images * anchors < old.images * old.anchors {
                (room.images, room.anchors) = (old.images, old.anchors);
            }
            room.boxes = boxes.max(old.boxes);
        }
        let has_room = |old: &AssignRoom| images * anchors <= old.images * old.anchors && boxes <= old.boxes;
        let (workspace, _) = match known.take().filter(|(_, old)| has_room(old)) {
            Some(enough) => known.insert(enough),
            None => {
                let AssignRoom { images, anchors, boxes } = room;
                let workspace =
                    AssignWorkspace::new(handle.stream(), images, anchors, boxes).map_err(wrap)?;
                known.insert((workspace, room))
            }
        };
        Ok((handle, workspace))
    }
}

thread_local! {
    static WORK: RefCell<HashMap<DeviceId, Work>> = RefCell::default();
}

/// Kernels by the number of the device, as long as a thread has a handle with them.
static KERNELS: Mutex<Vec<(usize, Weak<Kernels>)>> = Mutex::new(Vec::new());

fn kernels(device: &CudaDevice) -> Result<Arc<Kernels>> {
    let stream = device.cuda_stream();
    let ordinal = stream.context().ordinal();
    let mut all = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|(_, kernels)| kernels.strong_count() > 0);
    let known = all.iter().find(|(of, _)| *of == ordinal).and_then(|(_, kernels)| kernels.upgrade());
    if let Some(known) = known {
        return Ok(known);
    }
    let kernels = Arc::new(Kernels::new(stream.context()).map_err(wrap)?);
    all.push((ordinal, Arc::downgrade(&kernels)));
    Ok(kernels)
}

/// Runs a call with this thread's handle and memory for a device.
pub(crate) fn with<R>(device: &CudaDevice, run: impl FnOnce(&mut Work) -> Result<R>) -> Result<R> {
    WORK.with_borrow_mut(|all| match all.entry(device.id()) {
        Entry::Occupied(known) => run(known.into_mut()),
        Entry::Vacant(entry) => run(entry.insert(Work::new(device)?)),
    })
}

/// What a report says of a device.
pub(crate) struct OnDevice {
    device: CudaDevice,
    pub found_inf: CudaSlice<f32>,
    pub status: StatusBlock,
}

impl std::fmt::Debug for OnDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnDevice").field("device", &self.device).finish_non_exhaustive()
    }
}

impl OnDevice {
    pub fn new(device: &CudaDevice) -> Result<Self> {
        let status = StatusBlock::new(&device.cuda_stream()).map_err(wrap)?;
        Ok(OnDevice { device: device.clone(), found_inf: device.alloc_zeros(1)?, status })
    }

    pub fn is_on(&self, device: &CudaDevice) -> bool {
        self.device.same_device(device)
    }

    /// A copy: the flag stays, and calls go on writing to it.
    pub fn found_inf(&self) -> Result<Tensor> {
        let mut copy = alloc::<f32>(&self.device, 1)?;
        self.device.memcpy_dtod(&self.found_inf, &mut copy)?;
        Ok(constant(output(copy, 1.into(), &self.device)))
    }

    pub fn status(&self) -> Result<Status> {
        self.status.read(&self.device.cuda_stream()).map_err(wrap)
    }
}

#[cfg(test)]
mod tests;
