//! Timers of high frequency: interrupts that nest in whatever their CPU does.

/// Timers of the calling process, each of which interrupts the CPU where it was started and then the process.
///
/// Their signal has a handler that does nothing: where it were ignored or held back, the kernel would not arm the
/// timers again.
#[derive(Debug)]
pub struct Timers {
    timers: Vec<libc::timer_t>,
}

extern "C" fn nothing(_signal: libc::c_int) {}

impl Timers {
    /// Starts `count` of them with this period.
    #[must_use]
    pub fn start(count: usize, period_ns: u32) -> Timers {
        let mut timers = Vec::with_capacity(count);
        // SAFETY: structures of zeros are valid ones of their types and are filled in as their manual pages say; the
        // handler touches nothing.
        unsafe {
            let signal = libc::SIGRTMIN();
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
            for number in 0..count {
                let mut event: libc::sigevent = std::mem::zeroed();
                event.sigev_notify = libc::SIGEV_SIGNAL;
                event.sigev_signo = signal;
                let mut timer: libc::timer_t = std::ptr::null_mut();
                if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) != 0 {
                    continue;
                }
                // Of slightly different periods, so that they strike at ever different distances.
                let after = |ns: u32| libc::timespec {
                    tv_sec: 0,
                    tv_nsec: (ns + 997 * number as u32).into(),
                };
                let times = libc::itimerspec {
                    it_interval: after(period_ns),
                    it_value: after(period_ns),
                };
                libc::timer_settime(timer, 0, &raw const times, std::ptr::null_mut());
                timers.push(timer);
            }
        }
        Timers { timers }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        for timer in &self.timers {
            // SAFETY: ours, and deleted once.
            unsafe { libc::timer_delete(*timer) };
        }
    }
}
