//! What a process holds in the kernel's BPF subsystem, and whether it is still there.
//!
//! Objects are known by number, not by name: another lkst may run beside the test.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// Numbers of programs, maps and links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// Programs.
    pub programs: BTreeSet<u32>,
    /// Maps.
    pub maps: BTreeSet<u32>,
    /// Links.
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// What a process holds open, by `/proc/PID/fdinfo`.
    #[must_use]
    pub fn of_process(pid: u32) -> Objects {
        let mut found = Objects::default();
        let entries = fs::read_dir(format!("/proc/{pid}/fdinfo"))
            .into_iter()
            .flatten()
            .flatten();
        for text in entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()) {
            let field = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|value| value.trim().parse::<u32>().ok())
            };
            // A link's own text names its program too.
            if let Some(link) = field("link_id:") {
                found.links.insert(link);
            } else if let Some(program) = field("prog_id:") {
                found.programs.insert(program);
            } else if let Some(map) = field("map_id:") {
                found.maps.insert(map);
            }
        }
        found
    }

    /// Those that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Objects) -> Objects {
        Objects {
            programs: &self.programs - &other.programs,
            maps: &self.maps - &other.maps,
            links: &self.links - &other.links,
        }
    }

    /// True where there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }

    /// Those that the kernel still has. It frees them a while after the last use, a map of programs by a worker that
    /// waits for grace periods of all tasks, which takes many seconds on a busy machine: so this waits, and gives up
    /// after three minutes.
    #[must_use]
    pub fn left(&self) -> Objects {
        let mut left = self.clone();
        for _ in 0..1800 {
            let there = Objects {
                programs: aya::programs::loaded_programs()
                    .flatten()
                    .map(|info| info.id())
                    .collect(),
                maps: aya::maps::loaded_maps().flatten().map(|info| info.id()).collect(),
                links: aya::programs::loaded_links()
                    .flatten()
                    .map(|info| info.id())
                    .collect(),
            };
            left = Objects {
                programs: &self.programs & &there.programs,
                maps: &self.maps & &there.maps,
                links: &self.links & &there.links,
            };
            if left.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        left
    }
}
