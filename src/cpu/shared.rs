//! Numbered tasks that a thread shares with those of a pool.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};

use rayon::ThreadPool;

/// In [`Door::state`], beside how many helpers are inside.
const CLOSED: usize = 1 << (usize::BITS - 1);

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// Between the tasks, which live as long as a call of [`share`], and helpers that come when they can, be it later.
struct Door {
    state: AtomicUsize,
    /// Valid while it is open or anybody is inside.
    task: *const Task<'static>,
    count: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    owner: Thread,
}

// SAFETY: the task, which is Sync, is behind a pointer that is used inside alone.
unsafe impl Send for Door {}
// SAFETY: as above.
unsafe impl Sync for Door {}

impl Door {
    /// Tasks one after the other, as long as there are any.
    fn work(&self, task: &Task<'_>) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count {
                return;
            }
            task(number);
        }
    }

    /// What a helper does, unless it comes too late.
    fn help(&self) {
        let enter = |state| (state & CLOSED == 0).then_some(state + 1);
        if self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_err() {
            return;
        }
        // SAFETY: it was open when this helper went in, and `close` waits until it is out again.
        let task = unsafe { &*self.task };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(task))) {
            self.next.store(self.count, Ordering::Relaxed);
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        if self.state.fetch_sub(1, Ordering::Release) == CLOSED + 1 {
            self.owner.unpark();
        }
    }

    /// From here on nobody comes in, and nobody is inside.
    fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::Relaxed);
        while self.state.load(Ordering::Acquire) != CLOSED {
            thread::park();
        }
    }
}

/// Runs a task with each number below `count`, on this thread and on those of the pool.
///
/// This thread does not wait to be helped: on a busy machine those of the pool may take longer to come than the tasks
/// do, and who comes when all is done is not waited for.
pub(super) fn share(pool: &ThreadPool, count: usize, task: &Task<'_>) {
    struct Close<'a>(&'a Door);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let task_of_all: *const Task<'_> = task;
    let door = Arc::new(Door {
        state: AtomicUsize::new(0),
        // SAFETY: only the lifetime is another; `close` is called before the task's ends, as this function does.
        task: unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task_of_all) },
        count,
        next: AtomicUsize::new(0),
        panic: Mutex::new(None),
        owner: thread::current(),
    });
    let close = Close(&door); // whether or not a task panics
    for _ in 0..pool.current_num_threads().min(count - 1) {
        let door = door.clone();
        pool.spawn(move || door.help());
    }
    door.work(task);
    drop(close);
    let panic = door.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Barrier;
    use std::sync::mpsc::channel;

    use rayon::ThreadPoolBuilder;

    use super::*;

    fn pool(threads: usize) -> ThreadPool {
        ThreadPoolBuilder::new().num_threads(threads).build().expect("threads")
    }

    #[test]
    fn each_task_is_done_once() {
        let pool = pool(3);
        for count in [1, 2, 3, 100] {
            let done: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            for times in 1..20 {
                share(&pool, count, &|number| {
                    done[number].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == times));
            }
        }
    }

    #[test]
    fn all_threads_take_part() {
        let (all, threads) = (Barrier::new(3), Mutex::new(HashSet::new()));
        share(&pool(2), 3, &|_| {
            all.wait();
            threads.lock().expect("no panic").insert(thread::current().id());
        });
        assert_eq!(threads.lock().expect("no panic").len(), 3);
    }

    #[test]
    fn who_is_late_is_not_waited_for() {
        let pool = pool(1);
        let (free, wait) = channel::<()>();
        pool.spawn(move || wait.recv().expect("the end of the test")); // the only helper
        let done = AtomicUsize::new(0);
        share(&pool, 8, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 8);
        free.send(()).expect("it waits");
        pool.install(|| ()); // behind the one that came too late
    }

    #[test]
    fn a_panic_goes_to_who_shares() {
        let (pool, here) = (pool(1), thread::current().id());
        for on_helper in [false, true] {
            let both = Barrier::new(2);
            let task = |_| {
                both.wait();
                assert_eq!(thread::current().id() == here, on_helper, "on purpose");
            };
            let panic = catch_unwind(AssertUnwindSafe(|| share(&pool, 2, &task)));
            assert!(panic.is_err());
        }
        share(&pool, 2, &|_| ());
    }
}
