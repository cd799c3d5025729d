//! Trace folders in, records in the order of their time out: lazily, in bounded memory, each record once.
//!
//! [`Traces::open`] looks for folders that hold a `metadata` file and reads what is small: metadata, `incident.json`,
//! the head of each stream file. [`Traces::records`] then merges the streams (`merge.rs`), each of which is read
//! through a window (`cursor.rs`). A damaged stream ends where the damage is; it is told, and the others go on.
//!
//! INVARIANT: no input makes this panic, loop or take memory beyond a multiple of what it read.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lkst_probes::layout::{RecordLayout, page};

use super::cursor::Packet;
use super::decode::{Classes, EventClass};
use super::incident::Incident;
pub use super::merge::{Filter, RecordView, Records};
use super::names::{self, NAMES_EVENT, NAMES_FILE};
use super::seal::INCIDENT_FILE;
use super::tsdl::{self, Metadata, ParseError};

/// How deep a folder of traces is searched: `DIR/PACK/TIME-REASON/ctf` and one to spare.
const MAX_DEPTH: usize = 5;

/// The largest `incident.json` that is read.
const MAX_INCIDENT_BYTES: u64 = 64 << 20;

/// What is wrong with a trace.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Of the file system.
    #[error("cannot read {path:?}: {source}")]
    Io {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is none.
    #[error("no trace in {path:?}: neither it nor a folder in it holds a `metadata` file")]
    NoTrace {
        /// Where.
        path: PathBuf,
    },
    /// Metadata that lkst did not write.
    #[error("{path:?} is not the metadata of a trace that lkst wrote: {source}")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// Where it differs.
        source: ParseError,
    },
    /// A file that is larger than lkst writes it, or no text.
    #[error("{path:?} {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A stream file that ends too early.
    #[error(
        "{path:?} is truncated: it ends at byte {at}, and {missing} bytes of its last packet are missing"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size.
        at: u64,
        /// How much is missing at least.
        missing: u64,
    },
    /// A stream file whose bytes contradict the format.
    #[error("{path:?} is damaged at byte {at}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong there.
        what: &'static str,
    },
}

impl ReadError {
    fn io(path: &Path) -> impl Fn(io::Error) -> ReadError + '_ {
        move |source| ReadError::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// One trace: a folder with a `metadata` file.
#[derive(Debug)]
pub struct Trace {
    /// The folder.
    pub folder: PathBuf,
    /// Its metadata; the layouts are in `classes`.
    pub metadata: Metadata,
    /// Its kinds of record, but for that which names threads. Traces that have the same one share it.
    pub classes: Classes<Arc<Class>>,
    /// Why it was saved, where that is known.
    pub incident: Option<Incident>,
    /// The names of its threads.
    pub names: BTreeMap<u32, String>,
}

/// A kind of record, numbered among all traces that were opened together.
#[derive(Debug)]
pub struct Class {
    /// Its number, from 0 without gaps.
    pub index: usize,
    /// The class.
    pub event: EventClass,
}

impl std::borrow::Borrow<EventClass> for Arc<Class> {
    fn borrow(&self) -> &EventClass {
        &self.event
    }
}

/// A stream file.
#[derive(Debug)]
pub struct Stream {
    /// Its place in [`Traces::streams`].
    pub index: usize,
    /// Its trace's place in [`Traces::traces`].
    pub trace: usize,
    /// The file.
    pub path: PathBuf,
    /// The buffer, by the file's name.
    pub buffer: String,
    /// The CPU.
    pub cpu: u32,
    /// The ring that the records come from.
    pub instance_id: u64,
    pub(super) bytes: u64,
    pub(super) begin: u64,
}

/// Traces that are read together.
#[derive(Debug, Default)]
pub struct Traces {
    /// The traces in the order in which they were found.
    pub traces: Vec<Trace>,
    /// Their stream files.
    pub streams: Vec<Stream>,
    /// How many different classes they have.
    pub class_count: usize,
    /// What could not be opened beside them.
    pub problems: Vec<ReadError>,
}

impl Traces {
    /// Opens traces, and all traces in folders.
    ///
    /// # Errors
    /// Where a path leads to no trace, or a trace's metadata cannot be read. What is wrong with single stream files
    /// is in [`Traces::problems`].
    pub fn open(paths: &[impl AsRef<Path>]) -> Result<Traces, ReadError> {
        let mut folders = BTreeMap::new();
        for path in paths {
            let path = path.as_ref();
            let before = folders.len();
            find(path, 0, &mut folders)?;
            if folders.len() == before && !known(path, &folders) {
                return Err(ReadError::NoTrace {
                    path: path.to_owned(),
                });
            }
        }
        let mut traces = Traces::default();
        let mut classes = HashMap::new();
        for folder in folders.into_values() {
            traces.add(folder, &mut classes)?;
        }
        traces.class_count = classes.len();
        Ok(traces)
    }

    /// Reads a trace's small files.
    fn add(
        &mut self,
        folder: PathBuf,
        known: &mut HashMap<RecordLayout, Arc<Class>>,
    ) -> Result<(), ReadError> {
        let path = folder.join("metadata");
        let text = read_text(&path, tsdl::MAX_BYTES)?;
        let mut metadata = tsdl::parse(&text).map_err(|source| ReadError::Metadata { path, source })?;
        let mut classes = Vec::with_capacity(metadata.info.layouts.len());
        for layout in std::mem::take(&mut metadata.info.layouts) {
            let index = known.len();
            let class = known.entry(layout).or_insert_with_key(|layout| {
                let event = EventClass::new(layout.clone());
                Arc::new(Class { index, event })
            });
            classes.push(Arc::clone(class));
        }
        let incident = match incident_beside(&folder) {
            Ok(incident) => incident,
            Err(problem) => {
                self.problems.push(problem);
                None
            }
        };
        let trace = self.traces.len();
        let uuid = metadata.uuid;
        let mut files = stream_files(&folder)?;
        self.problems
            .extend(missing_streams(&folder, incident.as_ref(), &files));
        let is_names = |path: &mut PathBuf| path.file_name().is_some_and(|name| name == NAMES_FILE);
        let names_files: Vec<PathBuf> = files.extract_if(.., is_names).collect();
        for path in files {
            let index = self.streams.len();
            match Stream::open(index, trace, path, &uuid) {
                Ok(stream) => self.streams.push(stream),
                Err(problem) => self.problems.push(problem),
            }
        }
        let mut trace = Trace {
            folder,
            metadata,
            classes: Classes::new(classes.clone()),
            names: incident.as_ref().map_or_else(BTreeMap::new, |i| i.names.clone()),
            incident,
        };
        for path in names_files {
            let (named, problem) = names::read(&trace, &path);
            trace.names.extend(named);
            self.problems.extend(problem);
        }
        classes.retain(|class| class.event.layout.name != NAMES_EVENT);
        trace.classes = Classes::new(classes);
        self.traces.push(trace);
        Ok(())
    }

    /// All records of all streams by time.
    #[must_use]
    pub fn records(&self) -> Records<'_> {
        Records::new(self)
    }
}

/// Adds the folders at or below `path` that hold a `metadata` file, by their real path so that each comes once.
fn find(path: &Path, depth: usize, folders: &mut BTreeMap<PathBuf, PathBuf>) -> Result<(), ReadError> {
    if path.join("metadata").is_file() {
        let real = fs::canonicalize(path).map_err(ReadError::io(path))?;
        folders.entry(real).or_insert_with(|| path.to_owned());
        return Ok(());
    }
    if depth == MAX_DEPTH {
        return Ok(());
    }
    let mut entries = fs::read_dir(path)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(ReadError::io(path))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // A link is not followed, so a folder cannot hold itself.
        if !hidden && entry.file_type().is_ok_and(|ty| ty.is_dir()) {
            find(&entry.path(), depth + 1, folders)?;
        }
    }
    Ok(())
}

/// True where a trace at or below the path was found by another path.
fn known(path: &Path, folders: &BTreeMap<PathBuf, PathBuf>) -> bool {
    fs::canonicalize(path).is_ok_and(|real| folders.keys().any(|folder| folder.starts_with(&real)))
}

/// The whole of a file that must be text.
fn read_text(path: &Path, max_bytes: u64) -> Result<String, ReadError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(ReadError::io(path))?;
    file.take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(ReadError::io(path))?;
    let what = if bytes.len() as u64 > max_bytes {
        format!("is larger than {} MiB", max_bytes >> 20)
    } else {
        match String::from_utf8(bytes) {
            Ok(text) => return Ok(text),
            Err(_) => "is not UTF-8".to_owned(),
        }
    };
    let path = path.to_owned();
    Err(ReadError::File { path, what })
}

/// The `incident.json` of a trace, in its folder or in the one above.
fn incident_beside(folder: &Path) -> Result<Option<Incident>, ReadError> {
    let above = folder.join("..").join(INCIDENT_FILE);
    for path in [folder.join(INCIDENT_FILE), above] {
        if path.is_file() {
            let text = read_text(&path, MAX_INCIDENT_BYTES)?;
            return serde_json::from_str(&text)
                .map(Some)
                .map_err(|error| ReadError::File {
                    path,
                    what: format!("is not what lkst wrote: {error}"),
                });
        }
    }
    Ok(None)
}

/// The files beside `metadata`, sorted.
fn stream_files(folder: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(ReadError::io(folder))? {
        let entry = entry.map_err(ReadError::io(folder))?;
        let name = entry.file_name();
        let other = name.as_encoded_bytes().starts_with(b".") || name == "metadata" || name == INCIDENT_FILE;
        if !other && entry.file_type().is_ok_and(|ty| ty.is_file()) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// The stream files that the incident speaks of and that are not there.
fn missing_streams(folder: &Path, incident: Option<&Incident>, files: &[PathBuf]) -> Vec<ReadError> {
    let named = incident.into_iter().flat_map(|incident| &incident.streams);
    let named = named
        .filter_map(|stream| stream.file.as_ref())
        .map(|file| folder.join(file));
    named
        .filter(|path| !files.contains(path))
        .map(|path| ReadError::File {
            path,
            what: "is missing: its records are not shown".to_owned(),
        })
        .collect()
}

impl Stream {
    /// Reads the head of a stream file. A ring without records has no file, so an empty file has lost some.
    pub(super) fn open(
        index: usize,
        trace: usize,
        path: PathBuf,
        uuid: &[u8; 16],
    ) -> Result<Stream, ReadError> {
        let file = File::open(&path).map_err(ReadError::io(&path))?;
        let bytes = file.metadata().map_err(ReadError::io(&path))?.len();
        if bytes == 0 {
            let missing = page::HEADER_BYTES as u64;
            return Err(ReadError::Truncated { path, at: 0, missing });
        }
        let mut head = [0; page::HEADER_BYTES];
        let taken = usize::try_from(bytes).unwrap_or(head.len()).min(head.len());
        file.read_exact_at(head.get_mut(..taken).unwrap_or(&mut []), 0)
            .map_err(ReadError::io(&path))?;
        let packet = Packet::parse(&head, 0, bytes, uuid).map_err(|error| error.of(&path))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let buffer = stem
            .rsplit_once('_')
            .map_or(&*stem, |(buffer, _)| buffer)
            .to_owned();
        Ok(Stream {
            index,
            trace,
            buffer,
            cpu: packet.cpu,
            instance_id: packet.instance_id,
            bytes,
            begin: packet.begin,
            path,
        })
    }
}
