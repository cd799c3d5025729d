//! A record's bytes and its layout in, values out.
//!
//! [`EventClass::content_bytes`] is the one test whether bytes can be a record of a class. What passed it decodes
//! without an error and without an allocation: values borrow from the record.

use std::iter::Zip;
use std::slice::Iter;

use lkst_probes::layout::{ColumnLayout, Encoding, RecordLayout, VARYING_MAX_BYTES, record};

/// A layout with what is asked of it for every record worked out beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventClass {
    /// The layout.
    pub layout: RecordLayout,
    /// Of the columns that vary, in order: bytes of an element of a sequence, or `None` for a string.
    varying: Box<[Option<usize>]>,
    /// Of each column; empty where it is no enumeration.
    enumerators: Box<[Enumerators]>,
}

/// The numbers of an enumeration in order, each with the place of its name.
type Enumerators = Box<[(u32, usize)]>;

impl EventClass {
    /// Prepares a layout.
    #[must_use]
    pub fn new(layout: RecordLayout) -> Self {
        let varying = layout
            .columns
            .iter()
            .filter(|column| column.offset.is_none())
            .map(|column| match column.encoding {
                Encoding::Sequence { bits, .. } => Some(usize::from(bits / 8)),
                _ => None,
            })
            .collect();
        let enumerators = layout
            .columns
            .iter()
            .map(|column| match &column.encoding {
                Encoding::Enum(names) => {
                    let mut places: Enumerators = names.iter().map(|(_, number)| *number).zip(0..).collect();
                    places.sort_unstable();
                    places
                }
                _ => Box::default(),
            })
            .collect();
        EventClass {
            layout,
            varying,
            enumerators,
        }
    }

    /// How many bytes of `bytes`, which begin with a record of this class, are the record up to the end of its last
    /// field. `None` where a field runs over the end or is longer than the format allows.
    #[must_use]
    pub fn content_bytes(&self, bytes: &[u8]) -> Option<usize> {
        let mut end = usize::from(self.layout.fixed_bytes);
        if bytes.len() < end || end < record::FIELDS {
            return None;
        }
        for element in &self.varying {
            let rest = bytes.get(end..)?;
            end += match element {
                None => memchr::memchr(0, rest.get(..VARYING_MAX_BYTES).unwrap_or(rest))? + 1,
                Some(bytes) => {
                    let count = usize::from(u16_at(rest, 0)?);
                    let bytes = bytes * count;
                    if bytes > VARYING_MAX_BYTES || rest.len() < 2 + bytes {
                        return None;
                    }
                    2 + bytes
                }
            };
        }
        Some(end)
    }

    /// The columns of a record with their values, in the layout's order. Ends early where the record is not one of
    /// this class.
    #[must_use]
    pub fn values<'a>(&'a self, record: &'a [u8]) -> Values<'a> {
        Values {
            columns: self.layout.columns.iter().zip(&self.enumerators),
            record,
            varying_at: usize::from(self.layout.fixed_bytes),
        }
    }
}

/// Classes by the id of their records.
#[derive(Debug, Clone, Default)]
pub struct Classes<C> {
    classes: Vec<C>,
    /// Place in `classes` by id, plus one; 0 where no record has that id.
    by_id: Vec<u32>,
}

impl<C: std::borrow::Borrow<EventClass>> Classes<C> {
    /// Indexes classes by id; of several with one id the last is found.
    #[must_use]
    pub fn new(classes: Vec<C>) -> Self {
        let ids = || classes.iter().map(|class| usize::from(class.borrow().layout.id));
        let mut by_id = vec![0; ids().max().map_or(0, |id| id + 1)];
        for (number, id) in (1..).zip(ids()) {
            if let Some(slot) = by_id.get_mut(id) {
                *slot = number;
            }
        }
        Classes { classes, by_id }
    }

    /// The place of the class of this id, for [`Classes::at`].
    #[must_use]
    pub fn find(&self, id: u16) -> Option<usize> {
        (*self.by_id.get(usize::from(id))? as usize).checked_sub(1)
    }

    /// The class in this place.
    #[must_use]
    pub fn at(&self, place: usize) -> Option<&C> {
        self.classes.get(place)
    }

    /// The class of records with this id.
    #[must_use]
    pub fn get(&self, id: u16) -> Option<&C> {
        self.at(self.find(id)?)
    }

    /// All classes, in the order in which they were given.
    #[must_use]
    pub fn all(&self) -> &[C] {
        &self.classes
    }
}

impl Classes<EventClass> {
    /// Prepares and indexes layouts.
    #[must_use]
    pub fn of_layouts(layouts: &[RecordLayout]) -> Self {
        Classes::new(layouts.iter().cloned().map(EventClass::new).collect())
    }
}

/// An integer of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int {
    /// Its value, extended to 64 bits by its sign.
    pub extended: u64,
    /// Its width: 8, 16, 32 or 64.
    pub bits: u8,
    /// Two's complement.
    pub signed: bool,
}

impl Int {
    /// Its value as it is stored, without the extension: what is shown in hexadecimal.
    #[must_use]
    pub fn stored(self) -> u64 {
        match self.bits {
            8 | 16 | 32 => self.extended & ((1 << self.bits) - 1),
            _ => self.extended,
        }
    }
}

/// Integers in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ints<'a> {
    bytes: &'a [u8],
    bits: u8,
    signed: bool,
}

impl<'a> Ints<'a> {
    /// The integers in order.
    pub fn iter(self) -> impl Iterator<Item = Int> + 'a {
        self.bytes
            .chunks_exact(usize::from(self.bits / 8).max(1))
            .filter_map(move |chunk| int_at(chunk, 0, self.bits, self.signed))
    }
}

/// The value of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// An integer.
    Int(Int),
    /// A number with its name, where it has one.
    Enum(u32, Option<&'a str>),
    /// Text without its NUL; any bytes.
    Text(&'a [u8]),
    /// Integers in a row.
    Ints(Ints<'a>),
}

/// The columns of a record with their values.
#[derive(Debug, Clone)]
pub struct Values<'a> {
    columns: Zip<Iter<'a, ColumnLayout>, Iter<'a, Enumerators>>,
    record: &'a [u8],
    varying_at: usize,
}

impl<'a> Iterator for Values<'a> {
    type Item = (&'a ColumnLayout, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (column, enumerators) = self.columns.next()?;
        let at = column.offset.map_or(self.varying_at, usize::from);
        let value = match column.encoding {
            Encoding::Int { bits, signed } => Value::Int(int_at(self.record, at, bits, signed)?),
            Encoding::Enum(ref names) => {
                let number = u32_at(self.record, at)?;
                // Of several names of one number the first.
                let first = enumerators.partition_point(|&(other, _)| other < number);
                let name = enumerators.get(first).filter(|(other, _)| *other == number);
                let name = name.and_then(|&(_, place)| names.get(place));
                Value::Enum(number, name.map(|(name, _)| name.as_str()))
            }
            Encoding::Array { bits, signed, count } => {
                let bytes = usize::from(bits / 8) * usize::from(count);
                let bytes = self.record.get(at..at + bytes)?;
                Value::Ints(Ints { bytes, bits, signed })
            }
            Encoding::Text { bytes } => {
                let text = self.record.get(at..at + usize::from(bytes))?;
                Value::Text(text.get(..memchr::memchr(0, text).unwrap_or(text.len()))?)
            }
            Encoding::String => {
                let rest = self.record.get(at..)?;
                let text = rest.get(..memchr::memchr(0, rest)?)?;
                self.varying_at = at + text.len() + 1;
                Value::Text(text)
            }
            Encoding::Sequence { bits, signed } => {
                let rest = self.record.get(at..)?;
                let end = 2 + usize::from(bits / 8) * usize::from(u16_at(rest, 0)?);
                let bytes = rest.get(2..end)?;
                self.varying_at = at + end;
                Value::Ints(Ints { bytes, bits, signed })
            }
        };
        Some((column, value))
    }
}

/// The integer at a place.
#[must_use]
pub fn int_at(bytes: &[u8], at: usize, bits: u8, signed: bool) -> Option<Int> {
    let extended = match (bits, signed) {
        (8, false) => u64::from(*bytes.get(at)?),
        (8, true) => i64::from(*bytes.get(at)? as i8) as u64,
        (16, false) => u64::from(u16_at(bytes, at)?),
        (16, true) => i64::from(u16_at(bytes, at)? as i16) as u64,
        (32, false) => u64::from(u32_at(bytes, at)?),
        (32, true) => i64::from(u32_at(bytes, at)? as i32) as u64,
        (64, _) => u64_at(bytes, at)?,
        _ => return None,
    };
    Some(Int {
        extended,
        bits,
        signed,
    })
}

/// The `u16` at a place.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The `u32` at a place.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The `u64` at a place.
#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
