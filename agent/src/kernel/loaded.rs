//! A kernel with our programs in it: its state words, counters and rings, read and changed while the programs run.
//!
//! What generation is in force, and how another follows it, is in `generation.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{HashMap, MapData, MapError, RingBuf};
use lkst_probes::arena::Spot;
use lkst_probes::asm::{Code, MapRef};
use lkst_probes::image::{Attach, Image};
use lkst_probes::layout::{control, cost, counter, state};
use lkst_probes::numbers::Numbers;

use super::btf::Btf;
use super::link::{Grace, attach_typed};
use super::load::{LoadError, event_name, load_code};
use super::memory::Mapping;
use super::names::KernelNames;
use super::pins::{Handle, Pins};
use super::ring::Rings;

/// A kernel with our programs in it.
pub struct Loaded {
    /// What was loaded. Its programs' texts are gone: the kernel has them.
    pub image: Image,
    /// Notices of firings.
    pub notices: RingBuf<MapData>,
    pub(super) numbers: Numbers,
    pub(super) cpus: u32,
    /// The tracepoints whose programs read by probe reads alone.
    pub(super) probe_reads: BTreeSet<String>,
    pub(super) maps: BTreeMap<MapRef, MapData>,
    pub(super) control: Vec<Mapping>,
    pub(super) counters: Vec<Mapping>,
    pub(super) heads: Vec<Arc<Mapping>>,
    /// By the number of their map of pages.
    pub(super) rings: BTreeMap<u32, Rings>,
    /// By number.
    pub(super) programs: BTreeMap<u16, LoadedProgram>,
    pub(super) traced: Option<HashMap<MapData, u32, u32>>,
    /// Where everything has a name, where it has.
    pub(super) pins: Option<Arc<Pins>>,
    /// Names of what the generation before had, until nobody needs it any more.
    pub(super) former_pins: Vec<String>,
    /// What keeps the names of threads, where anything does.
    pub(super) names: Option<KernelNames>,
    /// Links of what follows COMMAND.
    tracker: Vec<OwnedFd>,
    grace: Grace,
}

/// An event's programs.
#[derive(Debug)]
pub(super) struct LoadedProgram {
    pub(super) attach: Attach,
    // Dropped first: off the tracepoint before anything else goes. `None` before it is attached.
    pub(super) _link: Option<Handle>,
    pub(super) dispatcher: OwnedFd,
    // An array of programs empties itself when nobody holds it open and it has no name.
    pub(super) slots: Handle,
    /// The parts of the program in force that follow its first, where it has some.
    pub(super) parts: Option<Handle>,
    /// Which slots hold the program that is in force.
    pub(super) in_slots: [bool; 2],
    pub(super) program: OwnedFd,
    pub(super) digest: [u64; 2],
}

/// Counters of one event on one CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Records made.
    pub recorded: u64,
    /// Records that found no room.
    pub lost: u64,
    /// Hits over a set's `max`.
    pub capped: u64,
    /// Texts that could not be read.
    pub unreadable: u64,
    /// Hits that were not recorded since the pack was over its budget.
    pub over_budget: u64,
}

impl std::iter::Sum for EventCounts {
    fn sum<I: Iterator<Item = EventCounts>>(all: I) -> EventCounts {
        all.fold(EventCounts::default(), |sum, counts| EventCounts {
            recorded: sum.recorded + counts.recorded,
            lost: sum.lost + counts.lost,
            capped: sum.capped + counts.capped,
            unreadable: sum.unreadable + counts.unreadable,
            over_budget: sum.over_budget + counts.over_budget,
        })
    }
}

/// What a pack has cost on one CPU since its cell was given out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackCosts {
    /// Hits of its events.
    pub hits: u64,
    /// What those cost, and the firings, in nanoseconds.
    pub of_hits_ns: u64,
    /// What its records cost, in nanoseconds.
    pub of_records_ns: u64,
}

/// Counters of one rule over all CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuleCounts {
    /// Firings.
    pub fired: u64,
    /// Firings that its limit refused.
    pub limited: u64,
    /// Switches to a buffer that is kept.
    pub refused: u64,
    /// Firings whose change of the state was given up.
    pub given_up: u64,
}

impl LoadedProgram {
    /// How often the kernel skipped the program because another was running on the CPU; `None` where it does not say.
    fn skipped(&self) -> Option<u64> {
        // `bpf_prog_inc_misses_counters` in `trace_call_bpf`: kernels before 6.7 skip classic programs silently.
        if !self.attach.typed && !counts_skipped_classic() {
            return None;
        }
        described(self.dispatcher.as_fd(), "recursion_misses:")?
            .parse()
            .ok()
    }
}

/// What the kernel says of a program beside its descriptor: Documentation/filesystems/proc.rst, `fdinfo`.
fn described(program: BorrowedFd<'_>, key: &str) -> Option<String> {
    let fd = program.as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    info.lines()
        .find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()))
}

/// The one thing that no trial can tell: whether the counter counts.
fn counts_skipped_classic() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(7))
}

impl Loaded {
    /// Nothing loaded.
    pub(super) fn new(
        image: Image,
        numbers: Numbers,
        cpus: u32,
        notices: RingBuf<MapData>,
        grace: Grace,
    ) -> Loaded {
        Loaded {
            image,
            notices,
            numbers,
            cpus,
            probe_reads: BTreeSet::new(),
            maps: BTreeMap::new(),
            control: Vec::new(),
            counters: Vec::new(),
            heads: Vec::new(),
            rings: BTreeMap::new(),
            programs: BTreeMap::new(),
            traced: None,
            pins: None,
            former_pins: Vec::new(),
            names: None,
            tracker: Vec::new(),
            grace,
        }
    }

    /// Waits until every program that runs now has ended.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn grace(&self) -> io::Result<()> {
        self.grace.wait()
    }

    /// A pack's state word. Packs by their place in the image.
    #[must_use]
    pub fn state(&self, pack: usize) -> u64 {
        self.control_word(pack, control::STATE)
    }

    /// When recording of a pack returns to `main`, in nanoseconds of the boot clock.
    #[must_use]
    pub fn switch_until(&self, pack: usize) -> u64 {
        self.control_word(pack, control::SWITCH_UNTIL)
    }

    /// A word of a pack's block, by its offset in [`control`].
    #[must_use]
    pub fn control_word(&self, pack: usize, offset: u32) -> u64 {
        let word = self.block(pack).and_then(|block| self.word(block.plus(offset)));
        word.map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// As [`Loaded::control_word`], to change it.
    #[must_use]
    pub fn block_word(&self, pack: usize, offset: u32) -> Option<&AtomicU64> {
        self.word(self.block(pack)?.plus(offset))
    }

    /// A control word that lies outside the packs' blocks.
    #[must_use]
    pub fn shared_word(&self, spot: Spot) -> Option<&AtomicU64> {
        self.word(spot)
    }

    pub(super) fn block(&self, pack: usize) -> Option<Spot> {
        self.image.packs.get(pack).map(|p| p.block)
    }

    /// A control word.
    pub(super) fn word(&self, spot: Spot) -> Option<&AtomicU64> {
        let control = self.control.get(usize::from(spot.map))?;
        Some(control.u64(spot.at as usize))
    }

    /// The rings of a buffer, by the pack's place in the image and the buffer's number.
    #[must_use]
    pub fn rings_of(&self, pack: usize, buffer: usize) -> Option<&Rings> {
        let ring = (*self.image.packs.get(pack)?.rings.get(buffer)?)?;
        self.rings.get(&ring.map)
    }

    /// As [`Loaded::rings_of`], to give up what they hold.
    pub fn rings_of_mut(&mut self, pack: usize, buffer: usize) -> Option<&mut Rings> {
        let ring = (*self.image.packs.get(pack)?.rings.get(buffer)?)?;
        self.rings.get_mut(&ring.map)
    }

    /// Changes a pack's state word, as a program would: by compare-and-exchange, with a new sequence number. `change`
    /// gives the word to be, or `None` where nothing is to be changed any more; it is asked again for every word that
    /// it meets. What it reads beside the word, such as [`Loaded::switch_until`], it must read itself: programs store
    /// ends before the word, so what was read before belongs to an older one. Returns the word that was stored.
    pub fn change_state(&self, pack: usize, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let word = self.word(self.block(pack)?.plus(control::STATE))?;
        let mut old = word.load(Ordering::SeqCst);
        loop {
            let new = state::bumped(change(old)?);
            match word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Some(new),
                Err(met) => old = met,
            }
        }
    }

    /// An event's counters on a CPU.
    #[must_use]
    pub fn event_counts(&self, counters: Spot, cpu: usize) -> EventCounts {
        let read = |field: u32| self.counter(counters.plus(field), cpu);
        EventCounts {
            recorded: read(counter::RECORDED),
            lost: read(counter::LOST),
            capped: read(counter::CAPPED),
            unreadable: read(counter::UNREADABLE),
            over_budget: read(counter::OVER_BUDGET),
        }
    }

    /// An event's counters over all CPUs.
    #[must_use]
    pub fn event_total(&self, counters: Spot) -> EventCounts {
        (0..self.cpus()).map(|cpu| self.event_counts(counters, cpu)).sum()
    }

    /// What a pack has cost on each CPU, by the cell that its image names.
    #[must_use]
    pub fn pack_costs(&self, cell: Spot) -> Vec<PackCosts> {
        let costs = |cpu| {
            let read = |field: i16| self.counter(cell.plus(field.cast_unsigned().into()), cpu);
            PackCosts {
                hits: read(cost::HITS),
                of_hits_ns: read(cost::OF_HITS_NS),
                of_records_ns: read(cost::OF_RECORDS_NS),
            }
        };
        (0..self.cpus()).map(costs).collect()
    }

    /// A rule's counters.
    #[must_use]
    pub fn rule_counts(&self, counters: Spot) -> RuleCounts {
        let sum = |field: u32| {
            (0..self.cpus())
                .map(|cpu| self.counter(counters.plus(field), cpu))
                .sum()
        };
        RuleCounts {
            fired: sum(counter::FIRED),
            limited: sum(counter::LIMITED),
            refused: sum(counter::REFUSED),
            given_up: sum(counter::GIVEN_UP),
        }
    }

    fn counter(&self, spot: Spot, cpu: usize) -> u64 {
        let at = cpu * counter::STRIDE as usize + spot.at as usize;
        let counters = self.counters.get(usize::from(spot.map));
        counters.map_or(0, |counters| counters.u64(at).load(Ordering::Relaxed))
    }

    /// How many CPUs have rings and counters.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.cpus as usize
    }

    /// How often the kernel skipped an event's program; `None` where it does not say.
    #[must_use]
    pub fn skipped(&self, program: u16) -> Option<u64> {
        self.programs.get(&program)?.skipped()
    }

    /// The kernel's number of an event's program: what `bpftool prog` knows it by.
    #[must_use]
    pub fn program_id(&self, program: u16) -> Option<u32> {
        let loaded = self.programs.get(&program)?;
        described(loaded.program.as_fd(), "prog_id:")?.parse().ok()
    }

    /// Whether an event's program is typed.
    #[must_use]
    pub fn is_typed(&self, program: u16) -> bool {
        self.programs.get(&program).is_some_and(|p| p.attach.typed)
    }

    /// Loads and attaches what follows COMMAND: `codes` on `sched_process_fork` and `sched_process_exit`.
    ///
    /// # Errors
    /// As [`super::generation::load`].
    pub fn follow(&mut self, codes: &[Code; 2], btf: &Btf) -> Result<(), LoadError> {
        let traced = self
            .maps
            .get(&MapRef::Traced)
            .map(|map| map.fd().as_fd().as_raw_fd());
        let Some(fd) = traced else { return Ok(()) };
        for (code, name) in codes.iter().zip(["sched_process_fork", "sched_process_exit"]) {
            let attach = Attach {
                system: "sched".to_owned(),
                name: name.to_owned(),
                typed: true,
                calls: false,
            };
            let program = load_code(&attach, code, |_| Some(fd), Some(btf))?;
            let link = attach_typed(program.as_fd()).map_err(|error| LoadError::Attach {
                event: event_name(&attach),
                error: error.to_string(),
            })?;
            self.tracker.push(link);
        }
        Ok(())
    }

    /// Follows a process and what it starts from now on, or no longer.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn follow_process(&mut self, pid: u32, follow: bool) -> Result<(), MapError> {
        match &mut self.traced {
            None => Ok(()),
            Some(traced) if follow => traced.insert(pid, 1, 0),
            Some(traced) => match traced.remove(&pid) {
                Err(MapError::KeyNotFound) => Ok(()),
                other => other,
            },
        }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // Taking a program off a tracepoint waits for the kernel, a classic one the longest; several wait together.
        let mut programs: Vec<LoadedProgram> = std::mem::take(&mut self.programs).into_values().collect();
        if programs.len() < 4 {
            return;
        }
        let share = programs.len().div_ceil(16);
        std::thread::scope(|scope| {
            while !programs.is_empty() {
                let some = programs.split_off(programs.len().saturating_sub(share));
                scope.spawn(move || drop(some));
            }
        });
    }
}
