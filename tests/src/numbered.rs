//! Numbered renames found again in traces on disk: each made once, each to be found once.

use std::collections::BTreeMap;
use std::path::Path;

use lkst::trace::decode::Value;
use lkst::trace::incident::Incident;
use lkst::trace::read::Traces;

use crate::worker::renamed;

/// How often each number was found, by CPU.
pub type Found = BTreeMap<u32, BTreeMap<u32, u32>>;

/// Adds the numbers of a trace whose names have this tag. Returns how many there are.
///
/// # Panics
/// Where the trace cannot be read, or lacks something that was in its rings.
pub fn numbers(trace: &Path, tag: u8, found: &mut Found) -> u64 {
    let mut read = || -> anyhow::Result<u64> {
        let incident: Incident = serde_json::from_slice(&std::fs::read(trace.join("incident.json"))?)?;
        anyhow::ensure!(!incident.live, "saved while it was recorded");
        for stream in &incident.streams {
            let lacks = (stream.overwritten_pages, stream.lost, stream.torn);
            anyhow::ensure!(lacks == (0, 0, 0), "overwritten, lost, torn: {lacks:?}");
        }
        if !trace.join("ctf/metadata").exists() {
            return Ok(0);
        }
        let traces = Traces::open(&[trace])?;
        let mut records = traces.records();
        let mut count = 0;
        while let Some(record) = records.next_record()? {
            if record.event() != "task:task_rename" {
                continue;
            }
            let name = record.values().find_map(|(place, value)| match value {
                Value::Text(text) if place.name == "newcomm" => Some(text),
                _ => None,
            });
            if let Some((found_tag, serial)) = name.and_then(renamed)
                && found_tag == tag
            {
                count += 1;
                let of_cpu = found.entry(record.stream.cpu).or_default();
                *of_cpu.entry(serial).or_default() += 1;
            }
        }
        Ok(count)
    };
    read().unwrap_or_else(|error| panic!("{trace:?}: {error:#}"))
}

/// Panics unless each number from 0 to below what was made on each CPU was found once. Returns how many were made.
///
/// # Panics
/// See above.
pub fn each_once(what: &str, found: &Found, made: impl Iterator<Item = (u32, u32)>) -> u64 {
    let none = BTreeMap::new();
    made.map(|(cpu, count)| {
        let found = found.get(&cpu).unwrap_or(&none);
        let wrong: Vec<(u32, u32)> = (0..count)
            .map(|serial| (serial, found.get(&serial).copied().unwrap_or(0)))
            .filter(|(_, times)| *times != 1)
            .collect();
        assert!(
            wrong.is_empty(),
            "{what}: CPU {cpu}: {} of {count} numbers are not in exactly one trace, the first {:?}",
            wrong.len(),
            wrong.iter().take(5).collect::<Vec<_>>()
        );
        u64::from(count)
    })
    .sum()
}
