//! What the writer of a piece left unfinished in, the piece and how far it goes in each ring out.
//!
//! A writer may be killed at any moment: in the midst of a packet, after it wrote some and before the ring learned of
//! them, or when only the name was missing. What is whole in the files is true in each of these cases.
//!
//! INVARIANT: nothing is removed here but a piece without a whole packet.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use lkst_probes::layout::{page, record};

use super::{BEGUN_FILE, Closing, add_kept, add_times, file_name, remove};
use crate::trace::decode::{u32_at, u64_at};
use crate::trace::incident::{Incident, StreamSummary};
use crate::trace::seal::{CTF_FOLDER, INCIDENT_FILE, PACKET_BYTES, SaveError};
use crate::trace::stream::{Progress, Shapes};
use crate::trace::tsdl;
use crate::trace::whole::{Failed, finished_name, is_unfinished};

/// How far a piece that its writer left has come in one ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The ring.
    pub instance_id: u64,
    /// Up to where in it the piece goes.
    pub position: u64,
    /// What of the ring's losses its packets tell of.
    pub told: u64,
}

/// Pieces below `state` that nobody finished. Only while nobody writes any.
#[must_use]
pub fn left_pieces(state: &Path) -> Vec<PathBuf> {
    let folders = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect()
    };
    let mut left = Vec::new();
    for incident in folders(state).iter().flat_map(|pack| folders(pack)) {
        for part in folders(&incident) {
            let name = part.file_name().unwrap_or_default().as_encoded_bytes();
            if is_unfinished(name) && part.join(BEGUN_FILE).exists() {
                left.push(part);
            }
        }
    }
    left.sort();
    left
}

/// Cuts what its writer left to whole packets. Returns how far it has come in each ring, and what is still to be done:
/// [`Closing::finish`], once the rings know. Where no packet is whole the piece is removed.
///
/// # Errors
/// [`SaveError`]
pub fn cut_left(path: &Path, now_unix_ns: u64) -> Result<(Vec<Left>, Option<Closing>), SaveError> {
    let begun_path = path.join(BEGUN_FILE);
    let begun = || -> io::Result<Incident> {
        let text = fs::read(&begun_path)?;
        Ok(serde_json::from_slice(&text)?)
    };
    let begun = begun().map_err(Failed::at(&begun_path))?;
    let folder = path.parent().unwrap_or(path).join(finished_name(path));
    if let Some((left, closing)) = nearly_finished(path, &folder, &begun) {
        return Ok((left, Some(closing)));
    }
    let metadata_path = path.join(CTF_FOLDER).join("metadata");
    let read = || -> io::Result<tsdl::Metadata> {
        let mut text = String::new();
        File::open(&metadata_path)?
            .take(tsdl::MAX_BYTES)
            .read_to_string(&mut text)?;
        tsdl::parse(&text).map_err(io::Error::other)
    };
    let metadata = read().map_err(Failed::at(&metadata_path))?;
    let shapes = Shapes::of(&metadata.info.layouts);
    let mut incident = Incident {
        saved_at_unix_ns: now_unix_ns,
        streams: Vec::new(),
        ..begun.clone()
    };
    let (mut left, mut files) = (Vec::new(), Vec::new());
    for stream in &begun.streams {
        let name = file_name(&stream.buffer, stream.cpu);
        let file = path.join(CTF_FOLDER).join(&name);
        let found = found_in(&file, &metadata.uuid, &shapes, stream).map_err(Failed::at(&file))?;
        left.push(Left {
            instance_id: stream.instance_id,
            position: found.progress.position,
            told: found.progress.told,
        });
        incident.streams.push(StreamSummary {
            file: (found.progress.bytes > 0).then_some(name),
            position: found.progress.position,
            records: found.progress.records,
            lost: found.progress.told.saturating_sub(stream.lost),
            ..stream.clone()
        });
        if found.progress.bytes == 0 {
            // A reader would miss the head of a packet.
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failed::at(&file)(error).into());
                }
                _ => continue,
            }
        }
        let first_ns = found.progress.first_ns.unwrap_or_default();
        add_times(&mut incident, first_ns, found.progress.last_ns);
        for (id, count) in found.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            if let Some(event) = shapes.event(id) {
                add_kept(&mut incident, event, stream.cpu, *count);
            }
        }
        files.push((file, found.progress.bytes));
    }
    if files.is_empty() {
        remove(path);
        return Ok((left, None));
    }
    let path = path.to_owned();
    let closing = Closing {
        path,
        folder,
        incident,
        files,
        names: None,
    };
    Ok((left, Some(closing)))
}

/// A piece that only lacks its name: its `incident.json` was written when its files were lasting.
fn nearly_finished(path: &Path, folder: &Path, begun: &Incident) -> Option<(Vec<Left>, Closing)> {
    let text = fs::read(path.join(INCIDENT_FILE)).ok()?;
    let incident: Incident = serde_json::from_slice(&text).ok()?;
    let (mut left, mut files) = (Vec::new(), Vec::new());
    for (stream, begun) in incident.streams.iter().zip(&begun.streams) {
        left.push(Left {
            instance_id: stream.instance_id,
            position: stream.position,
            told: begun.lost + stream.lost,
        });
        if let Some(name) = &stream.file {
            let file = path.join(CTF_FOLDER).join(name);
            let bytes = fs::metadata(&file).ok()?.len();
            files.push((file, bytes));
        }
    }
    let closing = Closing {
        path: path.to_owned(),
        folder: folder.to_owned(),
        incident,
        files,
        names: None,
    };
    Some((left, closing))
}

/// What the whole packets of a file say.
#[derive(Debug, Default)]
struct Found {
    progress: Progress,
    counts: Vec<u64>,
}

fn found_in(path: &Path, uuid: &[u8; 16], shapes: &Shapes, begun: &StreamSummary) -> io::Result<Found> {
    let mut found = Found::default();
    (found.progress.position, found.progress.told) = (begun.position, begun.lost);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        file => file?,
    };
    let length = file.metadata()?.len();
    let mut packet = Vec::new();
    loop {
        let at = found.progress.bytes;
        if length - at < page::HEADER_BYTES as u64 {
            break;
        }
        packet.resize(page::HEADER_BYTES, 0);
        file.read_exact_at(&mut packet, at)?;
        let bytes = u64_at(&packet, page::PACKET_SIZE).unwrap_or(0) / 8;
        let is_whole = u32_at(&packet, page::MAGIC) == Some(page::MAGIC_VALUE)
            && packet.get(page::UUID..page::STREAM_ID) == Some(uuid)
            && u64_at(&packet, page::INSTANCE_ID) == Some(begun.instance_id)
            && u64_at(&packet, page::SEQ) == Some(found.progress.packets)
            && (page::HEADER_BYTES as u64..=2 * PACKET_BYTES as u64).contains(&bytes)
            && bytes <= length - at;
        if !is_whole {
            break;
        }
        packet.resize(bytes as usize, 0);
        file.read_exact_at(&mut packet, at)?;
        found.add(&packet, shapes, begun.lost);
    }
    Ok(found)
}

impl Found {
    fn add(&mut self, packet: &[u8], shapes: &Shapes, told_before: u64) {
        let progress = &mut self.progress;
        let unit = record::ALIGN as u64;
        let before = progress.position / unit;
        let drained_to = u32_at(packet, page::DRAINED_TO).unwrap_or(before as u32);
        progress.position = (before + u64::from(drained_to.wrapping_sub(before as u32))) * unit;
        progress.bytes += packet.len() as u64;
        progress.packets += 1;
        progress.told = told_before + u64_at(packet, page::EVENTS_DISCARDED).unwrap_or(0);
        let begin = u64_at(packet, page::TIMESTAMP_BEGIN).unwrap_or(0);
        progress.first_ns.get_or_insert(begin);
        progress.last_ns = u64_at(packet, page::TIMESTAMP_END).unwrap_or(0);
        shapes.count(
            packet.get(page::HEADER_BYTES..).unwrap_or_default(),
            &mut self.counts,
        );
        progress.records = self.counts.iter().sum();
    }
}
