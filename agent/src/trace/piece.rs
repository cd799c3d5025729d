//! A piece of a stream on disk: begun, appended to, finished, by us or by whoever comes after us.
//!
//! ```text
//! PACK/TIME-stream/.1-BUFFER.PID.unfinished/begun.json      what it will be, and where in each ring it began
//! PACK/TIME-stream/.1-BUFFER.PID.unfinished/ctf/metadata
//! PACK/TIME-stream/.1-BUFFER.PID.unfinished/ctf/BUFFER_CPU  packets, appended
//! PACK/TIME-stream/1-BUFFER/…                               finished: incident.json in place of begun.json
//! ```
//!
//! What was drained from a ring is nowhere else. So a piece that its writer left is cut to its whole packets and
//! finished like any other ([`finish_left`]), and its packets say up to where in the ring they go, for the writer may
//! have been killed before it told the ring.
//!
//! INVARIANT: a folder with `begun.json` has whole metadata, for all records that are in its files.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lkst_probes::layout::{page, record};

use super::decode::{u32_at, u64_at};
use super::incident::{Counts, FORMAT, Incident, StreamSummary};
use super::metadata::{self, TraceInfo};
use super::seal::{CTF_FOLDER, INCIDENT_FILE, PACKET_BYTES, SaveError, trace_uuid};
use super::stream::{Bench, CopyPage, Identity, Packer, Progress, Shapes, Wanted};
use super::tsdl;
use super::whole::{
    Failed, Unfinished, finished_name, is_unfinished, make_folder, rename_finished, sync_folder, write_file,
};

/// What an unfinished piece has beside its trace.
pub const BEGUN_FILE: &str = "begun.json";

/// A ring whose packets go into a piece.
#[derive(Debug, Clone, Copy)]
pub struct RingStart {
    /// The CPU.
    pub cpu: u32,
    /// Its instance.
    pub instance_id: u64,
    /// Of its tags.
    pub salt: u32,
    /// Up to where it was taken before.
    pub position: u64,
    /// What of its losses was told before.
    pub told: u64,
}

/// A piece that is being written.
#[derive(Debug)]
pub struct Piece {
    path: PathBuf,
    folder: PathBuf,
    info: TraceInfo,
    uuid: [u8; 16],
    about: Incident,
    buffer: String,
    packers: Vec<Packer>,
    begun: Instant,
}

/// A piece to which nothing is added any more.
#[derive(Debug, Clone)]
pub struct Closing {
    path: PathBuf,
    folder: PathBuf,
    incident: Incident,
    /// Each file and how much of it is whole.
    files: Vec<(PathBuf, u64)>,
}

impl Piece {
    /// Begins one that shall be `folder`, for the rings of one buffer.
    ///
    /// # Errors
    /// [`SaveError`]; then nothing of it is there.
    pub fn begin(
        folder: &Path,
        info: TraceInfo,
        about: Incident,
        buffer: &str,
        rings: &[RingStart],
    ) -> Result<Piece, SaveError> {
        let unfinished = Unfinished::begin(folder)?;
        let path = unfinished.path().to_owned();
        let uuid = trace_uuid(folder, &info, &about);
        let packers = rings.iter().map(|ring| {
            let identity = Identity {
                uuid,
                instance_id: ring.instance_id,
                salt: ring.salt,
                cpu: ring.cpu,
            };
            Packer::new(identity, ring.position, ring.told)
        });
        let piece = Piece {
            path,
            folder: folder.to_owned(),
            about: Incident {
                format: FORMAT,
                streams: rings.iter().map(|ring| begun_stream(buffer, ring)).collect(),
                ..about_of(about, &info)
            },
            info,
            uuid,
            buffer: buffer.to_owned(),
            packers: packers.collect(),
            begun: Instant::now(),
        };
        make_folder(&piece.path.join(CTF_FOLDER))?;
        piece.write_metadata()?;
        replace(&piece.path, BEGUN_FILE, &json(&piece.about))?;
        unfinished.leave();
        Ok(piece)
    }

    /// Where it will be.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// How long ago it was begun.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Bytes of its packets.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.packers.iter().map(|packer| packer.progress().bytes).sum()
    }

    /// Whether its metadata knows the kinds of record of `info`; else it learns them. Their numbers never change.
    ///
    /// # Errors
    /// [`SaveError`]; then it knows what it knew.
    pub fn know(&mut self, info: &TraceInfo) -> Result<(), SaveError> {
        if info.layouts.len() > self.info.layouts.len() {
            let before = std::mem::replace(&mut self.info.layouts, info.layouts.clone());
            if let Err(error) = self.write_metadata() {
                self.info.layouts = before;
                return Err(error);
            }
        }
        Ok(())
    }

    fn write_metadata(&self) -> Result<(), SaveError> {
        let text = metadata::text(&self.info, &self.uuid);
        Ok(replace(&self.path.join(CTF_FOLDER), "metadata", text.as_bytes())?)
    }

    /// Takes from the ring of a CPU what is wanted. `release` is told how far the file is, each time that it has grown.
    ///
    /// # Errors
    /// [`SaveError`]: what was released is in the file, and the rest can be taken again.
    pub fn take(
        &mut self,
        cpu: usize,
        bench: &mut Bench,
        shapes: &Shapes,
        wanted: &Wanted,
        copy: CopyPage<'_>,
        release: &mut dyn FnMut(&Progress),
    ) -> Result<(), SaveError> {
        let Some(packer) = self.packers.get_mut(cpu) else {
            return Ok(());
        };
        let name = file_name(&self.buffer, packer.identity().cpu);
        let path = self.path.join(CTF_FOLDER).join(name);
        // Opened each time: there may be more CPUs than a process may have files open, and a folder that somebody has
        // removed is noticed.
        let mut file: Option<File> = None;
        let mut write = |bytes: &[u8], at: u64, progress: &Progress| -> Result<(), Failed> {
            if !bytes.is_empty() {
                let open = || {
                    OpenOptions::new()
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .mode(0o600)
                        .open(&path)
                };
                let opened = match file.take() {
                    Some(file) => file,
                    None => open().map_err(Failed::at(&path))?,
                };
                if let Err(error) = opened.write_all_at(bytes, at) {
                    // What was written of it is written again later, or cut off.
                    let _as_well = opened.set_len(at);
                    return Err(Failed::at(&path)(error));
                }
                file = Some(opened);
            }
            release(progress);
            Ok(())
        };
        Ok(packer.take(bench, shapes, wanted, copy, &mut write)?)
    }

    /// Records by event, with what is in the files.
    #[must_use]
    pub fn kept(&self, shapes: &Shapes) -> BTreeMap<String, u64> {
        let mut kept = BTreeMap::new();
        for packer in &self.packers {
            for (id, count) in packer
                .counts()
                .iter()
                .enumerate()
                .filter(|(_, count)| **count > 0)
            {
                if let Some(event) = shapes.event(id) {
                    *kept.entry(event.to_owned()).or_default() += count;
                }
            }
        }
        kept
    }

    /// Adds nothing any more. What is known beside the files is in `about`: why it ends here, what was counted, names.
    /// `None` where no record came: then it is removed.
    #[must_use]
    pub fn close(self, about: Incident, shapes: &Shapes) -> Option<Closing> {
        if self.bytes() == 0 {
            remove(&self.path);
            return None;
        }
        let mut incident = Incident {
            format: FORMAT,
            streams: Vec::new(),
            ..about_of(about, &self.info)
        };
        let mut files = Vec::new();
        for packer in &self.packers {
            let (identity, progress) = (packer.identity(), packer.progress());
            let name = file_name(&self.buffer, identity.cpu);
            incident.streams.push(StreamSummary {
                file: (progress.bytes > 0).then(|| name.clone()),
                buffer: self.buffer.clone(),
                cpu: identity.cpu,
                instance_id: identity.instance_id,
                position: progress.position,
                records: progress.records,
                torn: progress.torn,
                late: progress.late,
                lost: packer.discarded(),
                overwritten_pages: 0,
                missing_pages: progress.missing_pages,
            });
            if progress.bytes == 0 {
                // Of a write that failed there may be an empty one, in which a reader would miss the head of a packet.
                let _nearly_always_none = fs::remove_file(self.path.join(CTF_FOLDER).join(name));
            } else {
                files.push((self.path.join(CTF_FOLDER).join(name), progress.bytes));
                add_times(
                    &mut incident,
                    progress.first_ns.unwrap_or(progress.last_ns),
                    progress.last_ns,
                );
            }
            for (id, count) in packer
                .counts()
                .iter()
                .enumerate()
                .filter(|(_, count)| **count > 0)
            {
                if let Some(event) = shapes.event(id) {
                    add_kept(&mut incident, event, identity.cpu, *count);
                }
            }
        }
        Some(Closing {
            path: self.path,
            folder: self.folder,
            incident,
            files,
        })
    }
}

impl Closing {
    /// Where it will be.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes it lasting and gives it its name. May be tried again where it fails.
    ///
    /// # Errors
    /// [`SaveError`]
    pub fn finish(&self) -> Result<(), SaveError> {
        let ctf = self.path.join(CTF_FOLDER);
        for (path, bytes) in &self.files {
            let lasting = || {
                let file = OpenOptions::new().write(true).open(path)?;
                file.set_len(*bytes)?;
                file.sync_all()
            };
            lasting().map_err(Failed::at(path))?;
        }
        replace(&self.path, INCIDENT_FILE, &json(&self.incident))?;
        sync_folder(&ctf)?;
        sync_folder(&self.path)?;
        rename_finished(&self.path, &self.folder)?;
        // Last: until it has its name this is what keeps it from being taken for a trace that somebody gave up.
        let _only_untidy = fs::remove_file(self.folder.join(BEGUN_FILE));
        Ok(())
    }
}

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
    if let Some((left, incident, files)) = nearly_finished(path, &begun) {
        let path = path.to_owned();
        let closing = Closing {
            path,
            folder,
            incident,
            files,
        };
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
    };
    Ok((left, Some(closing)))
}

/// A piece that only lacks its name: its `incident.json` was written when its files were lasting.
fn nearly_finished(path: &Path, begun: &Incident) -> Option<(Vec<Left>, Incident, Vec<(PathBuf, u64)>)> {
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
    Some((left, incident, files))
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

fn file_name(buffer: &str, cpu: u32) -> String {
    format!("{buffer}_{cpu}")
}

fn begun_stream(buffer: &str, ring: &RingStart) -> StreamSummary {
    StreamSummary {
        buffer: buffer.to_owned(),
        cpu: ring.cpu,
        instance_id: ring.instance_id,
        position: ring.position,
        lost: ring.told,
        ..StreamSummary::default()
    }
}

fn about_of(about: Incident, info: &TraceInfo) -> Incident {
    Incident {
        pack: info.pack.clone(),
        host: info.hostname.clone(),
        kernel_release: info.kernel_release.clone(),
        lkst_version: info.lkst_version.clone(),
        boot_offset_ns: info.boot_offset_ns,
        ..about
    }
}

fn add_times(incident: &mut Incident, first_ns: u64, last_ns: u64) {
    incident.begin_ns = Some(incident.begin_ns.map_or(first_ns, |begin| begin.min(first_ns)));
    incident.end_ns = Some(incident.end_ns.map_or(last_ns, |end| end.max(last_ns)));
}

fn add_kept(incident: &mut Incident, event: &str, cpu: u32, kept: u64) {
    let counts: &mut Counts = incident
        .counts
        .entry(event.to_owned())
        .or_default()
        .entry(cpu)
        .or_default();
    counts.kept += kept;
}

fn json(incident: &Incident) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(incident).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Writes a file under another name, syncs it, and puts it in the place of the one that may be there.
fn replace(folder: &Path, name: &str, content: &[u8]) -> Result<(), Failed> {
    let new = folder.join(format!(".{name}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Failed::at(&new)(error)),
        _ => {}
    }
    write_file(&new, |out| out.write_all(content))?;
    fs::rename(&new, folder.join(name)).map_err(Failed::at(&new))
}

/// Removes a piece without a record, and the folder above where nothing else is in it.
fn remove(path: &Path) {
    // What resists is removed when the next agent begins.
    let _later = fs::remove_dir_all(path);
    if let Some(above) = path.parent() {
        let _not_empty = fs::remove_dir(above);
    }
}
