//! An agent's process seen from outside: what `/proc` says of its memory, its wake-ups and what it holds open.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Between two looks at what comes and goes.
const BETWEEN: Duration = Duration::from_millis(5);

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    /// `VmRSS`: with the pages of the program itself and of maps that it looks at.
    pub(super) rss: u64,
    /// `RssAnon`: its own.
    pub(super) anon: u64,
    /// `VmHWM`: the most that `rss` ever was.
    peak: u64,
}

impl Memory {
    fn of(pid: u32) -> Option<Memory> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kib << 10)
        };
        Some(Memory {
            rss: field("VmRSS:")?,
            anon: field("RssAnon:")?,
            peak: field("VmHWM:")?,
        })
    }
}

/// How an agent stands when nothing is under way.
#[derive(Debug, Clone)]
pub(super) struct Resting {
    memory: Memory,
    descriptors: usize,
    threads: usize,
    pins: Vec<String>,
}

impl Resting {
    pub(super) fn of(pid: u32, pins: Vec<String>) -> anyhow::Result<Resting> {
        // What leaks stays; what is open for a moment, such as a file of /proc, is not there at the next look.
        let count = |folder: &str| -> anyhow::Result<usize> {
            let mut least = usize::MAX;
            for _ in 0..5 {
                least = least.min(fs::read_dir(format!("/proc/{pid}/{folder}"))?.count());
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(least)
        };
        Ok(Resting {
            memory: Memory::of(pid).context("the agent is there")?,
            descriptors: count("fd")?,
            threads: count("task")?,
            pins,
        })
    }
}

/// What a process has used until now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    switches: u64,
    cpu_ns: u64,
}

/// What it used in a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    wakes_per_s: f64,
    cpu_percent: f64,
}

impl Usage {
    pub(super) fn of(pid: u32) -> anyhow::Result<Usage> {
        let mut usage = Usage {
            switches: 0,
            cpu_ns: 0,
        };
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            let status = fs::read_to_string(task.join("status"))?;
            let switches = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            usage.switches += switches.context("no context switches")?.trim().parse::<u64>()?;
            // By the scheduler's own clock: the ticks of utime and stime are too coarse for what is nearly nothing.
            let ran = fs::read_to_string(task.join("schedstat"))?;
            let ran = ran.split_whitespace().next().context("no schedstat")?;
            usage.cpu_ns += ran.parse::<u64>()?;
        }
        Ok(usage)
    }

    pub(super) fn until(&self, later: &Usage, time: Duration) -> Used {
        let seconds = time.as_secs_f64();
        Used {
            wakes_per_s: later.switches.saturating_sub(self.switches) as f64 / seconds,
            cpu_percent: later.cpu_ns.saturating_sub(self.cpu_ns) as f64 / 1e7 / seconds,
        }
    }
}

/// The worst that was seen.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) events: usize,
    pub(super) rest: Memory,
    pub(super) seen: Memory,
    pub(super) peak: u64,
    pub(super) growth: u64,
    pub(super) wakes_per_s: f64,
    pub(super) cpu_percent: f64,
    descriptors: Vec<usize>,
    threads: Vec<usize>,
    pins: Vec<usize>,
}

/// By how much the largest is above the least.
fn spread(of: &[usize]) -> f64 {
    let (least, most) = (of.iter().min(), of.iter().max());
    most.zip(least).map_or(0, |(most, least)| most - least) as f64
}

impl Watched {
    /// In the middle of things, for so long: what rules and traces need is there for some milliseconds only.
    pub(super) fn sample_for(&mut self, time: Duration, pid: Option<u32>) {
        let begun = Instant::now();
        loop {
            self.sample(pid);
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(BETWEEN));
        }
    }

    fn sample(&mut self, pid: Option<u32>) {
        if let Some(memory) = pid.and_then(Memory::of) {
            self.seen.anon = self.seen.anon.max(memory.anon);
            self.seen.rss = self.seen.rss.max(memory.rss);
            self.peak = self.peak.max(memory.peak);
        }
    }

    /// One agent's rest before and after all that happened to it.
    pub(super) fn lived(&mut self, first: &Resting, last: &Resting) {
        self.growth = self
            .growth
            .max(last.memory.anon.saturating_sub(first.memory.anon));
        self.at_rest(first);
        self.at_rest(last);
    }

    /// An agent that was still.
    pub(super) fn still(&mut self, used: &Used, resting: &Resting) {
        self.wakes_per_s = self.wakes_per_s.max(used.wakes_per_s);
        self.cpu_percent = self.cpu_percent.max(used.cpu_percent);
        self.at_rest(resting);
    }

    fn at_rest(&mut self, resting: &Resting) {
        self.rest.rss = self.rest.rss.max(resting.memory.rss);
        self.rest.anon = self.rest.anon.max(resting.memory.anon);
        self.peak = self.peak.max(resting.memory.peak);
        self.descriptors.push(resting.descriptors);
        self.threads.push(resting.threads);
        self.pins.push(resting.pins.len());
        self.events = resting
            .pins
            .iter()
            .filter(|name| name.starts_with("link_"))
            .count();
    }

    pub(super) fn descriptors_leaked(&self) -> f64 {
        spread(&self.descriptors)
    }

    pub(super) fn threads_leaked(&self) -> f64 {
        spread(&self.threads)
    }

    pub(super) fn pins_leaked(&self) -> f64 {
        spread(&self.pins)
    }
}
