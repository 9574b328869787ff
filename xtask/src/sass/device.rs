//! What a multiprocessor holds, and so how many blocks of a kernel fit.

use super::resources::Resources;

/// Of one architecture; the CUDA programming guide lists them by compute capability.
struct Multiprocessor {
    architecture: u32,
    threads: u32,
    blocks: u32,
    /// Bytes, and what of them each block takes for the system.
    shared: u32,
    taken: u32,
}

/// Turing, Ampere in data centres and not, Ada, Hopper, Blackwell.
const MULTIPROCESSORS: [Multiprocessor; 6] = [
    Multiprocessor { architecture: 75, threads: 1024, blocks: 16, shared: 64 << 10, taken: 0 },
    Multiprocessor { architecture: 80, threads: 2048, blocks: 32, shared: 164 << 10, taken: 1 << 10 },
    Multiprocessor { architecture: 86, threads: 1536, blocks: 16, shared: 100 << 10, taken: 1 << 10 },
    Multiprocessor { architecture: 89, threads: 1536, blocks: 24, shared: 100 << 10, taken: 1 << 10 },
    Multiprocessor { architecture: 90, threads: 2048, blocks: 32, shared: 228 << 10, taken: 1 << 10 },
    Multiprocessor { architecture: 120, threads: 1536, blocks: 24, shared: 100 << 10, taken: 1 << 10 },
];

/// The same for all of them: each of four parts of a multiprocessor has this many registers, and a
/// warp takes them by 256.
const REGISTERS_OF_A_QUARTER: u32 = 16 << 10;
const REGISTERS_AT_A_TIME: u32 = 256;
const WARP: u32 = 32;

/// The architectures that are known here.
pub fn architectures() -> impl Iterator<Item = u32> {
    MULTIPROCESSORS.iter().map(|known| known.architecture)
}

/// How many blocks of `threads` fit one multiprocessor at once. Dynamic shared memory is not known.
pub fn resident_blocks(architecture: u32, threads: u32, resources: &Resources) -> Option<u32> {
    let device = MULTIPROCESSORS.iter().find(|known| known.architecture == architecture)?;
    let of_a_warp = (resources.registers.max(1) * WARP).next_multiple_of(REGISTERS_AT_A_TIME);
    let warps = REGISTERS_OF_A_QUARTER / of_a_warp * 4;
    let by_registers = warps / threads.div_ceil(WARP).max(1);
    let by_shared = device.shared / (resources.static_shared + device.taken).max(1);
    let by_threads = device.threads / threads.max(1);
    Some(by_registers.min(by_shared).min(by_threads).min(device.blocks))
}

/// The part of a multiprocessor's threads that it holds of a kernel at once.
pub fn occupancy(architecture: u32, threads: u32, resources: &Resources) -> Option<f64> {
    let device = MULTIPROCESSORS.iter().find(|known| known.architecture == architecture)?;
    let held = resident_blocks(architecture, threads, resources)? * threads;
    Some(f64::from(held) / f64::from(device.threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcest_thing_decides() {
        let resources =
            |registers, static_shared| Resources { registers, static_shared, ..Resources::default() };
        // 64 registers: 8 warps for each quarter, 32 in all, and a block of 320 threads has 10.
        assert_eq!(resident_blocks(90, 320, &resources(64, 0)), Some(3));
        assert_eq!(resident_blocks(90, 320, &resources(65, 0)), Some(2));
        assert_eq!(resident_blocks(90, 320, &resources(32, 0)), Some(6), "2048 threads");
        assert_eq!(resident_blocks(75, 320, &resources(32, 0)), Some(3), "1024 threads");
        assert_eq!(resident_blocks(75, 32, &resources(32, 0)), Some(16), "16 blocks");
        assert_eq!(resident_blocks(90, 128, &resources(32, 56 << 10)), Some(4), "4 times 57 KiB");
        assert_eq!(resident_blocks(75, 128, &resources(32, 16 << 10)), Some(4), "4 times 16 KiB");
        assert_eq!(resident_blocks(86, 64, &resources(32, 0)), Some(16), "16 blocks");
        assert_eq!(resident_blocks(89, 64, &resources(32, 0)), Some(24), "1536 threads, 24 blocks");
        assert_eq!(resident_blocks(86, 128, &resources(32, 20 << 10)), Some(4), "4 times 21 KiB");
        assert_eq!(resident_blocks(52, 128, &resources(32, 0)), None);
    }
}
