//! Everything that can go wrong, with the numbers and the way out.

mod kind;

use crate::layout::Layout;
pub use kind::ErrorKind;

/// A result whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was wrong with a call. Both backends give the same error for the same mistake.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A buffer does not have the length that the shape of the logits asks for.
    #[error("{tensor} has {actual} elements, logits {shape:?} needs {expected}")]
    Length {
        /// The buffer's name.
        tensor: &'static str,
        /// Its length, in elements.
        actual: usize,
        /// `[rows, columns]` of the logits.
        shape: [usize; 2],
        /// The length that would be right.
        expected: usize,
    },

    /// `rows * columns` does not fit into the address space.
    #[error("logits {shape:?} has more elements than memory can address")]
    ShapeOverflow {
        /// `[rows, columns]` of the logits.
        shape: [usize; 2],
    },

    /// A buffer does not have the length that the number of boxes asks for.
    #[error("{tensor} has {actual} elements, {boxes} boxes need {expected}")]
    BoxLength {
        /// The buffer's name.
        tensor: &'static str,
        /// Its length, in elements.
        actual: usize,
        /// How many boxes there are.
        boxes: usize,
        /// The length that would be right.
        expected: usize,
    },

    /// So many boxes do not fit into the address space.
    #[error("{boxes} boxes are more than memory can address")]
    TooManyBoxes {
        /// How many there are.
        boxes: usize,
    },

    /// The levels of anchors and of targets are not the same.
    #[error("there are {anchors} levels of anchors, but targets for {targets}")]
    Levels {
        /// How many levels of anchors there are.
        anchors: usize,
        /// How many levels of targets there are.
        targets: usize,
    },

    /// FCOS is told ranges for another number of levels.
    #[error("there are {anchors} levels of anchors, but regress ranges for {ranges}")]
    RegressRanges {
        /// How many levels of anchors there are.
        anchors: usize,
        /// How many ranges there are.
        ranges: usize,
    },

    /// Centre sampling goes by strides, which explicit anchors have none of.
    #[error("level {level}: centre sampling needs a stride, which explicit anchors do not have; give a grid")]
    NoStride {
        /// The level, counted from 0.
        level: usize,
    },

    /// Centerness is FCOS'.
    #[error("level {level}: ATSS gives no centerness; leave it out, or take Fcos")]
    NoCenterness {
        /// The level, counted from 0.
        level: usize,
    },

    /// A buffer does not have the length that the number of images asks for.
    #[error("{tensor} has {actual} elements, {images} images need {expected}")]
    ImageLength {
        /// The buffer's name.
        tensor: &'static str,
        /// Its length, in elements.
        actual: usize,
        /// How many images there are.
        images: usize,
        /// The length that would be right.
        expected: usize,
    },

    /// A workspace was made for fewer anchors, or fewer boxes.
    #[cfg(feature = "cuda")]
    #[error("the workspace is for {actual} {axis}, the call has {expected}; make a larger one")]
    SmallWorkspace {
        /// What there is too much of: anchors of all images, or boxes.
        axis: &'static str,
        /// How many it is for.
        actual: usize,
        /// How many the call has.
        expected: usize,
    },

    /// Too few columns for the operation, or more than it can count.
    #[error("logits {shape:?} has {columns} {axis}, it must have {minimum} to {maximum}")]
    Columns {
        /// `[rows, columns]` of the logits.
        shape: [usize; 2],
        /// What the columns are: classes or bins.
        axis: &'static str,
        /// How many there are.
        columns: usize,
        /// The fewest that make sense.
        minimum: usize,
        /// The most that are supported.
        maximum: usize,
    },

    /// An option is outside its range.
    #[error("{option} is {value}, it must be {rule}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What it was.
        value: f64,
        /// What it may be.
        rule: &'static str,
    },

    /// An upstream gradient for each row was given together with a reduction to one number.
    #[error(
        "an upstream gradient for each row goes with Reduction::None; for a reduced loss give the scalar to grad_scale"
    )]
    UpstreamNeedsNone,

    /// Both losses in one call give one number each.
    #[error("{loss} of a Gfl call has Reduction::None; take Sum, Mean or MeanBy")]
    GflReduction {
        /// Which of the two.
        loss: &'static str,
    },

    /// Both losses in one call give three numbers.
    #[error("losses has {actual} elements, a Gfl call needs 3: QFL, DFL, their sum")]
    GflLosses {
        /// Its length.
        actual: usize,
    },

    /// The two calls are on different handles.
    #[cfg(feature = "cuda")]
    #[error("the calls of a Gfl are on different handles; make both with the same one")]
    GflHandles,

    /// Too few or too many levels of the pyramid.
    #[error("{actual} levels, there must be 1 to {maximum}")]
    LevelCount {
        /// How many there are.
        actual: usize,
        /// The most that one call takes.
        maximum: usize,
    },

    /// What belongs to all levels together does not have the right length.
    #[error("{tensor} has {actual} elements, these levels need {expected}")]
    LevelTensors {
        /// The buffer's name.
        tensor: &'static str,
        /// Its length.
        actual: usize,
        /// The length that would be right.
        expected: usize,
    },

    /// A target of a level does not have the length that its shape asks for.
    #[error(
        "level {level}: {tensor} has {actual} elements, {batch} images of {positions} positions need {expected}"
    )]
    LevelLength {
        /// The level, counted from 0.
        level: usize,
        /// The buffer's name.
        tensor: &'static str,
        /// Its length, in elements.
        actual: usize,
        /// Images in the batch.
        batch: usize,
        /// Positions of the level.
        positions: usize,
        /// The length that would be right.
        expected: usize,
    },

    /// The qualities are to be given, and a level has none.
    #[error("level {level}: this head takes the quality of positives from the caller; give Targets::quality")]
    NoQuality {
        /// The level, counted from 0.
        level: usize,
    },

    /// The weights of the boxes are to be given, and a level has none.
    #[error(
        "level {level}: this head takes the weights v of boxes from the caller; give Targets::box_scores"
    )]
    NoBoxScores {
        /// The level, counted from 0.
        level: usize,
    },

    /// The head loss takes logits, and its QFL is said to take probabilities.
    #[error("the head loss takes class logits; its QualityFocalLoss takes probabilities (with_activated)")]
    ActivatedHead,

    /// One tensor holds class and box logits, which are said to be of two types.
    #[error("level {level}: class and box logits are of two types, and cannot be joint")]
    JointTypes {
        /// The level, counted from 0.
        level: usize,
    },

    /// A layout leads out of its buffer.
    #[error("level {level}: {tensor} has {actual} elements, {layout:?} needs {needed}")]
    Reach {
        /// The level, counted from 0.
        level: usize,
        /// The buffer's name.
        tensor: &'static str,
        /// Its length, in elements.
        actual: usize,
        /// Where its elements are said to be.
        layout: Box<Layout>,
        /// The length that would be enough.
        needed: u128,
    },

    /// The rows of a layout are not those of its level.
    #[error("level {level}: rows of {tensor} have {actual} positions, those of the level {expected}")]
    RowWidth {
        /// The level, counted from 0.
        level: usize,
        /// The buffer's name.
        tensor: &'static str,
        /// Positions in a row of the layout.
        actual: usize,
        /// Positions in a row of the level.
        expected: usize,
    },

    /// A layout cannot be used for gradients.
    #[error("level {level}: the layout of {tensor} cannot be written to: {reason}")]
    Layout {
        /// The level, counted from 0.
        level: usize,
        /// The buffer's name.
        tensor: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The workspace of the head loss was made for less.
    #[cfg(feature = "cuda")]
    #[error("the workspace has room for {capacity} {axis}, this call has {actual}; make a larger one")]
    HeadWorkspace {
        /// What there is too much of: images, or anchors of all images together.
        axis: &'static str,
        /// How many there are.
        actual: usize,
        /// How many it has room for.
        capacity: usize,
    },

    /// The CUDA driver's library could not be opened.
    #[cfg(feature = "cuda")]
    #[error("no CUDA driver ({reason}); install NVIDIA's driver, version 525 or newer")]
    NoDriver {
        /// What the loader said.
        reason: String,
    },

    /// What the loader finds is the toolkit's stand-in for the driver's library, for linking only.
    #[cfg(feature = "cuda")]
    #[error(
        "{library} is the CUDA toolkit's stub library, not the driver's; take its folder (it ends in stubs) out \
         of LD_LIBRARY_PATH, or install NVIDIA's driver, version 525 or newer"
    )]
    StubDriver {
        /// The name that was looked up.
        library: &'static str,
    },

    /// The CUDA driver is older than the oldest one supported.
    #[cfg(feature = "cuda")]
    #[error(
        "the CUDA driver supports CUDA {}.{}, gfocal needs 12.0; update NVIDIA's driver to version 525 or newer",
        version / 1000,
        version % 1000 / 10
    )]
    OldDriver {
        /// As cuDriverGetVersion gives it: 1000 * major + 10 * minor.
        version: i32,
    },

    /// There is no such device.
    #[cfg(feature = "cuda")]
    #[error("there is no CUDA device {ordinal}: the driver sees {count}, counted from 0")]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },

    /// The device is older than the kernels.
    #[cfg(feature = "cuda")]
    #[error(
        "the device's compute capability is {}.{}, the kernels need 7.5 (Turing) or newer",
        compute_capability / 10,
        compute_capability % 10
    )]
    OldDevice {
        /// 10 * major + minor.
        compute_capability: u32,
    },

    /// No embedded kernel image could be loaded.
    #[cfg(feature = "cuda")]
    #[error("no kernel image for {unit} in {storage} could be loaded: {attempts}")]
    NoImage {
        /// The group of kernels.
        unit: &'static str,
        /// The storage type.
        storage: &'static str,
        /// Each image tried, and what the driver said of it.
        attempts: String,
    },

    /// A stream that is being captured wants kernels which are not loaded yet.
    #[cfg(feature = "cuda")]
    #[error(
        "the kernels {units} are not loaded, and cannot be while the stream is captured: give what \
         {call} says to Handle::prepare before the capture"
    )]
    NotPrepared {
        /// The kernels, in words.
        units: String,
        /// What says what to give to [`Handle::prepare`](crate::cuda::Handle::prepare).
        call: &'static str,
    },

    /// A handle or a workspace cannot have memory of its own while its stream is captured.
    #[cfg(feature = "cuda")]
    #[error(
        "{what} cannot be made while its stream is captured, since its memory would be the graph's; make it \
         before the capture, or over memory of your own"
    )]
    Capturing {
        /// What was to be made.
        what: &'static str,
    },

    /// Memory of the caller's is too little, or begins at the wrong place.
    #[cfg(feature = "cuda")]
    #[error(
        "{what} needs {needed} bytes at a multiple of 16, there are {actual} at {address:#x} (16 * {} + {})",
        address / 16,
        address % 16
    )]
    CallersMemory {
        /// What is to be made of it.
        what: &'static str,
        /// Its length, in bytes.
        actual: usize,
        /// Where it begins.
        address: u64,
        /// The least length, in bytes.
        needed: usize,
    },

    /// A handle of another thread's default stream.
    #[cfg(feature = "cuda")]
    #[error(
        "the handle was made on another thread, for that thread's own default stream; make one for this thread's \
         (Handle::on shares the kernels)"
    )]
    OtherThread,

    /// A buffer that is written lies over another one.
    #[cfg(feature = "cuda")]
    #[error("{tensor} overlaps {other} by {bytes} bytes; give it memory of its own")]
    Overlap {
        /// The buffer that is written.
        tensor: &'static str,
        /// The other one.
        other: &'static str,
        /// How many bytes both have.
        bytes: u64,
    },

    /// A buffer belongs to another CUDA context than the handle's stream.
    #[cfg(feature = "cuda")]
    #[error(
        "{tensor} lives on device {actual}, in another CUDA context than the handle's stream on device {expected}; copy it there, or make a handle for its stream"
    )]
    OtherContext {
        /// The buffer's name.
        tensor: &'static str,
        /// The ordinal of the buffer's device.
        actual: usize,
        /// The ordinal of the stream's device.
        expected: usize,
    },

    /// The driver refused a call. It may also report what an earlier launch did.
    #[cfg(feature = "cuda")]
    #[error("{call} failed: {name} ({code}), {message}")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// The CUresult.
        code: u32,
        /// Its name.
        name: String,
        /// Its description.
        message: String,
    },
}

/// Checks that an option is a finite number that `rule` allows.
pub(crate) fn check_option(
    option: &'static str,
    value: f64,
    rule: &'static str,
    allowed: bool,
) -> Result<()> {
    if value.is_finite() && allowed { Ok(()) } else { Err(Error::InvalidOption { option, value, rule }) }
}

#[cfg(all(test, feature = "cuda"))]
mod tests;
