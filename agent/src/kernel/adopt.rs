//! What an agent that is gone left in the kernel, taken over: names in a bpffs in, a [`Loaded`] in force out.
//!
//! Before each change of generation a *manifest* of what will be in force is pinned beside everything else, as an array
//! map of bytes. Which generation is in force the control word says, so the manifest of that number is true, whenever
//! the agent before us was killed. What has a name and is not in it was not in force yet, or not any more.
//!
//! INVARIANT: tracing goes on meanwhile; the first thing that programs can notice of us is our process in
//! `control::SELF_TGID`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::{Map, MapData, RingBuf};
use lkst_probes::asm::MapRef;
use lkst_probes::features::{Costs, Features};
use lkst_probes::image::{self, Attach, Image};
use lkst_probes::layout::{PAGE_BYTES, control};
use lkst_probes::numbers::Numbers;
use lkst_rules::plan::Plan;
use serde::{Deserialize, Serialize};

use super::generation::{Former, event_names, map_name, parts_name, program_name};
use super::link::Grace;
use super::loaded::{Loaded, LoadedProgram};
use super::memory::Mapping;
use super::names::{self, KernelNames};
use super::pins::{Handle, Pins};
use super::ring::{Pages, Rings};

/// Of manifests and of everything that programs and agents share: to be raised when an agent could not go on with what
/// another version left.
const FORMAT: u64 = 4;
/// What a manifest begins with: `lkst` and the format.
const MAGIC: u64 = 0x7473_6b6c_0000_0000 | FORMAT;
/// The most bytes of a manifest that are read.
const LARGEST: u64 = 64 << 20;

/// What is in force in a generation.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) generation: u64,
    pub(super) uuid: [u8; 16],
    pub(super) cpus: u32,
    /// What the constants in its programs were made of.
    pub(super) costs: Costs,
    pub(super) numbers: Numbers,
    pub(super) probe_reads: BTreeSet<String>,
    /// Number, tracepoint, digest.
    pub(super) programs: Vec<(u16, Attach, [u64; 2])>,
    /// Whatever the caller wants to be told.
    pub(super) memo: String,
}

/// Why nothing can be taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// Another version left it.
    #[error("what is in the kernel was left by a version of lkst that this one cannot go on with")]
    Format,
    /// Something is missing or damaged.
    #[error("what is in the kernel is not whole: `{name}`: {error}")]
    Damaged {
        /// What.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// The rules do not compile any more.
    #[error("the rules in force cannot be understood any more: {0}")]
    Rules(String),
}

/// What was taken over.
pub struct Adopted {
    /// What is in force.
    pub loaded: Loaded,
    /// What the agent before us wanted us to know.
    pub memo: String,
    /// The session's.
    pub uuid: [u8; 16],
    /// What a change of generation left behind that our predecessor could not finish.
    pub former: Former,
    /// What things cost here, as our predecessor measured it.
    pub costs: Costs,
}

fn damaged(name: &str) -> impl FnOnce(io::Error) -> AdoptError + '_ {
    move |error| AdoptError::Damaged {
        name: name.to_owned(),
        error,
    }
}

impl Manifest {
    pub(super) fn name(generation: u64) -> String {
        format!("manifest_{generation}")
    }

    /// As the contents of a map.
    pub(super) fn into_map(self) -> io::Result<std::os::fd::OwnedFd> {
        let text = postcard::to_allocvec(&self).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(text.len() + 24);
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&text);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        // BPF_MAP_TYPE_ARRAY of one value, BPF_F_MMAPABLE.
        let map = aya_obj::Map::new_from_params(2, 4, size, 1, 1 << 10);
        let map = MapData::create(map, "lkst_manifest", None).map_err(io::Error::other)?;
        let fd = map.fd().as_fd().try_clone_to_owned()?;
        Mapping::new(fd.as_fd(), bytes.len())?.write(0, &bytes);
        Ok(fd)
    }

    fn read(pins: &Pins, generation: u64) -> Result<Manifest, AdoptError> {
        let name = Manifest::name(generation);
        let read = || -> io::Result<Option<Manifest>> {
            let fd = pins.get(&name)?;
            let head = Mapping::new(fd.as_fd(), 16)?;
            let (magic, length) = (
                head.u64(0).load(Ordering::Relaxed),
                head.u64(8).load(Ordering::Relaxed),
            );
            if magic != MAGIC {
                return Ok(None);
            }
            if length > LARGEST {
                return Err(io::Error::other("it is too long"));
            }
            let length = length as usize;
            let all = (16 + length).next_multiple_of(8);
            let mut bytes = Vec::new();
            Mapping::new(fd.as_fd(), all)?.copy_to(0, all, &mut bytes);
            let text = bytes.get(16..16 + length).unwrap_or_default();
            postcard::from_bytes(text).map(Some).map_err(io::Error::other)
        };
        match read() {
            Ok(Some(manifest)) => Ok(manifest),
            Ok(None) => Err(AdoptError::Format),
            Err(error) => Err(damaged(&name)(error)),
        }
    }

    /// What the generation means, by the rules it was made of.
    fn image(
        &self,
        features: &Features,
        plans: impl FnOnce(&str) -> Result<Vec<Arc<Plan>>, String>,
    ) -> Result<Image, AdoptError> {
        let plans = plans(&self.memo).map_err(AdoptError::Rules)?;
        // It gave out all of these numbers itself, so nothing is given out anew.
        let features = Features {
            costs: self.costs,
            ..features.clone()
        };
        let image = image::build(&plans, &features, &self.probe_reads, &mut self.numbers.clone());
        image.map_err(|error| AdoptError::Rules(error.error.to_string()))
    }
}

/// Takes over what is in force under these names; `None` where nothing is. `plans` makes of a memo the plans of its
/// generation.
///
/// # Errors
/// See [`AdoptError`]: then what is there can only be taken down, by [`Pins::clear`].
pub fn adopt(
    pins: &Arc<Pins>,
    features: &Features,
    mut plans: impl FnMut(&str) -> Result<Vec<Arc<Plan>>, String>,
) -> Result<Option<Adopted>, AdoptError> {
    let names = pins.names().map_err(damaged("the folder"))?;
    let first = map_name(MapRef::Control(0));
    if !names.contains(&first) {
        return Ok(None);
    }
    let control = pins.get(&first).map_err(damaged(&first))?;
    let control = Mapping::new(control.as_fd(), control::HEADER_BYTES as usize).map_err(damaged(&first))?;
    let generation = control.u64(control::GENERATION as usize).load(Ordering::SeqCst);
    if generation == 0 {
        // It was never started.
        return Ok(None);
    }
    let manifest = Manifest::read(pins, generation)?;
    if manifest.cpus != features.cpus {
        return Err(AdoptError::Format);
    }
    let mut image = manifest.image(features, &mut plans)?;
    for program in &mut image.programs {
        program.forget_text();
    }
    let before = generation - 1;
    let former = match names.contains(&Manifest::name(before)) {
        true => Some(Manifest::read(pins, before)?),
        false => None,
    };
    let former_image = former
        .as_ref()
        .and_then(|manifest| match manifest.image(features, &mut plans) {
            Ok(image) => Some(image),
            Err(error) => {
                tracing::warn!(%error, "buffers of the rules before cannot be read any more");
                None
            }
        });
    let (memo, uuid, costs) = (manifest.memo.clone(), manifest.uuid, manifest.costs);
    let mut loaded = open(pins, &names, manifest, image)?;
    let former_rings = former_image.iter().flat_map(rings);
    loaded.open_rings(pins, former_rings)?;
    loaded.names = KernelNames::adopt(pins);
    let former = former_of(&loaded, former_image, &names);
    let former = loaded.settle(former).map_err(|error| {
        let error = io::Error::other(error);
        damaged("the generation before")(error)
    })?;
    Ok(Some(Adopted {
        loaded,
        memo,
        uuid,
        former,
        costs,
    }))
}

/// Buffers of an image: name, place of the heads, and number and pages of their map.
fn rings(image: &Image) -> impl Iterator<Item = (String, lkst_probes::numbers::Ring)> {
    image.packs.iter().flat_map(|pack| {
        let buffers = pack.plan.buffers.iter().zip(&pack.rings);
        buffers.filter_map(|(buffer, ring)| Some((buffer.name.clone(), (*ring)?)))
    })
}

/// What is in force, as its names give it.
fn open(pins: &Arc<Pins>, names: &[String], manifest: Manifest, image: Image) -> Result<Loaded, AdoptError> {
    let open_map = |map: MapRef| {
        let name = map_name(map);
        let fd = pins.get(&name).map_err(damaged(&name))?;
        MapData::from_fd(fd).map_err(|error| damaged(&name)(io::Error::other(error)))
    };
    let mut maps = BTreeMap::new();
    for map in image
        .maps
        .iter()
        .filter(|map| !matches!(map.map, MapRef::Slots(_)))
    {
        match open_map(map.map) {
            // What only programs name, and another version's programs may not have named.
            Err(AdoptError::Damaged { error, .. })
                if error.kind() == io::ErrorKind::NotFound
                    && matches!(map.map, MapRef::Frame(..) | MapRef::Traced) => {}
            opened => {
                maps.insert(map.map, opened?);
            }
        }
    }
    let notices = Map::from_map_data(open_map(MapRef::Notices)?).and_then(RingBuf::try_from);
    let notices = notices.map_err(|error| damaged("map_notices")(io::Error::other(error)))?;
    let grace = Grace::new().map_err(damaged("what waits for running programs"))?;
    let mapped = |which: fn(&MapRef) -> bool| {
        let wanted = image.maps.iter().filter(|image| which(&image.map));
        let mapping = |image: &image::MapImage| {
            let bytes = image.value_bytes as usize * image.entries as usize;
            let data = maps.get(&image.map)?;
            Some(Mapping::new(data.fd().as_fd(), bytes).map_err(damaged(&map_name(image.map))))
        };
        wanted.filter_map(mapping).collect::<Result<Vec<_>, _>>()
    };
    let control = mapped(|map| matches!(map, MapRef::Control(_)))?;
    let counters = mapped(|map| matches!(map, MapRef::Counters(_)))?;
    let heads = mapped(|map| matches!(map, MapRef::Heads(_)))?;
    let buffers: Vec<_> = rings(&image).collect();
    let in_force = (manifest.generation & 1) as usize;
    let mut loaded = Loaded::new(image, manifest.numbers, manifest.cpus, notices, grace);
    for (number, attach, digest) in manifest.programs {
        let [dispatcher, slots, link] = event_names(number);
        let program = program_name(number, digest);
        let parts = parts_name(number, digest);
        // What the other slot holds is not known.
        let mut in_slots = [false; 2];
        if let Some(holds) = in_slots.get_mut(in_force) {
            *holds = true;
        }
        let program = LoadedProgram {
            attach,
            dispatcher: pins.get(&dispatcher).map_err(damaged(&dispatcher))?,
            program: pins.get(&program).map_err(damaged(&program))?,
            _link: Some(Handle::Named(pins.clone(), link)),
            slots: Handle::Named(pins.clone(), slots),
            parts: names.contains(&parts).then(|| Handle::Named(pins.clone(), parts)),
            in_slots,
            digest,
        };
        loaded.programs.insert(number, program);
    }
    loaded.probe_reads = manifest.probe_reads;
    loaded.maps = maps;
    loaded.control = control;
    loaded.counters = counters;
    loaded.heads = heads.into_iter().map(Arc::new).collect();
    loaded.pins = Some(pins.clone());
    loaded.open_rings(pins, buffers.into_iter())?;
    if let Some(control) = loaded.control.first() {
        let own = control.u32(control::SELF_TGID as usize);
        own.store(std::process::id(), Ordering::Relaxed);
    }
    Ok(loaded)
}

impl Loaded {
    /// Opens those rings that are not open; one that has no name any more was saved and is skipped.
    fn open_rings(
        &mut self,
        pins: &Pins,
        buffers: impl Iterator<Item = (String, lkst_probes::numbers::Ring)>,
    ) -> Result<(), AdoptError> {
        for (buffer, ring) in buffers {
            let name = map_name(MapRef::Pages(ring.map));
            if self.rings.contains_key(&ring.map) {
                continue;
            }
            let fd = match pins.get(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                fd => fd.map_err(damaged(&name))?,
            };
            let bytes = ring.pages as usize * self.cpus() * PAGE_BYTES;
            let pages = Pages::new(fd.try_clone().map_err(damaged(&name))?, bytes);
            let Some(heads) = self.heads.get(usize::from(ring.heads.map)).cloned() else {
                continue;
            };
            let rings = Rings::adopt(&buffer, (heads, ring.heads.at as usize), pages, self.cpus());
            self.rings.insert(ring.map, rings.map_err(damaged(&name))?);
            if let std::collections::btree_map::Entry::Vacant(vacant) =
                self.maps.entry(MapRef::Pages(ring.map))
            {
                let data = MapData::from_fd(fd);
                vacant.insert(data.map_err(|error| damaged(&name)(io::Error::other(error)))?);
            }
        }
        Ok(())
    }
}

/// The change that was under way, as far as what is in force tells: [`Loaded::settle`] ends it.
fn former_of(loaded: &Loaded, image: Option<Image>, names: &[String]) -> Former {
    let is_over = image.is_none();
    let mut former = Former {
        packs: image.map(|image| image.packs).unwrap_or_default(),
        buffers: Vec::new(),
        loaded: 0,
        parts: Vec::new(),
        names: Vec::new(),
    };
    // What has a name and is not in force: begun by our predecessor, or not ended.
    let mut used: BTreeSet<String> = loaded.maps.keys().map(|map| map_name(*map)).collect();
    used.insert(map_name(MapRef::Notices));
    used.insert(Manifest::name(loaded.generation()));
    used.extend(names::pinned());
    for (number, program) in &loaded.programs {
        used.extend(event_names(*number));
        used.insert(program_name(*number, program.digest));
        used.insert(parts_name(*number, program.digest));
    }
    let leftover = names.iter().filter(|name| !used.contains(*name)).cloned();
    former.names = leftover.collect();
    if is_over {
        former.packs.clone_from(&loaded.image.packs);
    }
    former
}
