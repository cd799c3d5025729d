//! Numbers that stay: a pack, set, buffer, rule, event or kind of record keeps its own, and its place in the shared
//! maps, for as long as its name and meaning live.
//!
//! In: what one generation of plans names. Out: numbers and places for all of it, the old ones where there are any. So
//! two generations share their state, nothing is copied when one follows the other, and a program whose meaning did
//! not change does not change either.
//!
//! INVARIANT: what a generation does not name any more keeps its number until [`Numbers::sweep`], which may be called
//! only when no program of an older generation can be running.

use std::collections::{BTreeMap, BTreeSet};

use lkst_rules::plan::{Action, Buffer, Guard, Limit, Plan, Rule, Set};
use lkst_rules::source::Span;
use serde::{Deserialize, Serialize};

use crate::arena::{Arena, Full, Spot};
use crate::image::Attach;
use crate::layout::{Encoding, PAGE_BYTES, RecordLayout, TooLarge, control, cost, counter, head, state};

/// Bytes of each map of control words.
const CONTROL_BYTES: u32 = 64 << 10;
/// Bytes of each map of heads.
const HEADS_BYTES: u32 = 64 << 10;
/// Kinds of record of a pack, old ones included, after which it begins anew.
const LAYOUTS_MAX: usize = 40_000;

/// All numbers that are given out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Numbers {
    /// Counts the generations that were numbered.
    stamp: u64,
    control: Arena,
    counters: Arena,
    heads: Arena,
    head_bytes: u32,
    packs: BTreeMap<String, PackNumbers>,
    /// Packs that began anew: what they were before.
    former: Vec<PackNumbers>,
    programs: Vec<Option<Given<Attach>>>,
    next_pages: u32,
    /// What this generation was given: its words are to be zeroed before it begins.
    taken: Vec<Taken>,
}

/// Words that were given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// In which kind of map.
    pub kind: Words,
    /// Where.
    pub spot: Spot,
    /// Bytes; of counters, for each CPU.
    pub bytes: u32,
}

/// The kinds of map that packs share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Words {
    /// Control words.
    Control,
    /// Counters.
    Counters,
    /// Heads of rings.
    Heads,
}

/// Gives out places of one kind, and remembers which.
struct Giver<'n> {
    kind: Words,
    arena: &'n mut Arena,
    taken: &'n mut Vec<Taken>,
}

impl Giver<'_> {
    fn take(&mut self, bytes: u32) -> Result<Spot, Full> {
        let spot = self.arena.take(bytes)?;
        self.taken.push(Taken {
            kind: self.kind,
            spot,
            bytes,
        });
        Ok(spot)
    }
}

/// Something that was given out, and by which generation it was last asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Given<T> {
    what: T,
    used: u64,
}

/// Numbered things: a number is a place in the vector.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Slots<K, V> {
    slots: Vec<Option<Given<(K, V)>>>,
    most: usize,
}

/// A pack's numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PackNumbers {
    pub(crate) index: u16,
    used: u64,
    /// The generation that it began in.
    born: u64,
    pub(crate) block: Spot,
    /// The counters of lkst's own records: fired, switched, refused, overload.
    pub(crate) own: [Spot; 4],
    /// What the pack costs.
    pub(crate) cost: Spot,
    /// Whether a set's end must be looked at: once it may have one it must, as long as it lives.
    sets: Slots<String, bool>,
    buffers: Slots<String, ()>,
    rules: Slots<RuleKey, RuleSpots>,
    rings: BTreeMap<RingKey, Given<Ring>>,
    events: BTreeMap<String, Given<EventSpots>>,
    caps: BTreeMap<String, Given<Spot>>,
    layouts: Vec<RecordLayout>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RuleKey {
    name: String,
    meaning: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct RingKey {
    buffer: String,
    pages: u32,
    stream: bool,
}

/// Where a rule's words are.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct RuleSpots {
    /// Among the control words: its limit's window, start << 16 | count, the start in units of 1,024 ns.
    pub limit: Spot,
    /// Among the counters.
    pub counters: Spot,
}

/// Where an event's words are.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct EventSpots {
    /// Among the counters.
    pub counters: Spot,
    /// Among the control words: where in its map of counters those lie. Code that events share reads it there: the
    /// verifier, which knows every constant, would walk that code anew for each event.
    pub word: Spot,
}

/// An allocation of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Its heads.
    pub heads: Spot,
    /// The number of its map of pages; never given out twice.
    pub map: u32,
    /// Pages a CPU.
    pub pages: u32,
    /// It never overwrites what was not drained.
    pub stream: bool,
}

/// A pack that was numbered.
#[derive(Debug)]
pub(crate) struct Numbered {
    /// The plan with everything at the place of its number; what lies between has no name.
    pub(crate) plan: Plan,
    /// By number.
    pub(crate) rings: Vec<Option<Ring>>,
    /// By set.
    pub(crate) caps: Vec<Option<Spot>>,
    /// By rule.
    pub(crate) rules: Vec<RuleSpots>,
    /// By event, in the plan's order.
    pub(crate) events: Vec<EventSpots>,
    /// New in this generation: its words are in no use yet.
    pub(crate) fresh: bool,
    /// The sets whose numbers are new in this generation.
    pub(crate) fresh_sets: u64,
}

/// Why something has no number.
#[derive(Debug)]
pub(crate) enum NoNumber {
    /// The maps are full.
    Full,
    /// Old and new together are too many; alone they may fit.
    Beside,
    /// A record is too large.
    TooLarge(TooLarge),
}

impl From<Full> for NoNumber {
    fn from(Full: Full) -> Self {
        NoNumber::Full
    }
}

impl<K: PartialEq, V> Slots<K, V> {
    fn new(most: usize) -> Self {
        Slots {
            slots: Vec::new(),
            most,
        }
    }

    /// The number of `key`, and whether it is new.
    fn number(
        &mut self,
        key: K,
        stamp: u64,
        make: impl FnOnce() -> Result<V, NoNumber>,
    ) -> Result<(usize, bool), NoNumber> {
        let is_it = |slot: &Option<Given<(K, V)>>| slot.as_ref().is_some_and(|given| given.what.0 == key);
        if let Some(number) = self.slots.iter().position(is_it) {
            if let Some(Some(given)) = self.slots.get_mut(number) {
                given.used = stamp;
            }
            return Ok((number, false));
        }
        let number = self
            .slots
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.slots.len());
        if number >= self.most {
            return Err(NoNumber::Beside);
        }
        if number == self.slots.len() {
            self.slots.push(None);
        }
        let given = Given {
            what: (key, make()?),
            used: stamp,
        };
        if let Some(slot) = self.slots.get_mut(number) {
            *slot = Some(given);
        }
        Ok((number, true))
    }

    fn value(&self, number: usize) -> Option<&V> {
        self.slots.get(number)?.as_ref().map(|given| &given.what.1)
    }

    /// Forgets what `stamp` did not ask for; returns it.
    fn sweep(&mut self, stamp: u64) -> Vec<V> {
        let mut gone = Vec::new();
        for slot in &mut self.slots {
            if let Some(given) = slot.take_if(|given| given.used != stamp) {
                gone.push(given.what.1);
            }
        }
        while self.slots.last().is_some_and(Option::is_none) {
            self.slots.pop();
        }
        gone
    }
}

impl Numbers {
    /// Nothing given out, for so many CPUs.
    #[must_use]
    pub fn new(cpus: u32) -> Numbers {
        let head_bytes = head::BYTES as u32 * cpus;
        Numbers {
            stamp: 0,
            control: Arena::new(CONTROL_BYTES, control::HEADER_BYTES),
            counters: Arena::new(counter::STRIDE, 0),
            heads: Arena::new(HEADS_BYTES.max(head_bytes.next_multiple_of(64)), 0),
            head_bytes,
            packs: BTreeMap::new(),
            former: Vec::new(),
            programs: Vec::new(),
            next_pages: 0,
            taken: Vec::new(),
        }
    }

    /// What was given out for the last generation, and to nobody before or not since it was given back.
    #[must_use]
    pub fn taken(&self) -> &[Taken] {
        &self.taken
    }

    /// Begins another generation.
    pub(crate) fn begin(&mut self) {
        self.stamp += 1;
        self.taken.clear();
    }

    /// The maps of control words, of counters and of heads: how many, and bytes of each (of counters: for a CPU).
    #[must_use]
    pub fn maps(&self) -> [(usize, u32); 3] {
        [&self.control, &self.counters, &self.heads].map(|arena| (arena.maps(), arena.map_bytes()))
    }

    /// How a tracepoint is attached already, where it is.
    #[must_use]
    pub fn kind_of(&self, system: &str, name: &str) -> Option<bool> {
        self.programs
            .iter()
            .flatten()
            .find(|given| !given.what.calls && given.what.system == system && given.what.name == name)
            .map(|given| given.what.typed)
    }

    /// The number of an event's program.
    pub(crate) fn program(&mut self, attach: &Attach) -> Option<u16> {
        let stamp = self.stamp;
        let is_it = |given: &&mut Given<Attach>| given.what == *attach;
        let known = self.programs.iter_mut().zip(0..);
        let mut known = known.filter_map(|(slot, number)| Some((slot.as_mut()?, number)));
        if let Some((given, number)) = known.find(|(given, _)| is_it(given)) {
            given.used = stamp;
            return Some(number);
        }
        let free = self.programs.iter().position(Option::is_none);
        let place = free.unwrap_or(self.programs.len());
        let number = u16::try_from(place).ok()?;
        let given = Some(Given {
            what: attach.clone(),
            used: stamp,
        });
        match self.programs.get_mut(place) {
            Some(slot) => *slot = given,
            None => self.programs.push(given),
        }
        Some(number)
    }

    /// Numbers a pack. Where old and new do not fit together it begins anew.
    pub(crate) fn pack(&mut self, plan: &Plan) -> Result<Numbered, NoNumber> {
        match self.try_pack(plan) {
            Err(NoNumber::Beside) => {
                let former = self.packs.remove(&plan.pack);
                self.former.extend(former);
                match self.try_pack(plan) {
                    Err(NoNumber::Beside) => Err(NoNumber::Full),
                    other => other,
                }
            }
            other => other,
        }
    }

    /// A pack's numbers, once it has some.
    pub(crate) fn of_pack(&mut self, name: &str) -> Option<&mut PackNumbers> {
        self.packs.get_mut(name)
    }

    fn new_pack(&mut self) -> Result<PackNumbers, Full> {
        let taken: BTreeSet<u16> = self.packs.values().chain(&self.former).map(|p| p.index).collect();
        let index = (0..u16::MAX).find(|index| !taken.contains(index)).ok_or(Full)?;
        let mut giver = |kind, bytes| {
            let arena = match kind {
                Words::Control => &mut self.control,
                Words::Counters => &mut self.counters,
                Words::Heads => &mut self.heads,
            };
            let taken = &mut self.taken;
            Giver { kind, arena, taken }.take(bytes)
        };
        let mut own = [Spot::default(); 4];
        for spot in &mut own {
            *spot = giver(Words::Counters, counter::EVENT_BYTES)?;
        }
        let cost = giver(Words::Counters, cost::BYTES)?;
        let block = giver(Words::Control, control::BLOCK_BYTES)?;
        Ok(PackNumbers {
            index,
            used: self.stamp,
            born: self.stamp,
            block,
            own,
            cost,
            sets: Slots::new(state::SETS as usize),
            buffers: Slots::new(state::BUFFERS as usize),
            rules: Slots::new(usize::from(u16::MAX)),
            rings: BTreeMap::new(),
            events: BTreeMap::new(),
            caps: BTreeMap::new(),
            layouts: Vec::new(),
        })
    }

    fn try_pack(&mut self, plan: &Plan) -> Result<Numbered, NoNumber> {
        let stamp = self.stamp;
        if !self.packs.contains_key(&plan.pack) {
            let pack = self.new_pack()?;
            self.packs.insert(plan.pack.clone(), pack);
        }
        // One at a time may write down what it gives.
        let taken = std::cell::RefCell::new(&mut self.taken);
        let give = |kind: Words, arena: &mut Arena, bytes: u32| {
            let mut taken = taken.borrow_mut();
            Giver {
                kind,
                arena,
                taken: &mut taken,
            }
            .take(bytes)
        };
        let (control, counters, heads) = (&mut self.control, &mut self.counters, &mut self.heads);
        let Some(pack) = self.packs.get_mut(&plan.pack) else {
            return Err(NoNumber::Full);
        };
        pack.used = stamp;
        if pack.layouts.len() > LAYOUTS_MAX {
            return Err(NoNumber::Beside);
        }

        let mut fresh_sets = 0;
        let mut sets = Vec::new();
        for set in &plan.sets {
            let (number, fresh) = pack.sets.number(set.name.clone(), stamp, || Ok(set.timed))?;
            if fresh {
                fresh_sets |= 1 << number;
            }
            if let Some(Some(given)) = pack.sets.slots.get_mut(number) {
                given.what.1 |= set.timed;
            }
            sets.push(number);
        }
        let mut buffers = Vec::new();
        for buffer in &plan.buffers {
            let (number, _) = pack.buffers.number(buffer.name.clone(), stamp, || Ok(()))?;
            buffers.push(number);
        }
        let mut rules = Vec::new();
        for (index, rule) in plan.rules.iter().enumerate() {
            let key = RuleKey {
                name: rule.name.clone(),
                meaning: meaning(plan, index),
            };
            let make = || {
                Ok(RuleSpots {
                    limit: give(Words::Control, control, 8)?,
                    counters: give(Words::Counters, counters, counter::RULE_BYTES)?,
                })
            };
            rules.push(pack.rules.number(key, stamp, make)?.0);
        }
        let plan = renumbered(plan, pack, &sets, &buffers, &rules);

        let mut rings = Vec::new();
        for buffer in &plan.buffers {
            if buffer.name.is_empty() {
                rings.push(None);
                continue;
            }
            let key = RingKey {
                buffer: buffer.name.clone(),
                pages: pages(buffer.size_bytes, buffer.stream),
                stream: buffer.stream,
            };
            let given = match pack.rings.get_mut(&key) {
                Some(given) => given,
                None => {
                    let ring = Ring {
                        heads: give(Words::Heads, heads, self.head_bytes)?,
                        map: self.next_pages,
                        pages: key.pages,
                        stream: key.stream,
                    };
                    self.next_pages += 1;
                    pack.rings.entry(key).or_insert(Given {
                        what: ring,
                        used: stamp,
                    })
                }
            };
            given.used = stamp;
            rings.push(Some(given.what));
        }
        let mut caps = Vec::new();
        for set in &plan.sets {
            caps.push(match set.max_per_s {
                Some(_) => {
                    let make = || Ok(give(Words::Counters, counters, counter::CAP_BYTES)?);
                    Some(given(&mut pack.caps, &set.name, stamp, make)?)
                }
                None => None,
            });
        }
        let mut events = Vec::new();
        for wish in &plan.events {
            let make = || {
                Ok(EventSpots {
                    counters: give(Words::Counters, counters, counter::EVENT_BYTES)?,
                    word: give(Words::Control, control, 8)?,
                })
            };
            events.push(given(&mut pack.events, &wish.event.full_name(), stamp, make)?);
        }
        let spots = |number| pack.rules.value(number).copied().unwrap_or_default();
        let rules = (0..plan.rules.len()).map(spots).collect();
        Ok(Numbered {
            plan,
            rings,
            caps,
            rules,
            events,
            fresh: pack.born == stamp,
            fresh_sets,
        })
    }

    /// Forgets whatever the last generation did not ask for. What it held may be given out again.
    pub fn sweep(&mut self) {
        let stamp = self.stamp;
        let mut gone = std::mem::take(&mut self.former);
        let left: Vec<String> = self
            .packs
            .iter()
            .filter(|(_, pack)| pack.used != stamp)
            .map(|(name, _)| name.clone())
            .collect();
        gone.extend(left.iter().filter_map(|name| self.packs.remove(name)));
        for slot in &mut self.programs {
            slot.take_if(|given| given.used != stamp);
        }
        for pack in &mut gone {
            self.control.give_back(pack.block, control::BLOCK_BYTES);
            for spot in pack.own {
                self.counters.give_back(spot, counter::EVENT_BYTES);
            }
            self.counters.give_back(pack.cost, cost::BYTES);
        }
        // A stamp that no generation has: nothing of a pack that is gone stays.
        for (pack, stamp) in gone
            .iter_mut()
            .map(|pack| (pack, 0))
            .chain(self.packs.values_mut().map(|pack| (pack, stamp)))
        {
            pack.sets.sweep(stamp);
            pack.buffers.sweep(stamp);
            for spots in pack.rules.sweep(stamp) {
                self.control.give_back(spots.limit, 8);
                self.counters.give_back(spots.counters, counter::RULE_BYTES);
            }
            pack.rings.retain(|_, given| {
                let stays = given.used == stamp;
                if !stays {
                    self.heads.give_back(given.what.heads, self.head_bytes);
                }
                stays
            });
            pack.events.retain(|_, given| {
                let stays = given.used == stamp;
                if !stays {
                    self.control.give_back(given.what.word, 8);
                    self.counters.give_back(given.what.counters, counter::EVENT_BYTES);
                }
                stays
            });
            pack.caps.retain(|_, given| {
                let stays = given.used == stamp;
                if !stays {
                    self.counters.give_back(given.what, counter::CAP_BYTES);
                }
                stays
            });
        }
    }
}

impl PackNumbers {
    /// Every kind of record that the pack makes or made, by id from 1 on.
    pub(crate) fn layouts(&self) -> &[RecordLayout] {
        &self.layouts
    }

    /// The layout of these columns, with the id that it always had.
    pub(crate) fn layout(
        &mut self,
        name: &str,
        columns: impl IntoIterator<Item = (String, Encoding, bool)>,
    ) -> Result<RecordLayout, NoNumber> {
        let id = u16::try_from(self.layouts.len() + 1).map_err(|_| NoNumber::Full)?;
        let layout = RecordLayout::new(id, name, columns).map_err(NoNumber::TooLarge)?;
        let same = |known: &&RecordLayout| known.name == layout.name && known.columns == layout.columns;
        if let Some(known) = self.layouts.iter().find(same) {
            return Ok(known.clone());
        }
        self.layouts.push(layout.clone());
        Ok(layout)
    }
}

fn given<T: Copy>(
    all: &mut BTreeMap<String, Given<T>>,
    name: &str,
    stamp: u64,
    make: impl FnOnce() -> Result<T, NoNumber>,
) -> Result<T, NoNumber> {
    if let Some(given) = all.get_mut(name) {
        given.used = stamp;
        return Ok(given.what);
    }
    let what = make()?;
    all.insert(name.to_owned(), Given { what, used: stamp });
    Ok(what)
}

/// Pages a CPU of a buffer. Of a stream there are at least four: its quarters wake the reader.
fn pages(size_bytes: u64, stream: bool) -> u32 {
    u32::try_from(size_bytes.div_ceil(PAGE_BYTES as u64))
        .unwrap_or(u32::MAX)
        .max(if stream { 4 } else { 2 })
}

/// The plan with sets, buffers and rules at the places of their numbers. Between them lie ones without a name, which
/// do nothing.
fn renumbered(plan: &Plan, pack: &PackNumbers, sets: &[usize], buffers: &[usize], rules: &[usize]) -> Plan {
    let number = |of: &[usize], index: usize| of.get(index).copied().unwrap_or(index);
    let place = |count: usize, of: &[usize]| -> Vec<Option<usize>> {
        (0..count)
            .map(|place| of.iter().position(|number| *number == place))
            .collect()
    };
    let mut new = Plan {
        pack: plan.pack.clone(),
        budget_ppm: plan.budget_ppm,
        sets: Vec::new(),
        buffers: Vec::new(),
        rules: Vec::new(),
        events: plan.events.clone(),
    };
    for (index, old) in place(pack.sets.slots.len(), sets).into_iter().enumerate() {
        let set = old.and_then(|old| plan.sets.get(old)).cloned();
        let mut set = set.unwrap_or_else(|| Set {
            name: String::new(),
            max_per_s: None,
            start: false,
            timed: false,
            span: Span::default(),
        });
        set.timed = pack.sets.value(index).copied().unwrap_or(set.timed);
        new.sets.push(set);
    }
    for old in place(pack.buffers.slots.len(), buffers) {
        let buffer = old.and_then(|old| plan.buffers.get(old)).cloned();
        new.buffers.push(buffer.unwrap_or_else(|| Buffer {
            name: String::new(),
            size_bytes: 0,
            stream: false,
            span: Span::default(),
        }));
    }
    for old in place(pack.rules.slots.len(), rules) {
        let mut rule = old
            .and_then(|old| plan.rules.get(old))
            .cloned()
            .unwrap_or_else(|| Rule {
                name: String::new(),
                guard: None,
                actions: Vec::new(),
                limit: Limit::Once,
                message: Vec::new(),
                live: false,
                span: Span::default(),
            });
        if let Some(guard) = &mut rule.guard {
            renumber_guard(guard, sets);
        }
        for action in &mut rule.actions {
            match action {
                Action::Enable { set, .. } | Action::Disable { set } => *set = number(sets, *set),
                Action::Switch { buffer, .. } => *buffer = number(buffers, *buffer),
                Action::Save { .. } | Action::Stop => {}
            }
        }
        new.rules.push(rule);
    }
    for wish in &mut new.events {
        for member in &mut wish.members {
            member.set = number(sets, member.set);
        }
        for trigger in &mut wish.triggers {
            trigger.rule = number(rules, trigger.rule);
        }
    }
    new
}

fn renumber_guard(guard: &mut Guard, sets: &[usize]) {
    match guard {
        Guard::Set(set) => *set = sets.get(*set).copied().unwrap_or(*set),
        Guard::Not(inner) => renumber_guard(inner, sets),
        Guard::And(left, right) | Guard::Or(left, right) => {
            renumber_guard(left, sets);
            renumber_guard(right, sets);
        }
    }
}

/// What a rule means, whatever its numbers are and wherever it is written. What it says in `notify` is no part of it.
fn meaning(plan: &Plan, index: usize) -> String {
    let Some(rule) = plan.rules.get(index) else {
        return String::new();
    };
    let set = |number: usize| plan.sets.get(number).map_or("", |set| set.name.as_str());
    let actions: Vec<String> = rule
        .actions
        .iter()
        .map(|action| match action {
            Action::Enable { set: number, for_ns } => format!("enable {} {for_ns:?}", set(*number)),
            Action::Disable { set: number } => format!("disable {}", set(*number)),
            Action::Switch { buffer, for_ns } => {
                let name = plan.buffers.get(*buffer).map_or("", |b| b.name.as_str());
                format!("switch {name} {for_ns:?}")
            }
            other => format!("{other:?}"),
        })
        .collect();
    let triggers: Vec<String> = plan
        .events
        .iter()
        .flat_map(|wish| wish.triggers.iter().map(move |trigger| (wish, trigger)))
        .filter(|(_, trigger)| trigger.rule == index)
        .map(|(wish, trigger)| {
            let with = trigger.with.as_ref().map(|with| with.without_spans());
            format!("{} {with:?}", wish.event.full_name())
        })
        .collect();
    let guard = rule.guard.as_ref().map(|guard| guard_text(guard, &set));
    format!("{triggers:?} {guard:?} {actions:?} {:?}", rule.limit)
}

fn guard_text<'p>(guard: &Guard, set: &impl Fn(usize) -> &'p str) -> String {
    match guard {
        Guard::Set(number) => set(*number).to_owned(),
        Guard::Not(inner) => format!("not ({})", guard_text(inner, set)),
        Guard::And(left, right) => format!("({}) and ({})", guard_text(left, set), guard_text(right, set)),
        Guard::Or(left, right) => format!("({}) or ({})", guard_text(left, set), guard_text(right, set)),
    }
}
