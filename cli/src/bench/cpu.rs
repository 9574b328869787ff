//! The CPU, and what its memory gives.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::timing::{Samples, wall_clock};
use crate::error::Result;

/// In words of 8 bytes.
const SHORT_PIECE: usize = 128;

pub fn threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The sum of so many terms, by all cores.
pub fn sum(count: usize, term: impl Fn(usize) -> f64 + Sync) -> f64 {
    let share = count.div_ceil(threads()).max(1);
    let part = |start: usize| -> f64 { (start..count.min(start + share)).map(&term).sum() };
    thread::scope(|scope| {
        let part = &part;
        let parts: Vec<_> = (0..count).step_by(share).map(|start| scope.spawn(move || part(start))).collect();
        parts.into_iter().map(|part| part.join().expect("a term does not panic")).sum()
    })
}

/// Seconds that a copy takes which reads and writes so many bytes in all.
pub fn copy_seconds(bytes: usize, seconds: f64) -> Result<f64> {
    let words = bytes.div_ceil(16).max(1);
    let (source, mut target) = (vec![1u64; words], vec![2u64; words]);
    let mut best = f64::INFINITY;
    for share in shares(words) {
        // The C library's copy has ways for long pieces that some processors are slow with.
        for piece in [words, SHORT_PIECE] {
            let workers = source.chunks(share).zip(target.chunks_mut(share)).map(|(source, target)| {
                move || {
                    for (source, target) in source.chunks(piece).zip(target.chunks_mut(piece)) {
                        black_box(&mut *target).copy_from_slice(black_box(source));
                    }
                }
            });
            best = best.min(together(workers.collect(), seconds / 4.0)?);
        }
    }
    Ok(best)
}

/// Seconds that it takes to read so many bytes.
pub fn read_seconds(bytes: usize, seconds: f64) -> Result<f64> {
    let words = bytes.div_ceil(8).max(1);
    let source = vec![1u64; words];
    let sum = |words: &[u64]| words.iter().fold(0u64, |sum, word| sum.wrapping_add(*word));
    let mut best = f64::INFINITY;
    for share in shares(words) {
        let workers = source.chunks(share).map(|words| {
            move || {
                black_box(sum(black_box(words)));
            }
        });
        best = best.min(together(workers.collect(), seconds / 2.0)?);
    }
    Ok(best)
}

/// What each thread gets with all cores, and with one: for little memory, one need not wait for others.
fn shares(words: usize) -> [usize; 2] {
    [words.div_ceil(threads()), words]
}

/// The median time in which all workers run once, each in a thread that is there already.
fn together<W: FnMut() + Send>(mut workers: Vec<W>, seconds: f64) -> Result<f64> {
    let (barrier, stop) = (Barrier::new(workers.len()), AtomicBool::new(false));
    let mut first = workers.swap_remove(0);
    thread::scope(|scope| {
        for mut worker in workers {
            let (barrier, stop) = (&barrier, &stop);
            scope.spawn(move || {
                loop {
                    barrier.wait();
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    worker();
                    barrier.wait();
                }
            });
        }
        let once = || {
            wall_clock(|| {
                barrier.wait();
                first();
                barrier.wait();
                Ok(())
            })
        };
        let samples = Samples::take(seconds, once);
        stop.store(true, Ordering::Release);
        barrier.wait();
        Ok(samples?.median())
    })
}

/// The processor's name, if the system tells it.
pub fn name() -> String {
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or(std::env::consts::ARCH, |(_, model)| model.trim());
    format!("{model}, {} threads", threads())
}

/// Bytes of memory that are free, if the system tells it.
pub fn free_memory() -> Option<u64> {
    let information = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = information.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn ceilings_are_measured() {
        for bytes in [1, 100_000] {
            assert!(super::copy_seconds(bytes, 0.001).unwrap() > 0.0);
            assert!(super::read_seconds(bytes, 0.001).unwrap() > 0.0);
        }
    }
}
