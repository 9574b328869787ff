//! The head loss on several GPUs: what to divide by is averaged over them between the two phases,
//! on the device and without waiting, as mmdetection's `reduce_mean` does it.
//!
//! ```text
//! cargo run --release --features nccl --example head_all_reduce
//! ```

use std::error::Error;
use std::sync::Arc;

use gfocal::HeadLoss;
use gfocal::cuda::{self, Device, Handle, LabelBuffer};
use gfocal::cudarc::driver::CudaStream;
use gfocal::cudarc::nccl::{self, Comm, Id, ReduceOp};
use gfocal::head::{Gradients, HeadWorkspace, Layout, Level, Logits, Points, Targets};

const BATCH: usize = 2;
const CLASSES: usize = 80;
const SIZE: usize = 40; // positions in a row of the one level
const STRIDE: f64 = 16.0;

fn main() -> Result<(), Box<dyn Error>> {
    let devices = match cuda::devices() {
        Ok(devices) => devices.len(),
        Err(error) => {
            println!("This example needs two GPUs: {error}.");
            return Ok(());
        }
    };
    if devices < 2 {
        println!("This example needs two GPUs; CUDA devices here: {devices}.");
        return Ok(());
    }
    // SAFETY: it only tries to open the library.
    if !unsafe { nccl::sys::is_culib_present() } {
        println!("This example needs NCCL, and libnccl was not found.");
        return Ok(());
    }
    let id = Id::new().map_err(|error| format!("NCCL: {error:?}"))?;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..devices)
            .map(|rank| scope.spawn(move || step(rank, devices, id).map_err(|error| error.to_string())))
            .collect();
        ranks.into_iter().try_for_each(|rank| Ok(rank.join().expect("no panic")?))
    })
}

/// One step of one process.
fn step(rank: usize, world: usize, id: Id) -> Result<(), Box<dyn Error>> {
    let stream: Arc<CudaStream> = cuda::context(rank)?.default_stream();
    let comm =
        Comm::from_rank(stream.clone(), rank, world, id).map_err(|error| format!("NCCL: {error:?}"))?;
    let handle = Handle::new(&stream)?;
    let head = HeadLoss::mmdetection();
    let (positions, box_channels) = (SIZE * SIZE, head.box_channels());

    // What the network and the assigner would have left: each process has another number of positives.
    let cls = stream.clone_htod(&vec![-4.6f32; BATCH * CLASSES * positions])?;
    let boxes = stream.alloc_zeros::<f32>(BATCH * box_channels * positions)?;
    let label = |anchor: usize| if anchor.is_multiple_of(50 * (rank + 1)) { 3 } else { CLASSES as i64 };
    let labels = stream.clone_htod(&(0..BATCH * positions).map(label).collect::<Vec<_>>())?;
    let corners = |anchor: usize| {
        let [x, y] = [anchor % SIZE, anchor % positions / SIZE].map(|at| at as f32 * STRIDE as f32);
        [x - 70.0, y - 40.0, x + 50.0, y + 60.0]
    };
    let targets = stream.clone_htod(&(0..BATCH * positions).flat_map(corners).collect::<Vec<_>>())?;

    let mut workspace = HeadWorkspace::new(&handle, BATCH, positions)?;
    let mut losses = stream.alloc_zeros::<f32>(3)?;
    let mut grad_cls = stream.alloc_zeros::<f32>(BATCH * CLASSES * positions)?;
    let mut grad_boxes = stream.alloc_zeros::<f32>(BATCH * box_channels * positions)?;
    let levels: [Level<Device, f32>; 1] = [Level {
        height: SIZE,
        width: SIZE,
        stride: STRIDE,
        points: Points::Grid { offset: 0.0 },
        logits: Logits::Separate { cls: &cls, boxes: &boxes },
        cls_layout: Layout::nchw(CLASSES, positions),
        box_layout: Layout::nchw(box_channels, positions),
        targets: Targets::<Device>::new(LabelBuffer::I64(&labels), &targets),
    }];

    head.cuda(&handle, &mut workspace, BATCH, CLASSES, &levels).normalisers()?;
    comm.all_reduce_in_place(workspace.normalisers_mut(), &ReduceOp::Avg)
        .map_err(|error| format!("NCCL: {error:?}"))?;
    let mut gradients: [Gradients<Device, f32>; 1] =
        [Gradients::Separate { cls: &mut grad_cls, boxes: &mut grad_boxes }];
    head.cuda(&handle, &mut workspace, BATCH, CLASSES, &levels)
        .normalised()
        .forward_backward(&mut losses, &mut gradients)?;

    // Only this waits.
    let normalisers = stream.clone_dtoh(workspace.normalisers())?;
    println!("GPU {rank}: losses {:?}, normalisers {normalisers:?}", stream.clone_dtoh(&losses)?);
    Ok(())
}
