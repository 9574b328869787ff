//! More than 2^32 elements, through the raw-pointer layer and without the memory: only the last
//! row has a weight, so that only its logits are read, and the address of the first row is computed
//! back from it. An index that wraps leaves the one row that there is. (The kernels for narrow rows
//! read masked rows too, ahead of their weights, and so cannot be tested in this way.)

use gfocal::cuda::raw::{self, DflArgs, Pass, QflArgs, Scaling};
use gfocal::cuda::{Storage, check};
use gfocal::cudarc::driver::DevicePtr;
use gfocal::{DistributionFocalLoss, QualityFocalLoss, Reduction, f16};
use support::gpu::{Gpu, gpu};
use support::tolerance::{Want, check_reduced};

/// One row of logits at the end of `rows`.
struct Last {
    rows: usize,
    columns: usize,
    logits: Vec<f16>,
}

impl Last {
    fn new(columns: usize) -> Last {
        let rows = (1usize << 32).div_ceil(columns) + 3;
        // 251 is prime: no two vectors of 8 are alike.
        let logits = (0..columns).map(|i| f16::from_f32((i % 251) as f32 / 25.0 - 6.0)).collect();
        Last { rows, columns, logits }
    }

    /// Runs `launch` with the scaling for a sum and the address where row 0 would be; gives the loss.
    fn run(&self, gpu: &Gpu, launch: impl FnOnce(Scaling, u64)) -> f32 {
        let stream = &gpu.stream;
        let mut weight = vec![0.0f32; self.rows];
        weight[self.rows - 1] = 1.0;
        let weight = check("cuMemcpyHtoDAsync", stream.clone_htod(&weight)).expect("device memory");
        let row = check("cuMemcpyHtoDAsync", stream.clone_htod(&self.logits)).expect("device memory");
        let loss = check("cuMemAllocAsync", stream.alloc_zeros::<f32>(1)).expect("device memory");
        let scratch =
            stream.alloc_zeros::<u8>(raw::scratch_bytes(gpu.handle.kernels())).expect("device memory");
        let before = (self.rows - 1) * self.columns * size_of::<f16>();
        let first = row.device_ptr(stream).0.wrapping_sub(before as u64);
        let scaling = Scaling {
            weight: weight.device_ptr(stream).0,
            loss: loss.device_ptr(stream).0,
            scratch: scratch.device_ptr(stream).0,
            loss_factor: 1.0,
            grad_factor: 1.0,
            ..Scaling::default()
        };
        launch(scaling, first);
        let loss = stream.clone_dtoh(&loss).expect("the launch ends well");
        stream.synchronize().expect("the launch ends well");
        loss[0]
    }

    fn qfl(&self, gpu: &Gpu) {
        let (label, quality) = (self.columns as i32 / 3, 0.625f32);
        let mut labels = vec![i32::MIN; self.rows];
        labels[self.rows - 1] = label;
        let labels = gpu.stream.clone_htod(&labels).expect("device memory");
        let qualities = gpu.stream.clone_htod(&vec![quality; self.rows]).expect("device memory");
        let got = self.run(gpu, |scaling, logits| {
            let args = QflArgs {
                scaling,
                logits,
                labels: labels.device_ptr(&gpu.stream).0,
                quality: qualities.device_ptr(&gpu.stream).0,
                rows: self.rows as u64,
                classes: self.columns as u32,
                beta: 2.0,
                ..QflArgs::default()
            };
            let stream = gpu.stream.cu_stream().cast();
            // SAFETY: all but the logits hold `rows` elements, and outlive `run`; of the logits
            // only the last row is read, which is there: all others have weight 0.
            unsafe { raw::launch_qfl(gpu.handle.kernels(), Storage::F16, Pass::Forward, &args, stream) }
                .expect("a launch");
        });
        let mut want = [0.0];
        QualityFocalLoss::default()
            .cpu(&self.logits, [1, self.columns], &[label], &[quality])
            .reduction(Reduction::Sum)
            .forward(&mut want)
            .expect("lengths fit");
        check_reduced("loss", got, &Want::new(want[0].into(), 1.0, false));
    }

    fn dfl(&self, gpu: &Gpu) {
        let target = self.columns as f32 / 3.0;
        let targets = gpu.stream.clone_htod(&vec![target; self.rows]).expect("device memory");
        let got = self.run(gpu, |scaling, logits| {
            let args = DflArgs {
                scaling,
                logits,
                target: targets.device_ptr(&gpu.stream).0,
                rows: self.rows as u64,
                bins: self.columns as u32,
                target_max: (self.columns - 1) as f32,
                ..DflArgs::default()
            };
            let stream = gpu.stream.cu_stream().cast();
            // SAFETY: as in `qfl`.
            unsafe { raw::launch_dfl(gpu.handle.kernels(), Storage::F16, Pass::Forward, &args, stream) }
                .expect("a launch");
        });
        let mut want = [0.0];
        DistributionFocalLoss::default()
            .cpu(&self.logits, [1, self.columns], &[target])
            .reduction(Reduction::Sum)
            .forward(&mut want)
            .expect("lengths fit");
        check_reduced("loss", got, &Want::new(want[0].into(), 1.0, false));
    }
}

#[test]
fn elements_past_2_to_the_32() {
    let Some(gpu) = gpu() else { return };
    Last::new(1 << 20).qfl(&gpu);
    Last::new((1 << 20) + 1).qfl(&gpu); // the rows lie at every alignment
    Last::new(1 << 20).dfl(&gpu);
}
