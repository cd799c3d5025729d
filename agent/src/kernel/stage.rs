//! A generation made ready: plans in, maps made and changed programs loaded out. Nothing running is touched.
//!
//! `generation.rs` puts it in force.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use aya::maps::{MapData, MapError};
use lkst_probes::asm::{self, MapRef};
use lkst_probes::image::{self, Image, MapImage, MapKind, ProgramImage};
use lkst_probes::layout::PAGE_BYTES;
use lkst_probes::lower;
use lkst_probes::numbers::Numbers;
use lkst_rules::plan::Plan;

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
        for program in &mut image.programs {
            self.stage_program(program, &mut staged, env)?;
            // The kernel has it now.
            program.forget_text();
        }
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

    fn stage_program(
        &self,
        program: &ProgramImage,
        staged: &mut Staged,
        env: &Environment<'_>,
    ) -> Result<(), LoadError> {
        let number = program.number;
        let digest = asm::digest(&program.parts);
        let known = self.programs.get(&number);
        if known.is_some_and(|known| known.digest == digest) {
            return Ok(());
        }
        let attach = &program.attach;
        let main = self.load_parts(program, digest, staged, env)?;
        if known.is_some() {
            staged.changed.insert(number, main);
            return Ok(());
        }
        let fd = |map: MapRef| self.map_fd(staged, map);
        let dispatcher = load_code(attach, &program.dispatcher, fd, env.btf)?;
        let slots = MapRef::Slots(number);
        let data = staged.maps.remove(&slots);
        let data = data.ok_or_else(|| map_error(slots, MapError::KeyNotFound))?;
        let new = LoadedProgram {
            attach: attach.clone(),
            _link: None,
            dispatcher,
            slots: Handle::Held(owned(&data, slots)?),
            parts: main.parts,
            in_slots: [false; 2],
            program: main.first,
            digest,
        };
        staged.new.insert(number, new);
        Ok(())
    }

    fn map_fd(&self, staged: &Staged, map: MapRef) -> Option<i32> {
        let data = staged.maps.get(&map).or_else(|| self.maps.get(&map));
        data.map(|data| data.fd().as_fd().as_raw_fd())
    }

    /// Loads a program's parts and lets each find the next.
    fn load_parts(
        &self,
        program: &ProgramImage,
        digest: [u64; 2],
        staged: &Staged,
        env: &Environment<'_>,
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
                false => self.map_fd(staged, named),
            };
            loaded.push(load_code(&program.attach, code, fd, env.btf)?);
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
            digest,
        })
    }
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
