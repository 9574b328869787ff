//! Shows what becomes of loads that the driver refuses: another try where it may only have been busy,
//! an error with the driver's log where not.
//!
//! In a binary of its own, as one test: the emulator fails the next loads of whatever thread.

use gfocal::boxes::BoxLoss;
use gfocal::cuda::{Handle, Pass, Storage};
use gfocal::{DistributionFocalLoss, Error, QualityFocalLoss};

use support::gpu::gpu;

#[test]
fn loads_are_tried_again() {
    let Some(gpu) = gpu() else { return };
    let Some(emulator) = gpu.emulator else {
        eprintln!("skipped: a GPU's driver does not fail on request");
        return;
    };
    let units = QualityFocalLoss::default().units(Storage::Bf16, Pass::ForwardBackward)
        | DistributionFocalLoss::default().units(Storage::Bf16, Pass::ForwardBackward)
        | BoxLoss::units();
    let best = {
        let handle = Handle::new(&gpu.stream).expect("a handle");
        handle.prepare(units).expect("they load");
        handle.kernels().images()
    };
    assert_eq!(best.len(), 3);
    // 209: no binary for this GPU; 221: no compiler for PTX. All at once, as threads may see it, or one.
    for (error, count) in [(209, 3), (221, 3), (209, 1), (221, 1)] {
        emulator.fail_loads(error, count);
        let handle = Handle::new(&gpu.stream).expect("a handle");
        handle.prepare(units).expect("the second try loads");
        assert_eq!(handle.kernels().images(), best, "{count} times {error}: nothing worse was taken");
    }

    // 218: invalid PTX, which it stays.
    emulator.fail_loads(218, u32::MAX);
    let handle = Handle::new(&gpu.stream).expect("a handle");
    let error = handle.prepare(BoxLoss::units()).expect_err("refused");
    emulator.fail_loads(0, 0);
    let Error::NoImage { unit: "boxes", storage: "f32", attempts } = error else { panic!("{error:?}") };
    assert!(attempts.contains("cuModuleLoadDataEx failed: CUDA_ERROR_INVALID_PTX (218)"), "{attempts}");
    assert!(attempts.contains("a test has asked for this"), "the driver's log: {attempts}");
    handle.prepare(BoxLoss::units()).expect("nothing of the failure is left");
}
