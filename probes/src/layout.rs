//! The one place that knows an offset: of control words, heads, pages and records.
//!
//! In: columns of a plan. Out: constants and [`RecordLayout`]s. The code generator, the CTF metadata and every reader
//! ask here, so none of them can disagree about a byte.
//!
//! All integers are in the machine's own byte order, which lkst requires to be little-endian.

use std::sync::Arc;

use lkst_rules::plan::Column;
use lkst_rules::schema::Type;
use serde::{Deserialize, Serialize};

/// Bytes of a page, which is a CTF packet in the making.
pub const PAGE_BYTES: usize = 4096;

/// The head of a page: `packet.header`, then `packet.context` of the CTF metadata.
pub mod page {
    /// `u32 magic`
    pub const MAGIC: usize = 0;
    /// `u8 uuid[16]`: the session's.
    pub const UUID: usize = 4;
    /// `u32 stream_id`, always 0.
    pub const STREAM_ID: usize = 20;
    /// `u64 stream_instance_id`: unique to this allocation of this buffer and CPU.
    pub const INSTANCE_ID: usize = 24;
    /// `u64 timestamp_begin`, 0 in a live page.
    pub const TIMESTAMP_BEGIN: usize = 32;
    /// `u64 timestamp_end`, 0 in a live page.
    pub const TIMESTAMP_END: usize = 40;
    /// `u64 content_size` in bits, 0 in a live page.
    pub const CONTENT_SIZE: usize = 48;
    /// `u64 packet_size` in bits, 0 in a live page: that tells it from a saved trace in a memory dump.
    pub const PACKET_SIZE: usize = 56;
    /// `u64 packet_seq_num`: how many pages this ring had used before this one. Written by whoever first reserves in it.
    pub const SEQ: usize = 64;
    /// `u64 events_discarded`, 0 in a live page.
    pub const EVENTS_DISCARDED: usize = 72;
    /// `u32 cpu_id`
    pub const CPU_ID: usize = 80;
    /// `u32`, in a packet that was drained from a stream: up to where in the ring it goes, in units of
    /// [`super::record::ALIGN`] bytes, modulo 2^32. To CTF it is padding. 0 elsewhere.
    pub const DRAINED_TO: usize = 84;
    /// Where the first record begins: the end of the head at a record's alignment.
    pub const HEADER_BYTES: usize = 88;
    /// The magic number of CTF 1.8.
    pub const MAGIC_VALUE: u32 = 0xC1FC_1FC1;
}

/// A record: a word, the time, who, then the fields.
pub mod record {
    /// `u16 id` of the word; 0 while it is reserved only.
    pub const ID: usize = 0;
    /// `u16 length` of the word: bytes of the whole record, a multiple of 8.
    pub const LENGTH: usize = 2;
    /// `u32 tag` of the word, see [`super::tag`].
    pub const TAG: usize = 4;
    /// `u64 timestamp`, nanoseconds of the boot clock.
    pub const TIME: usize = 8;
    /// `u32 pid`: the process.
    pub const PID: usize = 16;
    /// `u32 tid`: the thread.
    pub const TID: usize = 20;
    /// Where the fields begin.
    pub const FIELDS: usize = 24;
    /// Every record begins at a multiple of this.
    pub const ALIGN: usize = 8;
    /// Bytes of the largest record: what a page holds.
    pub const MAX_BYTES: usize = super::PAGE_BYTES - super::page::HEADER_BYTES;
}

/// A head: one for each buffer and CPU, a cache line each.
pub mod head {
    /// `u64 pos`: bytes reserved since the ring was made, page heads included.
    pub const POS: usize = 0;
    /// `u64 busy`: `pos << 16 | length` of the outermost record being written, 0 where there is none.
    pub const BUSY: usize = 8;
    /// `u64 lost`: records that found no room: by nesting, and in a stream whose reader was too slow.
    pub const LOST: usize = 16;
    /// `u64 floor`: the position below which everything was saved and given up. A stream never writes to a page at or
    /// above the floor's a second time.
    pub const FLOOR: usize = 24;
    /// `u32 salt` of the ring's tags.
    pub const SALT: usize = 32;
    /// `u64`: of a stream's `lost`, what its packets have told of. Programs do not look at it.
    pub const TOLD: usize = 40;
    /// Bytes of a head.
    pub const BYTES: usize = 64;
}

/// Control words: a header, at the start of their first map; a block for each pack; a word for each rule, its limit; a
/// word for each event of each pack, where its counters lie.
pub mod control {
    /// `u64 generation`: its lowest bit says which slot of every dispatcher is in force.
    pub const GENERATION: u32 = 0;
    /// `u32 tgid` of the agent, whose own events are skipped.
    pub const SELF_TGID: u32 = 8;
    /// `u64`: always 0, which the verifier does not know.
    pub const ZERO: u32 = 16;
    /// Bytes before the first pack's block.
    pub const HEADER_BYTES: u32 = 64;

    /// In a block: the state word, see [`super::state`].
    pub const STATE: u32 = 0;
    /// In a block: `u64`, when recording returns to `main`; all ones where it does not.
    pub const SWITCH_UNTIL: u32 = 8;
    /// In a block: `u64` for each set, when it ends; [`NEVER`] or [`SINCE_START`] where it does not.
    pub const SET_UNTIL: u32 = 64;
    /// Bytes of a block.
    pub const BLOCK_BYTES: u32 = SET_UNTIL + 8 * super::state::SETS;

    /// An end that never comes.
    pub const NEVER: u64 = u64::MAX;
    /// An end that never comes, of a set that is enabled because it is in `start`, and by no firing.
    pub const SINCE_START: u64 = u64::MAX - 1;
}

/// The bits of a state word.
pub mod state {
    /// How many sets: bits 0 to 39 say which are enabled.
    pub const SETS: u32 = 40;
    /// The lowest of three bits: the current buffer.
    pub const CURRENT_SHIFT: u32 = 40;
    /// How many buffers.
    pub const BUFFERS: u32 = 8;
    /// The lowest of eight bits: which buffers are kept.
    pub const KEPT_SHIFT: u32 = 43;
    /// The pack has stopped.
    pub const STOPPED_SHIFT: u32 = 51;
    /// The lowest of twelve bits: how often the word was changed.
    pub const SEQUENCE_SHIFT: u32 = 52;

    /// The current buffer.
    #[must_use]
    pub fn current(word: u64) -> usize {
        (word >> CURRENT_SHIFT & 7) as usize
    }

    /// Whether a buffer is kept.
    #[must_use]
    pub fn is_kept(word: u64, buffer: usize) -> bool {
        word >> KEPT_SHIFT >> buffer & 1 == 1
    }

    /// Whether the pack has stopped.
    #[must_use]
    pub fn is_stopped(word: u64) -> bool {
        word >> STOPPED_SHIFT & 1 == 1
    }

    /// The word with another sequence number, as every change of it must have.
    #[must_use]
    pub fn bumped(word: u64) -> u64 {
        word.wrapping_add(1 << SEQUENCE_SHIFT)
    }
}

/// Counters, each a `u64`, in a run of bytes for each CPU.
pub mod counter {
    /// Bytes of a CPU's counters in each map of them.
    pub const STRIDE: u32 = 16 << 10;

    /// Of an event in a pack: records made.
    pub const RECORDED: u32 = 0;
    /// Of an event in a pack: records that found no room.
    pub const LOST: u32 = 8;
    /// Of an event in a pack: hits over a set's `max`.
    pub const CAPPED: u32 = 16;
    /// Of an event in a pack: texts that could not be read.
    pub const UNREADABLE: u32 = 24;
    /// Of an event in a pack: hits that were not recorded since the pack was over its budget.
    pub const OVER_BUDGET: u32 = 32;
    /// Bytes of an event's counters.
    pub const EVENT_BYTES: u32 = 40;

    /// Of a rule: firings.
    pub const FIRED: u32 = 0;
    /// Of a rule: firings that its limit refused.
    pub const LIMITED: u32 = 8;
    /// Of a rule: switches to a buffer that is kept.
    pub const REFUSED: u32 = 16;
    /// Of a rule: firings whose change of the state was given up after too many tries.
    pub const GIVEN_UP: u32 = 24;
    /// Bytes of a rule's counters.
    pub const RULE_BYTES: u32 = 32;

    /// Of a capped set: `u64`, when its second began.
    pub const CAP_START: u32 = 0;
    /// Of a capped set: `u64`, records in this second.
    pub const CAP_COUNT: u32 = 8;
    /// Bytes of a capped set's cell.
    pub const CAP_BYTES: u32 = 16;
}

/// What a pack has cost on a CPU: words in a cell among the counters. Sums since the cell was given out.
pub mod cost {
    /// `u64`: hits of its events.
    pub const HITS: i16 = 0;
    /// `u64`: what those cost, and the firings, in nanoseconds. No budget holds it back.
    pub const OF_HITS_NS: i16 = 8;
    /// `u64`: what the records cost, in nanoseconds.
    pub const OF_RECORDS_NS: i16 = 16;
    /// `u64`: when the second began in which the budget is counted, by the boot clock.
    pub const START: i16 = 24;
    /// `u64`: both sums at that time.
    pub const BASE_NS: i16 = 32;
    /// `u64`: 1 where the budget of that second is spent.
    pub const IS_OVER: i16 = 40;
    /// Bytes of a cell: a cache line.
    pub const BYTES: u32 = 64;
}

/// What the kernel tells the agent: a fixed head; then, of a firing, its own record. A notice that is no longer than its
/// head says that a stream of that pack and CPU has filled another quarter of its ring.
pub mod notice {
    /// `u32 pack`
    pub const PACK: i16 = 0;
    /// `u32 cpu`
    pub const CPU: i16 = 4;
    /// The record, cut to the largest that the program has.
    pub const RECORD: i16 = 8;
}

/// The names of threads: a map from the thread's number, a `u32`, to this.
pub mod name {
    /// `u32 pid`: the process.
    pub const PID: usize = 0;
    /// `u8 comm[16]`, NUL-terminated.
    pub const COMM: usize = 4;
    /// Bytes of the name, `TASK_COMM_LEN` of include/linux/sched.h.
    pub const COMM_BYTES: usize = 16;
    /// Bytes of an entry.
    pub const BYTES: usize = COMM + COMM_BYTES;
    /// How many there are: as many as there may be threads where `kernel.pid_max` is what it used to be.
    pub const ENTRIES: u32 = 1 << 15;
}

/// The multiplier of [`tag`]: 2^32 over the golden ratio, odd.
pub const TAG_MULTIPLIER: u32 = 0x9E37_79B1;

/// The tag of every record in the page with this sequence number. Salted, so that text in a record cannot forge one;
/// never 0, so that untouched memory never has it.
#[must_use]
pub fn tag(page_seq: u64, salt: u32) -> u32 {
    ((page_seq as u32).wrapping_add(1).wrapping_mul(TAG_MULTIPLIER) ^ salt) | 1
}

/// How a column lies in a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Encoding {
    /// An integer at natural alignment.
    Int {
        /// 8, 16, 32 or 64.
        bits: u8,
        /// Two's complement.
        signed: bool,
    },
    /// A `u32` that stands for one of these names.
    Enum(Vec<(String, u32)>),
    /// Integers in a row, at an element's natural alignment.
    Array {
        /// Of an element.
        bits: u8,
        /// Of an element.
        signed: bool,
        /// How many.
        count: u16,
    },
    /// Text in so many bytes, NUL-terminated where it is shorter.
    Text {
        /// Bytes.
        bytes: u16,
    },
    /// Text of varying length with its NUL, 256 bytes at most, byte-aligned. Text that could not be read is
    /// [`UNREADABLE`]; text that was cut ends in [`CUT`].
    String,
    /// A `u16` count, then that many integers, all byte-aligned, 256 bytes of them at most.
    Sequence {
        /// Of an element.
        bits: u8,
        /// Of an element.
        signed: bool,
    },
}

/// What is recorded for a text that could not be read.
pub const UNREADABLE: &str = "(unreadable)";
/// The end of a text that was longer than 255 bytes.
pub const CUT: &str = "…";
/// Bytes of a text of varying length, its NUL included, and of a sequence without its count.
pub const VARYING_MAX_BYTES: usize = 256;

/// A column's place in a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ColumnLayout {
    /// Its name.
    pub name: String,
    /// How it lies there.
    pub encoding: Encoding,
    /// Bytes from the start of the record; `None` for those that vary, which follow each other after the fixed ones.
    pub offset: Option<u16>,
    /// Shown in hexadecimal.
    pub hex: bool,
}

/// The layout of a kind of record: what CTF calls an event class.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordLayout {
    /// From 1 to 65,535; unique in its pack.
    pub id: u16,
    /// `system:name`, which several layouts of one pack may share.
    pub name: String,
    /// The fixed columns in order, then the varying ones in order. Shared by whoever holds a copy of the layout.
    pub columns: Arc<[ColumnLayout]>,
    /// Where the fixed part ends and the varying columns begin.
    pub fixed_bytes: u16,
    /// The most it can take, a multiple of [`record::ALIGN`].
    pub max_bytes: u16,
}

/// A record that would not fit a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a record of {bytes} bytes is larger than a page holds, which is {}",
    record::MAX_BYTES
)]
pub struct TooLarge {
    /// What it would take.
    pub bytes: usize,
}

impl Encoding {
    /// How a value of that type is recorded.
    #[must_use]
    pub fn of(ty: Type) -> Encoding {
        match ty {
            Type::Int { bits, signed } => Encoding::Int { bits, signed },
            Type::Bool => Encoding::Int {
                bits: 8,
                signed: false,
            },
            Type::Duration => Encoding::Int {
                bits: 64,
                signed: false,
            },
            Type::Text { capacity } if usize::from(capacity) < VARYING_MAX_BYTES => {
                Encoding::Text { bytes: capacity }
            }
            Type::Text { .. } => Encoding::String,
            Type::Array { bits, signed, count } => Encoding::Array { bits, signed, count },
            Type::Sequence { bits, signed } => Encoding::Sequence { bits, signed },
        }
    }

    /// Alignment and size in bytes; `None` for those that vary.
    #[must_use]
    pub fn fixed(&self) -> Option<(usize, usize)> {
        match *self {
            Encoding::Int { bits, .. } => Some((usize::from(bits / 8), usize::from(bits / 8))),
            Encoding::Enum(_) => Some((4, 4)),
            Encoding::Array { bits, count, .. } => {
                Some((usize::from(bits / 8), usize::from(bits / 8) * usize::from(count)))
            }
            Encoding::Text { bytes } => Some((1, usize::from(bytes))),
            Encoding::String | Encoding::Sequence { .. } => None,
        }
    }

    /// The most it takes.
    #[must_use]
    pub fn max_bytes(&self) -> usize {
        match self {
            Encoding::String => VARYING_MAX_BYTES,
            Encoding::Sequence { .. } => 2 + VARYING_MAX_BYTES,
            _ => self.fixed().map_or(0, |(_, bytes)| bytes),
        }
    }
}

impl RecordLayout {
    /// Lays out the columns: fixed ones at natural alignment in their order, then those that vary.
    ///
    /// # Errors
    /// [`TooLarge`] where they do not fit a page.
    pub fn new(
        id: u16,
        name: &str,
        columns: impl IntoIterator<Item = (String, Encoding, bool)>,
    ) -> Result<Self, TooLarge> {
        let (fixed, varying): (Vec<_>, Vec<_>) = columns
            .into_iter()
            .partition(|(_, encoding, _)| encoding.fixed().is_some());
        let mut placed = Vec::with_capacity(fixed.len() + varying.len());
        let mut at = record::FIELDS;
        for (name, encoding, hex) in fixed {
            let (align, bytes) = encoding.fixed().unwrap_or((1, 0));
            at = at.next_multiple_of(align);
            placed.push(ColumnLayout {
                name,
                encoding,
                offset: u16::try_from(at).ok(),
                hex,
            });
            at += bytes;
        }
        let fixed_bytes = at;
        for (name, encoding, hex) in varying {
            at += encoding.max_bytes();
            placed.push(ColumnLayout {
                name,
                encoding,
                offset: None,
                hex,
            });
        }
        let max_bytes = at.next_multiple_of(record::ALIGN);
        if max_bytes > record::MAX_BYTES {
            return Err(TooLarge { bytes: max_bytes });
        }
        Ok(RecordLayout {
            id,
            name: name.to_owned(),
            columns: placed.into(),
            fixed_bytes: fixed_bytes as u16,
            max_bytes: max_bytes as u16,
        })
    }

    /// The layout of a plan's columns.
    ///
    /// # Errors
    /// [`TooLarge`] where they do not fit a page.
    pub fn of_columns(id: u16, name: &str, columns: &[Column]) -> Result<Self, TooLarge> {
        Self::new(
            id,
            name,
            columns
                .iter()
                .map(|c| (c.name.clone(), Encoding::of(c.value.ty), c.hex)),
        )
    }
}
