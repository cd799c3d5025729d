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
//! finished like any other (`left.rs`), and its packets say up to where in the ring they go, for the writer may
//! have been killed before it told the ring.
//!
//! INVARIANT: a folder with `begun.json` has whole metadata, for all records that are in its files.

pub mod left;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::incident::{Counts, FORMAT, Incident, StreamSummary};
use super::metadata::{self, TraceInfo};
use super::names::{self, NAMES_FILE, Namer, Thread};
use super::seal::{CTF_FOLDER, INCIDENT_FILE, SaveError, trace_uuid};
use super::stream::{Bench, CopyPage, Identity, Packer, Progress, Shapes, Wanted};
use super::whole::{Failed, Unfinished, make_folder, rename_finished, sync_folder, write_file};

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
    names: Option<ThreadNames>,
}

/// The names of a piece's threads, as they are written beside its streams.
#[derive(Debug, Clone)]
struct ThreadNames {
    /// The metadata, with their records' kind.
    metadata: String,
    /// The stream.
    stream: Vec<u8>,
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

    /// Adds nothing any more. What is known beside the files is in `about`: why it ends here, what was counted; `namer` is
    /// asked for each thread that has a record in it. `None` where no record came: then it is removed.
    #[must_use]
    pub fn close(self, about: Incident, shapes: &Shapes, namer: Namer<'_>) -> Option<Closing> {
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
        let seen = self.packers.iter().flat_map(|packer| packer.seen().threads());
        let named = seen.filter_map(|(tid, pid)| Some((tid, namer(tid, pid)?)));
        let named: BTreeMap<u32, Thread> = named.collect();
        let names = self.thread_names(incident.begin_ns.unwrap_or_default(), &named);
        incident.names = named
            .into_iter()
            .map(|(tid, thread)| (tid, thread.comm))
            .collect();
        Some(Closing {
            path: self.path,
            folder: self.folder,
            incident,
            files,
            names,
        })
    }

    fn thread_names(&self, begin_ns: u64, named: &BTreeMap<u32, Thread>) -> Option<ThreadNames> {
        let layout = names::layout_beside(&self.info.layouts).filter(|_| !named.is_empty())?;
        let mut stream = Vec::new();
        // Writing to memory does not fail.
        names::write(&mut stream, &self.uuid, layout.id, begin_ns, named).ok()?;
        let mut info = self.info.clone();
        info.layouts.push(layout);
        Some(ThreadNames {
            metadata: metadata::text(&info, &self.uuid),
            stream,
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
        if let Some(names) = &self.names {
            // A kind of record that no stream has does no harm; the other way round it would.
            replace(&ctf, "metadata", names.metadata.as_bytes())?;
            replace(&ctf, NAMES_FILE, &names.stream)?;
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests;
