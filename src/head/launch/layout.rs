//! Where the parts of a workspace are.

use super::{HeadArgs, MAX_LEVELS, head_partial_blocks};
use crate::cuda::Kernels;
use crate::cuda::args::DeviceAddress;
use crate::error::{Error, Result};

/// The records of an image of a level begin at a multiple of this, so that vectors of them are aligned.
const ALIGNMENT: usize = 8;

/// In bytes from its start, each a multiple of 16.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    tickets: usize,
    level_sums: usize,
    partials: usize,
    image_positives: usize,
    codes: usize,
    weights: usize,
    qualities: usize,
    box_weights: usize,
    slopes: usize,
    /// Last, so that they may also be elsewhere.
    pub normalisers: usize,
    pub end: usize,
    partial_blocks: usize,
}

impl Layout {
    /// For up to so many images, and anchors of each.
    pub fn new(kernels: &Kernels, batch: usize, anchors: usize) -> Result<Layout> {
        let overflow = Error::ShapeOverflow { shape: [batch, anchors] };
        let padding = batch.saturating_mul(MAX_LEVELS * (ALIGNMENT - 1));
        let fits = |&all: &usize| all.max(padding) <= isize::MAX as usize / 64;
        let records = batch.checked_mul(anchors).filter(fits).ok_or(overflow)? + padding;
        let partial_blocks = head_partial_blocks(kernels);
        let mut end = 0;
        let mut part = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(16);
            start
        };
        Ok(Layout {
            tickets: part(2 * 4),
            level_sums: part(3 * MAX_LEVELS * 8),
            partials: part(3 * partial_blocks * 8),
            image_positives: part(batch * 4),
            codes: part(records * 4),
            weights: part(records * 4),
            qualities: part(records * 4),
            box_weights: part(records * 4),
            slopes: part(records * 16),
            normalisers: part(2 * 4),
            end,
            partial_blocks,
        })
    }
}

impl HeadArgs {
    /// Sets what leads to a workspace: [`HeadWorkspace::bytes`](crate::head::HeadWorkspace::bytes) of the same
    /// numbers at a multiple of 16, zeroed once, not shared by launches that may run at the same time. The
    /// normalisers are in it, too.
    ///
    /// # Errors
    /// As `bytes`.
    pub fn set_workspace(
        &mut self,
        kernels: &Kernels,
        memory: DeviceAddress,
        batch: usize,
        anchors: usize,
    ) -> Result<()> {
        let layout = Layout::new(kernels, batch, anchors)?;
        self.use_layout(&layout, memory, memory + layout.normalisers as DeviceAddress);
        Ok(())
    }

    pub(crate) fn use_layout(&mut self, layout: &Layout, memory: DeviceAddress, normalisers: DeviceAddress) {
        let part = |offset: usize| memory + offset as DeviceAddress;
        self.normalisers = normalisers;
        self.tickets = part(layout.tickets);
        self.level_sums = part(layout.level_sums);
        self.partials = part(layout.partials);
        self.image_positives = part(layout.image_positives);
        self.codes = part(layout.codes);
        self.weights = part(layout.weights);
        self.qualities = part(layout.qualities);
        self.box_weights = part(layout.box_weights);
        self.slopes = part(layout.slopes);
        self.partial_blocks = layout.partial_blocks as u32;
    }

    /// Numbers the anchors of the levels, whose positions are set, and the images: how the status counts
    /// them, and where they are in the workspace.
    pub fn number_anchors(&mut self) {
        let batch = u64::from(self.batch);
        let (mut row, mut record) = (0, 0);
        for level in &mut self.levels[..self.level_count as usize] {
            (level.first_row, level.first_record) = (row, record);
            row += batch * u64::from(level.positions);
            record += batch * u64::from(level.positions).next_multiple_of(ALIGNMENT as u64);
        }
    }
}
