//! Plans in, a generation of programs in force out: the first one, and each that follows.
//!
//! ```text
//! stage: number, generate, make maps, load what changed   (nothing running is touched; may fail)
//! install: write new words, set the idle slots, attach    (nothing running is touched; may fail)
//! commit: one 8-byte store of the generation              (each hit, on each CPU, sees the one or the other, whole)
//! settle: a grace period; then what is left over goes
//! ```
//!
//! INVARIANT: between two changes the slot in force of every dispatcher holds its program, and the idle one holds the
//! same, or nothing.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::{HashMap, Map, MapData, MapError, RingBuf};
use lkst_probes::asm::MapRef;
use lkst_probes::image::{self, PackImage};
use lkst_probes::layout::{control, counter, state};
use lkst_probes::numbers::{Numbers, Words};
use lkst_rules::plan::Plan;

use super::adopt::Manifest;
use super::link::{Grace, attach_classic, attach_typed, clear_slot, set_slot};
use super::load::{Environment, LoadError, event_name, make_map};
use super::loaded::{Loaded, LoadedProgram};
use super::pins::{Handle, LINK, Pins};
use super::ring::Rings;
use super::stage::Staged;

/// Names that are given while nothing is in force yet: they go again where that comes to nothing.
struct Naming {
    pins: Option<Arc<Pins>>,
    given: Vec<String>,
}

impl Naming {
    fn give(&mut self, name: String, object: BorrowedFd<'_>) -> Result<(), LoadError> {
        if let Some(pins) = &self.pins {
            pins.pin(&name, object).map_err(|error| pin_error(&name, error))?;
            self.given.push(name);
        }
        Ok(())
    }

    /// A handle of an object that nobody else holds.
    fn handle(&mut self, name: String, object: OwnedFd) -> Result<Handle, LoadError> {
        let handle = Handle::Held(object);
        let Some(pins) = &self.pins else {
            return Ok(handle);
        };
        let named = handle.into_named(pins, name.clone());
        let named = named.map_err(|error| pin_error(&name, error))?;
        self.given.push(name);
        Ok(named)
    }
}

impl Naming {
    /// The parts that follow a program's first.
    fn parts(
        &mut self,
        number: u16,
        digest: [u64; 2],
        parts: Option<Handle>,
    ) -> Result<Option<Handle>, LoadError> {
        match parts {
            Some(Handle::Held(fd)) => self.handle(parts_name(number, digest), fd).map(Some),
            other => Ok(other),
        }
    }
}

impl Drop for Naming {
    fn drop(&mut self) {
        for name in &self.given {
            if let Some(pins) = &self.pins
                && let Err(error) = pins.remove(name)
            {
                tracing::warn!(name, %error, "a name could not be removed");
            }
        }
    }
}

fn pin_error(name: &str, error: io::Error) -> LoadError {
    LoadError::Pin {
        name: name.to_owned(),
        error,
    }
}

/// The name of a map.
pub(super) fn map_name(map: MapRef) -> String {
    format!("map_{map}")
}

/// The name of what an event's dispatcher goes to.
pub(super) fn program_name(number: u16, digest: [u64; 2]) -> String {
    format!("program_{number}_{:016x}", digest[0])
}

/// The name of the array of the parts that follow a program's first.
pub(super) fn parts_name(number: u16, digest: [u64; 2]) -> String {
    format!("parts_{number}_{:016x}", digest[0])
}

/// The names of an event's dispatcher, slots and link.
pub(super) fn event_names(number: u16) -> [String; 3] {
    [
        format!("dispatcher_{number}"),
        format!("slots_{number}"),
        format!("{LINK}{number}"),
    ]
}

/// What a change of generation left behind.
#[derive(Debug)]
pub struct Former {
    /// The packs as they were.
    pub packs: Vec<PackImage>,
    /// Buffers that are gone or changed, by the pack's place among those: nothing writes to them any more.
    pub buffers: Vec<(usize, Rings)>,
    /// Programs that were loaded for the change.
    pub loaded: usize,
    /// Parts of programs that may still be running: they must not be let go of before.
    pub(super) parts: Vec<Handle>,
    /// What nobody needs once no program of the old generation is running.
    pub(super) names: Vec<String>,
}

/// Loads and attaches everything; [`Loaded::start`] starts it.
///
/// # Errors
/// See [`LoadError`]; then nothing of it stays in the kernel.
pub fn load(plans: &[Arc<Plan>], env: &Environment<'_>) -> Result<Loaded, LoadError> {
    let numbers = Numbers::new(env.features.cpus);
    let mut none = numbers.clone();
    let image = image::build(&[], &env.features, &BTreeSet::new(), &mut none).map_err(LoadError::Build)?;
    let notices = image.maps.iter().find(|map| map.map == MapRef::Notices);
    let notices = match notices {
        Some(image) => make_map(image)?,
        None => return Err(map_error(MapRef::Notices, MapError::KeyNotFound)),
    };
    let ring = Map::from_map_data(try_clone(&notices)?)
        .and_then(RingBuf::try_from)
        .map_err(|error| map_error(MapRef::Notices, error))?;
    let grace = Grace::new().map_err(LoadError::Grace)?;
    let mut loaded = Loaded::new(image, numbers, env.features.cpus, ring, grace);
    loaded.pins = env.pins.clone();
    loaded.maps.insert(MapRef::Notices, notices);
    let staged = loaded.stage(plans, env)?;
    loaded.install(staged, env)?;
    Ok(loaded)
}

pub(super) fn map_error(map: MapRef, error: MapError) -> LoadError {
    LoadError::Map {
        map: map.to_string(),
        error,
    }
}

pub(super) fn memory_error(map: MapRef) -> impl Fn(io::Error) -> LoadError {
    move |error| LoadError::Memory {
        map: map.to_string(),
        error,
    }
}

/// Another handle of the same map.
fn try_clone(map: &MapData) -> Result<MapData, LoadError> {
    let fd = owned(map, MapRef::Notices)?;
    MapData::from_fd(fd).map_err(|error| map_error(MapRef::Notices, error))
}

/// A descriptor of a map, ours alone.
pub(super) fn owned(map: &MapData, name: MapRef) -> Result<OwnedFd, LoadError> {
    map.fd().as_fd().try_clone_to_owned().map_err(memory_error(name))
}

impl Loaded {
    /// Which generation is in force; 0 before the start.
    #[must_use]
    pub fn generation(&self) -> u64 {
        let control = self.control.first();
        control.map_or(0, |c| c.u64(control::GENERATION as usize).load(Ordering::SeqCst))
    }

    /// Which slot of the dispatchers is not in force.
    fn idle_slot(&self) -> u32 {
        (self.generation() + 1) as u32 & 1
    }

    fn commit(&self) {
        if let Some(control) = self.control.first() {
            let generation = control.u64(control::GENERATION as usize);
            generation.store(self.generation() + 1, Ordering::SeqCst);
        }
    }

    /// Starts everything at once.
    pub fn start(&self) {
        self.commit();
    }

    /// Stops everything, and returns when no program is running any more.
    ///
    /// # Errors
    /// Where waiting is impossible; everything has stopped all the same.
    pub fn stop(&mut self) -> io::Result<()> {
        let idle = self.idle_slot();
        for program in self.programs.values_mut() {
            // Empty already, unless the generation has changed before.
            program.slots.with(|slots| clear_slot(slots, idle))?;
            if let Some(holds) = program.in_slots.get_mut(idle as usize) {
                *holds = false;
            }
        }
        self.commit();
        self.grace()
    }

    /// Lets other plans take the place of those in force, exactly between two hits. What did not change is not touched.
    ///
    /// # Errors
    /// See [`LoadError`]; then the old generation goes on, untouched.
    pub fn reload(&mut self, plans: &[Arc<Plan>], env: &Environment<'_>) -> Result<Former, LoadError> {
        let staged = self.stage(plans, env)?;
        let loaded = staged.new.len() + staged.changed.len();
        self.forget_former();
        let former = self.install(staged, env)?;
        self.commit();
        let mut former = self.settle(former)?;
        former.loaded = loaded;
        Ok(former)
    }

    /// Everything but the store that puts it in force.
    fn install(&mut self, mut staged: Staged, env: &Environment<'_>) -> Result<Former, LoadError> {
        let idle = self.idle_slot();
        let place = idle as usize;
        let mut naming = Naming {
            pins: self.pins.clone(),
            given: Vec::new(),
        };
        let slot_error = |number: u16| memory_error(MapRef::Slots(number));
        for (map, data) in &staged.maps {
            naming.give(map_name(*map), data.fd().as_fd())?;
        }
        if let Some(notices) = self
            .maps
            .get(&MapRef::Notices)
            .filter(|_| self.control.is_empty())
        {
            naming.give(map_name(MapRef::Notices), notices.fd().as_fd())?;
        }
        let mut names = Vec::new();
        for (number, program) in &mut self.programs {
            let old_names = [
                program_name(*number, program.digest),
                parts_name(*number, program.digest),
            ];
            let target = match (staged.changed.get_mut(number), staged.idle.get(number)) {
                (Some(changed), _) => {
                    naming.give(program_name(*number, changed.digest), changed.first.as_fd())?;
                    changed.parts = naming.parts(*number, changed.digest, changed.parts.take())?;
                    names.extend(old_names);
                    &changed.first
                }
                (None, Some(idle)) => {
                    names.extend(event_names(*number));
                    names.extend(old_names);
                    idle
                }
                (None, None) if program.in_slots.get(place) == Some(&true) => continue,
                (None, None) => &program.program,
            };
            let is_current = std::ptr::eq(target, &raw const program.program);
            if let Some(holds) = program.in_slots.get_mut(place) {
                *holds = is_current;
            }
            program
                .slots
                .with(|slots| set_slot(slots, idle, target.as_fd()))
                .map_err(slot_error(*number))?;
        }
        for (number, program) in std::mem::take(&mut staged.new) {
            let program = program.install(number, idle, &mut naming, env)?;
            staged.new.insert(number, program);
        }
        if staged.image.follows_command
            && self.traced.is_none()
            && let Some(data) = staged.maps.get(&MapRef::Traced)
        {
            let map = Map::from_map_data(try_clone(data)?).and_then(HashMap::try_from);
            self.traced = Some(map.map_err(|error| map_error(MapRef::Traced, error))?);
        }
        let generation = self.generation() + 1;
        if self.pins.is_some() {
            let manifest = self.manifest(&staged, generation, env);
            let manifest = manifest
                .into_map()
                .map_err(|error| pin_error("manifest", error))?;
            naming.give(Manifest::name(generation), manifest.as_fd())?;
            if generation > 1 {
                names.push(Manifest::name(generation - 1));
            }
        }
        // From here on nothing can fail.
        naming.given.clear();
        let first = self.control.is_empty();
        self.control.append(&mut staged.control);
        self.counters.append(&mut staged.counters);
        self.heads.append(&mut staged.heads);
        if first && let Some(control) = self.control.first() {
            control
                .u32(control::SELF_TGID as usize)
                .store(std::process::id(), Ordering::Relaxed);
        }
        self.maps.append(&mut staged.maps);
        self.write_words(&staged);
        let mut parts = Vec::new();
        for (number, changed) in staged.changed {
            if let Some(known) = self.programs.get_mut(&number) {
                known.program = changed.first;
                parts.extend(std::mem::replace(&mut known.parts, changed.parts));
                known.digest = changed.digest;
                known.in_slots = [idle == 0, idle == 1];
            }
        }
        self.programs.append(&mut staged.new);
        self.rings.append(&mut staged.rings);
        self.numbers = staged.numbers;
        let old = std::mem::replace(&mut self.image, staged.image);
        Ok(Former {
            packs: old.packs,
            buffers: Vec::new(),
            loaded: 0,
            parts,
            names,
        })
    }

    /// What whoever adopts this generation has to know.
    fn manifest(&self, staged: &Staged, generation: u64, env: &Environment<'_>) -> Manifest {
        let staged_digest = |number: &u16| staged.changed.get(number).map(|changed| changed.digest);
        let wanted = |number: &u16| !staged.idle.contains_key(number);
        let known = self.programs.iter().filter(|(number, _)| wanted(number));
        let known = known.map(|(number, program)| {
            let digest = staged_digest(number).unwrap_or(program.digest);
            (*number, program.attach.clone(), digest)
        });
        let new = staged.new.iter();
        let new = new.map(|(number, program)| (*number, program.attach.clone(), program.digest));
        Manifest {
            generation,
            uuid: env.uuid,
            cpus: self.cpus,
            costs: env.features.costs,
            numbers: staged.numbers.clone(),
            probe_reads: self.probe_reads.clone(),
            programs: known.chain(new).collect(),
            memo: env.memo.to_owned(),
        }
    }

    /// Writes the words that nothing uses yet.
    fn write_words(&self, staged: &Staged) {
        for taken in staged.numbers.taken() {
            let map = usize::from(taken.spot.map);
            let zeros = vec![0; taken.bytes as usize];
            match taken.kind {
                Words::Control => {
                    if let Some(control) = self.control.get(map) {
                        control.write(taken.spot.at as usize, &zeros);
                    }
                }
                Words::Counters => {
                    for cpu in 0..self.cpus() {
                        if let Some(counters) = self.counters.get(map) {
                            let at = cpu * counter::STRIDE as usize + taken.spot.at as usize;
                            counters.write(at, &zeros);
                        }
                    }
                }
                // `Rings::prepare` has written those.
                Words::Heads => {}
            }
        }
        let store = |spot, value| {
            if let Some(word) = self.word(spot) {
                word.store(value, Ordering::SeqCst);
            }
        };
        for pack in &staged.image.packs {
            for event in &pack.events {
                if let Some(word) = event.word {
                    store(word, event.counters.at.into());
                }
            }
            let fresh = if pack.fresh { pack.sets() } else { pack.fresh_sets };
            for set in (0..state::SETS).filter(|set| fresh >> set & 1 == 1) {
                store(
                    pack.block.plus(control::SET_UNTIL + 8 * set),
                    control::SINCE_START,
                );
            }
            if pack.fresh {
                store(pack.block.plus(control::SWITCH_UNTIL), u64::MAX);
                store(pack.block.plus(control::STATE), pack.start());
            } else if fresh != 0 {
                // No program in force knows these bits.
                let word = self.word(pack.block.plus(control::STATE));
                change(word, |word| Some(word & !fresh | fresh & pack.start()));
            }
        }
    }

    /// The store has been made: once no program of the old generation is running, what only it needed goes.
    pub(super) fn settle(&mut self, mut former: Former) -> Result<Former, LoadError> {
        self.grace().map_err(LoadError::Grace)?;
        former.parts.clear();
        let in_force = (self.generation() & 1) as u32;
        let wanted: BTreeSet<u16> = self.image.programs.iter().map(|program| program.number).collect();
        let mut leaving = Vec::new();
        for number in self.programs.keys().copied().collect::<Vec<_>>() {
            if !wanted.contains(&number) {
                leaving.extend(self.programs.remove(&number));
                continue;
            }
            let Some(program) = self.programs.get_mut(&number) else {
                continue;
            };
            let other = 1 - in_force;
            if program.in_slots.get(other as usize) == Some(&false) {
                // Where it fails, the next change of generation does it.
                let target = program.program.as_fd();
                let set = program.slots.with(|slots| set_slot(slots, other, target));
                if let Some(holds) = program.in_slots.get_mut(other as usize) {
                    *holds = set.is_ok();
                }
            }
        }
        // Taking a program off a tracepoint takes up to 75 ms.
        if !leaving.is_empty() {
            std::thread::spawn(move || drop(leaving));
        }
        self.settle_states(&former);
        let used: BTreeSet<u32> = self
            .image
            .packs
            .iter()
            .flat_map(|pack| pack.rings.iter().flatten())
            .map(|ring| ring.map)
            .collect();
        for (place, pack) in former.packs.iter().enumerate() {
            for ring in pack.rings.iter().flatten() {
                if let Some(mut rings) = (!used.contains(&ring.map))
                    .then(|| self.rings.remove(&ring.map))
                    .flatten()
                {
                    rings.freeze();
                    former.buffers.push((place, rings));
                }
            }
        }
        let named: BTreeSet<MapRef> = self.image.maps.iter().map(|map| map.map).collect();
        let mut names = std::mem::take(&mut former.names);
        self.maps.retain(|map, _| {
            let stays = named.contains(map);
            if !stays {
                names.push(map_name(*map));
            }
            stays
        });
        // Whoever adopts us needs these as long as buffers of the old generation are not saved.
        let (later, now): (Vec<String>, Vec<String>) = names
            .into_iter()
            .partition(|name| name.starts_with("map_") || name.starts_with("manifest_"));
        self.former_pins = later;
        self.remove_names(&now);
        self.numbers.sweep();
        Ok(former)
    }

    /// Lets go of what the generation before left behind: its buffers are saved, or given up.
    pub fn forget_former(&mut self) {
        let names = std::mem::take(&mut self.former_pins);
        // The manifest first: what it names is not whole any more.
        let (manifests, others): (Vec<String>, Vec<String>) =
            names.into_iter().partition(|name| name.starts_with("manifest_"));
        self.remove_names(&manifests);
        self.remove_names(&others);
    }

    fn remove_names(&self, names: &[String]) {
        let Some(pins) = &self.pins else { return };
        for name in names {
            if let Err(error) = pins.remove(name) {
                tracing::warn!(name, %error, "a name could not be removed");
            }
        }
    }

    /// Brings the states of packs that live on to what the new rules say.
    fn settle_states(&self, former: &Former) {
        for pack in self.image.packs.iter().filter(|pack| !pack.fresh) {
            let Some(old) = former.packs.iter().find(|old| old.index == pack.index) else {
                continue;
            };
            let until = |set: u32| self.word(pack.block.plus(control::SET_UNTIL + 8 * set));
            let state = self.word(pack.block.plus(control::STATE));
            let lives = pack.sets() & !pack.fresh_sets;
            let gone = old.sets() & !pack.sets();
            let put_in = pack.start() & !old.start() & lives;
            let mut taken_out = old.start() & !pack.start() & lives;
            for set in 0..state::SETS {
                let Some(until) = until(set) else { continue };
                if put_in >> set & 1 == 1 {
                    until.store(control::SINCE_START, Ordering::SeqCst);
                } else if until.load(Ordering::SeqCst) != control::SINCE_START {
                    // A firing enabled it: that is the rules' own doing.
                    taken_out &= !(1 << set);
                }
            }
            change(state, |word| {
                let current = state::current(word);
                let mut new = word & !gone & !taken_out | put_in;
                if pack.rings.get(current).is_none_or(Option::is_none) {
                    new &= !(7 << state::CURRENT_SHIFT);
                }
                for buffer in 0..state::BUFFERS as usize {
                    if pack.rings.get(buffer).is_none_or(Option::is_none) {
                        new &= !(1 << state::KEPT_SHIFT << buffer);
                    }
                }
                (new != word).then_some(new)
            });
        }
    }
}

/// Changes a state word as a program would: by compare-and-exchange, with a new sequence number.
fn change(word: Option<&std::sync::atomic::AtomicU64>, change: impl Fn(u64) -> Option<u64>) {
    let Some(word) = word else { return };
    let mut old = word.load(Ordering::SeqCst);
    while let Some(new) = change(old) {
        match word.compare_exchange(old, state::bumped(new), Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return,
            Err(met) => old = met,
        }
    }
}

impl LoadedProgram {
    /// Gives everything its name, then attaches the dispatcher; the slot that is not in force holds the program.
    fn install(
        self,
        number: u16,
        idle: u32,
        naming: &mut Naming,
        env: &Environment<'_>,
    ) -> Result<LoadedProgram, LoadError> {
        let event = event_name(&self.attach);
        let fail = |error: String| LoadError::Attach {
            event: event.clone(),
            error,
        };
        let [dispatcher, slots, link] = event_names(number);
        naming.give(dispatcher, self.dispatcher.as_fd())?;
        naming.give(program_name(number, self.digest), self.program.as_fd())?;
        let parts = naming.parts(number, self.digest, self.parts)?;
        let slots = match self.slots {
            Handle::Held(fd) => naming.handle(slots, fd)?,
            named => named,
        };
        slots
            .with(|slots| set_slot(slots, idle, self.program.as_fd()))
            .map_err(memory_error(MapRef::Slots(number)))?;
        let attached = if self.attach.typed {
            attach_typed(self.dispatcher.as_fd())
        } else {
            let id = env.tracefs.id(&self.attach.system, &self.attach.name);
            attach_classic(self.dispatcher.as_fd(), id.map_err(|e| fail(e.to_string()))?)
        };
        let attached = attached.map_err(|e| fail(e.to_string()))?;
        Ok(LoadedProgram {
            _link: Some(naming.handle(link, attached)?),
            slots,
            parts,
            in_slots: [idle == 0, idle == 1],
            ..self
        })
    }
}
