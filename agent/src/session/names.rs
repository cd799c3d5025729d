//! The names of threads: what `/proc` says now and then, so that a trace can show a name beside a number.
//!
//! INVARIANT: a name that was seen stays, also when its thread is gone, until another thread has the number.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// Not more often than this.
const EVERY: Duration = Duration::from_secs(2);

/// tid → name.
#[derive(Debug, Default)]
pub(super) struct Names {
    table: BTreeMap<u32, String>,
    looked: Option<Instant>,
}

impl Names {
    /// Reads the names of all threads.
    pub(super) fn look(&mut self) {
        self.looked = Some(Instant::now());
        for process in numbered("/proc") {
            let tasks = format!("/proc/{process}/task");
            for thread in numbered(&tasks) {
                if let Ok(name) = fs::read_to_string(format!("{tasks}/{thread}/comm")) {
                    self.table.insert(thread, name.trim_end_matches('\n').to_owned());
                }
            }
        }
    }

    /// Reads them where the last look was long ago.
    pub(super) fn look_now_and_then(&mut self) {
        if self.looked.is_none_or(|last| last.elapsed() >= EVERY) {
            self.look();
        }
    }

    /// All names that were seen.
    pub(super) fn table(&self) -> BTreeMap<u32, String> {
        self.table.clone()
    }
}

/// The entries of a folder whose names are numbers.
fn numbered(folder: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
