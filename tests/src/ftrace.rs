//! The kernel's own tracer beside lkst: an independent count of an event's hits, and the peer that lkst is measured
//! against.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::lab::Lab;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// An instance of ftrace with one event and nothing else; it goes when it is dropped.
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
        let instance = Instance::idle(lab, system, event)?;
        if !filter.is_empty() {
            fs::write(instance.event.join("filter"), filter)?;
        }
        instance.enable()?;
        Ok(instance)
    }

    /// Makes it, and counts nothing yet.
    ///
    /// # Errors
    /// What tracefs says.
    pub fn idle(lab: &Lab, system: &str, event: &str) -> io::Result<Instance> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("lkst-test-{}-{number}", std::process::id());
        let folder = lab.schema.tracefs().root().join("instances").join(name);
        fs::create_dir(&folder)?;
        let event = folder.join("events").join(system).join(event);
        Ok(Instance { folder, event })
    }

    /// Begins to record the event.
    ///
    /// # Errors
    /// What tracefs says.
    pub fn enable(&self) -> io::Result<()> {
        fs::write(self.event.join("enable"), "1")
    }

    /// Adds a trigger to the event, in ftrace's own words.
    ///
    /// # Errors
    /// What tracefs says.
    pub fn trigger(&self, words: &str) -> io::Result<()> {
        let mut file = fs::File::options()
            .append(true)
            .open(self.event.join("trigger"))?;
        io::Write::write_all(&mut file, words.as_bytes())
    }

    /// Gives each CPU a buffer of so many KiB, which drops what is new where it is full.
    ///
    /// # Errors
    /// What tracefs says.
    pub fn no_overwrite(&self, buffer_kib: u32) -> io::Result<()> {
        fs::write(self.folder.join("options/overwrite"), "0")?;
        fs::write(self.folder.join("buffer_size_kb"), buffer_kib.to_string())
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A number of `per_cpu/cpuN/stats`, of all CPUs together.
    ///
    /// # Errors
    /// What tracefs says.
    pub fn stat(&self, names: &[&str]) -> io::Result<u64> {
        let mut sum = 0;
        for cpu in fs::read_dir(self.folder.join("per_cpu"))? {
            let stats = fs::read_to_string(cpu?.path().join("stats"))?;
            for line in stats.lines() {
                let Some((name, value)) = line.split_once(": ") else {
                    continue;
                };
                if names.contains(&name) {
                    sum += value.trim().parse::<u64>().map_err(io::Error::other)?;
                }
            }
        }
        Ok(sum)
    }

    /// Stops it and says what it has counted: what is in its buffers, and what was overwritten or dropped there.
    ///
    /// # Errors
    /// What tracefs says.
    pub fn counted(&self) -> io::Result<u64> {
        fs::write(self.event.join("enable"), "0")?;
        self.stat(&["entries", "overrun", "commit overrun", "dropped events"])
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Nothing more can be done where it fails; the name says whose it is.
        let _stopped = fs::write(self.event.join("enable"), "0");
        let triggers = fs::read_to_string(self.event.join("trigger")).unwrap_or_default();
        for line in triggers.lines().filter(|line| !line.starts_with('#')) {
            let words = line.replace(":unlimited", "");
            let _removed = self.trigger(&format!("!{words}"));
        }
        let _removed = fs::remove_dir(&self.folder);
    }
}
