//! The figures of kernels for `cargo xtask model`.

use crate::variants::in_parallel;

use super::budgets::{Budget, Budgets};
use super::entries::entries;
use super::figures::{Assembled, Cost};
use super::{Tools, committed, device, is_loaded};

/// A kernel's main loop, or one of several.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Of the kernel, with its storage type.
    pub name: String,
    /// As its budget calls it, where there are several.
    pub of_loop: Option<String>,
    /// Blocks that a multiprocessor holds.
    pub resident: u32,
    /// Of a thread.
    pub registers: u32,
    /// For each element, by the shortest way and by the longest; a budget says whether the shortest counts.
    pub fast: Option<Cost>,
    pub general: Cost,
    /// Bytes that a block has asked for before it computes.
    pub bytes_of_block: f64,
}

/// Assembles the committed images that hold a kernel which is wanted, for one architecture.
pub fn measure(architecture: u32, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Measured>, String> {
    let (sources, ptx) = committed()?;
    let budgets = Budgets::of_checkout()?;
    let mut jobs = Vec::new();
    for (variant, ptx) in sources.variants().into_iter().zip(&ptx) {
        let entries = entries(ptx)?;
        if is_loaded(&variant, architecture) && entries.iter().any(|entry| is_wanted(entry.name)) {
            jobs.push((variant.image_name(), ptx, entries));
        }
    }
    let tools = Tools::new()?;
    let results =
        in_parallel(&jobs, |(image, ptx, entries)| tools.assemble(image, ptx, entries, architecture));
    let mut found = Vec::new();
    for result in results {
        for assembled in result?.0.iter().filter(|assembled| is_wanted(assembled.name())) {
            found.extend(of_kernel(&budgets, assembled)?);
        }
    }
    Ok(found)
}

fn of_kernel(budgets: &Budgets, assembled: &Assembled) -> Result<Vec<Measured>, String> {
    let resident = device::resident_blocks(assembled.architecture, assembled.threads, &assembled.resources)
        .ok_or_else(|| {
        format!("xtask/src/sass/device.rs does not know what sm_{} holds", assembled.architecture)
    })?;
    let of_loop = |budget: &Budget| {
        let figures = budget.figures(assembled);
        Measured {
            name: assembled.name().to_owned(),
            of_loop: budget.loop_name().map(str::to_owned),
            resident,
            registers: assembled.resources.registers,
            fast: budget.has_fast_way().then_some(figures.fast),
            general: figures.general,
            bytes_of_block: f64::from(figures.bytes_of_thread) * f64::from(assembled.threads),
        }
    };
    Ok(budgets.of(assembled.name()).iter().map(of_loop).collect())
}
