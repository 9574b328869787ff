//! Kinds of errors.

use super::Error;

/// What an [`enum@Error`] is about. Whoever turns errors into those of another language maps these, one by one: there
/// will be new errors, but each is of one of these kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Lengths, numbers of things, or layouts that do not go together.
    Shape,
    /// An option is outside its range, or options and inputs contradict each other.
    Option,
    /// A workspace has too little room.
    Capacity,
    /// A buffer lies where it must not: over another one, on another device, or out of line; or is too short.
    Memory,
    /// The call is right, but not now or not here: while a stream is captured, on another thread.
    State,
    /// There is no device, driver or kernel image that can be used.
    Device,
    /// The driver refused something.
    Driver,
}

impl Error {
    /// What it is about.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Length { .. }
            | Error::ShapeOverflow { .. }
            | Error::BoxLength { .. }
            | Error::TooManyBoxes { .. }
            | Error::Levels { .. }
            | Error::RegressRanges { .. }
            | Error::ImageLength { .. }
            | Error::Columns { .. }
            | Error::GflLosses { .. }
            | Error::LevelCount { .. }
            | Error::LevelTensors { .. }
            | Error::LevelLength { .. }
            | Error::Reach { .. }
            | Error::RowWidth { .. }
            | Error::Layout { .. } => ErrorKind::Shape,
            Error::NoStride { .. }
            | Error::NoCenterness { .. }
            | Error::InvalidOption { .. }
            | Error::UpstreamNeedsNone
            | Error::GflReduction { .. }
            | Error::NoQuality { .. }
            | Error::NoBoxScores { .. }
            | Error::ActivatedHead
            | Error::JointTypes { .. } => ErrorKind::Option,
            #[cfg(feature = "cuda")]
            Error::GflHandles => ErrorKind::Option,
            #[cfg(feature = "cuda")]
            Error::SmallWorkspace { .. } | Error::HeadWorkspace { .. } => ErrorKind::Capacity,
            #[cfg(feature = "cuda")]
            Error::Overlap { .. } | Error::OtherContext { .. } | Error::CallersMemory { .. } => {
                ErrorKind::Memory
            }
            #[cfg(feature = "cuda")]
            Error::NotPrepared { .. } | Error::Capturing { .. } | Error::OtherThread => ErrorKind::State,
            #[cfg(feature = "cuda")]
            Error::NoDriver { .. }
            | Error::StubDriver { .. }
            | Error::OldDriver { .. }
            | Error::NoDevice { .. }
            | Error::OldDevice { .. }
            | Error::NoImage { .. } => ErrorKind::Device,
            #[cfg(feature = "cuda")]
            Error::Driver { .. } => ErrorKind::Driver,
        }
    }
}
