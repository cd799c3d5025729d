//! The kernel's own tracer beside lkst: an independent count of an event's hits.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::lab::Lab;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// An instance of ftrace that records one event and nothing else; it goes when it is dropped.
#[derive(Debug)]
pub struct Instance {
    folder: PathBuf,
    event: PathBuf,
}

impl Instance {
    /// Makes it, and begins to count hits for which the filter, in ftrace's own words, holds.
    ///
    /// # Errors
    /// What tracefs says.
    pub fn new(lab: &Lab, system: &str, event: &str, filter: &str) -> io::Result<Instance> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lkst-test-{}-{number}", std::process::id());
        let folder = lab.schema.tracefs().root().join("instances").join(name);
        fs::create_dir(&folder)?;
        let event = folder.join("events").join(system).join(event);
        let instance = Instance { folder, event };
        if !filter.is_empty() {
            fs::write(instance.event.join("filter"), filter)?;
        }
        fs::write(instance.event.join("enable"), "1")?;
        Ok(instance)
    }

    /// Stops it and says what it has counted: what is in its buffers, and what was overwritten or dropped there.
    ///
    /// # Errors
    /// What tracefs says.
    pub fn counted(&self) -> io::Result<u64> {
        fs::write(self.event.join("enable"), "0")?;
        let mut sum = 0;
        for cpu in fs::read_dir(self.folder.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            for line in stats.lines() {
                let Some((name, value)) = line.split_once(": ") else {
                    continue;
                };
                if matches!(name, "entries" | "overrun" | "commit overrun" | "dropped events") {
                    sum += value.trim().parse::<u64>().map_err(io::Error::other)?;
                }
            }
        }
        Ok(sum)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Nothing more can be done where it fails; the name says whose it is.
        let _stopped = fs::write(self.event.join("enable"), "0");
        let _removed = fs::remove_dir(&self.folder);
    }
}
