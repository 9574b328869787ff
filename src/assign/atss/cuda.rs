//! ATSS on CUDA: checks, addresses, launches.

use super::Atss;
use super::cpu::no_centerness;
use crate::assign::check::check;
use crate::assign::cuda::{AssignWorkspace, Call};
use crate::assign::{Anchors, GroundTruth, LevelTargets};
use crate::cuda::raw::{AssignArgs, assign_units, launch_atss};
use crate::cuda::{Device, Handle, Prepared, StatusBlock, Units};
use crate::element::Label;
use crate::error::Result;

impl Atss {
    /// The kernels that calls need, for [`Handle::prepare`].
    pub fn units() -> Units {
        assign_units()
    }

    /// Enqueues the assignment of every anchor of every image, as two launches: levels of
    /// anchors, boxes, how many images and classes, where the targets of each level go, the memory
    /// to work in, and where to count what was wrong: the block of the head loss that follows, say.
    /// A captured call can be replayed with other boxes, sizes and boxes to ignore, and with fewer of
    /// them: the rest is padding.
    ///
    /// # Errors
    /// If a length does not fit, a number is outside its range, there is somewhere for the centerness
    /// to go, buffers overlap, one is in another context, or the driver refuses a launch.
    #[allow(clippy::too_many_arguments, reason = "the tensors of the CPU's call, and what it runs on")]
    pub fn cuda<L: Label>(
        &self,
        handle: &Handle,
        anchors: &[Anchors<'_, Device>],
        gt: GroundTruth<'_, Device, L>,
        images: usize,
        classes: usize,
        targets: &mut [LevelTargets<'_, Device, L>],
        workspace: &mut AssignWorkspace,
        status: Option<&mut StatusBlock>,
    ) -> Result<()> {
        let levels = check(anchors, &gt, images, classes, targets)?;
        no_centerness(targets)?;
        let (stream, mut prepared) = (handle.stream(), Prepared::default());
        let options = self.options;
        let call = Call { options, anchors, levels: &levels, gt, images, classes, claims: true };
        let args = call.args(targets, workspace, status, stream, &mut prepared)?;
        let args = AssignArgs { topk: self.topk as u32, ..args };
        // SAFETY: `check` has compared every length, and `args` the workspace's; Prepared has compared
        // every context with the stream's and the places of the buffers, and keeps them borrowed
        // until the launches are enqueued.
        unsafe { launch_atss(handle.kernels(), &args, stream.cu_stream().cast()) }
    }
}
