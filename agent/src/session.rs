//! A traced kernel and what people are told of it: firings as they come, buffers saved when they are kept.
//!
//! In: packs that compiled, a folder for traces. Out: firings, trace folders on disk. Time and input come from the
//! caller (`command/run.rs`, `daemon.rs`), which calls [`Session::notices`] when there are some and [`Session::tick`]
//! now and then; nothing here waits for anything but the disk and a grace period.

mod costs;
mod message;
mod names;
pub mod orders;
mod saving;
mod status;
pub mod stream;
mod summary;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use lkst_probes::image::PackImage;
use lkst_probes::layout::{notice, record, state};
use lkst_rules::plan::{Action, Plan, Rule};

use crate::kernel::generation::Former;
use crate::kernel::load::{Environment, LoadError};
use crate::kernel::loaded::Loaded;
use crate::kernel::ring::Rings;
use crate::trace::decode::{Classes, EventClass, u16_at, u32_at, u64_at};
use crate::trace::incident::{Incident, NamedValue};
use costs::Meter;
pub use costs::TooCostly;
use names::Names;
pub(crate) use summary::counted;

/// What identifies the host and the session in every trace.
#[derive(Debug, Clone)]
pub struct Host {
    /// The session's.
    pub uuid: [u8; 16],
    /// `uname -n`.
    pub hostname: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl Host {
    /// This host, and a new session.
    ///
    /// # Errors
    /// Where the kernel gives no random bytes.
    pub fn this() -> io::Result<Host> {
        let mut uuid = [0; 16];
        rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())?;
        // RFC 9562: version 4, variant 10.
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        let uname = rustix::system::uname();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Host {
            uuid,
            hostname: uname.nodename().to_string_lossy().into_owned(),
            kernel_release: uname.release().to_string_lossy().into_owned(),
            boot_id: boot_id.trim().to_owned(),
        })
    }
}

/// Nanoseconds of the boot clock, which every record's time is of.
#[must_use]
pub fn boot_now_ns() -> u64 {
    nanoseconds(rustix::time::ClockId::Boottime)
}

/// Wall clock minus boot clock, in nanoseconds.
#[must_use]
pub fn boot_offset_ns() -> i64 {
    // Twice around: a preemption between the two looks would shift the one by what it took.
    let offset = || {
        let before = boot_now_ns();
        let wall = nanoseconds(rustix::time::ClockId::Realtime);
        let after = boot_now_ns();
        (
            after - before,
            wall.wrapping_sub(before + (after - before) / 2).cast_signed(),
        )
    };
    (0..4).map(|_| offset()).min().map_or(0, |(_, offset)| offset)
}

fn nanoseconds(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// A rule fired.
#[derive(Debug)]
pub struct Firing<'f> {
    /// When, by the wall clock.
    pub when: jiff::Zoned,
    /// The pack.
    pub pack: &'f str,
    /// The rule.
    pub rule: &'f str,
    /// What it says, without control characters.
    pub text: &'f str,
}

/// Whoever is told of firings. An error ends nothing but the telling.
pub type Tell<'t> = &'t mut dyn FnMut(&Firing<'_>) -> io::Result<()>;

/// The session.
pub struct Session {
    loaded: Loaded,
    packs: Vec<PackState>,
    output: PathBuf,
    host: Host,
    boot_offset_ns: i64,
    names: Names,
    costs: Meter,
    /// Packs whose mere hits cost more than their budgets, since somebody last took them.
    pub too_costly: Vec<TooCostly>,
    /// Buffers that the rules do not have any more and that could not be saved yet.
    leaving: Vec<Leaving>,
    streams: stream::Streams,
    /// Rings that an agent before us has saved and perhaps not given up: instance and position.
    saved_before: BTreeSet<(u64, u64)>,
    /// What went wrong with saving; tracing goes on.
    pub troubles: Vec<String>,
}

/// A buffer of a former generation, and what is needed to write it.
struct Leaving {
    pack: PackImage,
    rings: Rings,
}

impl Leaving {
    /// The number of its map of pages, where it is a stream.
    fn stream(&self) -> Option<u32> {
        let buffers = self.pack.plan.buffers.iter().zip(&self.pack.rings);
        let mut its = buffers.filter(|(buffer, _)| buffer.stream && buffer.name == self.rings.buffer);
        its.find_map(|(_, ring)| Some((*ring)?.map))
    }
}

/// What a session knows of a pack beside the kernel.
struct PackState {
    /// Its number in notices.
    index: u16,
    plan: Arc<Plan>,
    classes: Classes<EventClass>,
    /// Which rule of which plan a `lkst:fired` record is of, by the record's id: of these rules, and of those before,
    /// whose notices may still come.
    fired: BTreeMap<u16, (Arc<Plan>, usize)>,
    /// Of each rule that has fired: when last, by the boot clock, and what it said.
    last: BTreeMap<String, (u64, String)>,
    /// The folder that what is saved now belongs to.
    incident: Option<OpenIncident>,
    /// The last firing that asked for a switch or a save, until it is known what came of it.
    pending: Option<Incident>,
    /// When a buffer could not be saved: it stays kept, and is tried again later.
    failed_at_ns: Option<u64>,
    /// Why, for people.
    failed: Option<String>,
    /// Records that left the rings for a trace, by event: what was not overwritten.
    kept: BTreeMap<String, u64>,
    /// Records that were in the rings at the end and could not be saved, by event.
    unsaved: BTreeMap<String, u64>,
    /// Traces that were written.
    saved_traces: u64,
    /// The last of them.
    last_saved: Option<PathBuf>,
}

/// A firing that switched or saves.
struct OpenIncident {
    folder: PathBuf,
    about: Incident,
    parts: usize,
    /// When a `save after` is due, by the boot clock.
    save_at_ns: Option<u64>,
}

impl PackState {
    fn of(image: &PackImage) -> PackState {
        let mut pack = PackState {
            index: image.index,
            plan: image.plan.clone(),
            classes: Classes::of_layouts(&[]),
            fired: BTreeMap::new(),
            last: BTreeMap::new(),
            incident: None,
            pending: None,
            failed_at_ns: None,
            failed: None,
            kept: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            saved_traces: 0,
            last_saved: None,
        };
        pack.become_image(image);
        pack
    }

    /// Goes on under other rules.
    fn become_image(&mut self, image: &PackImage) {
        // Of the rules before these; what came before them has long been told.
        self.fired.retain(|_, (plan, _)| Arc::ptr_eq(plan, &self.plan));
        self.plan = image.plan.clone();
        self.classes = Classes::of_layouts(&image.layouts);
        let fired = image
            .fired
            .iter()
            .map(|(id, rule)| (*id, (self.plan.clone(), *rule)));
        self.fired.extend(fired);
    }

    /// Makes the pending firing an incident, where it is the one of that time (or any, where none is given) and none
    /// is open: a firing while an incident is open belongs to it.
    fn open_pending(&mut self, output: &Path, boot_offset_ns: i64, time_ns: Option<u64>) {
        let Some(about) = self
            .pending
            .take_if(|p| time_ns.is_none() || p.fired_at_ns == time_ns)
        else {
            return;
        };
        if self.incident.is_none() {
            let when = wall_clock(about.fired_at_ns.unwrap_or_default(), boot_offset_ns);
            let folder = folder_of(output, &self.plan.pack, &when, &about.reason);
            self.incident = Some(OpenIncident {
                folder,
                about,
                parts: 0,
                save_at_ns: None,
            });
        }
    }
}

/// A rule, by its place in its plan.
type RuleOf = (Arc<Plan>, usize);

/// How long a buffer that could not be saved waits for the next try.
const RETRY_NS: u64 = 1_000_000_000;

impl Session {
    /// Takes over what was loaded.
    #[must_use]
    pub fn new(loaded: Loaded, host: Host, output: PathBuf) -> Session {
        let packs = loaded.image.packs.iter().map(PackState::of).collect();
        let names = Names::default();
        let boot_offset_ns = boot_offset_ns();
        Session {
            loaded,
            packs,
            output,
            host,
            boot_offset_ns,
            names,
            costs: Meter::default(),
            too_costly: Vec::new(),
            leaving: Vec::new(),
            streams: stream::Streams::default(),
            saved_before: BTreeSet::new(),
            troubles: Vec::new(),
        }
    }

    /// Takes over what an agent before us had loaded, and saves what it did not come to. `saved` are rings that are in
    /// traces already, by instance and position.
    #[must_use]
    pub fn adopt(
        loaded: Loaded,
        mut former: Former,
        saved: BTreeSet<(u64, u64)>,
        host: Host,
        output: PathBuf,
    ) -> Session {
        let mut session = Session::new(loaded, host, output);
        session.saved_before = saved;
        session.adopt_pieces(&mut former);
        session.take_leaving(former);
        session
    }

    fn take_leaving(&mut self, former: Former) {
        for (place, rings) in former.buffers {
            if let Some(pack) = former.packs.get(place) {
                let pack = pack.clone();
                self.leaving.push(Leaving { pack, rings });
            }
        }
        self.save_leaving();
    }

    /// What a boot clock's time is by the wall clock: nanoseconds since 1970.
    fn unix_ns(&self, boot_ns: u64) -> u64 {
        boot_ns.wrapping_add_signed(self.boot_offset_ns)
    }

    /// What was loaded.
    pub fn loaded(&mut self) -> &mut Loaded {
        &mut self.loaded
    }

    /// Starts tracing.
    pub fn start(&mut self) {
        self.names.look(self.loaded.names());
        self.loaded.start();
    }

    /// Tells of the firings that came, and saves what they keep.
    ///
    /// # Errors
    /// From `tell`.
    pub fn notices(&mut self, tell: Tell<'_>) -> io::Result<()> {
        let told = self.drain(tell);
        self.drain_woken();
        told?;
        self.save_kept(tell)
    }

    /// Lets other rules take the place of those in force. What the old ones recorded into buffers that are gone or
    /// changed is saved.
    ///
    /// # Errors
    /// See [`LoadError`]; then the old rules go on, untouched.
    pub fn reload(
        &mut self,
        plans: &[Arc<Plan>],
        env: &Environment<'_>,
        tell: Tell<'_>,
    ) -> Result<usize, LoadError> {
        self.loaded.keep_names(env, !plans.is_empty());
        let reloaded = self.loaded.reload(plans, env);
        if reloaded.is_err() {
            self.loaded.end_idle_names();
        }
        let former = reloaded?;
        // Of firings before the change: their buffers are still known by their numbers.
        let told = self.drain(tell);
        let mut old = std::mem::take(&mut self.packs);
        for image in &self.loaded.image.packs {
            let known = old
                .iter()
                .position(|pack| pack.index == image.index && !image.fresh);
            self.packs.push(match known {
                Some(place) => {
                    let mut pack = old.swap_remove(place);
                    pack.become_image(image);
                    pack
                }
                None => PackState::of(image),
            });
        }
        let loaded = former.loaded;
        self.take_leaving(former);
        if let Err(error) = told {
            tracing::warn!(%error, "firings could not be told");
        }
        Ok(loaded)
    }

    fn trouble(&mut self, text: String) {
        if !self.troubles.contains(&text) {
            self.troubles.push(text);
        }
    }

    fn drain(&mut self, tell: Tell<'_>) -> io::Result<()> {
        let mut came = Vec::new();
        while let Some(item) = self.loaded.notices.next() {
            came.push(item.to_vec());
        }
        came.iter().try_for_each(|bytes| self.notice(bytes, tell))
    }

    fn notice(&mut self, bytes: &[u8], tell: Tell<'_>) -> io::Result<()> {
        let number = u32_at(bytes, notice::PACK as usize).unwrap_or(u32::MAX);
        if bytes.len() <= notice::RECORD as usize {
            self.stream_woke(number, u32_at(bytes, notice::CPU as usize).unwrap_or(u32::MAX));
            return Ok(());
        }
        let record = bytes.get(notice::RECORD as usize..).unwrap_or_default();
        let id = u16_at(record, record::ID).unwrap_or(0);
        let time_ns = u64_at(record, record::TIME).unwrap_or(0);
        let is_it = |pack: &PackState| u32::from(pack.index) == number;
        let Some(place) = self.packs.iter().position(is_it) else {
            return Ok(());
        };
        let (Some(image), Some(pack)) = (self.loaded.image.packs.get(place), self.packs.get_mut(place))
        else {
            return Ok(());
        };
        if let Some([switched, refused]) = image.changes {
            if id == switched {
                pack.open_pending(&self.output, self.boot_offset_ns, Some(time_ns));
            } else if id == refused {
                pack.pending = None;
            }
        }
        let Some((plan, rule_number)) = pack.fired.get(&id).cloned() else {
            return Ok(());
        };
        let (Some(rule), Some(class)) = (plan.rules.get(rule_number), pack.classes.get(id)) else {
            return Ok(());
        };
        let values = message::values(&plan, rule_number, class, record);
        let text = message::text(rule, &values);
        let shown = crate::trace::escape::visible(&text).to_string();
        let told = tell(&Firing {
            when: wall_clock(time_ns, self.boot_offset_ns),
            pack: &plan.pack,
            rule: &rule.name,
            text: &shown,
        });
        pack.last.insert(rule.name.clone(), (time_ns, shown));
        let after = rule.actions.iter().filter_map(|a| match a {
            Action::Save { after_ns } => Some(*after_ns),
            _ => None,
        });
        let save_after_ns = after.min();
        let switches = rule.actions.iter().any(|a| matches!(a, Action::Switch { .. }));
        if !switches && save_after_ns.is_none() {
            return told;
        }
        pack.pending = Some(of_firing(rule, time_ns, text, values));
        if let Some(after_ns) = save_after_ns {
            pack.open_pending(&self.output, self.boot_offset_ns, Some(time_ns));
            if let Some(incident) = &mut pack.incident {
                incident
                    .save_at_ns
                    .get_or_insert(time_ns.saturating_add(after_ns));
            }
        }
        told
    }

    /// The folders of incidents that are still being written.
    #[must_use]
    pub fn open_incidents(&self) -> Vec<PathBuf> {
        let open = self.packs.iter().filter_map(|pack| pack.incident.as_ref());
        let open = open.map(|incident| incident.folder.as_path());
        open.chain(self.open_pieces()).map(Path::to_owned).collect()
    }

    /// Traces that the packs in force have written.
    #[must_use]
    pub fn saved_traces(&self) -> u64 {
        self.packs.iter().map(|pack| pack.saved_traces).sum()
    }

    /// Nothing more can happen: every pack has stopped.
    #[must_use]
    pub fn all_stopped(&self) -> bool {
        (0..self.packs.len()).all(|pack| state::is_stopped(self.loaded.state(pack)))
    }

    /// What is due by the clock: returns to `main`, `save after`, ends of incidents.
    ///
    /// # Errors
    /// From `tell`.
    pub fn tick(&mut self, tell: Tell<'_>) -> io::Result<()> {
        let now_ns = boot_now_ns();
        for pack in 0..self.packs.len() {
            // As the programs do it at a hit; where no hit comes, it is for us to do.
            self.loaded.change_state(pack, |word| {
                let current = state::current(word);
                // The end is read after the word: where a firing moves it now, the word is not the same any more.
                if current == 0 || state::is_kept(word, 0) || now_ns < self.loaded.switch_until(pack) {
                    return None;
                }
                let kept = word | 1 << state::KEPT_SHIFT << current;
                Some(kept & !(7 << state::CURRENT_SHIFT))
            });
            self.end_sets(pack, now_ns);
        }
        self.too_costly = self.costs.look(&self.loaded, now_ns);
        if !self.leaving.is_empty() {
            self.save_leaving();
        }
        let told = self.drain(tell);
        self.drain_woken();
        self.tick_streams(now_ns);
        told?;
        self.save_kept(tell)?;
        for pack in 0..self.packs.len() {
            self.save_due(pack, now_ns);
        }
        Ok(())
    }

    /// Notes the names of threads, now and then, where the kernel does not.
    pub fn look_at_names(&mut self) {
        self.names.look_now_and_then(self.loaded.names());
    }

    /// Stops tracing and saves what is left: one folder a pack. Returns how many traces the session has written.
    ///
    /// # Errors
    /// From `tell`.
    pub fn finish(&mut self, tell: Tell<'_>) -> io::Result<u64> {
        if let Err(error) = self.loaded.stop() {
            self.trouble(format!("cannot wait for running programs: {error}"));
        }
        // Whoever read what we say may have gone; that is no reason to lose what was recorded.
        let told = self.notices(tell).and_then(|()| self.tick(tell));
        self.end_streams();
        let now = wall_clock(boot_now_ns(), self.boot_offset_ns);
        for number in 0..self.packs.len() {
            let Some(pack) = self.packs.get(number) else {
                continue;
            };
            let folder = folder_of(&self.output, &pack.plan.pack, &now, "end");
            let is_left = |rings: &Rings| !rings.is_empty();
            let is_there = |buffer: &usize| {
                // Of a stream only what could not be drained.
                !self.is_stream(number, *buffer) || self.loaded.rings_of(number, *buffer).is_some_and(is_left)
            };
            let buffers: Vec<usize> = (0..pack.plan.buffers.len()).filter(is_there).collect();
            if buffers.is_empty() {
                continue;
            }
            let about = Incident {
                reason: "end".to_owned(),
                ..Incident::default()
            };
            match self.write(number, &buffers, false, &folder, about) {
                Ok(kept) => self.count_kept(number, kept),
                Err(error) => {
                    self.trouble(error.to_string());
                    self.count_unsaved(number);
                }
            }
        }
        told?;
        Ok(self.saved_traces())
    }
}

/// What is told of a firing in what is saved because of it.
fn of_firing(rule: &Rule, time_ns: u64, message: String, values: Vec<NamedValue>) -> Incident {
    Incident {
        reason: rule.name.clone(),
        rule: Some(rule.name.clone()),
        fired_at_ns: Some(time_ns),
        message: Some(message),
        values,
        ..Incident::default()
    }
}

fn wall_clock(boot_ns: u64, offset_ns: i64) -> jiff::Zoned {
    let wall = i128::from(boot_ns) + i128::from(offset_ns);
    Timestamp::from_nanosecond(wall)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned(jiff::tz::TimeZone::system())
}

/// `OUTPUT/PACK/TIME-REASON`; a number more where that is taken.
fn folder_of(output: &Path, pack: &str, when: &jiff::Zoned, reason: &str) -> PathBuf {
    let base = format!("{}-{reason}", when.strftime("%Y%m%dT%H%M%S%.3f"));
    let parent = output.join(pack);
    let mut folder = parent.join(&base);
    let mut number = 2;
    while folder.exists() {
        folder = parent.join(format!("{base}-{number}"));
        number += 1;
    }
    folder
}
