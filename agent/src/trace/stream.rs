//! Pages of a stream's ring in, CTF packets for its file out: cheaply, one packet a page, nearly as it lies.
//!
//! A page's bytes are copied, its records' words and times looked at once, and the head of a packet is put before them.
//! Length and tag stay in the records: to CTF they are padding. A page is only made anew where its records are not in
//! the order of their times, since one that was written in an interrupt may lie before one of an earlier time: then
//! together with the packets before it that it reaches into, as far as those are not in the file yet. What reaches
//! further is moved up to the time of the last record in the file, and counted as late: times in a file never descend.
//!
//! INVARIANT: what is in the file, what was counted and [`Progress::position`] agree, also after an error: then all is as
//! before, and the same pages may be taken again.

use std::ops::Range;

use lkst_probes::layout::{PAGE_BYTES, RecordLayout, page, record, tag};

use super::decode::{Classes, EventClass, u16_at, u64_at};
use super::names::Seen;
use super::seal::PACKET_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;
const HEADER: usize = page::HEADER_BYTES;

/// So much is gathered before it is written.
const FLUSH_BYTES: usize = 256 * 1024;

/// What is asked of every record, by its id.
#[derive(Debug, Clone)]
pub struct Shapes {
    /// Length and content; lengths that vary are [`VARIES`].
    fixed: Vec<(u16, u16)>,
    classes: Classes<EventClass>,
    layouts: usize,
}

/// No record has this length.
const VARIES: u16 = 1;
/// Nor this.
const UNKNOWN: u16 = 2;

/// A record that is what it says.
#[derive(Debug, Clone, Copy)]
struct Shape {
    id: u16,
    /// To the next record, as the ring has it.
    length: usize,
    /// To the end of the last field. `None`: it is no record of a known kind.
    content: Option<usize>,
}

impl Shapes {
    /// Of these layouts.
    #[must_use]
    pub fn of(layouts: &[RecordLayout]) -> Shapes {
        let ids = layouts.iter().map(|layout| usize::from(layout.id) + 1);
        let mut fixed = vec![(UNKNOWN, 0); ids.max().unwrap_or(1)];
        for layout in layouts {
            let varies = layout.columns.iter().any(|column| column.offset.is_none());
            let length = match varies {
                true => VARIES,
                false => layout.fixed_bytes.next_multiple_of(record::ALIGN as u16),
            };
            if let Some(slot) = fixed.get_mut(usize::from(layout.id)) {
                *slot = (length, layout.fixed_bytes);
            }
        }
        Shapes {
            fixed,
            classes: Classes::of_layouts(layouts),
            layouts: layouts.len(),
        }
    }

    /// How many layouts these are of.
    #[must_use]
    pub fn layouts(&self) -> usize {
        self.layouts
    }

    /// The event that records of this id are of.
    #[must_use]
    pub fn event(&self, id: usize) -> Option<&str> {
        let class = self.classes.get(u16::try_from(id).ok()?)?;
        Some(&class.layout.name)
    }

    /// The record that `bytes` begin with, whose length its word says.
    fn shape(&self, bytes: &[u8]) -> Option<Shape> {
        let id = u16_at(bytes, record::ID)?;
        let length = usize::from(u16_at(bytes, record::LENGTH)?);
        if length < record::FIELDS || !length.is_multiple_of(record::ALIGN) {
            return None;
        }
        let bytes = bytes.get(..length)?;
        let content = self.classes.get(id).and_then(|class| class.content_bytes(bytes));
        Some(Shape { id, length, content })
    }

    /// Counts by id records that follow each other, each as long as its word says.
    pub fn count(&self, records: &[u8], counts: &mut Vec<u64>) {
        counts.resize(self.fixed.len().max(counts.len()), 0);
        self.each(records, |shape, _| {
            if shape.content.is_some()
                && let Some(count) = counts.get_mut(usize::from(shape.id))
            {
                *count += 1;
            }
        });
    }

    /// Walks records that follow each other.
    fn each(&self, mut bytes: &[u8], mut visit: impl FnMut(Shape, &[u8])) {
        while let Some(shape) = self.shape(bytes) {
            let (one, rest) = bytes.split_at_checked(shape.length).unwrap_or((bytes, &[]));
            visit(shape, one);
            bytes = rest;
        }
    }
}

/// How far a stream's file has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the file.
    pub bytes: u64,
    /// Packets in it.
    pub packets: u64,
    /// Records in it.
    pub records: u64,
    /// The time of the first.
    pub first_ns: Option<u64>,
    /// The time of the last; 0 where there is none.
    pub last_ns: u64,
    /// Records that contradicted their layout.
    pub torn: u64,
    /// Records whose time was moved up to that of the one before.
    pub late: u64,
    /// Pages that were not in the ring though they should have been.
    pub missing_pages: u64,
    /// What of the ring's losses the packets tell of, as the ring counts them.
    pub told: u64,
    /// Up to where in the ring everything was taken.
    pub position: u64,
}

/// Whose packets they are.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The trace's.
    pub uuid: [u8; 16],
    /// The ring's.
    pub instance_id: u64,
    /// Of the ring's tags.
    pub salt: u32,
    /// The CPU.
    pub cpu: u32,
}

/// Appends these bytes of the page with a sequence number; false where that page is not there.
pub type CopyPage<'c> = &'c mut dyn FnMut(u64, Range<usize>, &mut Vec<u8>) -> bool;

/// Puts bytes at a place of the file, and learns how far it is then.
pub type WriteAt<'w, E> = &'w mut dyn FnMut(&[u8], u64, &Progress) -> Result<(), E>;

/// What is to be taken.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Up to here the ring is complete.
    pub to: u64,
    /// What the ring has lost so far.
    pub lost: u64,
    /// Records of this time and later wait: an earlier one may still come.
    pub before_ns: u64,
    /// Pages that are not full are taken too, as far as they go.
    pub partial: bool,
}

/// A packet that is not in the file yet.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Where in the gathered bytes it begins.
    start: usize,
    min_ns: u64,
    max_ns: u64,
    before: Progress,
}

/// What was found in a page.
#[derive(Debug, Default)]
struct Scan {
    records: u64,
    torn: u64,
    /// Where the last record ends, and its content.
    end: usize,
    content_end: usize,
    min_ns: u64,
    max_ns: u64,
    /// Each is one of its kind, and none is older than the one before.
    plain: bool,
    /// A record that has to wait came.
    stopped: bool,
}

/// Memory for packets in the making, which streams share.
#[derive(Debug, Default)]
pub struct Bench {
    out: Vec<u8>,
    marks: Vec<Mark>,
    order: Vec<(u64, Range<usize>)>,
    anew: Vec<u8>,
}

/// Makes the packets of one stream file.
#[derive(Debug)]
pub struct Packer {
    identity: Identity,
    /// The same for each packet.
    head: [u8; HEADER],
    /// Records in the file or gathered, by id.
    counts: Vec<u64>,
    /// Whose they are.
    seen: Seen,
    /// With what is gathered.
    now: Progress,
    written: Progress,
    /// `told` when the file began: its packets count from there.
    told_before: u64,
}

impl Packer {
    /// Begins a file, with what lies in the ring from `position` on. The losses up to `told` were told elsewhere.
    #[must_use]
    pub fn new(identity: Identity, position: u64, told: u64) -> Packer {
        let mut head = [0; HEADER];
        for (at, bytes) in [
            (page::MAGIC, &page::MAGIC_VALUE.to_le_bytes()[..]),
            (page::UUID, &identity.uuid),
            (page::INSTANCE_ID, &identity.instance_id.to_le_bytes()),
            (page::CPU_ID, &identity.cpu.to_le_bytes()),
        ] {
            put(&mut head, at, bytes);
        }
        let now = Progress {
            position,
            told,
            ..Progress::default()
        };
        Packer {
            identity,
            head,
            counts: Vec::new(),
            seen: Seen::default(),
            now,
            written: now,
            told_before: told,
        }
    }

    /// Whose packets these are.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What is in the file.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.written
    }

    /// What of the ring's losses the file's packets tell of.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.written.told.saturating_sub(self.told_before)
    }

    /// Records in the file by id.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The threads that the records are of.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Takes what is wanted.
    ///
    /// # Errors
    /// From `write`; what it took before stays taken.
    pub fn take<E>(
        &mut self,
        bench: &mut Bench,
        shapes: &Shapes,
        wanted: &Wanted,
        copy: CopyPage<'_>,
        write: WriteAt<'_, E>,
    ) -> Result<(), E> {
        bench.out.clear();
        bench.marks.clear();
        self.counts.resize(shapes.fixed.len().max(self.counts.len()), 0);
        let taken = self.pages(bench, shapes, wanted, copy, write);
        if taken.is_err() {
            for records in regions(&bench.marks, bench.out.len()) {
                self.uncount(shapes, bench.out.get(records).unwrap_or_default());
            }
            self.now = self.written;
        }
        taken
    }

    fn pages<E>(
        &mut self,
        bench: &mut Bench,
        shapes: &Shapes,
        wanted: &Wanted,
        copy: CopyPage<'_>,
        write: WriteAt<'_, E>,
    ) -> Result<(), E> {
        while self.now.position < wanted.to {
            if bench.out.len() >= FLUSH_BYTES {
                self.write_but_last(bench, write)?;
            }
            if !self.page(bench, shapes, wanted, copy) {
                break;
            }
        }
        // What was lost was lost after all of these: while the ring was full of them.
        if let Some(last) = bench.marks.last() {
            self.now.told = wanted.lost;
            let discarded = self.now.told.saturating_sub(self.told_before);
            let head = bench.out.get_mut(last.start..).unwrap_or_default();
            put(head, page::EVENTS_DISCARDED, &discarded.to_le_bytes());
        }
        if self.now != self.written {
            let now = Progress {
                bytes: self.written.bytes + bench.out.len() as u64,
                ..self.now
            };
            write(&bench.out, self.written.bytes, &now)?;
            self.now = now;
            self.written = now;
        }
        Ok(())
    }

    /// Writes all packets but the last, into which a record of the next page may reach.
    fn write_but_last<E>(&mut self, bench: &mut Bench, write: WriteAt<'_, E>) -> Result<(), E> {
        let Some(last) = bench.marks.last().copied().filter(|last| last.start > 0) else {
            return Ok(());
        };
        let before = Progress {
            bytes: self.written.bytes + last.start as u64,
            ..last.before
        };
        write(
            bench.out.get(..last.start).unwrap_or_default(),
            self.written.bytes,
            &before,
        )?;
        self.written = before;
        bench.out.drain(..last.start);
        bench.marks.clear();
        bench.marks.push(Mark {
            start: 0,
            before,
            ..last
        });
        Ok(())
    }

    /// Takes a page, or what there is of it. False where nothing more can be taken now.
    fn page(&mut self, bench: &mut Bench, shapes: &Shapes, wanted: &Wanted, copy: CopyPage<'_>) -> bool {
        let at = self.now.position;
        let seq = at / PAGE;
        let (page_at, next_page) = (seq * PAGE, (seq + 1) * PAGE);
        let is_closed = next_page <= wanted.to;
        if !is_closed && !wanted.partial {
            return false;
        }
        let end = (next_page.min(wanted.to) - page_at) as usize;
        let first = ((at - page_at) as usize).max(HEADER);
        let start = bench.out.len();
        bench.out.extend_from_slice(&self.head);
        let before = self.now;
        if first < end && !copy(seq, first..end, &mut bench.out) {
            self.now.missing_pages += 1;
            bench.out.truncate(start);
            self.now.position = next_page.min(wanted.to);
            return is_closed;
        }
        let records = bench.out.get(start + HEADER..).unwrap_or_default();
        let tag = tag(seq, self.identity.salt);
        let scan = shapes.scan(records, tag, wanted.before_ns, &mut self.counts, &mut self.seen);
        let is_held = scan.stopped && (!wanted.partial || scan.end == 0);
        if is_held || scan.end == 0 {
            let seen = records.get(..scan.end).unwrap_or_default().to_vec();
            self.uncount(shapes, &seen);
            bench.out.truncate(start);
            if is_held || !is_closed {
                return false;
            }
            self.now.position = next_page;
            return true;
        }
        let is_done = is_closed && !scan.stopped;
        self.now.position = match is_done {
            true => next_page,
            false => page_at + (first + scan.end) as u64,
        };
        self.now.records += scan.records;
        self.now.torn += scan.torn;
        bench.out.truncate(start + HEADER + scan.end);
        bench.marks.push(Mark {
            start,
            min_ns: scan.min_ns,
            max_ns: scan.max_ns,
            before,
        });
        if scan.plain && scan.min_ns >= before.last_ns {
            self.seal(
                &mut bench.out,
                start,
                HEADER + scan.content_end,
                scan.min_ns..scan.max_ns,
            );
        } else {
            self.anew(bench, shapes);
        }
        is_done
    }

    /// Fills in the head of the packet that begins at `start`, and counts it.
    fn seal(&mut self, out: &mut Vec<u8>, start: usize, content_bytes: usize, times: Range<u64>) {
        // All of it that is behind the content is padding to the next record.
        out.truncate(start + content_bytes.next_multiple_of(record::ALIGN));
        let packet_bytes = out.len() - start;
        let Some(head) = out.get_mut(start..) else { return };
        let discarded = self.now.told.saturating_sub(self.told_before);
        let drained_to = (self.now.position / record::ALIGN as u64) as u32;
        put(head, page::TIMESTAMP_BEGIN, &times.start.to_le_bytes());
        put(head, page::TIMESTAMP_END, &times.end.to_le_bytes());
        put(
            head,
            page::CONTENT_SIZE,
            &(content_bytes as u64 * 8).to_le_bytes(),
        );
        put(head, page::PACKET_SIZE, &(packet_bytes as u64 * 8).to_le_bytes());
        put(head, page::SEQ, &self.now.packets.to_le_bytes());
        put(head, page::EVENTS_DISCARDED, &discarded.to_le_bytes());
        put(head, page::DRAINED_TO, &drained_to.to_le_bytes());
        self.now.packets += 1;
        self.now.last_ns = times.end;
        self.now.first_ns.get_or_insert(times.start);
    }

    /// Makes the last packet anew, together with those before it that its records reach into: sorted, and without what
    /// is no record.
    fn anew(&mut self, bench: &mut Bench, shapes: &Shapes) {
        let Bench {
            out,
            marks,
            order,
            anew,
        } = bench;
        let mut first = marks.len().saturating_sub(1);
        let Some(mut group) = marks.last().copied() else {
            return;
        };
        while let Some(one) = first.checked_sub(1).and_then(|place| marks.get(place))
            && one.max_ns > group.min_ns
            && out.len() - one.start <= PACKET_BYTES
        {
            first -= 1;
            group = Mark {
                min_ns: one.min_ns.min(group.min_ns),
                ..*one
            };
        }
        order.clear();
        for region in regions(marks.get(first..).unwrap_or_default(), out.len()) {
            let mut at = region.start;
            shapes.each(out.get(region).unwrap_or_default(), |shape, bytes| {
                if let Some(content) = shape.content {
                    let time = u64_at(bytes, record::TIME).unwrap_or(0);
                    order.push((time, at..at + content));
                }
                at += shape.length;
            });
        }
        marks.truncate(first);
        order.sort_by_key(|(time, place)| (*time, place.start));
        anew.clear();
        anew.extend_from_slice(&self.head);
        let floor_ns = group.before.last_ns;
        let mut content_bytes = HEADER;
        for (time, place) in order.iter_mut() {
            let start = anew.len();
            anew.extend_from_slice(out.get(place.clone()).unwrap_or_default());
            content_bytes = anew.len();
            anew.resize(anew.len().next_multiple_of(record::ALIGN), 0);
            let length = (anew.len() - start) as u16;
            put(anew, start + record::LENGTH, &length.to_le_bytes());
            if *time < floor_ns {
                *time = floor_ns;
                self.now.late += 1;
                put(anew, start + record::TIME, &floor_ns.to_le_bytes());
            }
        }
        out.truncate(group.start);
        self.now.packets = group.before.packets;
        self.now.first_ns = group.before.first_ns;
        self.now.last_ns = group.before.last_ns;
        if let (Some((first, _)), Some((last, _))) = (order.first(), order.last()) {
            let times = *first..*last;
            out.extend_from_slice(anew);
            self.seal(out, group.start, content_bytes, times.clone());
            marks.push(Mark {
                min_ns: times.start,
                max_ns: times.end,
                ..group
            });
        }
    }

    fn uncount(&mut self, shapes: &Shapes, records: &[u8]) {
        let counts = &mut self.counts;
        shapes.each(records, |shape, _| {
            if shape.content.is_some()
                && let Some(count) = counts.get_mut(usize::from(shape.id))
            {
                *count = count.saturating_sub(1);
            }
        });
    }
}

impl Shapes {
    /// Looks at records that follow each other in a page, up to where no more are. Counts them by id, and sees whose they
    /// are.
    fn scan(&self, bytes: &[u8], tag: u32, before_ns: u64, counts: &mut [u64], seen: &mut Seen) -> Scan {
        let mut scan = Scan {
            min_ns: u64::MAX,
            plain: true,
            ..Scan::default()
        };
        let mut rest = bytes;
        while let Some(head) = rest.first_chunk::<{ record::FIELDS }>() {
            let word = u64_at(head, record::ID).unwrap_or(0);
            let time = u64_at(head, record::TIME).unwrap_or(0);
            let (id, length) = (word as u16, usize::from((word >> 16) as u16));
            if (word >> 32) as u32 != tag || length < record::FIELDS || !length.is_multiple_of(record::ALIGN)
            {
                break;
            }
            let Some((one, others)) = rest.split_at_checked(length) else {
                break;
            };
            if time >= before_ns {
                scan.stopped = true;
                break;
            }
            let content = match self.fixed.get(usize::from(id)) {
                Some((fixed, content)) if usize::from(*fixed) == length => Some(usize::from(*content)),
                Some((VARIES, _)) => self.classes.get(id).and_then(|class| class.content_bytes(one)),
                _ => None,
            };
            match content {
                Some(content) => {
                    scan.records += 1;
                    // A reader finds the next record behind the content, the ring behind the length.
                    scan.plain &= time >= scan.max_ns && content.next_multiple_of(record::ALIGN) == length;
                    scan.content_end = scan.end + content;
                    scan.min_ns = scan.min_ns.min(time);
                    scan.max_ns = scan.max_ns.max(time);
                    if let Some(count) = counts.get_mut(usize::from(id)) {
                        *count += 1;
                    }
                    let who = u64_at(head, record::PID).unwrap_or(0);
                    seen.see((who >> 32) as u32, who as u32);
                }
                None => {
                    scan.torn += 1;
                    scan.plain = false;
                }
            }
            scan.end += length;
            rest = others;
        }
        scan
    }
}

/// Where the records of gathered packets lie.
fn regions(marks: &[Mark], end: usize) -> impl Iterator<Item = Range<usize>> {
    let ends = marks.iter().skip(1).map(|mark| mark.start).chain([end]);
    marks.iter().zip(ends).map(|(mark, end)| mark.start + HEADER..end)
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = to.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]
mod tests;
