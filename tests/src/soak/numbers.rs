//! The traces that agents have left: is every number in one of them, and only in one?

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use lkst::trace::decode::Value;
use lkst::trace::incident::Incident;
use lkst::trace::read::Traces;

use super::table::Table;
use super::{Bed, TAGS};
use crate::worker::renamed;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    cpus: Vec<usize>,
    /// For each CPU, how often each number was there.
    times: Vec<Vec<u8>>,
    /// Traces that were looked at.
    seen: BTreeSet<PathBuf>,
    /// Which numbers of which CPU are in which trace: the first and the last.
    ranges: Vec<(PathBuf, usize, usize, usize)>,
    /// Rings that were saved: an instance and where it stood.
    rings: BTreeSet<(u64, u64)>,
    /// Rings that were saved again.
    twice: u64,
    /// Records of `count` that were overwritten, lost or torn.
    damaged: u64,
    traces: u64,
    live: u64,
}

impl Found {
    pub(super) fn new(cpus: &[usize]) -> Found {
        Found {
            cpus: cpus.to_vec(),
            times: vec![Vec::new(); cpus.len()],
            ..Found::default()
        }
    }

    /// Looks at every trace that was not looked at yet. With `remove` those of `count` are deleted then: nothing is
    /// kept now, so that no agent needs them.
    pub(super) fn look(&mut self, bed: &Bed, remove: bool) -> anyhow::Result<()> {
        for pack in ["load", "count"] {
            for trace in bed.traces(pack) {
                if !self.seen.insert(trace.clone()) {
                    continue;
                }
                let about = fs::read(trace.join("incident.json"));
                // The oldest of `load` go when there are too many.
                let Ok(about) = about else { continue };
                let incident: Incident =
                    serde_json::from_slice(&about).with_context(|| format!("{trace:?}"))?;
                self.traces += 1;
                if incident.live {
                    self.live += 1;
                    continue;
                }
                for stream in &incident.streams {
                    let is_new = self.rings.insert((stream.instance_id, stream.position));
                    self.twice += u64::from(!is_new && stream.records > 0);
                    if pack == "count" {
                        self.damaged += stream.overwritten_pages + stream.lost;
                    }
                    self.damaged += stream.torn;
                }
                if pack == "count" {
                    self.numbers(&trace)?;
                }
            }
        }
        if remove {
            let folder = bed.path("state/count");
            for entry in fs::read_dir(&folder)? {
                fs::remove_dir_all(entry?.path())?;
            }
        }
        Ok(())
    }

    fn numbers(&mut self, trace: &Path) -> anyhow::Result<()> {
        if !trace.join("ctf/metadata").exists() {
            return Ok(());
        }
        let traces = Traces::open(&[trace]).with_context(|| format!("{trace:?}"))?;
        let mut records = traces.records();
        let mut ranges = vec![None; self.cpus.len()];
        while let Some(record) = records.next_record()? {
            if record.event() != "task:task_rename" {
                continue;
            }
            let name = record.values().find_map(|(place, value)| match value {
                Value::Text(text) if place.name == "newcomm" => Some(text),
                _ => None,
            });
            let Some((tag, serial)) = name.and_then(renamed) else {
                continue;
            };
            let cpu = self.cpus.iter().position(|cpu| *cpu as u32 == record.stream.cpu);
            if let Some(place) = cpu
                && let Some(times) = self.times.get_mut(place)
                && tag == TAGS[0]
            {
                let serial = serial as usize;
                let (first, last) = ranges[place].unwrap_or((serial, serial));
                ranges[place] = Some((first.min(serial), last.max(serial)));
                if times.len() <= serial {
                    times.resize(serial + 1, 0);
                }
                times[serial] = times[serial].saturating_add(1);
            }
        }
        for (place, range) in ranges.into_iter().enumerate() {
            if let Some((first, last)) = range {
                self.ranges.push((trace.to_owned(), place, first, last));
            }
        }
        Ok(())
    }

    /// Holds it against what was made: so many numbers on each CPU.
    pub(super) fn tell(&self, cpus: &[usize], made: &[u32], table: &mut Table) {
        let (mut all, mut missing, mut doubled) = (0, 0, 0);
        for (place, ((times, made), cpu)) in self.times.iter().zip(made).zip(cpus).enumerate() {
            let mut first = None;
            for serial in 0..*made as usize {
                all += 1;
                match times.get(serial).copied().unwrap_or(0) {
                    0 => missing += 1,
                    1 => continue,
                    _ => doubled += 1,
                }
                first.get_or_insert(serial);
            }
            if let Some(first) = first {
                println!(
                    "soak: CPU {cpu}: {first} is the first number that is not in exactly one trace; these have it or its neighbours:"
                );
                for (trace, _, from, to) in self
                    .ranges
                    .iter()
                    .filter(|(_, of, from, to)| *of == place && *from <= first + 1 && first <= *to + 1)
                {
                    println!("soak:   {from} to {to} in {trace:?}");
                }
            }
        }
        table.note("traces", self.traces);
        table.note("of these of live buffers", self.live);
        table.at_least("numbered events", 1.0, f64::from(all), "");
        table.at_most("numbers in no trace", 0.0, f64::from(missing), "");
        table.at_most("numbers in more than one", 0.0, f64::from(doubled), "");
        table.at_most("kept rings saved again", 0.0, self.twice as f64, "");
        table.at_most("records lost or torn", 0.0, self.damaged as f64, "");
    }
}
