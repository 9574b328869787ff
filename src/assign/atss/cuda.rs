//! ATSS on CUDA: checks, addresses, launches.

use super::Atss;
use super::cpu::no_centerness;
use crate::assign::check::check;
use crate::assign::cuda::{AssignWorkspace, Call};
use crate::assign::launch::{AssignArgs, assign_units, launch_atss};
use crate::assign::{Anchors, GroundTruth, LevelTargets};
use crate::cuda::{Device, Handle, Prepared, StatusBlock, Units};
use crate::element::Label;
use crate::error::Result;

impl Atss {
    /// The kernels that calls need, for [`Handle::prepare`].
    pub fn units() -> Units {
        assign_units()
    }

    /// What it says to [`launch_atss`](crate::cuda::raw::launch_atss): options, without levels, sizes and
    /// addresses.
    pub fn raw_args(&self) -> AssignArgs {
        AssignArgs { topk: self.topk as u32, ..AssignArgs::of(&self.options) }
    }

    /// Enqueues the assignment of every anchor of every image, as two launches: levels of
    /// anchors, boxes, how many images and classes, where the targets of each level go, the memory
    /// to work in, and where to count what was wrong: the block of the head loss that follows, say.
    /// A captured call can be replayed with other boxes, sizes and boxes to ignore, and with fewer of
    /// them: the rest is padding.
    ///
    /// ```no_run
    /// use gfocal::assign::{AnchorGrid, AssignWorkspace, Atss, GroundTruth, LevelTargets};
    /// use gfocal::cuda::{self, StatusBlock};
    ///
    /// let stream = cuda::context(0)?.default_stream();
    /// let handle = cuda::Handle::new(&stream)?;
    /// let (images, anchors, room) = (16, 100 * 152, 512); // of one level; and boxes in all images
    ///
    /// let boxes = stream.alloc_zeros::<f32>(4 * room)?; // yours, as all of these
    /// let labels = stream.alloc_zeros::<i64>(room)?;
    /// let image = stream.alloc_zeros::<i64>(room)?; // -1 where there is no box
    /// let valid_hw = stream.alloc_zeros::<i64>(2 * images)?;
    /// let mut targets = stream.alloc_zeros::<i64>(images * anchors)?;
    /// let mut box_targets = stream.alloc_zeros::<f32>(4 * images * anchors)?;
    /// let mut label_weights = stream.alloc_zeros::<f32>(images * anchors)?;
    /// let mut workspace = AssignWorkspace::new(&stream, images, anchors, room)?;
    /// let mut status = StatusBlock::new(&stream)?;
    ///
    /// let gt = GroundTruth::cuda(&boxes, &labels, &image).valid_hw(&valid_hw);
    /// let to = LevelTargets::cuda(&mut targets, &mut box_targets).label_weights(&mut label_weights);
    /// let levels = [AnchorGrid::new(100, 152, 8.0).into()];
    /// let status_of_all = Some(&mut status);
    /// Atss::default().cuda(&handle, &levels, gt, images, 80, &mut [to], &mut workspace, status_of_all)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
        let (stream, mut prepared) = (handle.stream(), Prepared::on(handle)?);
        let options = self.raw_args();
        let call = Call { options, anchors, levels: &levels, gt, images, classes, claims: true };
        let args = call.args(targets, workspace, status, stream, &mut prepared)?;
        // SAFETY: `check` has compared every length, and `args` the workspace's; Prepared has compared
        // every context with the stream's and the places of the buffers, and keeps them borrowed
        // until the launches are enqueued.
        unsafe { launch_atss(handle.kernels(), &args, stream.cu_stream().cast()) }
    }
}
