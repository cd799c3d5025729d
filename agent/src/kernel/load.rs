//! An image in, a traced kernel out.
//!
//! Maps are made first, then every program is loaded and put into slot 1 of its dispatcher, then the dispatchers are
//! attached, still going nowhere, and last one 8-byte store of the generation starts all of them at once. Stopping is
//! the same store the other way round. Nothing is pinned here: what is loaded goes when it is dropped, or when this
//! process ends in whatever way.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aya::maps::{HashMap, Map, MapData, MapError, ProgramArray, RingBuf};
use aya::programs::{BtfTracePoint, Program, ProgramError, ProgramFd};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use lkst_probes::asm::{Code, MapRef};
use lkst_probes::features::Features;
use lkst_probes::image::{self, Attach, BuildError, Image, MapImage, MapKind, ProgramImage};
use lkst_probes::layout::{control, counter, state};
use lkst_probes::object::object;
use lkst_rules::plan::Plan;

use super::link::{ClassicLink, Grace, attach_classic};
use super::memory::Mapping;
use super::ring::Rings;
use super::tracefs::Tracefs;

/// Why nothing is traced.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The code generator cannot do it.
    #[error("{}", .0.error)]
    Build(BuildError),
    /// A map could not be made.
    #[error("cannot make the map `{map}`: {error}")]
    Map {
        /// Which.
        map: String,
        /// Why.
        error: MapError,
    },
    /// A map could not be mapped into memory, or filled.
    #[error("cannot use the map `{map}`: {error}")]
    Memory {
        /// Which.
        map: String,
        /// Why.
        error: io::Error,
    },
    /// The kernel refused a program.
    #[error("the kernel refuses the program for `{}:{}`: {}", attach.system, attach.name, refusal(error))]
    Program {
        /// Of which event.
        attach: Box<Attach>,
        /// Why; the verifier's words.
        error: Box<ProgramError>,
    },
    /// The object was not understood.
    #[error("cannot load the program for `{event}`: {error}")]
    Object {
        /// Of which event.
        event: String,
        /// Why.
        error: String,
    },
    /// A program could not be attached.
    #[error("cannot attach to `{event}`: {error}")]
    Attach {
        /// To which event.
        event: String,
        /// Why.
        error: String,
    },
    /// What waits for running programs could not be made.
    #[error("cannot make what waits for running programs: {0}")]
    Grace(io::Error),
}

/// What the kernel said, without the thousands of lines that led to it.
fn refusal(error: &ProgramError) -> String {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return error.to_string();
    };
    if io_error.raw_os_error() == Some(libc::E2BIG) {
        return "it is too complex for the verifier: let fewer rules, sets or packs name this event, or a glob that \
                matches fewer system calls"
            .to_owned();
    }
    let log = verifier_log.to_string();
    let tail: Vec<&str> = log
        .lines()
        .filter(|line| !line.trim().is_empty())
        .rev()
        .take(4)
        .collect();
    format!(
        "{io_error}\n{}",
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    )
}

/// What is needed beside the plans.
pub struct Environment<'e> {
    /// What the kernel can do.
    pub features: Features,
    /// The kernel's types, as aya needs them to load typed programs; `None` where there are none.
    pub btf: Option<&'e Btf>,
    /// Where the tracepoints' numbers are.
    pub tracefs: &'e Tracefs,
    /// Identifies this session in every page.
    pub uuid: [u8; 16],
}

/// A kernel with our programs in it.
pub struct Loaded {
    /// What was loaded.
    pub image: Image,
    /// Notices of firings.
    pub notices: RingBuf<MapData>,
    /// The rings, by pack and buffer.
    pub rings: Vec<Vec<Rings>>,
    control: Mapping,
    counters: Mapping,
    programs: Vec<LoadedProgram>,
    traced: Option<HashMap<MapData, u32, u32>>,
    /// The descriptor of `traced`, as long as that lives.
    traced_fd: Option<i32>,
    tracker: Vec<Ebpf>,
    grace: Grace,
}

/// An event's programs.
struct LoadedProgram {
    attach: Attach,
    // Dropped in this order: off the tracepoint first.
    classic: Option<ClassicLink>,
    dispatcher: Ebpf,
    // An array of programs empties itself when nobody holds it open.
    _slots: ProgramArray<MapData>,
    program: Ebpf,
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

/// Loads and attaches everything, and starts it.
///
/// # Errors
/// See [`LoadError`]; then nothing of it stays in the kernel.
pub fn load(plans: &[Arc<Plan>], env: &Environment<'_>) -> Result<Loaded, LoadError> {
    let mut probe_reads = BTreeSet::new();
    loop {
        let image = image::build(plans, &env.features, &probe_reads).map_err(LoadError::Build)?;
        match load_image(image, env) {
            // The verifier of another kernel may refuse a plain load that BTF lets us expect: then this event's
            // program reads by probe reads alone.
            Err(LoadError::Program { attach, error })
                if attach.typed
                    && matches!(*error, ProgramError::LoadError { .. })
                    && probe_reads.insert(attach.name.clone()) =>
            {
                tracing::debug!(event = attach.name, %error, "plain loads refused, using probe reads");
            }
            loaded => return loaded,
        }
    }
}

fn load_image(image: Image, env: &Environment<'_>) -> Result<Loaded, LoadError> {
    let grace = Grace::new().map_err(LoadError::Grace)?;
    let mut maps = make_maps(&image.maps)?;
    let mapping = |maps: &BTreeMap<MapRef, MapData>, map: MapRef| -> Result<Mapping, LoadError> {
        let bytes = image
            .maps
            .iter()
            .find(|m| m.map == map)
            .map_or(0, |m| m.value_bytes as usize * m.entries as usize);
        let fail = |error| LoadError::Memory {
            map: map.to_string(),
            error,
        };
        let data = maps
            .get(&map)
            .ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        Mapping::new(data.fd().as_fd(), bytes).map_err(fail)
    };
    let control = mapping(&maps, MapRef::Control)?;
    control.write(0, &image.control);
    control
        .u32(control::SELF_TGID as usize)
        .store(std::process::id(), Ordering::Relaxed);
    let counters = mapping(&maps, MapRef::Counters)?;
    let mut rings = Vec::new();
    for (pack, of_pack) in (0..).zip(&image.packs) {
        let mut buffers = Vec::new();
        for (buffer, meaning) in (0..).zip(&of_pack.plan.buffers) {
            let heads = mapping(&maps, MapRef::Heads { pack, buffer })?;
            let pages = mapping(&maps, MapRef::Pages { pack, buffer })?;
            let cpus = env.features.cpus as usize;
            let prepared = Rings::prepare(&meaning.name, heads, pages, cpus, env.uuid, random);
            buffers.push(prepared.map_err(|error| LoadError::Memory {
                map: meaning.name.clone(),
                error,
            })?);
        }
        rings.push(buffers);
    }
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    let mut programs = Vec::with_capacity(image.programs.len());
    for (number, program) in (0..).zip(&image.programs) {
        let slots = maps.remove(&MapRef::Slots(number));
        let slots = slots.ok_or_else(|| LoadError::Memory {
            map: "slots".to_owned(),
            error: io::ErrorKind::NotFound.into(),
        })?;
        programs.push(load_program(&mut loader, program, number, slots, &maps, env)?);
    }
    for program in &mut programs {
        program.attach(env)?;
    }
    let notices = maps.remove(&MapRef::Notices).ok_or(MapError::KeyNotFound);
    let notices = notices
        .and_then(Map::from_map_data)
        .and_then(RingBuf::try_from)
        .map_err(|error| LoadError::Map {
            map: MapRef::Notices.to_string(),
            error,
        })?;
    let traced_fd = maps
        .get(&MapRef::Traced)
        .map(|data| data.fd().as_fd().as_raw_fd());
    let traced = match maps.remove(&MapRef::Traced) {
        None => None,
        Some(data) => Some(
            Map::from_map_data(data)
                .and_then(HashMap::try_from)
                .map_err(|error| LoadError::Map {
                    map: MapRef::Traced.to_string(),
                    error,
                })?,
        ),
    };
    Ok(Loaded {
        image,
        notices,
        rings,
        control,
        counters,
        programs,
        traced,
        traced_fd,
        tracker: Vec::new(),
        grace,
    })
}

fn make_maps(images: &[MapImage]) -> Result<BTreeMap<MapRef, MapData>, LoadError> {
    const MMAPABLE: u32 = 1 << 10;
    images
        .iter()
        .map(|image| {
            // Types by include/uapi/linux/bpf.h.
            let (kind, key, flags) = match image.kind {
                MapKind::Array => (2, 4, MMAPABLE),
                MapKind::Scratch => (2, 4, 0),
                MapKind::Hash => (1, 4, 0),
                MapKind::Ring => (27, 0, 0),
                MapKind::Programs => (3, 4, 0),
            };
            let map = aya_obj::Map::new_from_params(kind, key, image.value_bytes, image.entries, flags);
            MapData::create(map, &format!("lkst_{}", image.map), None)
                .map(|data| (image.map, data))
                .map_err(|error| LoadError::Map {
                    map: image.map.to_string(),
                    error,
                })
        })
        .collect()
}

fn load_program(
    loader: &mut EbpfLoader<'_>,
    program: &ProgramImage,
    number: u16,
    slots: MapData,
    maps: &BTreeMap<MapRef, MapData>,
    env: &Environment<'_>,
) -> Result<LoadedProgram, LoadError> {
    let fd = |map: MapRef| match map {
        MapRef::Slots(of) if of == number => Some(slots.fd().as_fd().as_raw_fd()),
        map => maps.get(&map).map(|data| data.fd().as_fd().as_raw_fd()),
    };
    let attach = &program.attach;
    let main = load_code(loader, attach, &program.code, fd, env.btf)?;
    let dispatcher = load_code(loader, attach, &program.dispatcher, fd, env.btf)?;
    let event = event_name(attach);
    let array = Map::from_map_data(slots).and_then(ProgramArray::try_from);
    let mut slots = array.map_err(|error| LoadError::Map {
        map: format!("slots of {event}"),
        error,
    })?;
    let target = program_fd(&main, attach)?;
    slots.set(1, target, 0).map_err(|error| LoadError::Map {
        map: format!("slots of {event}"),
        error,
    })?;
    Ok(LoadedProgram {
        attach: attach.clone(),
        classic: None,
        dispatcher,
        _slots: slots,
        program: main,
    })
}

/// Loads one program; it is not attached.
fn load_code(
    loader: &mut EbpfLoader<'_>,
    attach: &Attach,
    code: &Code,
    fd: impl Fn(MapRef) -> Option<i32>,
    btf: Option<&Btf>,
) -> Result<Ebpf, LoadError> {
    let event = event_name(attach);
    let object_error = |error: String| LoadError::Object {
        event: event.clone(),
        error,
    };
    let bytes = code
        .bytes(fd)
        .map_err(|map| object_error(format!("no map `{map}`")))?;
    let symbol = attach.symbol();
    let elf = object(&attach.section(), &symbol, &bytes).map_err(|e| object_error(e.to_string()))?;
    let mut ebpf = loader
        .load(&elf)
        .map_err(|e: EbpfError| object_error(e.to_string()))?;
    let program = ebpf
        .program_mut(&symbol)
        .ok_or_else(|| object_error("no program in it".to_owned()))?;
    let loaded = match (program, btf) {
        (Program::BtfTracePoint(typed), Some(btf)) => typed.load(&attach.name, btf),
        (Program::TracePoint(classic), _) => classic.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|error| LoadError::Program {
        attach: Box::new(attach.clone()),
        error: Box::new(error),
    })?;
    Ok(ebpf)
}

fn event_name(attach: &Attach) -> String {
    format!("{}:{}", attach.system, attach.name)
}

fn program_fd<'p>(ebpf: &'p Ebpf, attach: &Attach) -> Result<&'p ProgramFd, LoadError> {
    let fd = match ebpf.program(&attach.symbol()) {
        Some(Program::BtfTracePoint(program)) => program.fd(),
        Some(Program::TracePoint(program)) => program.fd(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    fd.map_err(|error| LoadError::Program {
        attach: Box::new(attach.clone()),
        error: Box::new(error),
    })
}

fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

impl LoadedProgram {
    fn attach(&mut self, env: &Environment<'_>) -> Result<(), LoadError> {
        let event = event_name(&self.attach);
        let fail = |error: String| LoadError::Attach {
            event: event.clone(),
            error,
        };
        if self.attach.typed {
            let program = self.dispatcher.program_mut(&self.attach.symbol());
            let typed: &mut BtfTracePoint = program
                .ok_or_else(|| fail("no program".to_owned()))?
                .try_into()
                .map_err(|e: ProgramError| fail(e.to_string()))?;
            // The link stays with the program, and goes with it.
            typed.attach().map(drop).map_err(|e| fail(e.to_string()))
        } else {
            let id = env.tracefs.id(&self.attach.system, &self.attach.name);
            let id = id.map_err(|e| fail(e.to_string()))?;
            let program = program_fd(&self.dispatcher, &self.attach)?;
            self.classic = Some(attach_classic(program.as_fd(), id).map_err(|e| fail(e.to_string()))?);
            Ok(())
        }
    }

    /// How often the kernel skipped the program because another was running on the CPU; `None` where it does not say.
    fn skipped(&self) -> Option<u64> {
        // `bpf_prog_inc_misses_counters` in `trace_call_bpf`: kernels before 6.7 skip classic programs silently.
        if !self.attach.typed && !counts_skipped_classic() {
            return None;
        }
        described(&self.dispatcher, &self.attach, "recursion_misses:")?
            .parse()
            .ok()
    }
}

/// What the kernel says of a program beside its descriptor: Documentation/filesystems/proc.rst, `fdinfo`.
fn described(ebpf: &Ebpf, attach: &Attach, key: &str) -> Option<String> {
    let fd = program_fd(ebpf, attach).ok()?.as_fd().as_raw_fd();
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
    /// Starts everything at once.
    pub fn start(&self) {
        self.control
            .u64(control::GENERATION as usize)
            .store(1, Ordering::SeqCst);
    }

    /// Stops everything, and returns when no program is running any more.
    ///
    /// # Errors
    /// Where waiting is impossible; everything has stopped all the same.
    pub fn stop(&self) -> io::Result<()> {
        self.control
            .u64(control::GENERATION as usize)
            .store(2, Ordering::SeqCst);
        self.grace()
    }

    /// Waits until every program that runs now has ended.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn grace(&self) -> io::Result<()> {
        self.grace.wait()
    }

    /// A pack's state word.
    #[must_use]
    pub fn state(&self, pack: usize) -> u64 {
        let block = self.image.packs.get(pack).map_or(0, |p| p.block);
        self.control
            .u64((block + control::STATE) as usize)
            .load(Ordering::SeqCst)
    }

    /// When recording of a pack returns to `main`, in nanoseconds of the boot clock.
    #[must_use]
    pub fn switch_until(&self, pack: usize) -> u64 {
        let block = self.image.packs.get(pack).map_or(0, |p| p.block);
        self.control
            .u64((block + control::SWITCH_UNTIL) as usize)
            .load(Ordering::SeqCst)
    }

    /// A word of a pack's block, by its offset in [`control`].
    ///
    /// # Panics
    /// Where the block has no such word.
    #[must_use]
    pub fn control_word(&self, pack: usize, offset: u32) -> u64 {
        let block = self.image.packs.get(pack).map_or(0, |p| p.block);
        self.control.u64((block + offset) as usize).load(Ordering::SeqCst)
    }

    /// Changes a pack's state word, as a program would: by compare-and-exchange, with a new sequence number. `change`
    /// gives the word to be, or `None` where nothing is to be changed any more; it is asked again for every word that
    /// it meets. What it reads beside the word, such as [`Loaded::switch_until`], it must read itself: programs store
    /// ends before the word, so what was read before belongs to an older one. Returns the word that was stored.
    pub fn change_state(&self, pack: usize, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let block = self.image.packs.get(pack).map_or(0, |p| p.block);
        let word = self.control.u64((block + control::STATE) as usize);
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
    pub fn event_counts(&self, counters: u32, cpu: usize) -> EventCounts {
        let read = |field: u32| self.counter(counters + field, cpu);
        EventCounts {
            recorded: read(counter::RECORDED),
            lost: read(counter::LOST),
            capped: read(counter::CAPPED),
            unreadable: read(counter::UNREADABLE),
        }
    }

    /// A rule's counters.
    #[must_use]
    pub fn rule_counts(&self, counters: u32) -> RuleCounts {
        let sum = |field: u32| {
            (0..self.cpus())
                .map(|cpu| self.counter(counters + field, cpu))
                .sum()
        };
        RuleCounts {
            fired: sum(counter::FIRED),
            limited: sum(counter::LIMITED),
            refused: sum(counter::REFUSED),
            given_up: sum(counter::GIVEN_UP),
        }
    }

    fn counter(&self, at: u32, cpu: usize) -> u64 {
        let at = cpu * self.image.counters_stride as usize + at as usize;
        self.counters.u64(at).load(Ordering::Relaxed)
    }

    /// How many CPUs have rings and counters.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.counters.bytes() / self.image.counters_stride.max(1) as usize
    }

    /// How often the kernel skipped an event's program; `None` where it does not say.
    #[must_use]
    pub fn skipped(&self, program: usize) -> Option<u64> {
        self.programs.get(program)?.skipped()
    }

    /// The kernel's number of an event's program: what `bpftool prog` knows it by.
    #[must_use]
    pub fn program_id(&self, program: usize) -> Option<u32> {
        let loaded = self.programs.get(program)?;
        described(&loaded.program, &loaded.attach, "prog_id:")?
            .parse()
            .ok()
    }

    /// Whether an event's program is typed.
    #[must_use]
    pub fn is_typed(&self, program: usize) -> bool {
        self.programs.get(program).is_some_and(|p| p.attach.typed)
    }

    /// Loads and attaches what follows COMMAND: `codes` on `sched_process_fork` and `sched_process_exit`.
    ///
    /// # Errors
    /// As [`load`].
    pub fn follow(&mut self, codes: &[Code; 2], btf: &Btf) -> Result<(), LoadError> {
        let Some(fd) = self.traced_fd else { return Ok(()) };
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for (code, name) in codes.iter().zip(["sched_process_fork", "sched_process_exit"]) {
            let attach = Attach {
                system: "sched".to_owned(),
                name: name.to_owned(),
                typed: true,
            };
            let mut ebpf = load_code(&mut loader, &attach, code, |_| Some(fd), Some(btf))?;
            let fail = |error: String| LoadError::Attach {
                event: event_name(&attach),
                error,
            };
            let program = ebpf
                .program_mut(&attach.symbol())
                .ok_or_else(|| fail("no program".to_owned()))?;
            let typed: &mut BtfTracePoint = program
                .try_into()
                .map_err(|e: ProgramError| fail(e.to_string()))?;
            typed.attach().map_err(|e| fail(e.to_string()))?;
            self.tracker.push(ebpf);
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
        let mut programs = std::mem::take(&mut self.programs);
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
