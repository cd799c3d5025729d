//! The cursors of all streams in, their records by time out, each once.
//!
//! A heap orders the streams by their next record; while one stream stays ahead the heap is only looked at. The same
//! record saved in two incidents is recognised by its ring, its time and its bytes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

use lkst_probes::layout::record;

use super::cursor::Cursor;
use super::decode::{Values, u32_at};
use super::read::{Class, ReadError, Stream, Trace, Traces};

/// What all windows together take, where that leaves each at least [`MIN_WINDOW`].
const WINDOWS_BYTES: usize = 16 << 20;
/// Two of the largest records.
const MIN_WINDOW: usize = 8 << 10;
const MAX_WINDOW: usize = 64 << 10;

/// Records of one instant that are remembered to find those saved twice.
const MAX_INSTANT: usize = 1 << 16;

/// A record.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    /// Its trace.
    pub trace: &'a Trace,
    /// Its stream.
    pub stream: &'a Stream,
    /// Its kind.
    pub class: &'a Class,
    /// Nanoseconds of the boot clock.
    pub time: u64,
    /// Its bytes, up to the end of its last field.
    pub bytes: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// The event's name.
    #[must_use]
    pub fn event(&self) -> &'a str {
        &self.class.event.layout.name
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        u32_at(self.bytes, record::PID).unwrap_or(0)
    }

    /// The thread.
    #[must_use]
    pub fn tid(&self) -> u32 {
        u32_at(self.bytes, record::TID).unwrap_or(0)
    }

    /// The thread's name, where the trace knows it: the last that it had when the trace was saved.
    #[must_use]
    pub fn comm(&self) -> Option<&'a str> {
        self.trace.names.get(&self.tid()).map(String::as_str)
    }

    /// The columns with their values.
    #[must_use]
    pub fn values(&self) -> Values<'a> {
        self.class.event.values(self.bytes)
    }
}

/// Says which records are wanted.
pub trait Filter {
    /// True where this one is.
    fn matches(&mut self, record: &RecordView<'_>) -> bool;
}

/// All records of some traces by time. Not an `Iterator`: a record borrows the window that it lies in.
#[derive(Debug)]
pub struct Records<'t> {
    cursors: Vec<Cursor<'t>>,
    /// Cursors by the time of their next record, but for `current`.
    waiting: BinaryHeap<Reverse<(i128, usize)>>,
    /// Whose record was returned last.
    current: Option<usize>,
    /// For rings that several files were saved from.
    instants: Vec<Instant>,
    window_bytes: usize,
    discarded: u64,
    doubles: u64,
}

impl<'t> Records<'t> {
    pub(super) fn new(traces: &'t Traces) -> Self {
        let offsets = offsets(traces);
        // How many files each ring has, and where its doubles are remembered.
        let mut rings = HashMap::<_, (usize, Option<usize>)>::new();
        for stream in &traces.streams {
            rings.entry(ring(traces, stream)).or_default().0 += 1;
        }
        let mut instants = Vec::new();
        let mut cursors = Vec::with_capacity(traces.streams.len());
        let mut waiting = BinaryHeap::with_capacity(traces.streams.len());
        for (index, stream) in traces.streams.iter().enumerate() {
            let Some(trace) = traces.traces.get(stream.trace) else {
                continue;
            };
            let instant = match rings.get_mut(&ring(traces, stream)) {
                Some((2.., place)) => Some(*place.get_or_insert_with(|| {
                    instants.push(Instant::default());
                    instants.len() - 1
                })),
                _ => None,
            };
            let offset = offsets.get(stream.trace).copied().unwrap_or(0);
            waiting.push(Reverse((offset + i128::from(stream.begin), index)));
            cursors.push(Cursor::new(stream, trace, offset, instant));
        }
        let window_bytes = (WINDOWS_BYTES / cursors.len().max(1)).clamp(MIN_WINDOW, MAX_WINDOW);
        Records {
            cursors,
            waiting,
            current: None,
            instants,
            window_bytes,
            discarded: 0,
            doubles: 0,
        }
    }

    /// The next record.
    ///
    /// # Errors
    /// What is wrong with a stream. That one has ended; calling again goes on with the others.
    pub fn next_record(&mut self) -> Result<Option<RecordView<'_>>, ReadError> {
        while let Some(index) = self.advance()? {
            if !self.is_double(index) {
                return Ok(self.view());
            }
            self.doubles += 1;
        }
        Ok(None)
    }

    /// Records that found no room in their rings, as far as the streams were read.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Records that were in several traces and were returned once.
    #[must_use]
    pub fn doubles(&self) -> u64 {
        self.doubles
    }

    fn view(&self) -> Option<RecordView<'_>> {
        let cursor = self.cursors.get(self.current?)?;
        Some(RecordView {
            trace: cursor.trace,
            stream: cursor.stream,
            class: cursor.trace.classes.at(cursor.class)?,
            time: cursor.time,
            bytes: cursor.record(),
        })
    }

    /// Moves to the next record of all; its cursor is `current` then.
    fn advance(&mut self) -> Result<Option<usize>, ReadError> {
        let mut moved = self.current;
        loop {
            if let Some(index) = moved.take() {
                let Some(cursor) = self.cursors.get_mut(index) else {
                    return Ok(None);
                };
                match cursor.advance(self.window_bytes) {
                    Ok(true) => {
                        let key = (cursor.key(), index);
                        match self.waiting.peek() {
                            Some(Reverse(first)) if *first < key => {
                                self.waiting.push(Reverse(key));
                            }
                            _ => {
                                self.current = Some(index);
                                return Ok(Some(index));
                            }
                        }
                    }
                    Ok(false) => self.discarded = self.discarded.saturating_add(cursor.end()),
                    Err(flaw) => {
                        self.discarded = self.discarded.saturating_add(cursor.end());
                        self.current = None;
                        return Err(flaw.of(&cursor.stream.path));
                    }
                }
            }
            let Some(Reverse((_, index))) = self.waiting.pop() else {
                self.current = None;
                return Ok(None);
            };
            if self.cursors.get(index).is_some_and(Cursor::has_record) {
                self.current = Some(index);
                return Ok(Some(index));
            }
            // Not begun yet: its place was by the head of its first packet.
            moved = Some(index);
        }
    }

    /// True where the current record was returned from another file of the same ring.
    fn is_double(&mut self, index: usize) -> bool {
        let Some(cursor) = self.cursors.get(index) else {
            return false;
        };
        let instant = cursor.instant.and_then(|instant| self.instants.get_mut(instant));
        instant.is_some_and(|instant| instant.is_double(cursor.time, index, cursor.record()))
    }
}

/// For each trace what to add to its times. Traces of one boot share one clock and one offset, for the wall clock is
/// set now and then; different boots and hosts are laid beside each other by it.
fn offsets(traces: &Traces) -> Vec<i128> {
    let mut boots = HashMap::new();
    let own = |trace: &Trace| i128::from(trace.metadata.info.boot_offset_ns);
    traces
        .traces
        .iter()
        .map(
            |trace| match (&trace.metadata.info.boot_id, &trace.metadata.info.hostname) {
                (boot, _) if boot.is_empty() => {
                    *boots.entry((trace.metadata.info.uuid, "")).or_insert(own(trace))
                }
                (boot, _) => *boots.entry(([0; 16], boot.as_str())).or_insert(own(trace)),
            },
        )
        .collect()
}

/// What makes two files parts of one ring.
fn ring(traces: &Traces, stream: &Stream) -> impl Hash + Eq + use<> {
    let session = traces
        .traces
        .get(stream.trace)
        .map(|trace| trace.metadata.info.uuid);
    (session, stream.instance_id, stream.cpu)
}

/// The records of one ring at one time that were seen, to find those that several files hold.
///
/// Of equal times the merge takes one file's records after the other's. So a record is a double where its file has
/// had it no more often than another file before.
#[derive(Debug, Default)]
struct Instant {
    time: u64,
    seen: HashMap<Box<[u8]>, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// How often it was returned.
    returned: u32,
    /// How often it was in this file.
    in_file: u32,
    file: usize,
}

impl Instant {
    fn is_double(&mut self, time: u64, file: usize, record: &[u8]) -> bool {
        if time != self.time {
            self.seen.clear();
            self.time = time;
        }
        if let Some(seen) = self.seen.get_mut(record) {
            if seen.file != file {
                seen.file = file;
                seen.in_file = 0;
            }
            seen.in_file += 1;
            let double = seen.in_file <= seen.returned;
            seen.returned = seen.returned.max(seen.in_file);
            return double;
        }
        if self.seen.len() < MAX_INSTANT {
            let seen = Seen {
                returned: 1,
                in_file: 1,
                file,
            };
            self.seen.insert(record.into(), seen);
        }
        false
    }
}
