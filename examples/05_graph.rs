//! Calls in a CUDA graph: captured once, replayed with whatever its buffers hold then.
//!
//! ```text
//! cargo run --example 05_graph
//! ```

use std::error::Error;

use gfocal::cuda::{self, Handle, Pass, Storage};
use gfocal::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use gfocal::{DistributionFocalLoss, Reduction};

const SHAPE: [usize; 2] = [4096, 17];

fn main() -> Result<(), Box<dyn Error>> {
    let context = cuda::context(0)?;
    // SAFETY: all work is on one stream, so that nothing needs to be ordered by cudarc's events, which a capture does
    // not take.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?; // the default stream cannot be captured
    let handle = Handle::new(&stream)?;
    let dfl = DistributionFocalLoss::default();
    // Nothing can be loaded inside a capture.
    handle.prepare(dfl.units(Storage::F32, Pass::ForwardBackward))?;

    let mut logits = stream.alloc_zeros::<f32>(SHAPE[0] * SHAPE[1])?;
    let target = stream.clone_htod(&[3.25f32; SHAPE[0]])?;
    let mut loss = stream.alloc_zeros::<f32>(1)?;
    let mut grad = stream.alloc_zeros::<f32>(SHAPE[0] * SHAPE[1])?;

    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let captured = dfl
        .cuda(&handle, &logits, SHAPE, &target)
        .reduction(Reduction::Mean)
        .forward_backward(&mut loss, &mut grad);
    let graph =
        stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)?;
    captured?; // after the end: an error must not leave the stream captured
    let graph = graph.ok_or("an empty graph")?;

    // Descent with one launch a step and nothing else: the graph reads the logits where they are.
    let mut values = vec![0.0f32; SHAPE[0] * SHAPE[1]];
    let mut losses = Vec::new();
    for _ in 0..5 {
        stream.memcpy_htod(&values, &mut logits)?;
        graph.launch()?;
        losses.push(stream.clone_dtoh(&loss)?[0]);
        let slopes = stream.clone_dtoh(&grad)?;
        values.iter_mut().zip(slopes).for_each(|(value, slope)| *value -= 4096.0 * slope);
    }
    println!("losses {losses:.4?}");
    assert!((losses[0] - 17f32.ln()).abs() < 1e-4 && losses.is_sorted_by(|a, b| a > b));
    Ok(())
}
