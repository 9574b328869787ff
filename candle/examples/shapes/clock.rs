//! Time that this thread has had a core for: on a busy machine the time of day says nothing.

pub struct Clock(f64);

impl Clock {
    pub fn start() -> Clock {
        Clock(now())
    }

    /// Milliseconds since.
    pub fn ms(&self) -> f64 {
        now() - self.0
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn now() -> f64 {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    let mut time = [0; 2];
    // SAFETY: a `timespec` is two numbers of 64 bits here, and this clock is on every Linux.
    unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time[0] as f64 * 1e3 + time[1] as f64 * 1e-6
}

/// Elsewhere the time of day.
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn now() -> f64 {
    use std::sync::LazyLock;
    use std::time::Instant;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64() * 1e3
}
