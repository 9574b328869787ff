//! What `ptxas -v` says of a kernel: registers, shared memory, spills.

/// What a kernel takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Per thread.
    pub registers: u32,
    /// Bytes per block, without dynamic shared memory.
    pub static_shared: u32,
    /// Bytes per thread of local memory.
    pub stack: u32,
    /// Bytes per thread, stores and loads together.
    pub spills: u32,
}

/// Finds a kernel in the log.
///
/// ```text
/// ptxas info    : Compiling entry function 'qfl_f32' for 'sm_75'
/// ptxas info    : Function properties for qfl_f32
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 32 registers, used 1 barriers, 328 bytes smem, 400 bytes cmem[0]
/// ```
pub fn of(kernel: &str, log: &str) -> Option<Resources> {
    let start = log.find(&format!("entry function '{kernel}'"))?;
    let section = &log[start..];
    let end = section[1..].find("entry function '").map_or(section.len(), |end| end + 1);
    let section = &section[..end];
    Some(Resources {
        registers: before(section, " registers")?,
        static_shared: before(section, " bytes smem").unwrap_or(0),
        stack: before(section, " bytes stack frame")?,
        spills: before(section, " bytes spill stores")? + before(section, " bytes spill loads")?,
    })
}

/// The number in front of some words.
fn before(text: &str, words: &str) -> Option<u32> {
    let end = text.find(words)?;
    let start = text[..end].rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    text[start..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'dfl_f32' for 'sm_75'
ptxas info    : Function properties for dfl_f32
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 328 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'dfl' for 'sm_75'
ptxas info    : Function properties for dfl
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 360 bytes cmem[0]
";

    #[test]
    fn the_log_is_read() {
        let large = Resources { registers: 255, static_shared: 328, stack: 16, spills: 12 };
        let small = Resources { registers: 8, ..Resources::default() };
        assert_eq!(of("dfl_f32", LOG), Some(large));
        assert_eq!(of("dfl", LOG), Some(small));
        assert_eq!(of("qfl", LOG), None);
    }
}
