//! The context that is current on a thread.

use std::ptr;

use cudarc::driver::CudaContext;
use cudarc::driver::result::ctx;
use cudarc::driver::sys::CUcontext;

use super::check;
use crate::error::Result;

/// While it lives, another context may be current on this thread; when it goes, the one from before is
/// again. A framework keeps track of its device by it.
#[derive(Debug)]
pub(crate) struct Current {
    /// Null: none. `None`: the driver did not tell, as when it has not begun.
    before: Option<CUcontext>,
}

impl Current {
    /// The one that is, whatever will be.
    pub fn keep() -> Current {
        Current { before: ctx::get_current().ok().map(|current| current.unwrap_or(ptr::null_mut())) }
    }

    /// Makes one current.
    pub fn make(context: &CudaContext) -> Result<Current> {
        let current = Current::keep();
        // cudarc keeps errors of what cannot return them, such as a drop, for whoever asks next.
        check("an earlier call of which cudarc kept the error", context.check_err())?;
        check("cuCtxSetCurrent", context.bind_to_thread()).map(|()| current)
    }
}

impl Current {
    /// Lets it be if there was none before.
    pub fn unless_none(mut self) {
        self.before = self.before.filter(|before| !before.is_null());
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        let Some(before) = self.before else { return };
        if ctx::get_current().is_ok_and(|now| now.unwrap_or(ptr::null_mut()) != before) {
            // SAFETY: it was current, and so is a context or null, unless its owner has destroyed it
            // in the meantime, which the driver tells by an error. Nothing can be done about that.
            let _ = unsafe { ctx::set_current(before) };
        }
    }
}
