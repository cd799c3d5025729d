//! Which rings are in traces already: a folder of incidents in, ring instances and positions out.
//!
//! An agent that is killed between the moment that a trace is whole and the moment that its buffer is given back leaves
//! both. Whoever comes next must not save it twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::incident::Incident;
use super::seal::INCIDENT_FILE;

/// Folders that are looked at in each pack's, the newest first.
const MOST: usize = 64;

/// The rings, as instance and position, of which nothing is missing in traces below `OUTPUT/PACK/TIME-REASON/`.
#[must_use]
pub fn saved_rings(output: &Path) -> BTreeSet<(u64, u64)> {
    let mut rings = BTreeSet::new();
    for pack in folders(output) {
        let mut incidents = folders(&pack);
        // Their names begin with the time.
        incidents.sort();
        for incident in incidents.iter().rev().take(MOST) {
            for part in folders(incident).into_iter().chain([incident.clone()]) {
                rings.extend(of_trace(&part).unwrap_or_default());
            }
        }
    }
    rings
}

fn of_trace(folder: &Path) -> Option<Vec<(u64, u64)>> {
    let text = fs::read(folder.join(INCIDENT_FILE)).ok()?;
    let incident: Incident = serde_json::from_slice(&text).ok()?;
    let streams = incident.streams.iter().filter(|_| !incident.live);
    Some(
        streams
            .map(|stream| (stream.instance_id, stream.position))
            .collect(),
    )
}

/// The folders in a folder, without links and hidden ones.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|entry| entry.path())
        .collect()
}
