//! What every error says, word for word, and of which kind it is: words.txt.

use std::collections::BTreeSet;

use super::Error;
use crate::head::Layout;

/// One of each, in the order of words.txt.
fn all() -> Vec<Error> {
    vec![
        Error::Length { tensor: "labels", actual: 40, shape: [64, 80], expected: 64 },
        Error::ShapeOverflow { shape: [usize::MAX, 2] },
        Error::BoxLength { tensor: "pred", actual: 7, boxes: 2, expected: 8 },
        Error::TooManyBoxes { boxes: usize::MAX },
        Error::Levels { anchors: 5, targets: 4 },
        Error::RegressRanges { anchors: 5, ranges: 4 },
        Error::ImageLength { tensor: "valid_hw", actual: 3, images: 2, expected: 4 },
        Error::Columns { shape: [4, 1], axis: "bins", columns: 1, minimum: 2, maximum: 9 },
        Error::GflLosses { actual: 2 },
        Error::LevelCount { actual: 9, maximum: 8 },
        Error::LevelTensors { tensor: "losses", actual: 5, expected: 6 },
        Error::LevelLength { level: 3, tensor: "labels", actual: 11, batch: 2, positions: 6, expected: 12 },
        Error::Reach {
            level: 1,
            tensor: "box_logits",
            actual: 23,
            layout: Box::new(Layout::nchw(2, 6)),
            needed: 24,
        },
        Error::RowWidth { level: 1, tensor: "cls_logits", actual: 5, expected: 3 },
        Error::Layout { level: 0, tensor: "cls_logits", reason: "two of its elements are one" },
        Error::NoStride { level: 1 },
        Error::NoCenterness { level: 0 },
        Error::InvalidOption { option: "beta", value: -0.5, rule: "from 0 to 10^6" },
        Error::UpstreamNeedsNone,
        Error::GflReduction { loss: "QFL" },
        Error::GflHandles,
        Error::NoQuality { level: 2 },
        Error::NoBoxScores { level: 2 },
        Error::ActivatedHead,
        Error::JointTypes { level: 1 },
        Error::SmallWorkspace { axis: "boxes", actual: 16, expected: 17 },
        Error::HeadWorkspace { axis: "images", actual: 3, capacity: 2 },
        Error::Overlap { tensor: "grad", other: "logits", bytes: 8 },
        Error::OtherContext { tensor: "logits", actual: 1, expected: 0 },
        Error::NotPrepared { units: "qfl in f16".into(), call: "QualityFocalLoss::units" },
        Error::Capturing { what: "a handle" },
        Error::CallersMemory { what: "a workspace", actual: 64, address: 0x1008, needed: 128 },
        Error::OtherThread,
        Error::NoDriver { reason: "libcuda.so: cannot open".into() },
        Error::StubDriver { library: "libcuda.so" },
        Error::OldDriver { version: 11_080 },
        Error::NoDevice { ordinal: 2, count: 1 },
        Error::OldDevice { compute_capability: 61 },
        Error::NoImage { unit: "qfl", storage: "f32", attempts: "none".into() },
        Error::Driver {
            call: "cuLaunchKernel",
            code: 1,
            name: "CUDA_ERROR".into(),
            message: "a fault".into(),
        },
    ]
}

#[test]
fn every_error_has_its_words_and_its_kind() {
    let found: Vec<String> = all().iter().map(|error| format!("{:?}: {error}", error.kind())).collect();
    for (found, wanted) in found.iter().zip(include_str!("words.txt").lines()) {
        assert_eq!(found, wanted);
    }
    assert_eq!(found.len(), include_str!("words.txt").lines().count());
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
    let all: Vec<String> = all().iter().map(|error| format!("{error:?}")).collect();
    assert_eq!(variants, all.iter().filter_map(|error| error.split([' ', '(']).next()).collect());
}
