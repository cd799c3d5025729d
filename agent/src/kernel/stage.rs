//! A generation made ready: plans in, maps made and changed programs loaded out. Nothing running is touched.
//!
//! `generation.rs` puts it in force.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aya::maps::{MapData, MapError};
use lkst_probes::asm::{self, MapRef};
use lkst_probes::image::{self, Image, MapImage, MapKind, ProgramImage};
use lkst_probes::layout::PAGE_BYTES;
use lkst_probes::lower;
use lkst_probes::numbers::Numbers;
use lkst_rules::plan::Plan;

use super::btf::Btf;
use super::generation::{map_error, memory_error, owned};
use super::link::set_slot;
use super::load::{Environment, LoadError, event_name, load_code, make_map, random};
use super::loaded::{Loaded, LoadedProgram};
use super::memory::Mapping;
use super::pins::Handle;
use super::ring::{Pages, Rings};
/// A generation that is ready and not in force.
pub(super) struct Staged {
    pub(super) image: Image,
    pub(super) numbers: Numbers,
    pub(super) maps: BTreeMap<MapRef, MapData>,
    pub(super) control: Vec<Mapping>,
    pub(super) counters: Vec<Mapping>,
    pub(super) heads: Vec<Arc<Mapping>>,
    pub(super) rings: BTreeMap<u32, Rings>,
    /// New events.
    pub(super) new: BTreeMap<u16, LoadedProgram>,
    /// Events that have a program, whose program is another now.
    pub(super) changed: BTreeMap<u16, NewProgram>,
    /// For events that are not wanted any more.
    pub(super) idle: BTreeMap<u16, OwnedFd>,
}

/// A program in the kernel that nothing goes to yet.
pub(super) struct NewProgram {
    /// Its first part.
    pub(super) first: OwnedFd,
    /// An array of those that follow, where there are any.
    pub(super) parts: Option<Handle>,
    pub(super) digest: [u64; 2],
}

impl Loaded {
    pub(super) fn stage(&mut self, plans: &[Arc<Plan>], env: &Environment<'_>) -> Result<Staged, LoadError> {
        loop {
            let mut numbers = self.numbers.clone();
            let image = image::build(plans, &env.features, &self.probe_reads, &mut numbers)
                .map_err(LoadError::Build)?;
            match self.stage_image(image, numbers, env) {
                // The verifier of another kernel may refuse a plain load that BTF lets us expect: then this event's
                // program reads by probe reads alone.
                Err(LoadError::Program { attach, error })
                    if attach.typed && error.is_verdict() && self.probe_reads.insert(attach.name.clone()) =>
                {
                    tracing::debug!(event = attach.name, %error, "plain loads refused, using probe reads");
                }
                staged => return staged,
            }
        }
    }

    fn stage_image(
        &self,
        mut image: Image,
        numbers: Numbers,
        env: &Environment<'_>,
    ) -> Result<Staged, LoadError> {
        if image.bytes() > env.max_bytes {
            return Err(LoadError::TooMuchMemory {
                bytes: image.bytes(),
                most: env.max_bytes,
                packs: image
                    .packs
                    .iter()
                    .map(|pack| (pack.plan.pack.clone(), pack.ring_bytes(env.features.cpus)))
                    .collect(),
            });
        }
        let mut maps = BTreeMap::new();
        let known = |map: MapRef| match map {
            MapRef::Slots(number) => self.programs.contains_key(&number),
            map => self.maps.contains_key(&map),
        };
        for map in image.maps.iter().filter(|map| !known(map.map)) {
            maps.insert(map.map, make_map(map)?);
        }
        let mut staged = Staged {
            control: new_mappings(&image, &maps, |map| matches!(map, MapRef::Control(_)))?,
            counters: new_mappings(&image, &maps, |map| matches!(map, MapRef::Counters(_)))?,
            heads: new_mappings(&image, &maps, |map| matches!(map, MapRef::Heads(_)))?
                .into_iter()
                .map(Arc::new)
                .collect(),
            rings: BTreeMap::new(),
            new: BTreeMap::new(),
            changed: BTreeMap::new(),
            idle: BTreeMap::new(),
            image: Image {
                packs: Vec::new(),
                programs: Vec::new(),
                maps: Vec::new(),
                follows_command: false,
            },
            numbers,
            maps,
        };
        self.stage_rings(&image, &mut staged, env)?;
        let programs: Vec<&ProgramImage> = image.programs.iter().filter(|p| !self.has(p)).collect();
        let fds = self.fds(&staged);
        let taken = load_all(&programs, &fds, env.btf, |number| {
            self.programs.contains_key(&number)
        })?;
        for (program, taken) in programs.into_iter().zip(taken) {
            staged.take(program, taken)?;
        }
        // The kernel has it now.
        image.programs.iter_mut().for_each(ProgramImage::forget_text);
        let wanted: BTreeSet<u16> = image.programs.iter().map(|program| program.number).collect();
        for (number, program) in self
            .programs
            .iter()
            .filter(|(number, _)| !wanted.contains(number))
        {
            let code =
                lower::idle().map_err(|error| LoadError::Build(image::BuildError { pack: 0, error }))?;
            let idle = load_code(&program.attach, &code, |_| None, env.btf)?;
            staged.idle.insert(*number, idle);
        }
        staged.image = image;
        Ok(staged)
    }

    fn stage_rings(
        &self,
        image: &Image,
        staged: &mut Staged,
        env: &Environment<'_>,
    ) -> Result<(), LoadError> {
        for pack in &image.packs {
            for (buffer, ring) in pack.plan.buffers.iter().zip(&pack.rings) {
                let Some(ring) = ring.filter(|ring| !self.rings.contains_key(&ring.map)) else {
                    continue;
                };
                let map = MapRef::Pages(ring.map);
                let pages = staged.maps.get(&map);
                let heads = self.heads.iter().chain(&staged.heads);
                let heads = heads.clone().nth(usize::from(ring.heads.map));
                let (Some(pages), Some(heads)) = (pages, heads) else {
                    return Err(map_error(map, MapError::KeyNotFound));
                };
                let cpus = env.features.cpus as usize;
                let fd = pages
                    .fd()
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(memory_error(map))?;
                let pages = Pages::new(fd, ring.pages as usize * cpus * PAGE_BYTES);
                let heads = (heads.clone(), ring.heads.at as usize);
                let rings = Rings::prepare(&buffer.name, heads, pages, cpus, env.uuid, random)
                    .map_err(memory_error(map))?;
                staged.rings.insert(ring.map, rings);
            }
        }
        Ok(())
    }

    /// The kernel has this very program.
    fn has(&self, program: &ProgramImage) -> bool {
        let known = self.programs.get(&program.number);
        known.is_some_and(|known| known.digest == asm::digest(&program.parts))
    }

    fn fds(&self, staged: &Staged) -> BTreeMap<MapRef, i32> {
        let maps = self.maps.iter().chain(&staged.maps);
        maps.map(|(map, data)| (*map, data.fd().as_fd().as_raw_fd()))
            .collect()
    }
}

/// A program that the kernel has taken, in no use yet.
struct Taken {
    main: NewProgram,
    /// Where it has none yet.
    dispatcher: Option<OwnedFd>,
}

impl Staged {
    fn take(&mut self, program: &ProgramImage, taken: Taken) -> Result<(), LoadError> {
        let Taken { main, dispatcher } = taken;
        let number = program.number;
        let Some(dispatcher) = dispatcher else {
            self.changed.insert(number, main);
            return Ok(());
        };
        let slots = MapRef::Slots(number);
        let data = self.maps.remove(&slots);
        let data = data.ok_or_else(|| map_error(slots, MapError::KeyNotFound))?;
        let new = LoadedProgram {
            attach: program.attach.clone(),
            _link: None,
            dispatcher,
            slots: Handle::Held(owned(&data, slots)?),
            parts: main.parts,
            in_slots: [false; 2],
            program: main.first,
            digest: main.digest,
        };
        self.new.insert(number, new);
        Ok(())
    }
}

/// So many CPUs at most verify programs at the same time, which takes them whole.
const LOADERS_MAX: usize = 4;

/// Loads programs on several CPUs, the largest first, so that none is left to one CPU at the end. Of several that the kernel
/// refuses the first is told.
fn load_all(
    programs: &[&ProgramImage],
    fds: &BTreeMap<MapRef, i32>,
    btf: Option<&Btf>,
    has_dispatcher: impl Fn(u16) -> bool + Sync,
) -> Result<Vec<Taken>, LoadError> {
    let mut order: Vec<(usize, &ProgramImage)> = programs.iter().copied().enumerate().collect();
    order.sort_by_key(|(_, program)| Reverse(program.instructions));
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let Some((place, program)) = order.get(next.fetch_add(1, Ordering::Relaxed)).copied() else {
                return done;
            };
            let taken = load_program(program, fds, btf, has_dispatcher(program.number));
            let failed = taken.is_err();
            done.push((place, taken));
            if failed {
                // Nobody needs those that nobody has begun.
                next.store(order.len(), Ordering::Relaxed);
            }
        }
    };
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let helpers = cpus.min(LOADERS_MAX).min(programs.len()).saturating_sub(1);
    let mut all = std::thread::scope(|scope| {
        let helpers: Vec<_> = (0..helpers)
            // Where no thread can be made the work is done all the same.
            .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut all = work();
        for helper in helpers {
            all.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        all
    });
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, taken)| taken).collect()
}

fn load_program(
    program: &ProgramImage,
    fds: &BTreeMap<MapRef, i32>,
    btf: Option<&Btf>,
    has_dispatcher: bool,
) -> Result<Taken, LoadError> {
    let fd = |map: MapRef| fds.get(&map).copied();
    Ok(Taken {
        main: load_parts(program, fd, btf)?,
        dispatcher: match has_dispatcher {
            true => None,
            false => Some(load_code(&program.attach, &program.dispatcher, fd, btf)?),
        },
    })
}

/// Loads a program's parts and lets each find the next.
fn load_parts(
    program: &ProgramImage,
    fd: impl Fn(MapRef) -> Option<i32>,
    btf: Option<&Btf>,
) -> Result<NewProgram, LoadError> {
    let map = MapRef::Parts(program.number);
    let following = program.parts.len().saturating_sub(1);
    let array = match u32::try_from(following) {
        Ok(0) | Err(_) => None,
        Ok(entries) => Some(make_map(&MapImage {
            map,
            kind: MapKind::Programs,
            value_bytes: 4,
            entries,
        })?),
    };
    let array = array.map(|data| owned(&data, map)).transpose()?;
    let mut loaded = Vec::with_capacity(program.parts.len());
    for code in &program.parts {
        let fd = |named: MapRef| match named == map {
            true => array.as_ref().map(|array| array.as_raw_fd()),
            false => fd(named),
        };
        loaded.push(load_code(&program.attach, code, fd, btf)?);
    }
    let mut loaded = loaded.into_iter();
    let first = loaded.next().ok_or_else(|| LoadError::Object {
        event: event_name(&program.attach),
        error: "no program in it".to_owned(),
    })?;
    if let Some(array) = &array {
        for (place, part) in (0..).zip(loaded) {
            set_slot(array.as_fd(), place, part.as_fd()).map_err(memory_error(map))?;
        }
    }
    Ok(NewProgram {
        first,
        parts: array.map(Handle::Held),
        digest: asm::digest(&program.parts),
    })
}

/// The memory of those maps that were just made, in the image's order.
fn new_mappings(
    image: &Image,
    maps: &BTreeMap<MapRef, MapData>,
    which: impl Fn(&MapRef) -> bool,
) -> Result<Vec<Mapping>, LoadError> {
    let mapping = |image: &MapImage| {
        let data = maps.get(&image.map)?;
        let bytes = image.value_bytes as usize * image.entries as usize;
        Some(Mapping::new(data.fd().as_fd(), bytes).map_err(memory_error(image.map)))
    };
    let wanted = image.maps.iter().filter(|image| which(&image.map));
    wanted.filter_map(mapping).collect()
}
