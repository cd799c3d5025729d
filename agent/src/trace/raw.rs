//! A copy of a ring in, the records that lie in it out: pure, and total on any bytes.
//!
//! The writer in the kernel reserves by moving `pos`, marks the place with a word of id 0, and commits by storing the
//! word again with its id. Whoever reads a copy, taken live or out of a dump, can therefore meet pages that belong to
//! an earlier lap, records never committed, and a page that just ends. None of these is an error: what is a record
//! is returned where it lies, the rest is counted.
//!
//! INVARIANT: every record that is returned passed [`EventClass::content_bytes`] on its own bytes.

use std::ops::Range;

use lkst_probes::layout::{PAGE_BYTES, page, record, tag};

use super::decode::{Classes, EventClass, u16_at, u32_at, u64_at};

const PAGE: u64 = PAGE_BYTES as u64;
const HEADER: u64 = page::HEADER_BYTES as u64;

/// What a reader of one ring hands over: a copy of its pages and of its head.
#[derive(Debug, Clone, Default)]
pub struct RawStream {
    /// The buffer's name.
    pub buffer: String,
    /// Whose ring it is.
    pub cpu: u32,
    /// Unique to this allocation of this buffer and CPU.
    pub instance_id: u64,
    /// Of the ring's tags.
    pub salt: u32,
    /// The ring: a whole number of pages.
    pub pages: Vec<u8>,
    /// The head's `pos`.
    pub pos: u64,
    /// The head's `busy`.
    pub busy: u64,
    /// The head's `lost`.
    pub lost: u64,
    /// The head's `floor`: what lies below was saved before and given up.
    pub floor: u64,
}

/// A record in its ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordRef {
    /// Its position: bytes reserved in the ring before it.
    pub at: u64,
    /// The id of its layout.
    pub id: u16,
    /// Nanoseconds of the boot clock.
    pub time: u64,
    /// Where in [`RawStream::pages`] it lies, up to the end of its last field.
    pub bytes: Range<usize>,
}

/// What lies in a ring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extracted {
    /// The records in the order in which they were reserved. Times need not ascend: a record written in an interrupt
    /// lies behind the one that it interrupted, which took its time later.
    pub records: Vec<RecordRef>,
    /// Records that were reserved and never committed, or whose bytes contradict their layout.
    pub torn: u64,
    /// Pages above the floor that newer ones have overwritten.
    pub overwritten_pages: u64,
    /// Pages that should be here and carry another sequence number: the writer was about to begin them.
    pub missing_pages: u64,
}

/// Finds the records of a ring.
#[must_use]
pub fn records(raw: &RawStream, classes: &Classes<EventClass>) -> Extracted {
    let mut out = Extracted::default();
    let ring_pages = (raw.pages.len() / PAGE_BYTES) as u64;
    // A page is begun by its first record, behind its head. So `pos` on the head's bytes means: the page before is the
    // last one, and the slot of this one still holds what it held a lap ago.
    let begun = raw.pos / PAGE + u64::from(raw.pos % PAGE > HEADER);
    let oldest = begun.saturating_sub(ring_pages);
    let floor_page = raw.floor / PAGE;
    out.overwritten_pages = oldest.saturating_sub(floor_page);
    // `begun > oldest` only where the ring has pages, so the remainder below is defined; and every page's position is
    // at most `pos`, so nothing below overflows.
    for seq in oldest.max(floor_page)..begun {
        let start = (seq % ring_pages) as usize * PAGE_BYTES;
        let position = seq * PAGE;
        let found = raw.pages.get(start..start + PAGE_BYTES).map(|bytes| Page {
            bytes,
            start,
            position,
            end: PAGE.min(raw.pos - position) as usize,
            tag: tag(seq, raw.salt),
        });
        match found {
            Some(page) if u64_at(page.bytes, page::SEQ) == Some(seq) => walk(raw, classes, page, &mut out),
            _ => out.missing_pages += 1,
        }
    }
    out
}

/// Walks one page from its first record to where the chain of words ends.
fn walk(raw: &RawStream, classes: &Classes<EventClass>, page: Page<'_>, out: &mut Extracted) {
    let mut at = page::HEADER_BYTES;
    while at < page.end {
        let Some((id, length)) = page.word(at) else {
            match page.hole(at, raw.busy) {
                Some(length) => {
                    out.torn += 1;
                    at += length;
                    continue;
                }
                None => break,
            }
        };
        let position = page.position.saturating_add(at as u64);
        if position >= raw.floor {
            let found = page.bytes.get(at..at + length).and_then(|bytes| {
                let content = classes.get(id)?.content_bytes(bytes)?;
                Some((u64_at(bytes, record::TIME)?, content))
            });
            match found {
                Some((time, content)) => out.records.push(RecordRef {
                    at: position,
                    id,
                    time,
                    bytes: page.start + at..page.start + at + content,
                }),
                None => out.torn += 1,
            }
        }
        at += length;
    }
}

/// A page of the ring that carries the right sequence number.
struct Page<'a> {
    bytes: &'a [u8],
    /// Where it begins in the ring.
    start: usize,
    /// Bytes reserved in the ring before it.
    position: u64,
    /// Where in the page the reservations end: its size, or `pos`.
    end: usize,
    tag: u32,
}

impl Page<'_> {
    /// The id and length of the record at a place, where there is one.
    fn word(&self, at: usize) -> Option<(u16, usize)> {
        if u32_at(self.bytes, at + record::TAG)? != self.tag {
            return None;
        }
        let length = usize::from(u16_at(self.bytes, at + record::LENGTH)?);
        let fits =
            length >= record::FIELDS && length.is_multiple_of(record::ALIGN) && at + length <= self.end;
        fits.then_some((u16_at(self.bytes, at + record::ID)?, length))
    }

    /// How long a record is that was reserved at a place, by the head, but whose word had not been stored yet when
    /// everything stopped. Believed only where a record or the end of the reservations follows it.
    fn hole(&self, at: usize, busy: u64) -> Option<usize> {
        let old = busy >> 16;
        let moved = old.next_multiple_of(PAGE) + HEADER;
        let position = self.position.saturating_add(at as u64);
        let length = (busy & 0xffff) as usize;
        let plausible = (position == old || position == moved)
            && length >= record::FIELDS
            && length.is_multiple_of(record::ALIGN)
            && at + length <= self.end;
        (plausible && (at + length == self.end || self.word(at + length).is_some())).then_some(length)
    }
}
