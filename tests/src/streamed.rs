//! Numbered names from every CPU, and where each number was found: the ground truth of suites in which nothing may be
//! recorded twice or vanish unseen.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context as _, ensure};
use lkst::trace::decode::Value;
use lkst::trace::incident::Incident;
use lkst::trace::read::Traces;

use crate::shared::{WORDS, words};
use crate::worker::{Worker, cpus, rename, renamed};

/// A worker on each CPU that gives itself numbered names, from 0 on.
#[derive(Debug)]
pub struct Numbered {
    cpus: Vec<usize>,
    workers: Vec<Worker>,
    shared: &'static [AtomicU64; WORDS],
}

impl Numbered {
    /// Forks them; they wait for [`Numbered::go`]. Each makes at most `most` names, and rests for `rest_us` after every
    /// 64.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(tag: u8, most: u32, rest_us: u32) -> io::Result<Numbered> {
        let shared = words()?;
        let cpus = cpus();
        let worker = |(place, cpu): (usize, &usize)| {
            Worker::new(*cpu, move || {
                let mut serial = 0;
                while serial < most && shared[0].load(Relaxed) == 0 {
                    rename(tag, serial);
                    serial += 1;
                    shared[1 + place].store(serial.into(), Relaxed);
                    if serial % 64 == 0 && rest_us > 0 {
                        // SAFETY: sleeps.
                        unsafe { libc::usleep(rest_us) };
                    }
                }
            })
        };
        let workers = cpus.iter().enumerate().map(worker).collect::<io::Result<_>>()?;
        Ok(Numbered {
            cpus,
            workers,
            shared,
        })
    }

    /// The condition on `task:task_rename` that their names meet, and nobody else's: not those of another run of this
    /// suite either.
    #[must_use]
    pub fn condition(&self) -> String {
        let pids: Vec<String> = self.workers.iter().map(|worker| worker.pid.to_string()).collect();
        format!("newcomm like \"lkt*\" and pid in {{ {} }}", pids.join(", "))
    }

    /// Lets them begin.
    pub fn go(&mut self) {
        self.workers.iter_mut().for_each(Worker::go);
    }

    /// Waits until each has made all of its names.
    ///
    /// # Errors
    /// One did not.
    pub fn join(&mut self) -> io::Result<()> {
        std::mem::take(&mut self.workers)
            .into_iter()
            .try_for_each(Worker::join)
    }

    /// Lets them end where they are, and waits for it.
    ///
    /// # Errors
    /// As [`Numbered::join`].
    pub fn stop(&mut self) -> io::Result<()> {
        self.shared[0].store(1, Relaxed);
        self.join()
    }

    /// How many names each CPU has seen, by CPU.
    #[must_use]
    pub fn made(&self) -> BTreeMap<u32, u32> {
        let made = |(place, cpu): (usize, &usize)| (*cpu as u32, self.shared[1 + place].load(Relaxed) as u32);
        self.cpus.iter().enumerate().map(made).collect()
    }

    /// How many there are of all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.made().values().map(|made| u64::from(*made)).sum()
    }
}

/// Where numbers were found.
#[derive(Debug, Default)]
pub struct Found {
    /// By CPU, in the order in which they came.
    pub serials: BTreeMap<u32, Vec<u32>>,
    /// What the traces say of themselves.
    pub incidents: Vec<Incident>,
}

impl Found {
    /// Adds a trace: `FOLDER/incident.json` and `FOLDER/ctf`.
    ///
    /// # Errors
    /// It is no whole trace, or contradicts itself.
    pub fn add(&mut self, folder: &Path, tag: u8) -> anyhow::Result<()> {
        let text = std::fs::read(folder.join("incident.json")).with_context(|| format!("{folder:?}"))?;
        let incident: Incident = serde_json::from_slice(&text)?;
        let said: u64 = incident.streams.iter().map(|stream| stream.records).sum();
        self.incidents.push(incident);
        if said == 0 {
            return Ok(());
        }
        let traces = Traces::open(&[folder])?;
        ensure!(traces.problems.is_empty(), "{:?}", traces.problems);
        let mut records = traces.records();
        let mut there = 0;
        while let Some(record) = records.next_record()? {
            there += 1;
            if record.event() != "task:task_rename" {
                continue;
            }
            let name = record.values().find_map(|(place, value)| match value {
                Value::Text(text) if place.name == "newcomm" => Some(text),
                _ => None,
            });
            if let Some((found, serial)) = name.and_then(renamed)
                && found == tag
            {
                self.serials.entry(record.stream.cpu).or_default().push(serial);
            }
        }
        ensure!(
            said == there,
            "{folder:?} has {there} records and says that it has {said}"
        );
        Ok(())
    }

    /// How many numbers there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.serials.values().map(|serials| serials.len() as u64).sum()
    }

    /// What the streams say was lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let streams = self.incidents.iter().flat_map(|incident| &incident.streams);
        streams.map(|stream| stream.lost).sum()
    }

    /// Records that were torn, late, overwritten or missing.
    #[must_use]
    pub fn flaws(&self) -> [u64; 4] {
        let streams = self.incidents.iter().flat_map(|incident| &incident.streams);
        streams.fold([0; 4], |sum, stream| {
            [
                sum[0] + stream.torn,
                sum[1] + stream.late,
                sum[2] + stream.overwritten_pages,
                sum[3] + stream.missing_pages,
            ]
        })
    }

    /// Fails unless each number that was found was found once.
    ///
    /// # Errors
    /// The first that was found twice.
    pub fn each_once(&self) -> anyhow::Result<()> {
        for (cpu, serials) in &self.serials {
            let mut sorted = serials.clone();
            sorted.sort_unstable();
            let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]);
            ensure!(twice.is_none(), "CPU {cpu}: {twice:?} came twice");
        }
        Ok(())
    }

    /// Fails unless numbers ascend on each CPU.
    ///
    /// # Errors
    /// The first that does not.
    pub fn in_order(&self) -> anyhow::Result<()> {
        for (cpu, serials) in &self.serials {
            let wrong = serials.windows(2).find(|pair| pair[0] >= pair[1]);
            ensure!(wrong.is_none(), "CPU {cpu}: {wrong:?} are not in order");
        }
        Ok(())
    }

    /// Fails unless every number that was made was found.
    ///
    /// # Errors
    /// The first that was not.
    pub fn all_of(&self, made: &BTreeMap<u32, u32>) -> anyhow::Result<()> {
        for (cpu, made) in made {
            let mut found: Vec<u32> = self.serials.get(cpu).cloned().unwrap_or_default();
            found.sort_unstable();
            found.dedup();
            let missing = (0..*made)
                .zip(found.iter().copied().chain([u32::MAX]))
                .find(|(a, b)| a != b);
            ensure!(
                found.len() as u64 == u64::from(*made) && missing.is_none(),
                "CPU {cpu}: {} of {made} numbers were found, the first that was not: {missing:?}",
                found.len()
            );
        }
        Ok(())
    }
}
