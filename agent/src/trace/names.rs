//! The names of a trace's threads: written as records of a stream of their own, and read back as a table.
//!
//! ```text
//! ctf/names    lkst:thread: { tid, pid, comm }, one for each thread, all at the time of the trace's first record
//! ```
//!
//! So every reader of CTF sees them. [`super::read`] takes them as names, and not as records of the traced system.
//!
//! INVARIANT: `names` is the name of no other stream: those of buffers end in `_CPU`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use lkst_probes::layout::{Encoding, RecordLayout, VARYING_MAX_BYTES, record};

use super::cursor::Cursor;
use super::decode::Value;
use super::escape::lossless;
use super::raw::{RawStream, RecordRef};
use super::read::{ReadError, Stream, Trace};
use super::seal::packets;

/// The file beside the streams of the buffers.
pub const NAMES_FILE: &str = "names";

/// The event of its records.
pub const NAMES_EVENT: &str = "lkst:thread";

/// The instance of their stream: no ring's, which are drawn from 2^64.
const INSTANCE: u64 = u64::from_le_bytes(*b"lkst\0tid");

/// What is read of the file at a time.
const WINDOW_BYTES: usize = 64 << 10;

/// A thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thread {
    /// Its process.
    pub pid: u32,
    /// Its name, as it was last known when the trace was saved.
    pub comm: String,
}

/// Threads that were seen in records: the number of each and that of its process.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Of the threads seen last, by the low bits of their numbers: most records are of one of these.
    lately: [(u32, u32); SEEN_LATELY],
    all: BTreeMap<u32, u32>,
}

/// A power of two.
const SEEN_LATELY: usize = 64;

impl Default for Seen {
    fn default() -> Seen {
        Seen {
            lately: [(u32::MAX, u32::MAX); SEEN_LATELY],
            all: BTreeMap::new(),
        }
    }
}

impl Seen {
    /// Takes note of a record's.
    pub fn see(&mut self, tid: u32, pid: u32) {
        if let Some(lately) = self.lately.get_mut(tid as usize % SEEN_LATELY)
            && *lately != (tid, pid)
        {
            *lately = (tid, pid);
            self.all.insert(tid, pid);
        }
    }

    /// All of them.
    pub fn threads(&self) -> impl Iterator<Item = (u32, u32)> {
        self.all.iter().map(|(tid, pid)| (*tid, *pid))
    }
}

/// Names threads: the number of one that a trace has a record of and that of its process, as the record has it.
pub type Namer<'n> = &'n mut dyn FnMut(u32, u32) -> Option<Thread>;

/// The layout of the records, with an id that none of `layouts` has; `None` where all are taken.
pub(super) fn layout_beside(layouts: &[RecordLayout]) -> Option<RecordLayout> {
    let highest = layouts.iter().map(|layout| layout.id).max().unwrap_or(0);
    let number = || Encoding::Int {
        bits: 32,
        signed: false,
    };
    let columns = [("tid", number()), ("pid", number()), ("comm", Encoding::String)];
    let columns = columns.map(|(name, encoding)| (name.to_owned(), encoding, false));
    RecordLayout::new(highest.checked_add(1)?, NAMES_EVENT, columns).ok()
}

/// Writes the stream file of these threads.
pub(super) fn write(
    out: &mut dyn Write,
    uuid: &[u8; 16],
    id: u16,
    time_ns: u64,
    threads: &BTreeMap<u32, Thread>,
) -> io::Result<()> {
    let mut raw = RawStream {
        instance_id: INSTANCE,
        ..RawStream::default()
    };
    let mut records = Vec::with_capacity(threads.len());
    for (tid, thread) in threads {
        let start = raw.pages.len();
        raw.pages.extend_from_slice(&id.to_le_bytes());
        raw.pages.resize(start + record::TIME, 0);
        raw.pages.extend_from_slice(&time_ns.to_le_bytes());
        // Who made the record, which is the thread that it is about; then the columns.
        for number in [thread.pid, *tid, *tid, thread.pid] {
            raw.pages.extend_from_slice(&number.to_le_bytes());
        }
        let text = thread.comm.bytes().filter(|byte| *byte != 0);
        raw.pages.extend(text.take(VARYING_MAX_BYTES - 1).chain([0]));
        records.push(RecordRef {
            at: 0,
            id,
            time: time_ns,
            bytes: start..raw.pages.len(),
        });
    }
    packets(out, uuid, &raw, &records)
}

/// Reads the stream file: of a damaged one what comes before the damage. `trace` has all classes.
pub(super) fn read(trace: &Trace, path: &Path) -> (BTreeMap<u32, String>, Option<ReadError>) {
    let mut names = BTreeMap::new();
    let stream = match Stream::open(0, 0, path.to_owned(), &trace.metadata.uuid) {
        Ok(stream) => stream,
        Err(problem) => return (names, Some(problem)),
    };
    let mut cursor = Cursor::new(&stream, trace, 0, None);
    loop {
        match cursor.advance(WINDOW_BYTES) {
            Ok(true) => {}
            Ok(false) => return (names, None),
            Err(flaw) => return (names, Some(flaw.of(path))),
        }
        let class = trace.classes.at(cursor.class);
        let Some(class) = class.filter(|class| class.event.layout.name == NAMES_EVENT) else {
            continue;
        };
        let (mut tid, mut comm) = (None, None);
        for (column, value) in class.event.values(cursor.record()) {
            match (column.name.as_str(), value) {
                ("tid", Value::Int(int)) => tid = u32::try_from(int.extended).ok(),
                ("comm", Value::Text(text)) => comm = Some(lossless(text)),
                _ => {}
            }
        }
        names.extend(tid.zip(comm));
    }
}
