//! The rings of one buffer: one for each CPU, in two maps.
//!
//! In: the maps of heads and of pages. Out: rings ready for the programs, and copies of them ([`RawStream`]) for
//! whoever seals a trace. The programs write while we look; the order of our looks is what makes a copy sound.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use lkst_probes::layout::{PAGE_BYTES, head, page, record};

use super::memory::Mapping;
use crate::trace::raw::RawStream;

/// The rings of a buffer.
#[derive(Debug)]
pub struct Rings {
    /// The buffer's name.
    pub buffer: String,
    heads: Heads,
    pages: Pages,
    pages_per_cpu: usize,
    instances: Vec<Instance>,
}

/// The map of pages. It is mapped into memory only while it is looked at: rings are large, and an agent is to be small.
#[derive(Debug)]
pub struct Pages {
    map: OwnedFd,
    bytes: usize,
}

impl Pages {
    /// Pages of a map that has so many bytes.
    #[must_use]
    pub fn new(map: OwnedFd, bytes: usize) -> Pages {
        Pages { map, bytes }
    }

    fn mapped(&self) -> io::Result<Mapping> {
        Mapping::new(self.map.as_fd(), self.bytes)
    }
}

/// Rings that are mapped into memory.
#[derive(Debug)]
pub struct Look<'r> {
    rings: &'r Rings,
    pages: Mapping,
}

/// A stream's pages, mapped for as long as it is drained.
#[derive(Debug)]
pub struct Drain {
    pages: Mapping,
    pages_per_cpu: usize,
}

impl Drain {
    /// Pages on each CPU.
    #[must_use]
    pub fn pages_per_cpu(&self) -> u64 {
        self.pages_per_cpu as u64
    }

    /// Appends bytes of the page with this sequence number, which nobody writes to any more: see [`Complete`]. False,
    /// and nothing, where another page is in its place.
    pub fn copy(&self, cpu: usize, seq: u64, bytes: Range<usize>, to: &mut Vec<u8>) -> bool {
        let place = (seq % self.pages_per_cpu.max(1) as u64) as usize;
        let page = (cpu * self.pages_per_cpu + place) * PAGE_BYTES;
        let is_it = self.pages.u64(page + page::SEQ).load(Ordering::Relaxed) == seq;
        if is_it {
            self.pages.copy_quiet(page + bytes.start, bytes.len(), to);
        }
        is_it
    }
}

/// What of a CPU's ring cannot change any more, as long as the floor is not raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Complete {
    /// The floor: what lies below was taken.
    pub from: u64,
    /// Below this all that was reserved is committed.
    pub to: u64,
    /// Records that found no room since the ring was made.
    pub lost: u64,
    /// What of these was told.
    pub told: u64,
}

/// Where the heads are, each [`head::BYTES`] long.
#[derive(Debug)]
enum Heads {
    /// In a map, from this byte on.
    Shared(Arc<Mapping>, usize),
    /// As they were when the last program was done with them.
    Frozen(Vec<u64>),
}

impl Heads {
    fn word(&self, at: usize) -> u64 {
        match self {
            Heads::Shared(mapping, from) => mapping.u64(from + at).load(Ordering::Acquire),
            Heads::Frozen(words) => words.get(at / 8).copied().unwrap_or(0),
        }
    }
}

/// What is unique to an allocation of a buffer on a CPU.
#[derive(Debug, Clone, Copy)]
struct Instance {
    id: u64,
    salt: u32,
}

impl Rings {
    /// Writes what is constant into pages and into the heads, which begin at the byte `heads_at` of their map, before
    /// any program can see them. `random` gives identities.
    ///
    /// # Errors
    /// From `random`.
    pub fn prepare(
        buffer: &str,
        (heads, heads_at): (Arc<Mapping>, usize),
        pages: Pages,
        cpus: usize,
        uuid: [u8; 16],
        mut random: impl FnMut() -> io::Result<u64>,
    ) -> io::Result<Rings> {
        let pages_per_cpu = pages.bytes / PAGE_BYTES / cpus.max(1);
        let mapped = pages.mapped()?;
        let mut instances = Vec::with_capacity(cpus);
        for cpu in 0..cpus {
            let instance = Instance {
                id: random()?,
                salt: random()? as u32,
            };
            heads.write(heads_at + cpu * head::BYTES, &[0; head::BYTES]);
            heads
                .u32(heads_at + cpu * head::BYTES + head::SALT)
                .store(instance.salt, Ordering::Relaxed);
            let page_head = page_head(uuid, instance.id, cpu as u32);
            for number in 0..pages_per_cpu {
                mapped.write((cpu * pages_per_cpu + number) * PAGE_BYTES, &page_head);
            }
            instances.push(instance);
        }
        Ok(Rings {
            buffer: buffer.to_owned(),
            heads: Heads::Shared(heads, heads_at),
            pages,
            pages_per_cpu,
            instances,
        })
    }

    /// Goes on with rings that were prepared before: by an agent that is gone.
    ///
    /// # Errors
    /// The pages cannot be mapped.
    pub fn adopt(
        buffer: &str,
        (heads, heads_at): (Arc<Mapping>, usize),
        pages: Pages,
        cpus: usize,
    ) -> io::Result<Rings> {
        let pages_per_cpu = pages.bytes / PAGE_BYTES / cpus.max(1);
        let mapped = pages.mapped()?;
        let instance = |cpu: usize| Instance {
            id: mapped
                .u64(cpu * pages_per_cpu * PAGE_BYTES + page::INSTANCE_ID)
                .load(Ordering::Relaxed),
            salt: heads
                .u32(heads_at + cpu * head::BYTES + head::SALT)
                .load(Ordering::Relaxed),
        };
        let instances = (0..cpus).map(instance).collect();
        Ok(Rings {
            buffer: buffer.to_owned(),
            heads: Heads::Shared(heads, heads_at),
            pages,
            pages_per_cpu,
            instances,
        })
    }

    /// How many CPUs have a ring.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.instances.len()
    }

    fn head(&self, cpu: usize, field: usize) -> u64 {
        self.heads.word(cpu * head::BYTES + field)
    }

    /// Lets go of the heads in the map, which somebody else may be given. Only when no program can write any more.
    pub fn freeze(&mut self) {
        let words = self.cpus() * head::BYTES / 8;
        self.heads = Heads::Frozen((0..words).map(|word| self.heads.word(8 * word)).collect());
    }

    /// Which allocations have something that was not given up yet, and where each stands.
    pub fn unsaved(&self) -> impl Iterator<Item = (u64, u64)> {
        let standing = |(cpu, instance): (usize, &Instance)| {
            let pos = self.head(cpu, head::POS);
            (pos > self.head(cpu, head::FLOOR)).then_some((instance.id, pos))
        };
        self.instances.iter().enumerate().filter_map(standing)
    }

    /// Bytes reserved in a CPU's ring since it was made.
    #[must_use]
    pub fn position(&self, cpu: usize) -> u64 {
        self.head(cpu, head::POS)
    }

    /// Bytes that newer ones have overwritten since the rings were made or last given up, over all CPUs.
    #[must_use]
    pub fn overwritten_bytes(&self) -> u64 {
        let size = (self.pages_per_cpu * PAGE_BYTES) as u64;
        let of_cpu = |cpu| {
            let held = self.position(cpu).saturating_sub(self.head(cpu, head::FLOOR));
            held.saturating_sub(size)
        };
        (0..self.cpus()).map(of_cpu).sum()
    }

    /// Maps them into memory, to be copied.
    ///
    /// # Errors
    /// They cannot be mapped.
    pub fn look(&self) -> io::Result<Look<'_>> {
        Ok(Look {
            rings: self,
            pages: self.pages.mapped()?,
        })
    }

    /// Whether nothing was recorded since the rings were made or last given up.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        (0..self.cpus()).all(|cpu| self.head(cpu, head::POS) <= self.head(cpu, head::FLOOR))
    }

    /// Maps a stream's pages, to be drained for as long as it lives.
    ///
    /// # Errors
    /// They cannot be mapped.
    pub fn drain(&self) -> io::Result<Drain> {
        Ok(Drain {
            pages: self.pages.mapped()?,
            pages_per_cpu: self.pages_per_cpu,
        })
    }

    /// What of a CPU's ring is complete, while programs may write.
    #[must_use]
    pub fn complete(&self, cpu: usize) -> Complete {
        // First `pos`, then `busy`: whoever moved `pos` up to here has said so in `busy` before, and unsays it when all is
        // committed. Those nested in it end before it does.
        let pos = self.head(cpu, head::POS);
        let to = match self.head(cpu, head::BUSY) {
            0 => pos,
            busy => pos.min(busy >> 16),
        };
        Complete {
            from: self.head(cpu, head::FLOOR),
            to,
            lost: self.head(cpu, head::LOST),
            told: self.head(cpu, head::TOLD),
        }
    }

    /// The identity of a CPU's ring: instance and salt.
    #[must_use]
    pub fn identity(&self, cpu: usize) -> (u64, u32) {
        self.instances
            .get(cpu)
            .map_or((0, 0), |instance| (instance.id, instance.salt))
    }

    /// What a stream has below `floor` was written, and what it lost up to `told` was told: programs may use its pages
    /// again. Both only rise.
    pub fn drained(&self, cpu: usize, floor: u64, told: u64) {
        // Of rings that are frozen nothing is used again.
        if let Heads::Shared(mapping, from) = &self.heads {
            let at = from + cpu * head::BYTES;
            mapping.u64(at + head::TOLD).fetch_max(told, Ordering::Relaxed);
            // After everything that was read: programs overwrite it from here on.
            mapping.u64(at + head::FLOOR).fetch_max(floor, Ordering::Release);
        }
    }

    /// As [`Rings::drained`], for the ring of this instance, where it is one of these: an agent before us has written so
    /// much.
    pub fn drained_before(&mut self, instance: u64, floor: u64, told: u64) {
        for cpu in 0..self.cpus() {
            if self.identity(cpu).0 != instance {
                continue;
            }
            let floor = floor.min(self.head(cpu, head::POS));
            self.drained(cpu, floor, told);
            if let Heads::Frozen(words) = &mut self.heads {
                for (field, value) in [(head::FLOOR, floor), (head::TOLD, told)] {
                    if let Some(word) = words.get_mut((cpu * head::BYTES + field) / 8) {
                        *word = (*word).max(value);
                    }
                }
            }
        }
    }

    /// Gives up what was saved: a later copy begins where the ring stands now. Only while no program writes to it.
    pub fn give_up(&mut self) {
        for cpu in 0..self.cpus() {
            let pos = self.head(cpu, head::POS);
            let at = cpu * head::BYTES + head::FLOOR;
            match &mut self.heads {
                Heads::Shared(mapping, from) => mapping.u64(*from + at).store(pos, Ordering::Release),
                Heads::Frozen(words) => {
                    if let Some(floor) = words.get_mut(at / 8) {
                        *floor = pos;
                    }
                }
            }
        }
    }
}

impl Look<'_> {
    /// Copies of all CPUs' rings, one at a time; see [`Look::copy`].
    pub fn copies(&self, live: bool) -> impl Iterator<Item = RawStream> {
        (0..self.rings.cpus()).map(move |cpu| self.copy(cpu, live))
    }

    /// A copy of a CPU's ring. With `live` programs may write meanwhile: then only records that were committed in two
    /// looks, in pages that were not lapped between them, are in the copy as records.
    #[must_use]
    pub fn copy(&self, cpu: usize, live: bool) -> RawStream {
        let rings = self.rings;
        let bytes = rings.pages_per_cpu * PAGE_BYTES;
        let from = cpu * bytes;
        let instance = rings
            .instances
            .get(cpu)
            .copied()
            .unwrap_or(Instance { id: 0, salt: 0 });
        let pos = rings.head(cpu, head::POS);
        let mut first = Vec::new();
        if live {
            self.pages.copy_to(from, bytes, &mut first);
            fence(Ordering::SeqCst);
        }
        let mut pages = Vec::new();
        self.pages.copy_to(from, bytes, &mut pages);
        fence(Ordering::SeqCst);
        let mut floor = rings.head(cpu, head::FLOOR);
        if live {
            // What a writer may have begun to overwrite between the looks is not ours to read.
            let now = rings.head(cpu, head::POS);
            let lapped = (now / PAGE_BYTES as u64 + 1).saturating_sub(rings.pages_per_cpu as u64);
            floor = floor.max(lapped * PAGE_BYTES as u64);
            uncommit_changed_words(&first, &mut pages);
        }
        RawStream {
            buffer: rings.buffer.clone(),
            cpu: cpu as u32,
            instance_id: instance.id,
            salt: instance.salt,
            pages,
            pos,
            busy: rings.head(cpu, head::BUSY),
            lost: rings.head(cpu, head::LOST),
            floor,
        }
    }
}

/// Every word that was not the same in both looks loses its id. Where it was a record's word, the record was committed
/// between the looks and its fields may be older than its word; where it was a field of a record that is committed in
/// both, it cannot have changed.
fn uncommit_changed_words(first: &[u8], second: &mut [u8]) {
    let words = first.as_chunks::<8>().0.iter().zip(second.as_chunks_mut::<8>().0);
    for (index, (before, after)) in words.enumerate() {
        let in_records = index * 8 % PAGE_BYTES >= page::HEADER_BYTES;
        if in_records && before != after {
            after[record::ID] = 0;
            after[record::ID + 1] = 0;
        }
    }
}

/// The head of a page that no record was written to yet.
fn page_head(uuid: [u8; 16], instance_id: u64, cpu: u32) -> [u8; page::HEADER_BYTES] {
    let mut head = [0; page::HEADER_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in head.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(page::MAGIC, &page::MAGIC_VALUE.to_le_bytes());
    put(page::UUID, &uuid);
    put(page::INSTANCE_ID, &instance_id.to_le_bytes());
    put(page::CPU_ID, &cpu.to_le_bytes());
    head
}
