//! The agent's clock: a second in, an event out.
//!
//! The runtime's own timers wake the process two or three times for each that is due, since they are sorted into ever
//! finer slots as they come near. A timer of the kernel's wakes it once.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Ticks in even steps. Those that nobody waited for come as one.
#[derive(Debug)]
pub(super) struct Ticks {
    timer: AsyncFd<OwnedFd>,
}

impl Ticks {
    /// Starts it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn every(step: Duration) -> io::Result<Ticks> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let step = Timespec {
            tv_sec: i64::try_from(step.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: step.subsec_nanos().into(),
        };
        let steps = Itimerspec {
            it_interval: step,
            it_value: step,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &steps)?;
        // SAFETY: the descriptor was made just now and only `AsyncFd` owns it, so it stays open as long as it is
        // registered.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Ticks { timer })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) {
        // A timer that cannot be waited for would be a loop without rest.
        let Ok(mut ready) = self.timer.readable().await else {
            return std::future::pending().await;
        };
        // How many steps have passed does not matter; that they are read makes the timer wait again.
        let mut steps = [0; 8];
        if let Err(error) = rustix::io::read(ready.get_inner(), &mut steps) {
            tracing::debug!(%error, "the clock's timer");
        }
        ready.clear_ready();
    }
}
