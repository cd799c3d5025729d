//! Copies of rings in, a trace folder on disk out: whole, or not there.
//!
//! ```text
//! FOLDER/incident.json      why, from where, what it lacks
//! FOLDER/ctf/metadata       the CTF metadata
//! FOLDER/ctf/main_0 …       a stream file per buffer and CPU that has a record; a second ring of the same buffer
//!                           and CPU is `main_0.1`
//! FOLDER/ctf/names          the names of the threads that have records in them (`names.rs`)
//! ```
//!
//! Packets are made anew rather than copied from pages: larger, with their sizes, times and losses, and with the
//! records in the order of their times, since one that was written in an interrupt may lie behind one of a later time.
//!
//! `events_discarded` counts only what found no room in a ring. What newer records have overwritten is how a ring
//! works and no defect of the trace; readers would warn of it each time. It is counted in `incident.json`, and so is
//! what was torn.
//!
//! INVARIANT: everything is written under a name that begins with a dot, synced, and renamed in the end; an error
//! leaves nothing behind (`whole.rs`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lkst_probes::layout::{page, record};

use super::decode::{Classes, EventClass, u32_at};
use super::incident::{FORMAT, Incident, StreamSummary};
use super::metadata::{self, TraceInfo};
use super::names::{self, NAMES_FILE, Namer, Thread};
use super::raw::{RawStream, RecordRef, records};
use super::whole::{Failed, Unfinished, make_folder, sync_folder, write_file};

/// The largest packet. Readers hold one for each stream.
pub const PACKET_BYTES: usize = 64 * 1024;

/// The folder of the CTF trace in the folder of an incident.
pub const CTF_FOLDER: &str = "ctf";

/// The file beside it.
pub const INCIDENT_FILE: &str = "incident.json";

/// What was saved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// Records in the trace.
    pub records: u64,
    /// Records that were torn.
    pub torn: u64,
    /// Records in the trace by event and CPU.
    pub kept: BTreeMap<String, BTreeMap<u32, u64>>,
    /// What became of each ring.
    pub streams: Vec<StreamSummary>,
}

/// Why nothing was saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// No room.
    #[error("no space left for the trace {path:?}: it was not saved")]
    NoSpace {
        /// What was being written.
        path: PathBuf,
    },
    /// There is one of that name.
    #[error("{path:?} exists already: the trace was not saved")]
    Exists {
        /// Its folder.
        path: PathBuf,
    },
    /// Anything else of the file system.
    #[error("cannot write the trace {path:?}: {source}")]
    Io {
        /// What was being written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The rings themselves cannot be looked at.
    #[error("the rings cannot be read: {0}")]
    Rings(io::Error),
    /// A buffer's name that is no name of the rule language.
    #[error("{name:?} cannot be the name of a buffer")]
    BufferName {
        /// It.
        name: String,
    },
    /// The same ring twice: readers would take both for one stream.
    #[error("the ring of buffer `{buffer}` on CPU {cpu} was given twice")]
    Twice {
        /// The buffer.
        buffer: String,
        /// The CPU.
        cpu: u32,
    },
}

impl SaveError {
    /// Whether what was being written is not there any more.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, SaveError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<Failed> for SaveError {
    fn from(Failed { path, error }: Failed) -> SaveError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SaveError::NoSpace { path },
            io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => SaveError::Exists { path },
            _ => SaveError::Io { path, source: error },
        }
    }
}

/// As [`save_named`], with the names that are in the incident.
///
/// # Errors
/// As [`save_named`].
pub fn save(
    folder: &Path,
    info: &TraceInfo,
    streams: impl IntoIterator<Item = RawStream>,
    mut incident: Incident,
) -> Result<Saved, SaveError> {
    let names = std::mem::take(&mut incident.names);
    save_named(folder, info, streams, incident, &mut |tid, pid| {
        let comm = names.get(&tid)?.clone();
        Some(Thread { pid, comm })
    })
}

/// Writes a trace to `folder`, which must not exist. Its parents are made.
///
/// `streams` is asked for one ring after another, so that the caller need not hold copies of all of them; then `namer`
/// for each thread that has a record in them.
///
/// # Errors
/// [`SaveError`]; then `folder` is not there.
pub fn save_named(
    folder: &Path,
    info: &TraceInfo,
    streams: impl IntoIterator<Item = RawStream>,
    incident: Incident,
    namer: Namer<'_>,
) -> Result<Saved, SaveError> {
    let unfinished = Unfinished::begin(folder)?;
    let saved = write(unfinished.path(), folder, info, streams, incident, namer)?;
    unfinished.finish(folder)?;
    Ok(saved)
}

/// Fills the unfinished folder and syncs all of it.
fn write(
    unfinished: &Path,
    folder: &Path,
    info: &TraceInfo,
    streams: impl IntoIterator<Item = RawStream>,
    mut incident: Incident,
    namer: Namer<'_>,
) -> Result<Saved, SaveError> {
    let ctf = unfinished.join(CTF_FOLDER);
    make_folder(&ctf)?;
    let mut sealer = Sealer {
        ctf: &ctf,
        uuid: trace_uuid(folder, info, &incident),
        classes: Classes::of_layouts(&info.layouts),
        files: BTreeMap::new(),
        saved: Saved::default(),
        times: None,
        threads: BTreeMap::new(),
    };
    for stream in streams {
        sealer.stream(&stream)?;
    }
    let named = sealer.threads.iter();
    let named = named.filter_map(|(tid, (_, pid))| Some((*tid, namer(*tid, *pid)?)));
    let named: BTreeMap<u32, Thread> = named.collect();
    let Sealer {
        uuid, saved, times, ..
    } = sealer;
    let mut info = info.clone();
    if let (Some((begin, _)), Some(layout), false) =
        (times, names::layout_beside(&info.layouts), named.is_empty())
    {
        write_file(&ctf.join(NAMES_FILE), |out| {
            names::write(out, &uuid, layout.id, begin, &named)
        })?;
        info.layouts.push(layout);
    }
    write_file(&ctf.join("metadata"), |out| {
        out.write_all(metadata::text(&info, &uuid).as_bytes())
    })?;
    incident.names = named
        .into_iter()
        .map(|(tid, thread)| (tid, thread.comm))
        .collect();
    let info = &info;
    let incident = complete(incident, info, &saved, times);
    write_file(&unfinished.join(INCIDENT_FILE), |out| {
        serde_json::to_writer_pretty(&mut *out, &incident)?;
        out.write_all(b"\n")
    })?;
    sync_folder(&ctf)?;
    sync_folder(unfinished)?;
    Ok(saved)
}

/// Adds to the incident what only the sealing knows.
fn complete(incident: Incident, info: &TraceInfo, saved: &Saved, times: Option<(u64, u64)>) -> Incident {
    let mut incident = Incident {
        format: FORMAT,
        pack: info.pack.clone(),
        host: info.hostname.clone(),
        kernel_release: info.kernel_release.clone(),
        lkst_version: info.lkst_version.clone(),
        boot_offset_ns: info.boot_offset_ns,
        begin_ns: times.map(|(begin, _)| begin),
        end_ns: times.map(|(_, end)| end),
        streams: saved.streams.clone(),
        ..incident
    };
    for (event, cpus) in &saved.kept {
        let counts = incident.counts.entry(event.clone()).or_default();
        for (cpu, kept) in cpus {
            counts.entry(*cpu).or_default().kept = *kept;
        }
    }
    incident
}

/// One trace being written.
struct Sealer<'a> {
    ctf: &'a Path,
    uuid: [u8; 16],
    classes: Classes<EventClass>,
    /// How many rings each buffer and CPU had, with their instance ids.
    files: BTreeMap<(String, u32), Vec<u64>>,
    saved: Saved,
    /// Of the first and of the last record.
    times: Option<(u64, u64)>,
    /// Those that have records: when each had its last one, and of which process it was then.
    threads: BTreeMap<u32, (u64, u32)>,
}

impl Sealer<'_> {
    /// Writes the file of one ring, unless it has no record.
    fn stream(&mut self, raw: &RawStream) -> Result<(), SaveError> {
        let name = self.file_name(raw)?;
        let mut extracted = records(raw, &self.classes);
        extracted.records.sort_by_key(|record| record.time);
        let sorted = &extracted.records;
        let mut summary = StreamSummary {
            file: None,
            buffer: raw.buffer.clone(),
            cpu: raw.cpu,
            instance_id: raw.instance_id,
            position: raw.pos,
            records: sorted.len() as u64,
            torn: extracted.torn,
            late: 0,
            lost: raw.lost,
            overwritten_pages: extracted.overwritten_pages,
            missing_pages: extracted.missing_pages,
        };
        if let (Some(first), Some(last)) = (sorted.first(), sorted.last()) {
            write_file(&self.ctf.join(&name), |out| packets(out, &self.uuid, raw, sorted))?;
            summary.file = Some(name);
            let (begin, end) = self.times.unwrap_or((first.time, last.time));
            self.times = Some((begin.min(first.time), end.max(last.time)));
            self.count(raw.cpu, sorted);
            self.note_threads(raw, sorted);
        }
        self.saved.records += summary.records;
        self.saved.torn += summary.torn;
        self.saved.streams.push(summary);
        Ok(())
    }

    fn note_threads(&mut self, raw: &RawStream, sorted: &[RecordRef]) {
        let mut last = None;
        // From the last record on: that is the one that counts, and most are of the thread that made the one after.
        for record in sorted.iter().rev() {
            let bytes = raw.pages.get(record.bytes.clone()).unwrap_or(&[]);
            let thread = u32_at(bytes, record::TID).zip(u32_at(bytes, record::PID));
            if let Some((tid, pid)) = thread
                && thread != last
            {
                let known = self.threads.entry(tid).or_default();
                *known = (*known).max((record.time, pid));
                last = thread;
            }
        }
    }

    fn file_name(&mut self, raw: &RawStream) -> Result<String, SaveError> {
        let RawStream { buffer, cpu, .. } = raw;
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        // A digit first would do no harm; a dot or a slash would.
        if buffer.is_empty() || !buffer.chars().all(letter) || buffer.len() > 200 {
            return Err(SaveError::BufferName { name: buffer.clone() });
        }
        Ok(match self.files.entry((buffer.clone(), *cpu)) {
            Entry::Vacant(entry) => {
                entry.insert(vec![raw.instance_id]);
                format!("{buffer}_{cpu}")
            }
            Entry::Occupied(entry) if entry.get().contains(&raw.instance_id) => {
                return Err(SaveError::Twice {
                    buffer: buffer.clone(),
                    cpu: *cpu,
                });
            }
            Entry::Occupied(mut entry) => {
                entry.get_mut().push(raw.instance_id);
                format!("{buffer}_{cpu}.{}", entry.get().len() - 1)
            }
        })
    }

    fn count(&mut self, cpu: u32, sorted: &[RecordRef]) {
        let mut by_id = BTreeMap::<u16, u64>::new();
        for record in sorted {
            *by_id.entry(record.id).or_default() += 1;
        }
        for (id, count) in by_id {
            if let Some(class) = self.classes.get(id) {
                let event = self.saved.kept.entry(class.layout.name.clone()).or_default();
                *event.entry(cpu).or_default() += count;
            }
        }
    }
}

/// Writes sorted records as packets.
pub(super) fn packets(
    out: &mut dyn Write,
    uuid: &[u8; 16],
    raw: &RawStream,
    sorted: &[RecordRef],
) -> io::Result<()> {
    let mut rest = sorted;
    let mut sequence = 0_u64;
    let mut packet = Vec::with_capacity(PACKET_BYTES);
    while let Some(first) = rest.first() {
        packet.clear();
        packet.resize(page::HEADER_BYTES, 0);
        let mut end_time = first.time;
        let mut taken = 0;
        for record in rest {
            let at = packet.len().next_multiple_of(record::ALIGN);
            if at + record.bytes.len() > PACKET_BYTES {
                break;
            }
            packet.resize(at, 0);
            push_record(&mut packet, raw.pages.get(record.bytes.clone()).unwrap_or(&[]));
            end_time = record.time;
            taken += 1;
        }
        rest = rest.get(taken..).unwrap_or(&[]);
        let content_bits = packet.len() as u64 * 8;
        packet.resize(packet.len().next_multiple_of(record::ALIGN), 0);
        let packet_bits = packet.len() as u64 * 8;
        // When in the ring's life a record found no room is not known: by its end.
        let discarded = if rest.is_empty() { raw.lost } else { 0 };
        for (at, bytes) in [
            (page::MAGIC, &page::MAGIC_VALUE.to_le_bytes()[..]),
            (page::UUID, uuid),
            (page::STREAM_ID, &0_u32.to_le_bytes()),
            (page::INSTANCE_ID, &raw.instance_id.to_le_bytes()),
            (page::TIMESTAMP_BEGIN, &first.time.to_le_bytes()),
            (page::TIMESTAMP_END, &end_time.to_le_bytes()),
            (page::CONTENT_SIZE, &content_bits.to_le_bytes()),
            (page::PACKET_SIZE, &packet_bits.to_le_bytes()),
            (page::SEQ, &sequence.to_le_bytes()),
            (page::EVENTS_DISCARDED, &discarded.to_le_bytes()),
            (page::CPU_ID, &raw.cpu.to_le_bytes()),
        ] {
            if let Some(place) = packet.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        out.write_all(&packet)?;
        sequence += 1;
    }
    Ok(())
}

/// Appends a record. Its length and tag are the ring's; to CTF they are padding, which is zero.
fn push_record(packet: &mut Vec<u8>, record: &[u8]) {
    let (word, rest) = record.split_at_checked(record::TIME).unwrap_or((record, &[]));
    packet.extend_from_slice(word.get(..record::LENGTH).unwrap_or(word));
    packet.extend_from_slice(&[0; record::TIME - record::LENGTH]);
    packet.extend_from_slice(rest);
}

/// A UUID for this trace of the session: readers take traces of one UUID for parts of one trace, and then one of
/// two metadata for that of both. The same input gives the same UUID.
pub(super) fn trace_uuid(folder: &Path, info: &TraceInfo, incident: &Incident) -> [u8; 16] {
    // FNV-1a, 128 bits: enough to tell apart what no enemy made.
    let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    let mut add = |bytes: &[u8]| {
        for byte in bytes.iter().chain(&[0xff]) {
            hash = (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    };
    add(&info.uuid);
    add(info.pack.as_bytes());
    add(incident.reason.as_bytes());
    add(&incident.saved_at_unix_ns.to_le_bytes());
    add(folder.file_name().unwrap_or_default().as_encoded_bytes());
    // Version 8, the one for a hash of one's own: RFC 9562, section 5.8.
    let hash = hash & !(0xf << 76) & !(0b11 << 62) | 0x8 << 76 | 0b10 << 62;
    hash.to_be_bytes()
}
