//! All packs → what to load: programs, maps, and what every number in them means, for whoever reads counters, notices
//! and records.
//!
//! In: plans, and the numbers of the generation before. Out: an [`Image`].
//!
//! INVARIANT: an image is a function of its plans, features and numbers alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lkst_rules::plan::{Action, Plan};
use lkst_rules::schema::{Event, Origin};
use serde::{Deserialize, Serialize};

use crate::arena::Spot;
use crate::asm::{Code, MapRef};
use crate::features::Features;
use crate::kinds::{attach_of, attaches, follows_command};
use crate::layout::{PAGE_BYTES, RecordLayout};
use crate::lower::{self, LowerError, PackBudget, PackEnv, Section, SyscallLeaf};
use crate::numbers::{Numbered, Numbers, Ring, RuleSpots};
use crate::parts::in_parts;
use crate::records::{Layouts, section};

/// What to load and what to write.
#[derive(Debug, Clone)]
pub struct Image {
    /// In the order of the plans.
    pub packs: Vec<PackImage>,
    /// One for each event that is attached.
    pub programs: Vec<ProgramImage>,
    /// Every map that a program names.
    pub maps: Vec<MapImage>,
    /// Some condition asks for `task.traced`.
    pub follows_command: bool,
}

/// A pack in the image.
#[derive(Debug, Clone)]
pub struct PackImage {
    /// Its number in notices.
    pub index: u16,
    /// What it means. Sets, buffers and rules are at the places of their numbers; what lies between has no name.
    pub plan: Arc<Plan>,
    /// Where its block lies.
    pub block: Spot,
    /// Every kind of record that it makes, or made and that may still be in its rings, by id from 1 on.
    pub layouts: Vec<RecordLayout>,
    /// Which rule a `lkst:fired` record is of, by the record's id.
    pub fired: BTreeMap<u16, usize>,
    /// The ids of `lkst:switched` and `lkst:refused`.
    pub changes: Option<[u16; 2]>,
    /// Where an event's counters lie, by full name; lkst's own events too.
    pub events: Vec<EventImage>,
    /// Where each rule's words lie.
    pub rules: Vec<RuleSpots>,
    /// What it may spend in a second on each CPU, in nanoseconds, and where its cell of costs lies among the counters;
    /// `None` where its costs are not counted.
    pub budget: Option<(i64, Spot)>,
    /// Each buffer's allocation.
    pub rings: Vec<Option<Ring>>,
    /// It is new in this generation: nothing uses its words yet.
    pub fresh: bool,
    /// The sets whose numbers are new in this generation, one bit each.
    pub fresh_sets: u64,
}

/// An event of a pack in the image.
#[derive(Debug, Clone)]
pub struct EventImage {
    /// `system:name`
    pub name: String,
    /// Where its counters lie.
    pub counters: Spot,
    /// The control word that says so, where programs look there.
    pub word: Option<Spot>,
    /// The number of the program that counts, where it has one of its own: for what the kernel itself has skipped.
    pub program: Option<u16>,
}

/// How a program is attached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attach {
    /// The tracepoint's system.
    pub system: String,
    /// The tracepoint's name.
    pub name: String,
    /// By BTF.
    pub typed: bool,
    /// For the system calls behind it, each an event of its own; the tracepoint itself is another event.
    pub calls: bool,
}

impl Attach {
    /// A name for the kernel's lists; it keeps 15 bytes of it.
    #[must_use]
    pub fn symbol(&self) -> String {
        format!("l_{}", self.name)
    }
}

/// A program in the image.
#[derive(Debug, Clone)]
pub struct ProgramImage {
    /// Its number.
    pub number: u16,
    /// Where it is attached.
    pub attach: Attach,
    /// Its dispatcher.
    pub dispatcher: Code,
    /// What the dispatcher goes to, and the parts that follow one another after it: one program may use only so many
    /// maps, and the buffers of 64 packs are more.
    pub parts: Vec<Code>,
    /// Instructions of all parts.
    pub instructions: usize,
}

impl ProgramImage {
    /// Lets go of the text, which the kernel has.
    pub fn forget_text(&mut self) {
        for part in &mut self.parts {
            part.insns = Vec::new();
            part.notes = Vec::new();
            part.prices = Vec::new();
        }
    }
}

/// The kinds of map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_ARRAY`, to be mapped into memory.
    Array,
    /// `BPF_MAP_TYPE_ARRAY`, for programs alone.
    Scratch,
    /// `BPF_MAP_TYPE_HASH`
    Hash,
    /// `BPF_MAP_TYPE_RINGBUF`
    Ring,
    /// `BPF_MAP_TYPE_PROG_ARRAY`
    Programs,
}

/// A map in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapImage {
    /// What it is for.
    pub map: MapRef,
    /// Of which kind.
    pub kind: MapKind,
    /// Bytes of a value.
    pub value_bytes: u32,
    /// How many; bytes of a ring.
    pub entries: u32,
}

/// Bytes of the ring of notices.
const NOTICES_BYTES: u32 = 1 << 18;
/// Processes that COMMAND may have at once.
const TRACED_ENTRIES: u32 = 1 << 16;

/// A pack that has no program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    /// Its number among the plans.
    pub pack: usize,
    /// Why.
    pub error: LowerError,
}

/// Builds the image of the next generation. `probe_reads` names the tracepoints whose programs the verifier refused with
/// plain loads. `numbers` are those of the generation before, and become those of this one, also where it fails: give
/// it a copy.
///
/// # Errors
/// The first pack that cannot be built, and why.
pub fn build(
    plans: &[Arc<Plan>],
    features: &Features,
    probe_reads: &BTreeSet<String>,
    numbers: &mut Numbers,
) -> Result<Image, BuildError> {
    let attaches = attaches(plans, numbers)?;
    numbers.begin();
    let mut numbered = Vec::with_capacity(plans.len());
    for (pack, plan) in plans.iter().enumerate() {
        let full = |_| BuildError {
            pack,
            error: LowerError::Full,
        };
        numbered.push(numbers.pack(plan).map_err(full)?);
    }
    let mut envs = Vec::with_capacity(plans.len());
    for (pack, numbered) in numbered.iter().enumerate() {
        let env = environment(numbered, numbers).map_err(|error| BuildError { pack, error })?;
        envs.push(env);
    }

    let mut gathered = Gathered::default();
    let mut fired: Vec<BTreeMap<u16, usize>> = vec![BTreeMap::new(); plans.len()];
    let mut events: Vec<Vec<(EventImage, Attach)>> = vec![Vec::new(); plans.len()];
    for (index, (env, numbered)) in envs.iter().zip(&numbered).enumerate() {
        let fail = |error| BuildError { pack: index, error };
        let Some(pack) = numbers.of_pack(&env.plan.pack) else {
            continue;
        };
        let mut layouts = Layouts(pack);
        for (wish, spots) in env.plan.events.iter().zip(&numbered.events) {
            let section = section(env, wish, *spots, &mut layouts).map_err(fail)?;
            for ((layout, _), trigger) in section.fired.iter().zip(&wish.triggers) {
                if let Some(fired) = fired.get_mut(index) {
                    fired.insert(layout.id, trigger.rule);
                }
            }
            let attach = attach_of(&wish.event, &attaches);
            let image = EventImage {
                name: wish.event.full_name(),
                counters: spots.counters,
                word: Some(spots.word),
                program: None,
            };
            if let Some(events) = events.get_mut(index) {
                events.push((image, attach.clone()));
            }
            gathered.add(attach, &wish.event, index, section);
        }
    }

    let mut image = Image {
        packs: Vec::new(),
        programs: Vec::new(),
        maps: Vec::new(),
        follows_command: plans.iter().any(|plan| follows_command(plan)),
    };
    gathered.programs(&mut image, features, probe_reads, numbers)?;
    for (((env, numbered), fired), events) in envs.iter().zip(&numbered).zip(fired).zip(events) {
        let layouts = numbers
            .of_pack(&env.plan.pack)
            .map(|pack| pack.layouts().to_vec());
        image.pack(env, numbered, layouts.unwrap_or_default(), fired, events);
    }
    image.shared_maps(features, numbers);
    Ok(image)
}

impl Image {
    /// Bytes of all maps.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let bytes = |map: &MapImage| u64::from(map.value_bytes.max(1)) * u64::from(map.entries);
        self.maps.iter().map(bytes).sum()
    }

    fn map(&mut self, map: MapRef, kind: MapKind, value_bytes: u32, entries: u32) {
        self.maps.push(MapImage {
            map,
            kind,
            value_bytes,
            entries,
        });
    }

    /// The maps that all packs share, and each buffer's own.
    fn shared_maps(&mut self, features: &Features, numbers: &Numbers) {
        let [control, counters, heads] = numbers.maps();
        let number = |count: usize| 0..=u8::try_from(count - 1).unwrap_or(u8::MAX);
        for map in number(control.0) {
            self.map(MapRef::Control(map), MapKind::Array, control.1, 1);
        }
        for map in number(counters.0) {
            let bytes = counters.1 * features.cpus;
            self.map(MapRef::Counters(map), MapKind::Array, bytes, 1);
        }
        for map in number(heads.0) {
            self.map(MapRef::Heads(map), MapKind::Array, heads.1, 1);
        }
        let rings = self.packs.iter().flat_map(|pack| &pack.rings).flatten();
        let rings: Vec<Ring> = rings.copied().collect();
        for ring in rings {
            let entries = ring.pages * features.cpus;
            self.map(
                MapRef::Pages(ring.map),
                MapKind::Array,
                PAGE_BYTES as u32,
                entries,
            );
        }
        self.map(MapRef::Notices, MapKind::Ring, 0, NOTICES_BYTES);
        if self.follows_command {
            self.map(MapRef::Traced, MapKind::Hash, 4, TRACED_ENTRIES);
        }
    }

    fn pack(
        &mut self,
        env: &PackEnv<'_>,
        numbered: &Numbered,
        layouts: Vec<RecordLayout>,
        fired: BTreeMap<u16, usize>,
        events: Vec<(EventImage, Attach)>,
    ) {
        let own = [("lkst:fired", Some(env.fired_counters))].into_iter().chain([
            (
                "lkst:switched",
                env.changes.as_ref().map(|[switched, _]| switched.1),
            ),
            ("lkst:refused", env.changes.as_ref().map(|[_, refused]| refused.1)),
            (
                "lkst:overload",
                env.budget.as_ref().map(|budget| budget.overload.1),
            ),
        ]);
        let own = own.filter_map(|(name, counters)| {
            Some(EventImage {
                name: name.to_owned(),
                counters: counters?,
                word: None,
                program: None,
            })
        });
        let program_of = |attach: &Attach| self.programs.iter().find(|p| p.attach == *attach);
        let events = events
            .into_iter()
            .map(|(event, attach)| EventImage {
                program: program_of(&attach).map(|program| program.number),
                ..event
            })
            .chain(own)
            .collect();
        self.packs.push(PackImage {
            index: env.index,
            plan: Arc::new(env.plan.clone()),
            block: env.block,
            layouts,
            fired,
            changes: env
                .changes
                .as_ref()
                .map(|[switched, refused]| [switched.0.id, refused.0.id]),
            events,
            rules: env.rules.clone(),
            budget: env.budget.as_ref().map(|budget| (budget.per_s_ns, budget.cell)),
            rings: env.rings.clone(),
            fresh: numbered.fresh,
            fresh_sets: numbered.fresh_sets,
        });
    }
}

impl PackImage {
    /// The sets of `start`, one bit each.
    #[must_use]
    pub fn start(&self) -> u64 {
        let sets = self.plan.sets.iter().enumerate().filter(|(_, set)| set.start);
        sets.fold(0, |word, (number, _)| word | 1 << number)
    }

    /// Bytes of its buffers on so many CPUs.
    #[must_use]
    pub fn ring_bytes(&self, cpus: u32) -> u64 {
        let rings = self.rings.iter().flatten();
        rings
            .map(|ring| u64::from(ring.pages) * u64::from(cpus) * PAGE_BYTES as u64)
            .sum()
    }

    /// The sets that there are, one bit each.
    #[must_use]
    pub fn sets(&self) -> u64 {
        let sets = self.plan.sets.iter().enumerate();
        let sets = sets.filter(|(_, set)| !set.name.is_empty());
        sets.fold(0, |word, (number, _)| word | 1 << number)
    }
}

/// Sections by the tracepoint they hang on.
#[derive(Default)]
struct Gathered<'p> {
    /// With the first pack that names it.
    plain: BTreeMap<Attach, (usize, Vec<Section<'p>>)>,
    syscalls: BTreeMap<Attach, BTreeMap<usize, Vec<SyscallLeaf<'p>>>>,
}

impl<'p> Gathered<'p> {
    fn add(&mut self, attach: Attach, event: &Event, pack: usize, section: Section<'p>) {
        match event.origin {
            Origin::Tracepoint => {
                let entry = self.plain.entry(attach).or_insert_with(|| (pack, Vec::new()));
                entry.1.push(section);
            }
            Origin::SyscallEnter(number) | Origin::SyscallExit(number) => self
                .syscalls
                .entry(attach)
                .or_default()
                .entry(pack)
                .or_default()
                .push(SyscallLeaf { number, section }),
        }
    }

    fn programs(
        self,
        image: &mut Image,
        features: &Features,
        probe_reads: &BTreeSet<String>,
        numbers: &mut Numbers,
    ) -> Result<(), BuildError> {
        for (attach, (pack, mut sections)) in self.plain {
            let number = number_of(&attach, pack, numbers)?;
            let built = in_parts(
                &attach,
                &mut sections,
                number,
                !probe_reads.contains(&attach.name),
                features,
            );
            image.add_program(attach, number, pack, built, features)?;
        }
        for (attach, packs) in self.syscalls {
            let pack = packs.keys().next().copied().unwrap_or(0);
            let number = number_of(&attach, pack, numbers)?;
            let mut leaves: Vec<Vec<SyscallLeaf<'p>>> = packs.into_values().collect();
            let direct = !probe_reads.contains(&attach.name);
            let built = in_parts(&attach, &mut leaves, number, direct, features);
            image.add_program(attach, number, pack, built, features)?;
        }
        Ok(())
    }
}

impl Image {
    fn add_program(
        &mut self,
        attach: Attach,
        number: u16,
        pack: usize,
        built: Result<Vec<Code>, LowerError>,
        features: &Features,
    ) -> Result<(), BuildError> {
        let fail = |error| BuildError { pack, error };
        let parts = built.map_err(fail)?;
        let dispatcher = lower::dispatcher(number).map_err(fail)?;
        self.map(MapRef::Slots(number), MapKind::Programs, 4, 2);
        // All parts have the same one, if any.
        let mut named = parts.iter().flat_map(|part| &part.maps);
        let frame = named.find_map(|(_, map)| match map {
            MapRef::Frame(_, bytes) => Some((*map, bytes * features.cpus)),
            _ => None,
        });
        if let Some((map, bytes)) = frame {
            self.map(map, MapKind::Scratch, bytes, 1);
        }
        self.programs.push(ProgramImage {
            number,
            attach,
            dispatcher,
            instructions: parts.iter().map(|part| part.insns.len()).sum(),
            parts,
        });
        Ok(())
    }
}

fn number_of(attach: &Attach, pack: usize, numbers: &mut Numbers) -> Result<u16, BuildError> {
    numbers.program(attach).ok_or(BuildError {
        pack,
        error: LowerError::Full,
    })
}

fn environment<'p>(numbered: &'p Numbered, numbers: &mut Numbers) -> Result<PackEnv<'p>, LowerError> {
    let plan = &numbered.plan;
    let actions = || plan.rules.iter().flat_map(|rule| &rule.actions);
    let switches = actions().any(|a| matches!(a, Action::Switch { .. }));
    let pack = numbers.of_pack(&plan.pack).ok_or(LowerError::Full)?;
    let [fired, switched, refused, overload] = pack.own;
    let (index, block, cell) = (pack.index, pack.block, pack.cost);
    let mut layouts = Layouts(pack);
    let changes = match switches {
        true => Some([
            (layouts.change(plan, "lkst:switched")?, switched),
            (layouts.change(plan, "lkst:refused")?, refused),
        ]),
        false => None,
    };
    let budget = match plan.budget_ppm {
        Some(ppm) => Some(PackBudget {
            cell,
            // Of all of a CPU nothing can be over.
            per_s_ns: if ppm >= 1_000_000 {
                i64::MAX
            } else {
                i64::from(ppm) * 1000
            },
            overload: (layouts.overload()?, overload),
        }),
        None => None,
    };
    Ok(PackEnv {
        index,
        plan,
        block,
        rings: numbered.rings.clone(),
        caps: numbered.caps.clone(),
        rules: numbered.rules.clone(),
        changes,
        switches_back: actions().any(|a| matches!(a, Action::Switch { for_ns: Some(_), .. })),
        stops: actions().any(|a| matches!(a, Action::Stop)),
        fired_counters: fired,
        budget,
    })
}
