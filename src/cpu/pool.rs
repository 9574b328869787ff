//! Threads that calls on the CPU run on.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{env, fmt, fs, mem, process, ptr, thread};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::shared::share;

/// Threads for calls on the CPU.
///
/// Small calls run on the thread that makes them. Larger ones take the threads of the pool that is
/// [entered](Pool::enter); without one, and on a thread of a [rayon](https://docs.rs/rayon) pool, those of that
/// pool; and else those of a default pool that all share, as many as [`Pool::default`] has. Results do not depend
/// on it.
///
/// The thread that makes a call is one of them, and waits for no other that has not begun by the time all is done.
///
/// Threads are started by the first call that takes them, in the process that makes it: a forked child starts its
/// own, and a thread of rayon's that was forked itself does all alone. Rayon's global pool, whose threads a child
/// lacks, is never used. Where none can be started, the thread
/// that makes the call does all.
///
/// ```
/// use gfocal::QualityFocalLoss;
/// use gfocal::cpu::Pool;
///
/// let (qfl, pool) = (QualityFocalLoss::default(), Pool::new(2));
/// let (logits, labels, quality) = (vec![0.0f32; 80_000], vec![80i64; 1000], vec![0.0f32; 1000]);
/// let mut loss = [0.0f32];
/// pool.enter(|| qfl.cpu(&logits, [1000, 80], &labels, &quality).forward(&mut loss))?;
/// assert!((loss[0] - 80.0 * 0.25 * 2f32.ln()).abs() < 1e-4);
/// # Ok::<(), gfocal::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pool(Arc<Threads>);

impl Pool {
    /// So many threads, that which makes a call among them; with 1 it does all. 0 is [`Pool::default`].
    pub fn new(threads: usize) -> Pool {
        Pool(Arc::new(Threads::new(threads)))
    }

    /// Runs `calls` on this thread, and the calls on the CPU that it makes on those of the pool.
    pub fn enter<R>(&self, calls: impl FnOnce() -> R) -> R {
        struct Leave(Option<Pool>);
        impl Drop for Leave {
            fn drop(&mut self) {
                ENTERED.replace(self.0.take());
            }
        }
        let _leave = Leave(ENTERED.replace(Some(self.clone())));
        calls()
    }
}

impl Default for Pool {
    /// `RAYON_NUM_THREADS` threads, or as many as there are cores.
    fn default() -> Pool {
        Pool::new(0)
    }
}

thread_local! {
    static ENTERED: RefCell<Option<Pool>> = const { RefCell::new(None) };
    /// The process, for threads of a [`Pool`].
    static STARTED_IN: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Of all calls that name no other.
static DEFAULT: Threads = Threads::new(0);

/// A rayon pool of this process, from when it is first needed on: threads beside the one that makes a call.
struct Threads {
    /// With that one; 0: the default.
    count: usize,
    started: AtomicPtr<Started>,
}

struct Started {
    process: u32,
    pool: ThreadPool,
}

impl Threads {
    const fn new(count: usize) -> Threads {
        Threads { count, started: AtomicPtr::new(ptr::null_mut()) }
    }

    /// `None`: there are none but the one that asks.
    fn get(&self) -> Option<&ThreadPool> {
        let beside = match self.count {
            0 => default_count(),
            count => count,
        } - 1;
        if beside == 0 {
            return None;
        }
        let (process, before) = (process::id(), self.started.load(Ordering::Acquire));
        // SAFETY: all pointers there come from boxes, and none is freed while `self` lives.
        match unsafe { before.as_ref() } {
            Some(started) if started.process == process => return Some(&started.pool),
            _ => {}
        }
        // No lock, which another thread might have held during a fork.
        let name = |number| format!("gfocal-{number}");
        let pool = ThreadPoolBuilder::new().num_threads(beside).thread_name(name);
        let pool = pool.start_handler(|_| STARTED_IN.set(Some(process::id()))).build().ok()?;
        let new = Box::into_raw(Box::new(Started { process, pool }));
        // What was there is of the parent, and so are its threads: it is left alone.
        let now = match self.started.compare_exchange(before, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new,
            Err(of_another_thread) => {
                // SAFETY: from a box, just now, and nobody else has it.
                drop(unsafe { Box::from_raw(new) });
                of_another_thread
            }
        };
        // SAFETY: as above.
        unsafe { now.as_ref() }.map(|started| &started.pool)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let started = *self.started.get_mut();
        if !started.is_null() {
            // SAFETY: from a box, and this is its only owner.
            let started = unsafe { Box::from_raw(started) };
            if started.process != process::id() {
                mem::forget(started); // whose threads are not here to be told
            }
        }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("count", &self.count).finish_non_exhaustive()
    }
}

fn default_count() -> usize {
    let told = env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse().ok());
    told.filter(|&count| count > 0)
        .or_else(|| thread::available_parallelism().ok().map(Into::into))
        .unwrap_or(1)
}

/// Less is not worth waking threads for: elements, of about a nanosecond each.
const SMALL: usize = 1 << 15;

/// What `of` makes of each item, in their order; `work` counts elements of all of them together.
pub(crate) fn map<I: Send, R: Send>(
    work: usize,
    items: impl Iterator<Item = I>,
    of: impl Fn(I) -> R + Sync,
) -> Vec<R> {
    let slots: Vec<_> = items.map(|item| Mutex::new((Some(item), None))).collect();
    for_each(work, slots.len(), &|number| {
        let mut slot = slots[number].lock().unwrap_or_else(PoisonError::into_inner);
        slot.1 = slot.0.take().map(&of);
    });
    let results = slots.into_iter().map(|slot| slot.into_inner().unwrap_or_else(PoisonError::into_inner).1);
    results.flatten().collect()
}

/// Whether this thread of rayon's was forked itself: then those that it knows are in another process. The first
/// thread of a process, as a forked one is, is of no pool.
fn is_forked() -> bool {
    match STARTED_IN.get() {
        Some(process) => process != process::id(),
        None if cfg!(target_os = "linux") => {
            let this = fs::read_link("/proc/thread-self"); // process/task/thread
            this.is_ok_and(|this| this.file_name() == this.iter().next())
        }
        None => false,
    }
}

/// Rayon is behind this alone, and is compiled once.
fn for_each(work: usize, count: usize, task: &(dyn Fn(usize) + Sync)) {
    if work < SMALL || count < 2 {
        return (0..count).for_each(task);
    }
    let in_rayon = rayon::current_thread_index().is_some();
    if in_rayon && is_forked() {
        return (0..count).for_each(task);
    }
    let all = || (0..count).into_par_iter().for_each(task);
    let entered = ENTERED.with_borrow(Clone::clone);
    let threads = match &entered {
        Some(Pool(threads)) => threads,
        None if in_rayon => return all(),
        None => &DEFAULT,
    };
    match threads.get() {
        Some(pool) => share(pool, count, task),
        None => (0..count).for_each(task),
    }
}
