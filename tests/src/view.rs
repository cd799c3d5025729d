//! A copy of a ring, as a test looks at it: records in the order in which they were reserved, fields by name, and the
//! arithmetic of their places.

use std::sync::Arc;

use lkst::trace::decode::{Classes, EventClass, Int, Value, u16_at, u32_at};
use lkst::trace::raw::{Extracted, RawStream, RecordRef, records};
use lkst_probes::layout::{PAGE_BYTES, RecordLayout, page, record};

/// A copy of a ring and what lies in it.
#[derive(Debug)]
pub struct View {
    /// The copy.
    pub raw: RawStream,
    /// What was found in it.
    pub found: Extracted,
    classes: Arc<Classes<EventClass>>,
}

/// A record in a [`View`].
#[derive(Debug, Clone, Copy)]
pub struct Record<'v> {
    /// Its kind.
    pub class: &'v EventClass,
    /// Where it lies.
    pub place: &'v RecordRef,
    /// Its bytes.
    pub bytes: &'v [u8],
}

impl View {
    /// Looks for the records in a copy.
    #[must_use]
    pub fn new(raw: RawStream, layouts: &[RecordLayout]) -> View {
        View::with_classes(raw, Arc::new(Classes::of_layouts(layouts)))
    }

    /// As [`View::new`], for who looks often.
    #[must_use]
    pub fn with_classes(raw: RawStream, classes: Arc<Classes<EventClass>>) -> View {
        let found = records(&raw, &classes);
        View { raw, found, classes }
    }

    /// The records in the order in which they were reserved.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = Record<'_>> + ExactSizeIterator {
        self.found.records.iter().map(|place| Record {
            class: self
                .classes
                .get(place.id)
                .unwrap_or_else(|| panic!("no class {}", place.id)),
            place,
            bytes: &self.raw.pages[place.bytes.clone()],
        })
    }

    /// The events' names in order.
    #[must_use]
    pub fn events(&self) -> Vec<&str> {
        self.records().map(|record| record.event()).collect()
    }

    /// Panics unless the records fill the ring: on each page the first begins behind the head, each begins where the
    /// one before ends, and the last of all ends at the ring's position. So bytes in the ring = heads + records + what
    /// a page had left when the next record might not have fitted. Only for a ring that nobody writes to, with all of
    /// its records committed.
    pub fn assert_chained(&self) {
        let what = format!("{} of CPU {}", self.raw.buffer, self.raw.cpu);
        assert_eq!(self.found.torn, 0, "{what}: torn");
        assert_eq!(self.found.missing_pages, 0, "{what}: missing pages");
        assert_eq!(self.raw.busy, 0, "{what}: busy");
        let mut end = None;
        for record in self.records() {
            let at = record.place.at;
            let begins = at % PAGE_BYTES as u64 == page::HEADER_BYTES as u64;
            match end {
                Some(end) if begins => {
                    assert_eq!(at / PAGE_BYTES as u64, end / PAGE_BYTES as u64 + 1, "{what}")
                }
                Some(end) => assert_eq!(at, end, "{what}: a gap"),
                None => assert!(begins || self.raw.floor == at, "{what}: the first lies at {at}"),
            }
            // A record that ends with its page is followed by one of position 0 of the next.
            end = Some(at + record.reserved_bytes());
            if end.is_some_and(|end| end.is_multiple_of(PAGE_BYTES as u64)) {
                end = end.map(|end| end - 1);
            }
        }
        if let Some(record) = self.records().last() {
            assert_eq!(
                record.place.at + record.reserved_bytes(),
                self.raw.pos,
                "{what}: the end"
            );
        }
    }
}

impl<'v> Record<'v> {
    /// `system:name`
    #[must_use]
    pub fn event(&self) -> &'v str {
        &self.class.layout.name
    }

    /// Nanoseconds of the boot clock.
    #[must_use]
    pub fn time(&self) -> u64 {
        self.place.time
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

    /// Bytes that were reserved for it, padding included.
    #[must_use]
    pub fn reserved_bytes(&self) -> u64 {
        u64::from(u16_at(self.bytes, record::LENGTH).unwrap_or(0))
    }

    /// A field.
    #[must_use]
    pub fn value(&self, column: &str) -> Value<'v> {
        let mut values = self.class.values(self.bytes);
        let found = values.find(|(place, _)| place.name == column);
        found.map_or_else(
            || panic!("{} has no `{column}`", self.event()),
            |(_, value)| value,
        )
    }

    /// An integer, as its type extends it.
    #[must_use]
    pub fn int(&self, column: &str) -> u64 {
        match self.value(column) {
            Value::Int(Int { extended, .. }) => extended,
            other => panic!("`{column}` is {other:?}"),
        }
    }

    /// A text.
    #[must_use]
    pub fn text(&self, column: &str) -> &'v [u8] {
        match self.value(column) {
            Value::Text(text) => text,
            other => panic!("`{column}` is {other:?}"),
        }
    }

    /// The name of an enumeration's value.
    #[must_use]
    pub fn name(&self, column: &str) -> &'v str {
        match self.value(column) {
            Value::Enum(_, Some(name)) => name,
            other => panic!("`{column}` is {other:?}"),
        }
    }
}
