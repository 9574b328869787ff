//! FCOS' assignment on CUDA: checks, addresses, a launch.

use super::Fcos;
use crate::assign::check::check;
use crate::assign::cuda::{AssignWorkspace, Call};
use crate::assign::launch::{AssignArgs, assign_units, launch_fcos};
use crate::assign::{Anchors, GroundTruth, LevelTargets};
use crate::cuda::{Device, Handle, Prepared, StatusBlock, Units};
use crate::element::Label;
use crate::error::Result;

impl Fcos {
    /// The kernels that calls need, for [`Handle::prepare`].
    pub fn units() -> Units {
        assign_units()
    }

    /// What it says to [`launch_fcos`](crate::cuda::raw::launch_fcos): options, without levels, sizes and
    /// addresses.
    pub fn raw_args(&self) -> AssignArgs {
        AssignArgs::of(&self.options)
    }

    /// And of the levels, whose anchors are set: which boxes belong to them.
    pub fn set_raw_ranges(&self, args: &mut AssignArgs) {
        for (to, [low, high]) in args.level.iter_mut().zip(self.ranges) {
            let middle = self.radius.filter(|_| to.anchors == 0);
            (to.low, to.high, to.reach) =
                (low, high, middle.map_or(f32::INFINITY, |radius| to.stride * radius));
        }
    }

    /// Enqueues the assignment as one launch: as [`Atss::cuda`](crate::assign::Atss::cuda), but that
    /// the workspace needs no room for anchors.
    ///
    /// # Errors
    /// As [`Atss::cuda`](crate::assign::Atss::cuda) and [`Fcos::cpu`].
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
        self.check(&levels)?;
        let (stream, mut prepared) = (handle.stream(), Prepared::on(handle)?);
        let options = self.raw_args();
        let call = Call { options, anchors, levels: &levels, gt, images, classes, claims: false };
        let mut args = call.args(targets, workspace, status, stream, &mut prepared)?;
        self.set_raw_ranges(&mut args);
        // SAFETY: as for ATSS.
        unsafe { launch_fcos(handle.kernels(), &args, stream.cu_stream().cast()) }
    }
}
