//! All packs → what to load and what to write: programs, maps, the first contents of the control map.
//!
//! In: plans. Out: an [`Image`], which also says what every number in it means, for whoever reads counters, notices
//! and records.
//!
//! INVARIANT: an image is a function of its plans and features alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lkst_rules::plan::{Action, Column, EventPlan, Expr, Load, Node, Plan, TaskValue};
use lkst_rules::schema::{Event, Origin, Type};
use lkst_rules::source::Span;

use crate::asm::{Code, MapRef};
use crate::features::Features;
use crate::layout::{Encoding, PAGE_BYTES, RecordLayout, control, counter, head};
use crate::lower::{self, Kind, LowerError, PackEnv, Section, SyscallLeaf};

/// What to load and what to write.
#[derive(Debug, Clone)]
pub struct Image {
    /// In the order of the plans.
    pub packs: Vec<PackImage>,
    /// One for each event that is attached.
    pub programs: Vec<ProgramImage>,
    /// Every map that a program names.
    pub maps: Vec<MapImage>,
    /// The control map's first contents, without the agent's own process number.
    pub control: Vec<u8>,
    /// Bytes of counters for each CPU.
    pub counters_stride: u32,
    /// Some condition asks for `task.traced`.
    pub follows_command: bool,
}

/// A pack in the image.
#[derive(Debug, Clone)]
pub struct PackImage {
    /// What it means.
    pub plan: Arc<Plan>,
    /// Where its block lies in the control map.
    pub block: u32,
    /// Every kind of record it makes, by id.
    pub layouts: Vec<RecordLayout>,
    /// Which rule a `lkst:fired` record is of, by the record's id.
    pub fired: BTreeMap<u16, usize>,
    /// The ids of `lkst:switched` and `lkst:refused`.
    pub changes: Option<[u16; 2]>,
    /// Where an event's counters lie, by full name; lkst's own events too.
    pub events: Vec<EventImage>,
    /// Where each rule's counters lie.
    pub rule_counters: Vec<u32>,
    /// Pages a CPU of each buffer.
    pub pages: Vec<u32>,
}

/// An event of a pack in the image.
#[derive(Debug, Clone)]
pub struct EventImage {
    /// `system:name`
    pub name: String,
    /// Where its counters lie.
    pub counters: u32,
    /// The program that counts, where it has one of its own: for what the kernel itself has skipped.
    pub program: Option<usize>,
}

/// How a program is attached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attach {
    /// The tracepoint's system.
    pub system: String,
    /// The tracepoint's name.
    pub name: String,
    /// By BTF.
    pub typed: bool,
}

impl Attach {
    /// The ELF section that aya knows it by.
    #[must_use]
    pub fn section(&self) -> String {
        match self.typed {
            true => format!("tp_btf/{}", self.name),
            false => format!("tracepoint/{}/{}", self.system, self.name),
        }
    }

    /// A name for the kernel's lists; it keeps 15 bytes of it.
    #[must_use]
    pub fn symbol(&self) -> String {
        format!("l_{}", self.name)
    }
}

/// A program in the image.
#[derive(Debug, Clone)]
pub struct ProgramImage {
    /// Where it is attached.
    pub attach: Attach,
    /// Its dispatcher.
    pub dispatcher: Code,
    /// What the dispatcher goes to.
    pub code: Code,
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
/// Different lists of columns that the sets of one pack may ask of one event.
const LISTS_MAX: usize = 4;

/// Maps that one program may use: `MAX_USED_MAPS` of include/linux/bpf_verifier.h.
const MAPS_MAX: usize = 64;

/// A pack that has no program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    /// Its number among the plans.
    pub pack: usize,
    /// Why.
    pub error: LowerError,
}

/// Hands out offsets among the counters.
#[derive(Default)]
struct Counters {
    next: u32,
}

impl Counters {
    fn take(&mut self, bytes: u32) -> u32 {
        let at = self.next;
        self.next += bytes;
        at
    }
}

/// Hands out the ids of a pack's records.
#[derive(Default)]
struct Layouts {
    list: Vec<RecordLayout>,
}

impl Layouts {
    fn id(&self) -> Result<u16, LowerError> {
        u16::try_from(self.list.len() + 1).map_err(|_| LowerError::TooManyLayouts)
    }

    fn columns(&mut self, name: &str, columns: &[Column], span: Span) -> Result<RecordLayout, LowerError> {
        let layout = RecordLayout::of_columns(self.id()?, name, columns)
            .map_err(|error| LowerError::too_large(name, span, error))?;
        self.list.push(layout.clone());
        Ok(layout)
    }

    fn fired(&mut self, plan: &Plan, values: &[Column], span: Span) -> Result<RecordLayout, LowerError> {
        let rules = plan
            .rules
            .iter()
            .zip(0..)
            .map(|(rule, n)| (rule.name.clone(), n))
            .collect();
        let columns = std::iter::once(("rule".to_owned(), Encoding::Enum(rules), false)).chain(
            values
                .iter()
                .map(|c| (c.name.clone(), Encoding::of(c.value.ty), c.hex)),
        );
        let layout = RecordLayout::new(self.id()?, "lkst:fired", columns)
            .map_err(|error| LowerError::too_large("lkst:fired", span, error))?;
        self.list.push(layout.clone());
        Ok(layout)
    }

    fn change(&mut self, plan: &Plan, name: &str) -> Result<RecordLayout, LowerError> {
        let buffers: Vec<(String, u32)> = plan
            .buffers
            .iter()
            .zip(0..)
            .map(|(buffer, n)| (buffer.name.clone(), n))
            .collect();
        let columns =
            ["from", "to"].map(|column| (column.to_owned(), Encoding::Enum(buffers.clone()), false));
        let layout = RecordLayout::new(self.id()?, name, columns)
            .map_err(|error| LowerError::too_large(name, Span::default(), error))?;
        self.list.push(layout.clone());
        Ok(layout)
    }
}

/// Builds the image. `probe_reads` names the tracepoints whose programs the verifier refused with plain loads.
///
/// # Errors
/// The first pack that cannot be built, and why.
pub fn build(
    plans: &[Arc<Plan>],
    features: &Features,
    probe_reads: &BTreeSet<String>,
) -> Result<Image, BuildError> {
    let mut counters = Counters::default();
    let mut block = control::HEADER_BYTES;
    let mut envs = Vec::new();
    let mut layouts: Vec<Layouts> = Vec::new();
    let pages: Vec<Vec<u32>> = plans.iter().map(|plan| pages(plan)).collect();
    for (index, (plan, pages)) in plans.iter().zip(&pages).enumerate() {
        let mut of_pack = Layouts::default();
        let env = environment(index, plan, pages, block, &mut counters, &mut of_pack)
            .map_err(|error| BuildError { pack: index, error })?;
        block += control::block_bytes(plan.rules.len());
        envs.push(env);
        layouts.push(of_pack);
    }

    // Behind the blocks, a word for each event: where its counters lie.
    let table = block;
    let mut event_counters: Vec<u32> = Vec::new();
    let mut gathered = Gathered::default();
    let mut fired: Vec<BTreeMap<u16, usize>> = vec![BTreeMap::new(); plans.len()];
    let mut events: Vec<Vec<(EventImage, Attach)>> = vec![Vec::new(); plans.len()];
    let attaches = attaches(plans)?;
    for ((index, env), of_pack) in envs.iter().enumerate().zip(&mut layouts) {
        for wish in &env.plan.events {
            let at = counters.take(counter::EVENT_BYTES);
            let word = table + 8 * event_counters.len() as u32;
            event_counters.push(at);
            let section =
                section(env, wish, (at, word), of_pack).map_err(|error| BuildError { pack: index, error })?;
            for ((layout, _), trigger) in section.fired.iter().zip(&wish.triggers) {
                if let Some(fired) = fired.get_mut(index) {
                    fired.insert(layout.id, trigger.rule);
                }
            }
            let attach = attach_of(&wish.event, &attaches);
            let image = EventImage {
                name: wish.event.full_name(),
                counters: at,
                program: None,
            };
            if let Some(events) = events.get_mut(index) {
                events.push((image, attach.clone()));
            }
            gathered.add(attach, &wish.event, index, section);
        }
    }

    // Every CPU's counters begin on a cache line of their own.
    let stride = counters.next.next_multiple_of(64).max(64);
    let control_bytes = table + 8 * event_counters.len() as u32;
    let mut image = Image {
        packs: Vec::new(),
        programs: Vec::new(),
        maps: vec![
            MapImage {
                map: MapRef::Control,
                kind: MapKind::Array,
                value_bytes: control_bytes,
                entries: 1,
            },
            MapImage {
                map: MapRef::Counters,
                kind: MapKind::Array,
                value_bytes: stride * features.cpus,
                entries: 1,
            },
            MapImage {
                map: MapRef::Notices,
                kind: MapKind::Ring,
                value_bytes: 0,
                entries: NOTICES_BYTES,
            },
        ],
        control: vec![0; control_bytes as usize],
        counters_stride: stride,
        follows_command: plans.iter().any(|plan| follows_command(plan)),
    };
    if image.follows_command {
        image.maps.push(MapImage {
            map: MapRef::Traced,
            kind: MapKind::Hash,
            value_bytes: 4,
            entries: TRACED_ENTRIES,
        });
    }
    gathered.programs(&mut image, features, probe_reads, stride)?;
    for (word, at) in event_counters.into_iter().enumerate() {
        image.write_control(table + 8 * word as u32, at.into());
    }
    for (((env, of_pack), fired), events) in envs.iter().zip(layouts).zip(fired).zip(events) {
        image.pack(env, of_pack, fired, events, features);
    }
    Ok(image)
}

impl Image {
    fn pack(
        &mut self,
        env: &PackEnv<'_>,
        layouts: Layouts,
        fired: BTreeMap<u16, usize>,
        events: Vec<(EventImage, Attach)>,
        features: &Features,
    ) {
        let plan = env.plan;
        for (buffer, pages) in (0..).zip(env.pages) {
            let pack = env.index;
            self.maps.push(MapImage {
                map: MapRef::Heads { pack, buffer },
                kind: MapKind::Array,
                value_bytes: head::BYTES as u32 * features.cpus,
                entries: 1,
            });
            self.maps.push(MapImage {
                map: MapRef::Pages { pack, buffer },
                kind: MapKind::Array,
                value_bytes: PAGE_BYTES as u32,
                entries: pages * features.cpus,
            });
        }
        let started = plan.sets.iter().enumerate().filter(|(_, set)| set.start);
        let word = started.fold(0_u64, |word, (index, _)| word | 1 << index);
        self.write_control(env.block + control::STATE, word);
        self.write_control(env.block + control::SWITCH_UNTIL, u64::MAX);
        for set in 0..plan.sets.len() as u32 {
            self.write_control(env.block + control::SET_UNTIL + 8 * set, u64::MAX);
        }
        let own = [("lkst:fired", Some(env.fired_counters))].into_iter().chain([
            (
                "lkst:switched",
                env.changes.as_ref().map(|[switched, _]| switched.1),
            ),
            ("lkst:refused", env.changes.as_ref().map(|[_, refused]| refused.1)),
        ]);
        let own = own.filter_map(|(name, counters)| {
            Some(EventImage {
                name: name.to_owned(),
                counters: counters?,
                program: None,
            })
        });
        let program_of = |attach: &Attach| self.programs.iter().position(|p| p.attach == *attach);
        let events = events
            .into_iter()
            .map(|(event, attach)| EventImage {
                program: program_of(&attach),
                ..event
            })
            .chain(own)
            .collect();
        self.packs.push(PackImage {
            plan: Arc::new(plan.clone()),
            block: env.block,
            layouts: layouts.list,
            fired,
            changes: env
                .changes
                .as_ref()
                .map(|[switched, refused]| [switched.0.id, refused.0.id]),
            events,
            rule_counters: env.rule_counters.clone(),
            pages: env.pages.to_vec(),
        });
    }

    fn write_control(&mut self, at: u32, value: u64) {
        let at = at as usize;
        if let Some(bytes) = self.control.get_mut(at..at + 8) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// Sections by the tracepoint they hang on.
#[derive(Default)]
struct Gathered<'p> {
    plain: BTreeMap<Attach, Vec<Section<'p>>>,
    syscalls: BTreeMap<Attach, BTreeMap<usize, Vec<SyscallLeaf<'p>>>>,
}

impl<'p> Gathered<'p> {
    fn add(&mut self, attach: Attach, event: &Event, pack: usize, section: Section<'p>) {
        match event.origin {
            Origin::Tracepoint => self.plain.entry(attach).or_default().push(section),
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
        stride: u32,
    ) -> Result<(), BuildError> {
        for (attach, sections) in self.plain {
            let pack = sections.first().map_or(0, |s| usize::from(s.pack.index));
            let kind = if attach.typed { Kind::Typed } else { Kind::Classic };
            let direct = !probe_reads.contains(&attach.name);
            let number = image.programs.len() as u16;
            let built = lower::program(&sections, features, kind, direct, number, stride);
            image.add_program(attach, number, pack, built, features)?;
        }
        for (attach, packs) in self.syscalls {
            let pack = packs.keys().next().copied().unwrap_or(0);
            let direct = !probe_reads.contains(&attach.name);
            let number = image.programs.len() as u16;
            let leaves: Vec<Vec<SyscallLeaf<'p>>> = packs.into_values().collect();
            let built = lower::syscall_program(&leaves, features, direct, number, stride);
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
        built: Result<(Code, u32), LowerError>,
        features: &Features,
    ) -> Result<(), BuildError> {
        let fail = |error| BuildError { pack, error };
        let (code, frame_bytes) = built.map_err(fail)?;
        let maps = code
            .maps
            .iter()
            .map(|(_, map)| map)
            .collect::<BTreeSet<_>>()
            .len();
        if maps > MAPS_MAX {
            let event = format!("{}:{}", attach.system, attach.name);
            return Err(fail(LowerError::TooManyMaps { event, maps }));
        }
        let dispatcher = lower::dispatcher(number).map_err(fail)?;
        self.maps.push(MapImage {
            map: MapRef::Slots(number),
            kind: MapKind::Programs,
            value_bytes: 4,
            entries: 2,
        });
        if frame_bytes > 0 {
            self.maps.push(MapImage {
                map: MapRef::Frame(number),
                kind: MapKind::Scratch,
                value_bytes: frame_bytes * features.cpus,
                entries: 1,
            });
        }
        self.programs.push(ProgramImage {
            attach,
            dispatcher,
            code,
        });
        Ok(())
    }
}

fn pages(plan: &Plan) -> Vec<u32> {
    let pages = |bytes: u64| {
        u32::try_from(bytes.div_ceil(PAGE_BYTES as u64))
            .unwrap_or(u32::MAX)
            .max(2)
    };
    plan.buffers
        .iter()
        .map(|buffer| pages(buffer.size_bytes))
        .collect()
}

fn environment<'p>(
    index: usize,
    plan: &'p Plan,
    pages: &'p [u32],
    block: u32,
    counters: &mut Counters,
    layouts: &mut Layouts,
) -> Result<PackEnv<'p>, LowerError> {
    let actions = || plan.rules.iter().flat_map(|rule| &rule.actions);
    let switches = actions().any(|a| matches!(a, Action::Switch { .. }));
    let caps = plan
        .sets
        .iter()
        .map(|set| set.max_per_s.map(|_| counters.take(counter::CAP_BYTES)))
        .collect();
    let rule_counters = plan
        .rules
        .iter()
        .map(|_| counters.take(counter::RULE_BYTES))
        .collect();
    let fired_counters = counters.take(counter::EVENT_BYTES);
    let changes = if switches {
        let mut change = |name: &str| -> Result<_, LowerError> {
            Ok((layouts.change(plan, name)?, counters.take(counter::EVENT_BYTES)))
        };
        Some([change("lkst:switched")?, change("lkst:refused")?])
    } else {
        None
    };
    Ok(PackEnv {
        index: index as u16,
        plan,
        block,
        pages,
        caps,
        rule_counters,
        changes,
        switches_back: actions().any(|a| matches!(a, Action::Switch { for_ns: Some(_), .. })),
        stops: actions().any(|a| matches!(a, Action::Stop)),
        fired_counters,
    })
}

fn section<'p>(
    pack: &'p PackEnv<'p>,
    plan: &'p EventPlan,
    (counters, counters_word): (u32, u32),
    layouts: &mut Layouts,
) -> Result<Section<'p>, LowerError> {
    let name = plan.event.full_name();
    let span = plan
        .members
        .first()
        .map(|m| m.span)
        .or_else(|| plan.triggers.first().map(|t| t.span))
        .unwrap_or_default();

    let mut distinct: Vec<Vec<Column>> = Vec::new();
    let mut lists = Vec::new();
    for member in &plan.members {
        let columns = plain(member.columns.as_deref().unwrap_or(&plan.all));
        let list = distinct
            .iter()
            .position(|known| *known == columns)
            .unwrap_or_else(|| {
                distinct.push(columns);
                distinct.len() - 1
            });
        lists.push(list);
    }
    if distinct.len() > LISTS_MAX {
        return Err(LowerError::TooManyLists {
            event: name,
            lists: distinct.len(),
            span,
        });
    }

    let mut records: Vec<(RecordLayout, Vec<Column>)> = Vec::new();
    let mut record_for = |columns: Vec<Column>| -> Result<usize, LowerError> {
        if let Some(known) = records.iter().position(|(_, known)| *known == columns) {
            return Ok(known);
        }
        records.push((layouts.columns(&name, &columns, span)?, columns));
        Ok(records.len() - 1)
    };
    let mut unions = Vec::new();
    for mask in 1..1_u32 << distinct.len() {
        let chosen = distinct
            .iter()
            .enumerate()
            .filter(|(list, _)| mask >> list & 1 == 1);
        unions.push((mask, record_for(union(chosen.map(|(_, columns)| columns)))?));
    }
    let full = match plan.triggers.is_empty() {
        true => None,
        false => Some(record_for(plain(&plan.all))?),
    };
    let fired = plan
        .triggers
        .iter()
        .map(|trigger| {
            let rule = trigger.rule as u64;
            let values = plain(&trigger.values);
            let layout = layouts.fired(pack.plan, &values, trigger.span)?;
            let number = Column {
                name: "rule".to_owned(),
                value: Expr {
                    node: Node::Int(rule),
                    ty: Type::U32,
                    span: trigger.span,
                },
                hex: false,
            };
            Ok((layout, std::iter::once(number).chain(values).collect()))
        })
        .collect::<Result<Vec<_>, LowerError>>()?;
    Ok(Section {
        pack,
        plan,
        counters,
        counters_word,
        records,
        lists,
        unions,
        full,
        fired,
    })
}

/// The columns with their places forgotten, so that two lists that mean the same are equal.
fn plain(columns: &[Column]) -> Vec<Column> {
    columns
        .iter()
        .map(|c| Column {
            value: c.value.without_spans(),
            ..c.clone()
        })
        .collect()
}

/// The union of lists: each value once; two values of one name are told apart by a number.
fn union<'c>(lists: impl Iterator<Item = &'c Vec<Column>>) -> Vec<Column> {
    let mut all: Vec<Column> = Vec::new();
    for column in lists.flatten() {
        if all.contains(column) {
            continue;
        }
        let taken = |name: &str| all.iter().any(|c| c.name == name);
        let mut column = column.clone();
        let base = column.name.clone();
        let mut number = 2;
        while taken(&column.name) {
            column.name = format!("{base}_{number}");
            number += 1;
        }
        all.push(column);
    }
    all
}

/// The kind of every tracepoint, chosen over all packs.
fn attaches(plans: &[Arc<Plan>]) -> Result<BTreeMap<(String, String), bool>, BuildError> {
    struct Use {
        typed_only: Option<String>,
        classic_only: Option<String>,
        typed_possible: bool,
    }
    let mut uses: BTreeMap<(String, String), Use> = BTreeMap::new();
    for (index, plan) in plans.iter().enumerate() {
        for wish in &plan.events {
            if wish.event.origin != Origin::Tracepoint {
                continue;
            }
            let key = (wish.event.system.clone(), wish.event.name.clone());
            let entry = uses.entry(key).or_insert(Use {
                typed_only: None,
                classic_only: None,
                typed_possible: !wish.event.arguments.is_empty(),
            });
            let mut span = Span::default();
            for (load, place) in loads(wish) {
                if let Load::Field {
                    name,
                    place: classic,
                    recipe,
                } = load
                {
                    let only = match (classic, recipe) {
                        (None, Some(_)) => &mut entry.typed_only,
                        (Some(_), None) => &mut entry.classic_only,
                        _ => continue,
                    };
                    if only.is_none() {
                        *only = Some(name.clone());
                        span = place;
                    }
                }
            }
            if let (Some(typed), Some(classic)) = (&entry.typed_only, &entry.classic_only) {
                let error = LowerError::TwoKinds {
                    event: wish.event.full_name(),
                    typed: typed.clone(),
                    classic: classic.clone(),
                    span,
                };
                return Err(BuildError { pack: index, error });
            }
        }
    }
    Ok(uses
        .into_iter()
        .map(|(key, u)| {
            (
                key,
                u.typed_only.is_some() || u.classic_only.is_none() && u.typed_possible,
            )
        })
        .collect())
}

/// Every value that a pack reads of an event.
fn loads(wish: &EventPlan) -> Vec<(&Load, Span)> {
    let mut found = Vec::new();
    let all = !wish.triggers.is_empty() || wish.members.iter().any(|m| m.columns.is_none());
    let of_all = wish.all.iter().filter(|_| all).map(|c| &c.value);
    let of_members = wish
        .members
        .iter()
        .flat_map(|m| m.with.iter().chain(m.columns.iter().flatten().map(|c| &c.value)));
    let of_triggers = wish
        .triggers
        .iter()
        .flat_map(|t| t.with.iter().chain(t.values.iter().map(|c| &c.value)));
    for expr in of_all.chain(of_members).chain(of_triggers) {
        expr.loads(&mut found);
    }
    found
}

fn attach_of(event: &Event, kinds: &BTreeMap<(String, String), bool>) -> Attach {
    let raw = |name: &str| Attach {
        system: "raw_syscalls".into(),
        name: name.into(),
        typed: true,
    };
    match event.origin {
        Origin::SyscallEnter(_) => raw("sys_enter"),
        Origin::SyscallExit(_) => raw("sys_exit"),
        Origin::Tracepoint => {
            let key = (event.system.clone(), event.name.clone());
            let typed = kinds.get(&key).copied().unwrap_or(false);
            Attach {
                system: key.0,
                name: key.1,
                typed,
            }
        }
    }
}

fn follows_command(plan: &Plan) -> bool {
    plan.events.iter().any(|wish| {
        loads(wish)
            .iter()
            .any(|(load, _)| matches!(load, Load::Task(TaskValue::Traced)))
    })
}
