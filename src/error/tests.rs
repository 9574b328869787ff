//! What every error says, word for word, and of which kind it is.

use std::collections::BTreeSet;

use super::{Error, ErrorKind};
use crate::head::Layout;

fn table() -> Vec<(Error, ErrorKind, &'static str)> {
    let layout = Layout::nchw(2, 6);
    let thread = std::thread::current().id();
    use ErrorKind::{Capacity, Device, Driver, Memory, Option, Shape, State};
    vec![
        (
            Error::Length { tensor: "labels", actual: 40, shape: [64, 80], expected: 64 },
            Shape,
            "labels has 40 elements, logits [64, 80] needs 64",
        ),
        (
            Error::ShapeOverflow { shape: [usize::MAX, 2] },
            Shape,
            "logits [18446744073709551615, 2] has more elements than memory can address",
        ),
        (
            Error::BoxLength { tensor: "pred", actual: 7, boxes: 2, expected: 8 },
            Shape,
            "pred has 7 elements, 2 boxes need 8",
        ),
        (
            Error::TooManyBoxes { boxes: usize::MAX },
            Shape,
            "18446744073709551615 boxes are more than memory can address",
        ),
        (Error::Levels { anchors: 5, targets: 4 }, Shape, "there are 5 levels of anchors, but targets for 4"),
        (
            Error::RegressRanges { anchors: 5, ranges: 4 },
            Shape,
            "there are 5 levels of anchors, but regress ranges for 4",
        ),
        (
            Error::NoStride { level: 1 },
            Option,
            "level 1: centre sampling needs a stride, which explicit anchors do not have; give a grid",
        ),
        (
            Error::NoCenterness { level: 0 },
            Option,
            "level 0: ATSS gives no centerness; leave it out, or take Fcos",
        ),
        (
            Error::ImageLength { tensor: "valid_hw", actual: 3, images: 2, expected: 4 },
            Shape,
            "valid_hw has 3 elements, 2 images need 4",
        ),
        (
            Error::SmallWorkspace { axis: "boxes", actual: 16, expected: 17 },
            Capacity,
            "the workspace is for 16 boxes, the call has 17; make a larger one",
        ),
        (
            Error::Columns { shape: [4, 1], axis: "bins", columns: 1, minimum: 2, maximum: 9 },
            Shape,
            "logits [4, 1] has 1 bins, it must have 2 to 9",
        ),
        (
            Error::InvalidOption { option: "beta", value: -0.5, rule: "from 0 to 10^6" },
            Option,
            "beta is -0.5, it must be from 0 to 10^6",
        ),
        (
            Error::UpstreamNeedsNone,
            Option,
            "an upstream gradient for each row goes with Reduction::None; for a reduced loss give the scalar to \
             grad_scale",
        ),
        (
            Error::GflReduction { loss: "QFL" },
            Option,
            "QFL of a Gfl call has Reduction::None; take Sum, Mean or MeanBy",
        ),
        (
            Error::GflLosses { actual: 2 },
            Shape,
            "losses has 2 elements, a Gfl call needs 3: QFL, DFL, their sum",
        ),
        (
            Error::GflHandles,
            Option,
            "the calls of a Gfl are on different handles; make both with the same one",
        ),
        (Error::LevelCount { actual: 9, maximum: 8 }, Shape, "9 levels, there must be 1 to 8"),
        (
            Error::LevelTensors { tensor: "losses", actual: 5, expected: 6 },
            Shape,
            "losses has 5 elements, these levels need 6",
        ),
        (
            Error::LevelLength {
                level: 3,
                tensor: "labels",
                actual: 11,
                batch: 2,
                positions: 6,
                expected: 12,
            },
            Shape,
            "level 3: labels has 11 elements, 2 images of 6 positions need 12",
        ),
        (
            Error::NoQuality { level: 2 },
            Option,
            "level 2: this head takes the quality of positives from the caller; give Targets::quality",
        ),
        (
            Error::NoBoxScores { level: 2 },
            Option,
            "level 2: this head takes the weights v of boxes from the caller; give Targets::box_scores",
        ),
        (
            Error::ActivatedHead,
            Option,
            "the head loss takes class logits; its QualityFocalLoss takes probabilities (with_activated)",
        ),
        (
            Error::JointTypes { level: 1 },
            Option,
            "level 1: class and box logits are of two types, and cannot be joint",
        ),
        (
            Error::Reach { level: 1, tensor: "box_logits", actual: 23, layout, needed: 24 },
            Shape,
            "level 1: box_logits has 23 elements, Layout { offset: 0, batch: 12, channel: 6, position: 1 } needs 24",
        ),
        (
            Error::Layout { level: 0, tensor: "cls_logits", reason: "two of its elements are one" },
            Shape,
            "level 0: the layout of cls_logits cannot be written to: two of its elements are one",
        ),
        (
            Error::HeadWorkspace { axis: "images", actual: 3, capacity: 2 },
            Capacity,
            "the workspace has room for 2 images, this call has 3; make a larger one",
        ),
        (
            Error::NoDriver { reason: "libcuda.so: cannot open".into() },
            Device,
            "no CUDA driver (libcuda.so: cannot open); install NVIDIA's driver, version 525 or newer",
        ),
        (
            Error::StubDriver { library: "libcuda.so" },
            Device,
            "libcuda.so is the CUDA toolkit's stub library, not the driver's; take its folder (it ends in stubs) \
             out of LD_LIBRARY_PATH, or install NVIDIA's driver, version 525 or newer",
        ),
        (
            Error::OldDriver { version: 11_080 },
            Device,
            "the CUDA driver supports CUDA 11.8, gfocal needs 12.0; update NVIDIA's driver to version 525 or newer",
        ),
        (
            Error::NoDevice { ordinal: 2, count: 1 },
            Device,
            "there is no CUDA device 2: the driver sees 1, counted from 0",
        ),
        (
            Error::OldDevice { compute_capability: 61 },
            Device,
            "the device's compute capability is 6.1, the kernels need 7.5 (Turing) or newer",
        ),
        (
            Error::NoImage { unit: "qfl", storage: "f32", attempts: "none".into() },
            Device,
            "no kernel image for qfl in f32 could be loaded: none",
        ),
        (
            Error::NotPrepared { units: "qfl in f16".into(), call: "Call::kernels" },
            State,
            "the kernels qfl in f16 are not loaded, and cannot be while the stream is captured: give what \
             Call::kernels says to Handle::prepare before the capture",
        ),
        (
            Error::Overlap { tensor: "grad", other: "logits", bytes: 8 },
            Memory,
            "grad overlaps logits by 8 bytes; give it memory of its own",
        ),
        (
            Error::Capturing { what: "a handle" },
            State,
            "a handle cannot be made while its stream is captured, since its memory would be the graph's; make it \
             before the capture, or over memory of your own",
        ),
        (
            Error::CallersMemory { what: "a handle's scratch memory", actual: 64, address: 0x1008, needed: 128 },
            Capacity,
            "a handle's scratch memory needs 128 bytes at a multiple of 16, there are 64 at 0x1008 (16 * 256 + 8)",
        ),
        (
            Error::OtherThread { made_on: thread, called_on: thread },
            State,
            format!(
                "the handle was made on {thread:?} for that thread's own default stream, and {thread:?} has another \
                 one; make a handle for it on this thread (Handle::on shares the kernels)"
            )
            .leak(),
        ),
        (
            Error::OtherContext { tensor: "logits", actual: 1, expected: 0 },
            Memory,
            "logits lives on device 1, in another CUDA context than the handle's stream on device 0; copy it there, \
             or make a handle for its stream",
        ),
        (
            Error::Driver {
                call: "cuLaunchKernel",
                code: 1,
                name: "CUDA_ERROR_INVALID_VALUE".into(),
                message: "invalid argument".into(),
            },
            Driver,
            "cuLaunchKernel failed: CUDA_ERROR_INVALID_VALUE (1), invalid argument",
        ),
    ]
}

#[test]
fn every_error_has_its_words_and_its_kind() {
    for (error, kind, text) in table() {
        assert_eq!((error.kind(), &*error.to_string()), (kind, text));
    }
}

#[test]
fn every_error_is_in_the_table() {
    let source = include_str!("../error.rs");
    let (_, body) = source.split_once("pub enum Error {\n").expect("the enum");
    let (body, _) = body.split_once("\n}\n").expect("its end");
    let variants: BTreeSet<&str> = (body.lines())
        .filter_map(|line| line.strip_prefix("    ").filter(|line| line.starts_with(char::is_uppercase)))
        .filter_map(|line| line.split([' ', ',', '(']).next())
        .collect();
    let table: Vec<String> = table().iter().map(|(error, ..)| format!("{error:?}")).collect();
    let named: BTreeSet<&str> = table.iter().filter_map(|error| error.split([' ', '(']).next()).collect();
    assert_eq!(variants, named);
}
