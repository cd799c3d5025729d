//! A model of the writer in the kernel: what it does to a ring, step by step and in plain code.
//!
//! In: layouts and values. Out: a [`RawStream`] as a reader of the ring would copy it. Nesting is modelled by
//! [`Ring::reserve`] and [`Ring::commit`]: whatever happens between the two calls for one record happened in an
//! interrupt.

use lkst::trace::raw::RawStream;
use lkst_probes::layout::{Encoding, PAGE_BYTES, RecordLayout, page, record, tag};

/// A value to record.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// For an integer or an enumeration: cut to its width.
    Int(u64),
    /// For text of a fixed length, cut to it, and for strings.
    Bytes(Vec<u8>),
    /// For arrays and sequences: cut to their width and number.
    Ints(Vec<u64>),
}

/// A ring of one buffer and CPU.
#[derive(Debug, Clone)]
pub struct Ring {
    /// What a reader would copy.
    pub raw: RawStream,
    outer: bool,
}

/// A record that was reserved.
#[derive(Debug, Clone)]
#[must_use]
pub struct Reserved {
    at: u64,
    bytes: Vec<u8>,
    id: u16,
    outermost: bool,
}

impl Ring {
    /// An empty ring.
    pub fn new(buffer: &str, cpu: u32, pages: usize, salt: u32, instance_id: u64) -> Self {
        let raw = RawStream {
            buffer: buffer.to_owned(),
            cpu,
            instance_id,
            salt,
            pages: vec![0; pages * PAGE_BYTES],
            ..RawStream::default()
        };
        Ring { raw, outer: false }
    }

    fn store(&mut self, at: u64, bytes: &[u8]) {
        let ring = self.raw.pages.len() / PAGE_BYTES;
        let page = (at as usize / PAGE_BYTES) % ring;
        let start = page * PAGE_BYTES + at as usize % PAGE_BYTES;
        self.raw.pages[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// The first half: `None` where it found no room.
    pub fn reserve(&mut self, layout: &RecordLayout, record_bytes: Vec<u8>) -> Option<Reserved> {
        let (page, max) = (PAGE_BYTES as u64, u64::from(layout.max_bytes));
        let pages = (self.raw.pages.len() / PAGE_BYTES) as u64;
        let len = record_bytes.len() as u64;
        let old = self.raw.pos;
        let mut at = old;
        if at % page < page::HEADER_BYTES as u64 || at % page + max > page {
            at = old.next_multiple_of(page) + page::HEADER_BYTES as u64;
        }
        let outermost = !self.outer;
        if !outermost && (at / page) - (self.raw.busy >> 28) >= pages {
            self.raw.lost += 1;
            return None;
        }
        if outermost {
            self.raw.busy = old << 16 | len;
            self.outer = true;
        }
        self.raw.pos = at + len;
        let seq = at / page;
        let word = word(0, len as u16, tag(seq, self.raw.salt));
        self.store(at, &word);
        self.store(seq * page + page::SEQ as u64, &seq.to_le_bytes());
        Some(Reserved {
            at,
            bytes: record_bytes,
            id: layout.id,
            outermost,
        })
    }

    /// The second half.
    pub fn commit(&mut self, reserved: Reserved) {
        let Reserved {
            at,
            bytes,
            id,
            outermost,
        } = reserved;
        self.store(at + record::TIME as u64, &bytes[record::TIME..]);
        let seq = at / PAGE_BYTES as u64;
        self.store(at, &word(id, bytes.len() as u16, tag(seq, self.raw.salt)));
        if outermost {
            self.raw.busy = 0;
            self.outer = false;
        }
    }

    /// A record that nothing interrupts.
    pub fn write(&mut self, layout: &RecordLayout, record_bytes: Vec<u8>) -> bool {
        let reserved = self.reserve(layout, record_bytes);
        let written = reserved.is_some();
        reserved.into_iter().for_each(|reserved| self.commit(reserved));
        written
    }
}

fn word(id: u16, length: u16, tag: u32) -> [u8; 8] {
    let mut word = [0; 8];
    word[..2].copy_from_slice(&id.to_le_bytes());
    word[2..4].copy_from_slice(&length.to_le_bytes());
    word[4..].copy_from_slice(&tag.to_le_bytes());
    word
}

/// A record's bytes but for its word, padded with `0xEE` so that padding that leaks is seen. Missing cells are 0.
pub fn encode(layout: &RecordLayout, time: u64, pid: u32, tid: u32, cells: &[Cell]) -> Vec<u8> {
    let mut out = vec![0; record::TIME];
    out.extend(time.to_le_bytes());
    out.extend(pid.to_le_bytes());
    out.extend(tid.to_le_bytes());
    let nothing = Cell::Int(0);
    for (index, column) in layout.columns.iter().enumerate() {
        let cell = cells.get(index).unwrap_or(&nothing);
        let start = column.offset.map_or(usize::from(layout.fixed_bytes), usize::from);
        out.resize(start.max(out.len()), 0xEE);
        push_cell(&mut out, &column.encoding, cell);
    }
    out.resize(usize::from(layout.fixed_bytes).max(out.len()), 0xEE);
    out.resize(out.len().next_multiple_of(record::ALIGN), 0xEE);
    out
}

fn push_cell(out: &mut Vec<u8>, encoding: &Encoding, cell: &Cell) {
    let (int, bytes, ints) = match cell {
        Cell::Int(int) => (*int, &[][..], &[][..]),
        Cell::Bytes(bytes) => (0, bytes.as_slice(), &[][..]),
        Cell::Ints(ints) => (0, &[][..], ints.as_slice()),
    };
    let mut push_int = |bits: u8, int: u64| out.extend(&int.to_le_bytes()[..usize::from(bits / 8)]);
    match *encoding {
        Encoding::Int { bits, .. } => push_int(bits, int),
        Encoding::Enum(_) => push_int(32, int),
        Encoding::Array { bits, count, .. } => {
            for index in 0..usize::from(count) {
                push_int(bits, ints.get(index).copied().unwrap_or(0));
            }
        }
        Encoding::Sequence { bits, .. } => {
            let count = ints.len().min(256 / usize::from(bits / 8));
            push_int(16, count as u64);
            ints[..count].iter().for_each(|int| push_int(bits, *int));
        }
        Encoding::Text { bytes: room } => {
            let end = out.len() + usize::from(room);
            out.extend(bytes.iter().take(usize::from(room)));
            out.resize(end, 0);
        }
        Encoding::String => {
            out.extend(bytes.iter().copied().filter(|byte| *byte != 0).take(255));
            out.push(0);
        }
    }
}
