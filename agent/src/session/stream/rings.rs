//! The rings of stream buffers and the pieces that they go into: what is complete in, packets on disk out.
//!
//! INVARIANT: a ring learns that its pages may be used again only when they are in a file.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::path::Path;
use std::thread::JoinHandle;

use lkst_probes::image::PackImage;
use lkst_probes::layout::PAGE_BYTES;

use super::{REASON, Rotation};
use crate::kernel::ring::{Drain, Rings};
use crate::session::{Host, RETRY_NS, boot_now_ns, folder_of, wall_clock};
use crate::trace::incident::Incident;
use crate::trace::names::Namer;
use crate::trace::piece::{Closing, Piece, RingStart};
use crate::trace::seal::SaveError;
use crate::trace::stream::{Bench, Shapes, Wanted};

/// Records wait so long: one of an earlier time may still come, of a program that was interrupted between its look at
/// the clock and its record. Softirqs, the longest interruption there is, run for 2 ms at most.
const SETTLED_NS: u64 = 5_000_000;

/// How much is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Whole pages.
    Pages,
    /// What has settled.
    Settled,
    /// Everything: nothing records any more, or somebody wants it now.
    All,
}

/// All stream buffers.
#[derive(Debug, Default)]
pub(in crate::session) struct Streams {
    /// By the number of the map of their pages, which is never given out twice.
    pub(super) streams: BTreeMap<u32, Stream>,
    bench: Bench,
    pub(super) finishing: Vec<Finishing>,
    /// Whose quarters are full: pack and CPU.
    pub(super) woken: BTreeSet<(u32, u32)>,
    pub(super) ticked_ns: u64,
    pub(super) rotation: Rotation,
}

/// A buffer's rings and the piece that they go into.
#[derive(Debug)]
pub(super) struct Stream {
    pages: Drain,
    shapes: Shapes,
    pub(super) piece: Option<Piece>,
    /// Bytes of the pieces before.
    written_bytes: u64,
    failed_at_ns: Option<u64>,
    pub(super) failed: Option<String>,
}

/// A piece on its way to its name.
#[derive(Debug)]
pub(super) struct Finishing {
    /// The pack's number in notices.
    pub(super) pack: u16,
    pub(super) closing: Closing,
    pub(super) thread: Option<JoinHandle<Result<(), SaveError>>>,
    pub(super) failed_at_ns: u64,
}

impl Finishing {
    pub(super) fn begin(&mut self) {
        let closing = self.closing.clone();
        self.thread = Some(std::thread::spawn(move || closing.finish()));
    }
}

/// What a piece says of where it comes from.
pub(super) struct Origin<'s> {
    pub(super) output: &'s Path,
    pub(super) host: &'s Host,
    pub(super) boot_offset_ns: i64,
    pub(super) generation: u64,
}

impl Origin<'_> {
    pub(super) fn about(&self) -> Incident {
        Incident {
            reason: REASON.to_owned(),
            saved_at_unix_ns: boot_now_ns().wrapping_add_signed(self.boot_offset_ns),
            generation: self.generation,
            ..Incident::default()
        }
    }
}

impl Stream {
    fn new(rings: &Rings, image: &PackImage) -> Result<Stream, SaveError> {
        Ok(Stream {
            pages: rings.drain().map_err(SaveError::Rings)?,
            shapes: Shapes::of(&image.layouts),
            piece: None,
            written_bytes: 0,
            failed_at_ns: None,
            failed: None,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.written_bytes + self.piece.as_ref().map_or(0, Piece::bytes)
    }

    /// Takes what is complete, of some CPUs or all. Begins a piece where there is none.
    fn take(
        &mut self,
        rings: &Rings,
        image: &PackImage,
        origin: &Origin<'_>,
        bench: &mut Bench,
        how: How,
        only: Option<&BTreeSet<u32>>,
    ) -> Result<(), SaveError> {
        const PAGE: u64 = PAGE_BYTES as u64;
        let now_ns = boot_now_ns();
        for cpu in 0..rings.cpus() {
            if only.is_some_and(|only| !only.contains(&(cpu as u32))) {
                continue;
            }
            let complete = rings.complete(cpu);
            let pages = complete.to / PAGE - (complete.from / PAGE).min(complete.to / PAGE);
            if complete.to <= complete.from || how == How::Pages && pages == 0 {
                continue;
            }
            // A ring that is half full has no time to wait.
            let is_pressed = how == How::All || 2 * pages >= self.pages.pages_per_cpu();
            let wanted = Wanted {
                to: complete.to,
                lost: complete.lost,
                before_ns: if is_pressed {
                    u64::MAX
                } else {
                    now_ns.saturating_sub(SETTLED_NS)
                },
                partial: how != How::Pages,
            };
            let shapes = &mut self.shapes;
            let piece = match &mut self.piece {
                Some(piece) => piece,
                None => self.piece.insert(begin(rings, image, origin)?),
            };
            if image.layouts.len() > shapes.layouts() {
                piece.know(&origin.host.trace_info(image, origin.boot_offset_ns))?;
                *shapes = Shapes::of(&image.layouts);
            }
            let drain = &self.pages;
            piece.take(
                cpu,
                bench,
                shapes,
                &wanted,
                &mut |seq, bytes, to| drain.copy(cpu, seq, bytes, to),
                &mut |progress| rings.drained(cpu, progress.position, progress.told),
            )?;
        }
        Ok(())
    }
}

fn begin(rings: &Rings, image: &PackImage, origin: &Origin<'_>) -> Result<Piece, SaveError> {
    let starts = (0..rings.cpus()).map(|cpu| {
        let (instance_id, salt) = rings.identity(cpu);
        let complete = rings.complete(cpu);
        RingStart {
            cpu: cpu as u32,
            instance_id,
            salt,
            position: complete.from,
            told: complete.told,
        }
    });
    let starts: Vec<RingStart> = starts.collect();
    let now = wall_clock(boot_now_ns(), origin.boot_offset_ns);
    let folder = folder_of(origin.output, &image.plan.pack, &now, REASON).join(format!("1-{}", rings.buffer));
    let info = origin.host.trace_info(image, origin.boot_offset_ns);
    Piece::begin(&folder, info, origin.about(), &rings.buffer, &starts)
}

impl Streams {
    /// Takes what is complete of a stream. Returns whether its piece is to be ended.
    pub(super) fn take(
        &mut self,
        map: u32,
        rings: &Rings,
        image: &PackImage,
        origin: &Origin<'_>,
        how: How,
        only: Option<&BTreeSet<u32>>,
    ) -> Result<bool, String> {
        let stream = match self.streams.entry(map) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                entry.insert(Stream::new(rings, image).map_err(|error| error.to_string())?)
            }
        };
        let waits = |at: u64| how != How::All && boot_now_ns() < at + RETRY_NS;
        if stream.failed_at_ns.is_some_and(waits) {
            return Ok(false);
        }
        match stream.take(rings, image, origin, &mut self.bench, how, only) {
            Ok(()) => {
                (stream.failed_at_ns, stream.failed) = (None, None);
                let is_full = |piece: &Piece| {
                    piece.bytes() >= self.rotation.size_bytes || piece.age() >= self.rotation.age
                };
                Ok(stream.piece.as_ref().is_some_and(is_full))
            }
            Err(error) => {
                // A folder that somebody has removed is not written to any more.
                if error.is_not_found() {
                    stream.written_bytes = stream.bytes();
                    stream.piece = None;
                }
                let text = error.to_string();
                stream.failed_at_ns = Some(boot_now_ns());
                stream.failed = Some(text.clone());
                Err(text)
            }
        }
    }

    /// Ends a stream's piece. Returns what is in it, by event.
    pub(super) fn close(
        &mut self,
        map: u32,
        pack: u16,
        about: Incident,
        namer: Namer<'_>,
    ) -> Option<BTreeMap<String, u64>> {
        let stream = self.streams.get_mut(&map)?;
        let bytes = stream.bytes();
        let piece = stream.piece.take()?;
        stream.written_bytes = bytes;
        let kept = piece.kept(&stream.shapes);
        if let Some(closing) = piece.close(about, &stream.shapes, namer) {
            let mut finishing = Finishing {
                pack,
                closing,
                thread: None,
                failed_at_ns: 0,
            };
            finishing.begin();
            self.finishing.push(finishing);
        }
        Some(kept)
    }
}
