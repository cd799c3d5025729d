//! Stream buffers drained to disk: rings that do not overwrite themselves in, pieces of traces out.
//!
//! The kernel wakes us at each quarter of a ring: then whole pages are taken. Once a second the rest is taken too. A piece
//! that is large or old enough is finished by a thread of its own, since syncing it may take longer than a ring lasts,
//! and the next one is begun with the next record.
//!
//! INVARIANT: a ring learns that its pages may be used again only when they are in a file. So whatever goes wrong with
//! the disk, the ring fills, what finds no room is counted, and it goes on where it was once the disk is mended.

mod rings;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use lkst_probes::image::PackImage;

use super::{Host, RETRY_NS, Session, boot_now_ns};
use crate::kernel::generation::Former;
use crate::kernel::ring::Rings;
use crate::trace::incident::Incident;
use crate::trace::metadata::TraceInfo;
use crate::trace::piece::Piece;
use crate::trace::piece::left::{Left, cut_left, left_pieces};
pub(super) use rings::Streams;
use rings::{How, Origin, Stream};

/// What a piece is for, where no firing ends it.
const REASON: &str = "stream";
/// How often what does not fill a quarter of its ring is taken.
const TICK_NS: u64 = 900_000_000;
/// How long firings may wait for us, so that a ring is drained in time.
const WAKE_GAP: Duration = Duration::from_millis(2);

/// When a piece is finished and the next one begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// It has so many bytes, or a little more.
    pub size_bytes: u64,
    /// It is so old.
    pub age: Duration,
}

impl Default for Rotation {
    fn default() -> Rotation {
        Rotation {
            size_bytes: 256 << 20,
            age: Duration::from_secs(600),
        }
    }
}

impl Host {
    /// What the metadata of a pack's trace says.
    pub(super) fn trace_info(&self, image: &PackImage, boot_offset_ns: i64) -> TraceInfo {
        TraceInfo {
            uuid: self.uuid,
            hostname: self.hostname.clone(),
            kernel_release: self.kernel_release.clone(),
            boot_id: self.boot_id.clone(),
            lkst_version: env!("CARGO_PKG_VERSION").to_owned(),
            pack: image.plan.pack.clone(),
            boot_offset_ns,
            layouts: image.layouts.clone(),
            env: Vec::new(),
        }
    }
}

/// Finishes what an agent that was killed has left, so that nothing of it is lost. `raise` is told first how far each
/// piece had come. Only while nobody writes any. Returns what went wrong, for people.
pub fn finish_left(output: &Path, boot_offset_ns: i64, raise: &mut dyn FnMut(Left)) -> Vec<String> {
    let mut troubles = Vec::new();
    for path in left_pieces(output) {
        let finished =
            cut_left(&path, boot_now_ns().wrapping_add_signed(boot_offset_ns)).and_then(|(left, closing)| {
                left.into_iter().for_each(&mut *raise);
                closing.map_or(Ok(()), |closing| closing.finish())
            });
        if let Err(error) = finished {
            troubles.push(format!("a piece of a stream is left in {path:?}: {error}"));
        }
    }
    troubles
}

impl Session {
    /// Says when pieces of streams are finished.
    pub fn rotate_streams(&mut self, rotation: Rotation) {
        self.streams.rotation = rotation;
    }

    /// How long firings may wait for us once we were woken, where a stream must not; `None` where there is none.
    #[must_use]
    pub fn wake_gap(&self) -> Option<Duration> {
        let packs = &self.loaded.image.packs;
        let has_streams = packs
            .iter()
            .any(|pack| pack.plan.buffers.iter().any(|b| b.stream));
        has_streams.then_some(WAKE_GAP)
    }

    /// A quarter of a ring is full.
    pub(super) fn stream_woke(&mut self, pack: u32, cpu: u32) {
        self.streams.woken.insert((pack, cpu));
    }

    pub(super) fn is_stream(&self, number: usize, buffer: usize) -> bool {
        let pack = self.loaded.image.packs.get(number);
        let buffer = pack.and_then(|pack| pack.plan.buffers.get(buffer));
        buffer.is_some_and(|buffer| buffer.stream)
    }

    /// Bytes that a stream buffer has written, what found no room in its rings, and what is wrong with it.
    pub(super) fn stream_status(&self, number: usize, buffer: usize) -> Option<(u64, u64, Option<String>)> {
        let rings = self
            .loaded
            .rings_of(number, buffer)
            .filter(|_| self.is_stream(number, buffer))?;
        let stream = self.stream_of(number, buffer);
        let lost = (0..rings.cpus()).map(|cpu| rings.complete(cpu).lost).sum();
        Some((
            stream.map_or(0, Stream::bytes),
            lost,
            stream.and_then(|stream| stream.failed.clone()),
        ))
    }

    fn stream_of(&self, number: usize, buffer: usize) -> Option<&Stream> {
        let ring = (*self.loaded.image.packs.get(number)?.rings.get(buffer)?)?;
        self.streams.streams.get(&ring.map)
    }

    /// Stream buffers, by pack and number.
    fn stream_buffers(&self) -> Vec<(usize, usize)> {
        let packs = self.loaded.image.packs.iter().enumerate();
        let buffers = packs.flat_map(|(number, pack)| (0..pack.plan.buffers.len()).map(move |b| (number, b)));
        buffers
            .filter(|(number, buffer)| self.is_stream(*number, *buffer))
            .collect()
    }

    /// Drains those whose quarters are full.
    pub(super) fn drain_woken(&mut self) {
        if self.streams.woken.is_empty() {
            return;
        }
        let woken = std::mem::take(&mut self.streams.woken);
        for (number, buffer) in self.stream_buffers() {
            let index = self
                .loaded
                .image
                .packs
                .get(number)
                .map(|pack| u32::from(pack.index));
            let of_pack = woken.iter().filter(|(pack, _)| Some(*pack) == index);
            let cpus: BTreeSet<u32> = of_pack.map(|(_, cpu)| *cpu).collect();
            if !cpus.is_empty() {
                self.drain_stream(number, buffer, How::Pages, Some(&cpus));
            }
        }
    }

    /// What is due by the clock.
    pub(super) fn tick_streams(&mut self, now_ns: u64) {
        self.collect_finished(false);
        if now_ns.saturating_sub(self.streams.ticked_ns) < TICK_NS {
            return;
        }
        self.streams.ticked_ns = now_ns;
        for (number, buffer) in self.stream_buffers() {
            self.drain_stream(number, buffer, How::Settled, None);
        }
    }

    /// Drains one, and begins another piece where this one is full. Returns whether all went well.
    fn drain_stream(&mut self, number: usize, buffer: usize, how: How, only: Option<&BTreeSet<u32>>) -> bool {
        let Some(image) = self.loaded.image.packs.get(number) else {
            return true;
        };
        let ring = image.rings.get(buffer).copied().flatten();
        let (Some(ring), Some(rings)) = (ring, self.loaded.rings_of(number, buffer)) else {
            return true;
        };
        let origin = Origin {
            output: &self.output,
            host: &self.host,
            boot_offset_ns: self.boot_offset_ns,
            generation: self.loaded.generation(),
        };
        let taken = self.streams.take(ring.map, rings, image, &origin, how, only);
        match taken {
            Ok(true) => {
                let about = origin.about();
                self.close_piece(ring.map, number, about);
                true
            }
            Ok(false) => true,
            Err(text) => {
                self.trouble(text);
                false
            }
        }
    }

    /// Ends the piece of a stream: a thread makes it lasting.
    fn close_piece(&mut self, map: u32, number: usize, about: Incident) {
        let about = Incident {
            counts: self.counts(number),
            ..about
        };
        let index = self
            .loaded
            .image
            .packs
            .get(number)
            .map_or(u16::MAX, |pack| pack.index);
        self.names.look(self.loaded.names());
        let namer = &mut |tid, pid| self.names.of_thread(self.loaded.names(), tid, pid);
        if let Some(kept) = self.streams.close(map, index, about, namer) {
            self.count_kept(number, kept);
        }
    }

    /// Takes note of pieces that have their names now. With `wait`, of all.
    pub(super) fn collect_finished(&mut self, wait: bool) {
        for mut finishing in std::mem::take(&mut self.streams.finishing) {
            let Some(thread) = finishing.thread.take() else {
                if wait || boot_now_ns() >= finishing.failed_at_ns + RETRY_NS {
                    finishing.begin();
                }
                self.streams.finishing.push(finishing);
                continue;
            };
            if !wait && !thread.is_finished() {
                finishing.thread = Some(thread);
                self.streams.finishing.push(finishing);
                continue;
            }
            let pack = self.packs.iter_mut().find(|pack| pack.index == finishing.pack);
            match thread.join() {
                Ok(Ok(())) => {
                    if let Some(pack) = pack {
                        pack.saved_traces += 1;
                        pack.last_saved = Some(finishing.closing.folder().to_owned());
                        pack.failed = None;
                    }
                }
                Ok(Err(error)) => {
                    if let Some(pack) = pack {
                        pack.failed = Some(error.to_string());
                    }
                    self.trouble(error.to_string());
                    // What somebody has removed needs no name any more.
                    if !error.is_not_found() {
                        finishing.failed_at_ns = boot_now_ns();
                        self.streams.finishing.push(finishing);
                    }
                }
                Err(_) => self.trouble("a piece of a stream could not be finished".to_owned()),
            }
        }
    }

    /// A rule switches away from a stream or saves it, or somebody asks: all of it goes to disk anyway, so its piece ends
    /// here, and says why. Returns whether it is there.
    pub(super) fn save_stream(&mut self, number: usize, buffer: usize) -> bool {
        let output = self.output.clone();
        let boot_offset_ns = self.boot_offset_ns;
        if let Some(pack) = self.packs.get_mut(number) {
            pack.open_pending(&output, boot_offset_ns, None);
        }
        let is_there = self.drain_stream(number, buffer, How::All, None);
        let ring = self
            .loaded
            .image
            .packs
            .get(number)
            .and_then(|pack| *pack.rings.get(buffer)?);
        let Some(pack) = self.packs.get_mut(number) else {
            return is_there;
        };
        if !is_there {
            pack.failed_at_ns = Some(boot_now_ns());
            return false;
        }
        pack.failed_at_ns = None;
        let mut about = None;
        if let Some(incident) = &mut pack.incident {
            incident.parts += 1;
            about = Some(incident.about.clone());
        }
        let about = Incident {
            saved_at_unix_ns: boot_now_ns().wrapping_add_signed(boot_offset_ns),
            generation: self.loaded.generation(),
            ..about.unwrap_or_else(|| Incident {
                reason: REASON.to_owned(),
                ..Incident::default()
            })
        };
        if let Some(ring) = ring {
            self.close_piece(ring.map, number, about);
        }
        true
    }

    /// A stream buffer of rules that are gone: its rest, and the end of its piece. Returns whether it is on disk.
    pub(super) fn save_leaving_stream(&mut self, map: u32, image: &PackImage, rings: &Rings) -> bool {
        let origin = Origin {
            output: &self.output,
            host: &self.host,
            boot_offset_ns: self.boot_offset_ns,
            generation: self.loaded.generation(),
        };
        let about = origin.about();
        if let Err(text) = self.streams.take(map, rings, image, &origin, How::All, None) {
            self.trouble(text);
            return false;
        }
        self.names.look(self.loaded.names());
        let namer = &mut |tid, pid| self.names.of_thread(self.loaded.names(), tid, pid);
        let kept = self.streams.close(map, image.index, about, namer);
        let number = self.packs.iter().position(|pack| pack.index == image.index);
        if let (Some(number), Some(kept)) = (number, kept) {
            self.count_kept(number, kept);
        }
        self.streams.streams.remove(&map);
        true
    }

    /// Writes what is left and finishes all pieces: nothing is recorded any more, or nobody drains for a while.
    pub fn end_streams(&mut self) {
        for (number, buffer) in self.stream_buffers() {
            self.drain_stream(number, buffer, How::All, None);
            let ring = self
                .loaded
                .image
                .packs
                .get(number)
                .and_then(|pack| *pack.rings.get(buffer)?);
            let about = Incident {
                reason: REASON.to_owned(),
                saved_at_unix_ns: self.unix_ns(boot_now_ns()),
                generation: self.loaded.generation(),
                ..Incident::default()
            };
            if let Some(ring) = ring {
                self.close_piece(ring.map, number, about);
            }
        }
        // Twice: what failed before is tried once more.
        self.collect_finished(true);
        self.collect_finished(true);
    }

    /// Finishes the pieces of an agent before us; the rings learn how far they had come.
    pub(super) fn adopt_pieces(&mut self, former: &mut Former) {
        let mut left = Vec::new();
        let all = self.stream_buffers();
        let loaded = &mut self.loaded;
        let mut raise = |piece: Left| {
            let raise = |rings: &mut Rings| {
                rings.drained_before(piece.instance_id, piece.position, piece.told);
            };
            for (number, buffer) in &all {
                if let Some(rings) = loaded.rings_of_mut(*number, *buffer) {
                    raise(rings);
                }
            }
            former.buffers.iter_mut().for_each(|(_, rings)| raise(rings));
        };
        // Finished, but the rings of rules that were gone have not learned of it.
        for (instance_id, position) in &self.saved_before {
            raise(Left {
                instance_id: *instance_id,
                position: *position,
                told: 0,
            });
        }
        let troubles = finish_left(&self.output, self.boot_offset_ns, &mut |piece| {
            raise(piece);
            left.push(piece);
        });
        if !left.is_empty() {
            tracing::info!(
                rings = left.len(),
                "finished pieces of streams that were left unfinished"
            );
        }
        troubles.into_iter().for_each(|trouble| self.trouble(trouble));
    }

    /// The folders of pieces that are not finished.
    pub(super) fn open_pieces(&self) -> impl Iterator<Item = &Path> {
        let open = self
            .streams
            .streams
            .values()
            .filter_map(|stream| stream.piece.as_ref());
        let finishing = self.streams.finishing.iter();
        open.map(Piece::folder)
            .chain(finishing.map(|finishing| finishing.closing.folder()))
    }
}
