use lkst_probes::layout::Encoding;

use super::super::decode::u32_at;
use super::*;

const SALT: u32 = 77;

/// A number; a number and a text.
fn layouts() -> Vec<RecordLayout> {
    let number = || {
        let int = Encoding::Int {
            bits: 64,
            signed: false,
        };
        ("n".to_owned(), int, false)
    };
    let text = ("t".to_owned(), Encoding::String, false);
    vec![
        RecordLayout::new(1, "a:number", [number()]).unwrap(),
        RecordLayout::new(2, "a:text", [number(), text]).unwrap(),
    ]
}

/// A ring as the programs fill it, large enough that nothing is overwritten.
#[derive(Default)]
struct Ring {
    pages: Vec<Vec<u8>>,
    pos: u64,
}

impl Ring {
    /// A record; a text takes `length` bytes of the ring, whatever it needs.
    fn push(&mut self, time: u64, number: u64, text: Option<(&str, usize)>) {
        let length = 32 + text.map_or(0, |(_, length)| length.next_multiple_of(8));
        let at = (self.pos % PAGE) as usize;
        let first = self.pages.is_empty();
        if first || at + length > PAGE_BYTES || at < HEADER {
            let seq = self.pages.len() as u64;
            let mut page = vec![0xee; PAGE_BYTES];
            put(&mut page, page::SEQ, &seq.to_le_bytes());
            self.pages.push(page);
            self.pos = seq * PAGE + HEADER as u64;
        }
        let at = (self.pos % PAGE) as usize;
        let seq = self.pages.len() as u64 - 1;
        let page = self.pages.last_mut().unwrap();
        let id = if text.is_some() { 2_u64 } else { 1 };
        let word = u64::from(tag(seq, SALT)) << 32 | (length as u64) << 16 | id;
        for (place, value) in [(0, word), (8, time), (16, 5), (24, number)] {
            put(page, at + place, &value.to_le_bytes());
        }
        if let Some((text, _)) = text {
            put(page, at + 32, text.as_bytes());
            put(page, at + 32 + text.len(), &[0]);
        }
        self.pos += length as u64;
        // A page that is full to the last byte is entered by nobody any more.
        if self.pos.is_multiple_of(PAGE) {
            self.pos = self.pages.len() as u64 * PAGE;
        }
    }
}

/// What came of a ring.
struct File {
    packer: Packer,
    bench: Bench,
    shapes: Shapes,
    bytes: Vec<u8>,
}

impl File {
    fn new() -> File {
        let identity = Identity {
            uuid: [3; 16],
            instance_id: 9,
            salt: SALT,
            cpu: 1,
        };
        File {
            packer: Packer::new(identity, 0, 0),
            bench: Bench::default(),
            shapes: Shapes::of(&layouts()),
            bytes: Vec::new(),
        }
    }

    fn take(&mut self, ring: &Ring, wanted: Wanted, fails_at: Option<usize>) -> Result<(), ()> {
        let bytes = &mut self.bytes;
        let mut writes = 0;
        self.packer.take(
            &mut self.bench,
            &self.shapes,
            &wanted,
            &mut |seq, range, to| match ring.pages.get(seq as usize) {
                Some(page) => {
                    to.extend_from_slice(&page[range]);
                    true
                }
                None => false,
            },
            &mut |new, at, progress| {
                writes += 1;
                if fails_at == Some(writes) {
                    return Err(());
                }
                bytes.truncate(at as usize);
                bytes.extend_from_slice(new);
                assert_eq!(progress.bytes, bytes.len() as u64);
                Ok(())
            },
        )
    }

    /// Reads it as CTF says, and checks every head. Returns time and number of each record.
    fn read(&self) -> Vec<(u64, u64)> {
        let mut records = Vec::new();
        let (mut at, mut seq, mut last) = (0, 0, 0);
        while at < self.bytes.len() {
            let packet = &self.bytes[at..];
            let long = |place| u64_at(packet, place).unwrap();
            assert_eq!(u32_at(packet, page::MAGIC), Some(page::MAGIC_VALUE));
            assert_eq!((long(page::SEQ), long(page::INSTANCE_ID)), (seq, 9));
            let content = long(page::CONTENT_SIZE) as usize / 8;
            let (begin, end) = (long(page::TIMESTAMP_BEGIN), long(page::TIMESTAMP_END));
            assert!(last <= begin && begin <= end, "{last} {begin} {end}");
            let mut place = HEADER;
            let before = records.len();
            while place < content {
                let class = self.shapes.classes.get(u16_at(packet, place).unwrap()).unwrap();
                let bytes = class.content_bytes(&packet[place..content]).unwrap();
                let time = u64_at(packet, place + record::TIME).unwrap();
                assert!(
                    last.max(begin) <= time && time <= end,
                    "{time} in {begin}..={end}"
                );
                last = time;
                records.push((time, u64_at(packet, place + 24).unwrap()));
                place = if place + bytes == content {
                    content
                } else {
                    (place + bytes).next_multiple_of(record::ALIGN)
                };
            }
            assert!(records.len() > before);
            assert_eq!((records[before].0, last), (begin, end));
            at += long(page::PACKET_SIZE) as usize / 8;
            seq += 1;
        }
        assert_eq!(self.packer.counts().iter().sum::<u64>(), records.len() as u64);
        assert_eq!(self.packer.progress().records, records.len() as u64);
        assert_eq!(self.packer.progress().packets, seq);
        records
    }
}

fn all(ring: &Ring) -> Wanted {
    Wanted {
        to: ring.pos,
        lost: 0,
        before_ns: u64::MAX,
        partial: true,
    }
}

fn by_time(mut numbers: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_page_is_a_packet_and_what_comes_later_in_it_another() {
    let (mut ring, mut file) = (Ring::default(), File::new());
    for number in 0..1000 {
        ring.push(100 + number, number, None);
    }
    let pages = Wanted {
        partial: false,
        lost: 4,
        ..all(&ring)
    };
    file.take(&ring, pages, None).unwrap();
    let whole = ring.pages.len() as u64 - 1;
    assert_eq!(file.packer.progress().packets, whole);
    assert_eq!(
        (file.packer.progress().position, file.packer.discarded()),
        (whole * PAGE, 4)
    );
    file.take(&ring, all(&ring), None).unwrap();
    assert_eq!(file.packer.progress().position, ring.pos);
    for number in 1000..2000 {
        ring.push(100 + number, number, None);
        if number % 7 == 0 {
            file.take(&ring, all(&ring), None).unwrap();
        }
    }
    file.take(&ring, all(&ring), None).unwrap();
    let expected: Vec<(u64, u64)> = (0..2000).map(|number| (100 + number, number)).collect();
    assert_eq!(file.read(), expected);
    let bytes = file.bytes.len();
    file.take(&ring, all(&ring), None).unwrap();
    assert_eq!(file.bytes.len(), bytes, "nothing is taken twice");
}

#[test]
fn what_was_written_in_an_interrupt_is_sorted_also_across_pages() {
    let (mut ring, mut file) = (Ring::default(), File::new());
    let mut pushed = Vec::new();
    for number in 0..5000_u64 {
        // Each 40th took its time long before it took its place; sometimes pages ago.
        let time = 10_000 + 10 * number;
        let late = [5, 3000][usize::from(number % 400 == 0)] * u64::from(number % 40 == 0);
        ring.push(time - late, number, None);
        pushed.push((time - late, number));
    }
    file.take(&ring, all(&ring), None).unwrap();
    assert_eq!(file.read(), by_time(pushed));
    assert_eq!(file.packer.progress().late, 0);
}

#[test]
fn what_reaches_behind_what_is_on_disk_comes_at_its_end_and_is_counted() {
    let (mut ring, mut file) = (Ring::default(), File::new());
    for number in 0..200 {
        ring.push(1000 + number, number, None);
    }
    file.take(&ring, all(&ring), None).unwrap();
    ring.push(500, 777, None);
    ring.push(2000, 778, None);
    file.take(&ring, all(&ring), None).unwrap();
    let records = file.read();
    assert_eq!(records[200..], [(1199, 777), (2000, 778)]);
    assert_eq!(file.packer.progress().late, 1);
}

#[test]
fn records_that_have_not_settled_wait() {
    let (mut ring, mut file) = (Ring::default(), File::new());
    for number in 0..300 {
        ring.push(number, number, None);
    }
    let settled = Wanted {
        before_ns: 250,
        ..all(&ring)
    };
    file.take(
        &ring,
        Wanted {
            partial: false,
            ..settled
        },
        None,
    )
    .unwrap();
    assert!(file.packer.progress().records % 125 == 0, "whole pages");
    file.take(&ring, settled, None).unwrap();
    assert_eq!(file.read().len(), 250);
    file.take(&ring, all(&ring), None).unwrap();
    assert_eq!(file.read(), (0..300).map(|n| (n, n)).collect::<Vec<_>>());
}

#[test]
fn a_text_that_ends_before_its_length_is_closed_up() {
    let (mut ring, mut file) = (Ring::default(), File::new());
    let mut expected = Vec::new();
    for number in 0..600_u64 {
        let text = &"abcdefghijklmnopqrstuvwxyz"[..(number % 20) as usize];
        let slack = if number % 50 == 3 { 16 } else { 0 };
        ring.push(number, number, Some((text, text.len() + 1 + slack)));
        expected.push((number, number));
    }
    file.take(&ring, all(&ring), None).unwrap();
    assert_eq!(file.read(), expected);
}

#[test]
fn what_could_not_be_written_is_taken_again() {
    for fails_at in 1..4 {
        let (mut ring, mut file) = (Ring::default(), File::new());
        let mut pushed = Vec::new();
        for number in 0..40_000_u64 {
            let time = 10_000 + 10 * number - 95 * u64::from(number % 90 == 0);
            ring.push(time, number, None);
            pushed.push((time, number));
        }
        assert_eq!(file.take(&ring, all(&ring), Some(fails_at)), Err(()));
        assert!(file.read().len() < pushed.len());
        file.take(&ring, all(&ring), None).unwrap();
        assert_eq!(file.read(), by_time(pushed), "failed at write {fails_at}");
        assert_eq!(file.packer.progress().late, 0);
    }
}

#[test]
fn what_is_no_record_is_left_out_and_counted() {
    let (mut ring, mut file) = (Ring::default(), File::new());
    for number in 0..300 {
        ring.push(number, number, None);
    }
    // Reserved only; of a kind that nobody knows.
    put(&mut ring.pages[0], HEADER + 32, &[0, 0]);
    put(&mut ring.pages[1], HEADER + 64, &[9, 0]);
    file.take(&ring, all(&ring), None).unwrap();
    assert_eq!(file.read().len(), 298);
    assert_eq!(file.packer.progress().torn, 2);
}
