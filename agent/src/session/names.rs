//! The names of threads, for what is saved: what `/proc` and the kernel's table of the dead say, or where there is none what
//! `/proc` says now and then.
//!
//! INVARIANT: a name that was seen stays, also when its thread is gone, until another thread has the number.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::kernel::names::{KernelNames, all_threads, proc_name};
use crate::trace::escape::lossless;
use crate::trace::names::Thread;

/// Not more often than this.
const EVERY: Duration = Duration::from_secs(2);

/// tid → thread. Empty where the kernel keeps names.
#[derive(Debug, Default)]
pub(super) struct Names {
    table: BTreeMap<u32, Thread>,
    looked: Option<Instant>,
}

impl Names {
    /// Reads the names of all threads, unless the kernel keeps them.
    pub(super) fn look(&mut self, kernel: Option<&KernelNames>) {
        if kernel.is_some() {
            // It knows whoever ends from now on.
            *self = Names::default();
            return;
        }
        self.looked = Some(Instant::now());
        for (tid, pid, comm) in all_threads() {
            let comm = lossless(&comm);
            self.table.insert(tid, Thread { pid, comm });
        }
    }

    /// As [`Names::look`], where the last look was long ago.
    pub(super) fn look_now_and_then(&mut self, kernel: Option<&KernelNames>) {
        if kernel.is_none() && self.looked.is_none_or(|last| last.elapsed() >= EVERY) {
            self.look(None);
        }
    }

    /// The name that a thread has or had. `pid` is its process.
    pub(super) fn of_thread(&self, kernel: Option<&KernelNames>, tid: u32, pid: u32) -> Option<Thread> {
        match (tid, kernel) {
            // The idle threads, one a CPU, have no entry anywhere.
            (0, _) => Some(Thread {
                pid: 0,
                comm: "swapper".to_owned(),
            }),
            (_, Some(kernel)) => kernel.of_thread(tid, pid),
            (_, None) => self.table.get(&tid).cloned().or_else(|| proc_name(tid, pid)),
        }
    }
}
