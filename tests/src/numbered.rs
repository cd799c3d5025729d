//! Numbered renames, a pack that records every one of them, and the traces in which they are found again: the ground
//! truth of suites that hurt an agent.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use lkst::trace::decode::Value;
use lkst::trace::incident::Incident;
use lkst::trace::read::Traces;

use crate::shared::{WORDS, words};
use crate::worker::{Worker, cpus, rename, renamed};

/// Of numbered names; of names that switch.
const TAGS: [u8; 2] = [b'K', b'T'];

/// A condition that holds for workers of this process alone: another test may run beside it.
#[must_use]
pub fn ours() -> String {
    format!("task.ppid == {}", std::process::id())
}

/// Rules that record every numbered name, and switch to `away` and back. Rings of so many KiB hold 15 numbers a KiB.
#[must_use]
pub fn rules(ring_kib: usize) -> String {
    let ours = ours();
    format!(
        "budget 100%
         buffer main {{ size = {ring_kib}KiB }}
         buffer away {{ size = {ring_kib}KiB }}
         set numbered {{ task:task_rename with newcomm like \"lktK-*\" and {ours} record newcomm }}
         start with numbered
         rule leave {{
           when task:task_rename with newcomm == \"lktT-00000000\" and {ours} then switch buffer away notify \"left\" limit 1000 per 1s
         }}
         rule come_back {{
           when task:task_rename with newcomm == \"lktT-00000001\" and {ours} then switch buffer main notify \"back\" limit 1000 per 1s
         }}"
    )
}

/// Fires `leave`, or `come_back`.
///
/// # Errors
/// No process can be made.
pub fn trigger(come_back: bool) -> anyhow::Result<()> {
    let cpu = cpus().first().copied().context("there is a CPU")?;
    Worker::new(cpu, move || rename(TAGS[1], come_back.into()))?.join()?;
    Ok(())
}

/// On every CPU a process that counts itself up, about 500 a second.
#[derive(Debug)]
pub struct Counting {
    words: &'static [AtomicU64; WORDS],
    workers: Vec<Worker>,
}

impl Counting {
    /// Starts them.
    ///
    /// # Errors
    /// No process can be made.
    pub fn start() -> anyhow::Result<Counting> {
        let words = words()?;
        let mut workers = Vec::new();
        for (place, cpu) in cpus().into_iter().enumerate() {
            workers.push(Worker::new(cpu, move || {
                let mut serial = 0;
                while words[0].load(Ordering::Relaxed) == 0 {
                    rename(TAGS[0], serial);
                    serial += 1;
                    words[1 + place].store(serial.into(), Ordering::Relaxed);
                    // SAFETY: sleeps.
                    unsafe { libc::usleep(2000) };
                }
            })?);
        }
        workers.iter_mut().for_each(Worker::go);
        Ok(Counting { words, workers })
    }

    /// How many numbers there were until now, on all CPUs.
    #[must_use]
    pub fn made(&self) -> u64 {
        (0..self.workers.len())
            .map(|place| self.words[1 + place].load(Ordering::Relaxed))
            .sum()
    }

    /// Ends them; returns how far each CPU came.
    ///
    /// # Errors
    /// One did not end as it should.
    pub fn end(mut self) -> anyhow::Result<BTreeMap<u32, u32>> {
        self.words[0].store(1, Ordering::Relaxed);
        let workers = std::mem::take(&mut self.workers);
        let places = cpus().into_iter().zip(1..);
        for worker in workers {
            worker.join()?;
        }
        Ok(places
            .map(|(cpu, word)| (cpu as u32, self.words[word].load(Ordering::Relaxed) as u32))
            .collect())
    }
}

/// How often each number of each CPU is in some traces.
pub type Found = BTreeMap<u32, BTreeMap<u32, u32>>;

/// Adds the numbers of one trace, which must have lost nothing.
///
/// # Errors
/// It cannot be read, or has lost something.
pub fn find(trace: &Path, found: &mut Found) -> anyhow::Result<u64> {
    let incident: Incident = serde_json::from_slice(&fs::read(trace.join("incident.json"))?)?;
    for stream in &incident.streams {
        let lost = (stream.overwritten_pages, stream.lost, stream.torn);
        if lost != (0, 0, 0) {
            bail!("{trace:?} has lost something: {stream:?}");
        }
    }
    if incident.live || !trace.join("ctf/metadata").exists() {
        return Ok(0);
    }
    let traces = Traces::open(&[trace])?;
    let mut records = traces.records();
    let mut count = 0;
    while let Some(record) = records.next_record()? {
        let name = record.values().find_map(|(place, value)| match value {
            Value::Text(text) if place.name == "newcomm" => Some(text),
            _ => None,
        });
        if let Some((tag, serial)) = name.and_then(renamed)
            && record.event() == "task:task_rename"
            && tag == TAGS[0]
        {
            count += 1;
            *found
                .entry(record.stream.cpu)
                .or_default()
                .entry(serial)
                .or_default() += 1;
        }
    }
    Ok(count)
}

/// Each number that was made must be in exactly one of the traces.
///
/// # Errors
/// One that is not, or a trace that cannot be read.
pub fn each_once(traces: &[impl AsRef<Path>], made: &BTreeMap<u32, u32>) -> anyhow::Result<u64> {
    let mut found = Found::new();
    let mut records = 0;
    for trace in traces {
        records += find(trace.as_ref(), &mut found)?;
    }
    for (cpu, count) in made {
        let found = found.remove(cpu).unwrap_or_default();
        let times = |serial: &u32| found.get(serial).copied().unwrap_or(0);
        let wrong: Vec<(u32, u32)> = (0..*count)
            .filter(|serial| times(serial) != 1)
            .map(|serial| (serial, times(&serial)))
            .collect();
        if let Some(first) = wrong.first() {
            bail!(
                "CPU {cpu}: {} of {count} numbers are not in exactly one trace; number and times of the first: {first:?}",
                wrong.len()
            );
        }
    }
    let made: u64 = made.values().map(|count| u64::from(*count)).sum();
    if made != records || made == 0 {
        bail!("{made} numbers were made and {records} found");
    }
    Ok(made)
}
