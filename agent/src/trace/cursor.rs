//! One stream file in, its records one after another out.
//!
//! The file is read through a window of a few records' length rather than mapped: memory stays bounded whatever the
//! file says of its packets, and a file that shrinks meanwhile is an error and no signal. It is opened for each
//! window, so that no number of streams needs that many open files.
//!
//! INVARIANT: a record that is shown passed [`EventClass::content_bytes`] within its packet, and is no older than the
//! one before.
//!
//! [`EventClass::content_bytes`]: super::decode::EventClass::content_bytes

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lkst_probes::layout::{page, record};

use super::decode::{u16_at, u32_at, u64_at};
use super::read::{ReadError, Stream, Trace};

/// The head of a packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    pub(super) instance_id: u64,
    pub(super) begin: u64,
    pub(super) cpu: u32,
    /// Where in the file its last record ends.
    content_end: u64,
    /// Where in the file it ends.
    end: u64,
    discarded: u64,
}

/// What is wrong with a packet or a record, without the file.
pub(super) enum Flaw {
    Truncated { at: u64, missing: u64 },
    Damaged { at: u64, what: &'static str },
    Io(io::Error),
}

impl Flaw {
    pub(super) fn of(self, path: &Path) -> ReadError {
        let path = path.to_owned();
        match self {
            Flaw::Truncated { at, missing } => ReadError::Truncated { path, at, missing },
            Flaw::Damaged { at, what } => ReadError::Damaged { path, at, what },
            Flaw::Io(source) => ReadError::Io { path, source },
        }
    }
}

impl Packet {
    /// Reads the head that lies at `at` in a file of `file_bytes`.
    pub(super) fn parse(head: &[u8], at: u64, file_bytes: u64, uuid: &[u8; 16]) -> Result<Packet, Flaw> {
        const HEAD: u64 = page::HEADER_BYTES as u64;
        let damaged = |what| Err(Flaw::Damaged { at, what });
        if file_bytes.saturating_sub(at) < HEAD {
            let missing = HEAD - (file_bytes.saturating_sub(at));
            return Err(Flaw::Truncated {
                at: file_bytes,
                missing,
            });
        }
        if u32_at(head, page::MAGIC) != Some(page::MAGIC_VALUE) {
            return damaged("no packet begins here");
        }
        if head.get(page::UUID..page::STREAM_ID) != Some(uuid) {
            return damaged("the packet is not of this trace: its UUID is not that of the metadata");
        }
        if u32_at(head, page::STREAM_ID) != Some(0) {
            return damaged("the packet is of a stream that the metadata does not describe");
        }
        let long = |place| u64_at(head, place).unwrap_or(0);
        let (content_bits, packet_bits) = (long(page::CONTENT_SIZE), long(page::PACKET_SIZE));
        let head_bits = (page::CPU_ID as u64 + 4) * 8;
        if packet_bits % 64 != 0
            || content_bits % 8 != 0
            || content_bits > packet_bits
            || content_bits < head_bits
        {
            return damaged("the sizes of the packet make no sense");
        }
        // An eighth of a u64 added to a size of a file: no overflow.
        let end = at + packet_bits / 8;
        Ok(Packet {
            instance_id: long(page::INSTANCE_ID),
            begin: long(page::TIMESTAMP_BEGIN),
            cpu: u32_at(head, page::CPU_ID).unwrap_or(0),
            content_end: at + content_bits / 8,
            end: end.max(at + HEAD),
            discarded: long(page::EVENTS_DISCARDED),
        })
    }
}

/// A place in a stream file.
#[derive(Debug)]
pub(super) struct Cursor<'t> {
    pub(super) stream: &'t Stream,
    pub(super) trace: &'t Trace,
    /// Added to times to lay several boots beside each other.
    offset: i128,
    /// Where doubles of this ring are remembered.
    pub(super) instant: Option<usize>,
    /// Of the file, from `window_at` on. Empty before the first record and after the last.
    window: Vec<u8>,
    window_at: u64,
    /// Where in the file the next record or packet is looked for.
    at: u64,
    packet: Option<Packet>,
    discarded: u64,
    /// The record: where in the window, how long, what.
    start: usize,
    length: usize,
    pub(super) class: usize,
    pub(super) time: u64,
}

impl<'t> Cursor<'t> {
    pub(super) fn new(stream: &'t Stream, trace: &'t Trace, offset: i128, instant: Option<usize>) -> Self {
        Cursor {
            stream,
            trace,
            offset,
            instant,
            window: Vec::new(),
            window_at: 0,
            at: 0,
            packet: None,
            discarded: 0,
            start: 0,
            length: 0,
            class: 0,
            time: 0,
        }
    }

    pub(super) fn has_record(&self) -> bool {
        self.length > 0
    }

    pub(super) fn record(&self) -> &[u8] {
        self.window
            .get(self.start..self.start + self.length)
            .unwrap_or(&[])
    }

    pub(super) fn key(&self) -> i128 {
        self.offset + i128::from(self.time)
    }

    /// Gives its memory back. Returns what the stream's packets said was lost.
    pub(super) fn end(&mut self) -> u64 {
        self.window = Vec::new();
        self.length = 0;
        self.discarded
    }

    /// Moves to the next record; false at the end.
    pub(super) fn advance(&mut self, window_bytes: usize) -> Result<bool, Flaw> {
        loop {
            let Some(packet) = self.packet else {
                if self.at >= self.stream.bytes {
                    return Ok(false);
                }
                self.packet = Some(self.begin_packet(window_bytes)?);
                self.at += page::HEADER_BYTES as u64;
                continue;
            };
            let at = self.at.next_multiple_of(record::ALIGN as u64);
            if at >= packet.content_end.min(self.stream.bytes) {
                if packet.end > self.stream.bytes {
                    return Err(self.truncated(&packet));
                }
                self.at = packet.end;
                self.packet = None;
                continue;
            }
            return self.take_record(at, &packet, window_bytes).map(|()| true);
        }
    }

    fn truncated(&self, packet: &Packet) -> Flaw {
        Flaw::Truncated {
            at: self.stream.bytes,
            missing: packet.end - self.stream.bytes,
        }
    }

    fn begin_packet(&mut self, window_bytes: usize) -> Result<Packet, Flaw> {
        let (at, bytes) = (self.at, self.stream.bytes);
        let start = self.see(at, page::HEADER_BYTES, window_bytes)?;
        let head = self.window.get(start..).unwrap_or(&[]);
        let packet = Packet::parse(head, at, bytes, &self.trace.metadata.uuid)?;
        let what = if packet.cpu != self.stream.cpu || packet.instance_id != self.stream.instance_id {
            "the packet is of another ring than the first one of this file"
        } else if packet.begin < self.time.max(self.stream.begin) {
            "the packet begins before the last record"
        } else {
            self.discarded = packet.discarded;
            return Ok(packet);
        };
        Err(Flaw::Damaged { at, what })
    }

    /// Takes the record at `at`, which lies within the packet and the file.
    fn take_record(&mut self, at: u64, packet: &Packet, window_bytes: usize) -> Result<(), Flaw> {
        let start = self.see(at, record::MAX_BYTES, window_bytes)?;
        let left = usize::try_from(packet.content_end - at).unwrap_or(usize::MAX);
        let bytes = self.window.get(start..).unwrap_or(&[]);
        let bytes = bytes.get(..left).unwrap_or(bytes);
        let damaged = |what| Err(Flaw::Damaged { at, what });
        let cut = packet.content_end > self.stream.bytes;
        let Some((id, time)) = u16_at(bytes, record::ID).zip(u64_at(bytes, record::TIME)) else {
            return if cut {
                Err(self.truncated(packet))
            } else {
                damaged("a record runs over its packet")
            };
        };
        let Some(place) = self.trace.classes.find(id) else {
            return damaged("a record of a kind that the metadata does not describe");
        };
        let class = self.trace.classes.at(place);
        let Some(length) = class.and_then(|class| class.event.content_bytes(bytes)) else {
            return if cut {
                Err(self.truncated(packet))
            } else {
                damaged("a record runs over its packet")
            };
        };
        if time < self.time.max(packet.begin) {
            return damaged("a record is older than the one before it");
        }
        self.start = start;
        self.length = length;
        self.class = place;
        self.time = time;
        self.at = at + length as u64;
        Ok(())
    }

    /// Makes `length` bytes at `at` visible, or what the file has of them. Returns where in the window they are.
    fn see(&mut self, at: u64, length: usize, window_bytes: usize) -> Result<usize, Flaw> {
        let end = self.stream.bytes.min(at + length as u64);
        if at < self.window_at || end > self.window_at + self.window.len() as u64 {
            let left = usize::try_from(self.stream.bytes.saturating_sub(at)).unwrap_or(usize::MAX);
            self.window.resize(window_bytes.min(left), 0);
            self.window_at = at;
            // The file is opened each time: there may be more streams than a process may have files open.
            File::open(&self.stream.path)
                .and_then(|file| file.read_exact_at(&mut self.window, at))
                .map_err(Flaw::Io)?;
        }
        Ok((at - self.window_at) as usize)
    }
}
