//! Places in maps that all packs share: control words, counters, heads of rings.
//!
//! A pack that comes takes places, one that goes gives them back; what stays keeps its own, so that its programs need
//! not change. Maps cannot grow, so where one is full another is added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A place: in which map of its kind, at which byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Spot {
    /// The number of the map among those of its kind.
    pub map: u8,
    /// Bytes from its start; of counters, from the start of a CPU's part.
    pub at: u32,
}

impl Spot {
    /// So many bytes on.
    #[must_use]
    pub const fn plus(self, bytes: u32) -> Spot {
        Spot {
            map: self.map,
            at: self.at + bytes,
        }
    }
}

/// More maps of one kind than a program's text can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more events, rules and buffers than 256 maps hold")]
pub struct Full;

/// Which places of the maps of one kind are free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arena {
    /// Bytes of each map.
    map_bytes: u32,
    /// For each map, what is free: start and length, never two side by side.
    free: Vec<BTreeMap<u32, u32>>,
}

impl Arena {
    /// Maps of so many bytes; the first has `reserved` bytes at its start that are never given out.
    #[must_use]
    pub fn new(map_bytes: u32, reserved: u32) -> Arena {
        Arena {
            map_bytes,
            free: vec![BTreeMap::from([(reserved, map_bytes - reserved)])],
        }
    }

    /// How many maps there are.
    #[must_use]
    pub fn maps(&self) -> usize {
        self.free.len()
    }

    /// Bytes of each map.
    #[must_use]
    pub fn map_bytes(&self) -> u32 {
        self.map_bytes
    }

    /// Takes `bytes`, which lie in one cache line where they fit into one.
    ///
    /// # Errors
    /// [`Full`]
    pub fn take(&mut self, bytes: u32) -> Result<Spot, Full> {
        let align = bytes.next_power_of_two().clamp(8, 64);
        for (map, free) in (0..).zip(&mut self.free) {
            let fits = |(start, length): (&u32, &u32)| {
                let at = start.next_multiple_of(align);
                (at + bytes <= start + length).then_some((*start, *length, at))
            };
            if let Some((start, length, at)) = free.iter().find_map(fits) {
                free.remove(&start);
                if at > start {
                    free.insert(start, at - start);
                }
                if start + length > at + bytes {
                    free.insert(at + bytes, start + length - at - bytes);
                }
                return Ok(Spot { map, at });
            }
        }
        if self.free.len() > usize::from(u8::MAX) || bytes > self.map_bytes {
            return Err(Full);
        }
        self.free.push(BTreeMap::from([(0, self.map_bytes)]));
        self.take(bytes)
    }

    /// Gives a place back.
    pub fn give_back(&mut self, spot: Spot, bytes: u32) {
        let Some(free) = self.free.get_mut(usize::from(spot.map)) else {
            return;
        };
        let (mut start, mut end) = (spot.at, spot.at + bytes);
        if let Some((before, length)) = free.range(..start).next_back().map(|(s, l)| (*s, *l))
            && before + length == start
        {
            free.remove(&before);
            start = before;
        }
        if let Some(length) = free.remove(&end) {
            end += length;
        }
        free.insert(start, end - start);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use proptest::prelude::*;

    use super::{Arena, Spot};

    #[test]
    fn what_fits_a_cache_line_lies_in_one() {
        let mut arena = Arena::new(4096, 8);
        arena.take(8).unwrap();
        assert_eq!(arena.take(32).unwrap(), Spot { map: 0, at: 32 });
        assert_eq!(arena.take(384).unwrap(), Spot { map: 0, at: 64 });
        assert_eq!(arena.take(8).unwrap(), Spot { map: 0, at: 16 });
    }

    #[test]
    fn a_full_map_is_followed_by_another_until_there_are_256() {
        let mut arena = Arena::new(64, 0);
        for map in 0..=u8::MAX {
            assert_eq!(arena.take(64).unwrap(), Spot { map, at: 0 });
        }
        assert!(arena.take(8).is_err());
        arena.give_back(Spot { map: 7, at: 0 }, 64);
        assert_eq!(arena.take(8).unwrap(), Spot { map: 7, at: 0 });
    }

    proptest! {
        #[test]
        fn places_never_overlap_and_all_come_back(steps in prop::collection::vec((any::<bool>(), 1_u32..30, any::<prop::sample::Index>()), 1..200)) {
            let mut arena = Arena::new(1024, 64);
            let fresh = arena.clone();
            let mut held: Vec<(Spot, u32)> = Vec::new();
            for (take, words, which) in steps {
                if take || held.is_empty() {
                    let spot = arena.take(8 * words).unwrap();
                    for (other, bytes) in &held {
                        let apart = spot.map != other.map || spot.at + 8 * words <= other.at || other.at + bytes <= spot.at;
                        prop_assert!(apart, "{spot:?} {other:?}");
                    }
                    prop_assert!(spot.at + 8 * words <= 1024);
                    held.push((spot, 8 * words));
                } else {
                    let (spot, bytes) = held.swap_remove(which.index(held.len()));
                    arena.give_back(spot, bytes);
                }
            }
            for (spot, bytes) in held {
                arena.give_back(spot, bytes);
            }
            prop_assert_eq!(&arena.free[0], &fresh.free[0]);
            prop_assert!(arena.free.iter().skip(1).all(|free| free.len() == 1));
        }
    }
}
