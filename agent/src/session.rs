//! A traced kernel and what people are told of it: firings as they come, buffers saved when they are kept.
//!
//! In: packs that compiled, a folder for traces. Out: lines on the screen, trace folders on disk. Time and input come
//! from the caller (`command/run.rs`), which calls [`Session::notices`] when there are some and [`Session::tick`]
//! now and then; nothing here waits for anything but the disk and a grace period.

mod message;
mod names;
mod summary;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use lkst_probes::layout::{notice, record, state};
use lkst_rules::plan::{Action, Plan};

use crate::kernel::load::Loaded;
use crate::trace::decode::{Classes, EventClass, u16_at, u32_at, u64_at};
use crate::trace::incident::{Counts, Incident};
use crate::trace::metadata::TraceInfo;
use crate::trace::raw;
use crate::trace::seal::{self, SaveError};
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

/// The session.
pub struct Session {
    loaded: Loaded,
    packs: Vec<PackState>,
    output: PathBuf,
    host: Host,
    boot_offset_ns: i64,
    names: Names,
    /// What went wrong with saving; tracing goes on.
    pub troubles: Vec<String>,
}

/// What a session knows of a pack beside the kernel.
struct PackState {
    plan: Arc<Plan>,
    classes: Classes<EventClass>,
    /// The folder that what is saved now belongs to.
    incident: Option<OpenIncident>,
    /// The last firing that asked for a switch or a save, until it is known what came of it.
    pending: Option<Incident>,
    /// When a buffer could not be saved: it stays kept, and is tried again later.
    failed_at_ns: Option<u64>,
    /// Records that left the rings for a trace, by event: what was not overwritten.
    kept: BTreeMap<String, u64>,
    /// Records that were in the rings at the end and could not be saved, by event.
    unsaved: BTreeMap<String, u64>,
    /// Folders that were written.
    saved: Vec<PathBuf>,
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

/// How long a buffer that could not be saved waits for the next try.
const RETRY_NS: u64 = 1_000_000_000;

impl Session {
    /// Takes over what was loaded.
    #[must_use]
    pub fn new(loaded: Loaded, host: Host, output: PathBuf) -> Session {
        let packs = loaded
            .image
            .packs
            .iter()
            .map(|pack| PackState {
                plan: pack.plan.clone(),
                classes: Classes::of_layouts(&pack.layouts),
                incident: None,
                pending: None,
                failed_at_ns: None,
                kept: BTreeMap::new(),
                unsaved: BTreeMap::new(),
                saved: Vec::new(),
            })
            .collect();
        let names = Names::default();
        let boot_offset_ns = boot_offset_ns();
        Session {
            loaded,
            packs,
            output,
            host,
            boot_offset_ns,
            names,
            troubles: Vec::new(),
        }
    }

    /// What was loaded.
    pub fn loaded(&mut self) -> &mut Loaded {
        &mut self.loaded
    }

    /// Starts tracing.
    pub fn start(&mut self) {
        self.names.look();
        self.loaded.start();
    }

    /// Shows the firings that came, and saves what they keep.
    ///
    /// # Errors
    /// Where `out` cannot be written.
    pub fn notices(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.drain(out)?;
        self.save_kept(out)
    }

    fn drain(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut came = Vec::new();
        while let Some(item) = self.loaded.notices.next() {
            came.push(item.to_vec());
        }
        came.iter().try_for_each(|bytes| self.notice(bytes, out))
    }

    fn notice(&mut self, bytes: &[u8], out: &mut dyn Write) -> io::Result<()> {
        let number = u32_at(bytes, notice::PACK as usize).unwrap_or(u32::MAX) as usize;
        let record = bytes.get(notice::RECORD as usize..).unwrap_or_default();
        let id = u16_at(record, record::ID).unwrap_or(0);
        let time_ns = u64_at(record, record::TIME).unwrap_or(0);
        let (Some(image), Some(pack)) = (self.loaded.image.packs.get(number), self.packs.get_mut(number))
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
        let Some(&rule_number) = image.fired.get(&id) else {
            return Ok(());
        };
        let (Some(rule), Some(class)) = (pack.plan.rules.get(rule_number), pack.classes.get(id)) else {
            return Ok(());
        };
        let values = message::values(&pack.plan, rule_number, class, record);
        let text = message::text(rule, &values);
        let when = wall_clock(time_ns, self.boot_offset_ns);
        writeln!(
            out,
            "{}  {}/{}  {}",
            when.strftime("%H:%M:%S%.6f"),
            pack.plan.pack,
            rule.name,
            crate::trace::escape::visible(&text)
        )?;
        out.flush()?;

        let after = rule.actions.iter().filter_map(|a| match a {
            Action::Save { after_ns } => Some(*after_ns),
            _ => None,
        });
        let save_after_ns = after.min();
        let switches = rule.actions.iter().any(|a| matches!(a, Action::Switch { .. }));
        if !switches && save_after_ns.is_none() {
            return Ok(());
        }
        pack.pending = Some(Incident {
            reason: rule.name.clone(),
            rule: Some(rule.name.clone()),
            fired_at_ns: Some(time_ns),
            message: Some(text),
            values,
            ..Incident::default()
        });
        if let Some(after_ns) = save_after_ns {
            pack.open_pending(&self.output, self.boot_offset_ns, Some(time_ns));
            if let Some(incident) = &mut pack.incident {
                incident
                    .save_at_ns
                    .get_or_insert(time_ns.saturating_add(after_ns));
            }
        }
        Ok(())
    }

    /// Nothing more can happen: every pack has stopped.
    #[must_use]
    pub fn all_stopped(&self) -> bool {
        (0..self.packs.len()).all(|pack| state::is_stopped(self.loaded.state(pack)))
    }

    /// What is due by the clock: returns to `main`, `save after`, ends of incidents.
    ///
    /// # Errors
    /// Where `out` cannot be written.
    pub fn tick(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let now_ns = boot_now_ns();
        self.names.look_now_and_then();
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
        }
        self.drain(out)?;
        self.save_kept(out)?;
        for pack in 0..self.packs.len() {
            self.save_due(pack, now_ns);
        }
        Ok(())
    }

    /// Saves every buffer that is kept, then gives it back.
    fn save_kept(&mut self, out: &mut dyn Write) -> io::Result<()> {
        for pack in 0..self.packs.len() {
            let word = self.loaded.state(pack);
            let buffers = self.packs.get(pack).map_or(0, |p| p.plan.buffers.len());
            let kept: Vec<usize> = (0..buffers).filter(|b| state::is_kept(word, *b)).collect();
            let waits = |p: &PackState| p.failed_at_ns.is_some_and(|at| boot_now_ns() < at + RETRY_NS);
            if kept.is_empty() || self.packs.get(pack).is_some_and(waits) {
                continue;
            }
            // A hit that read the state before the switch may still be writing.
            if let Err(error) = self.loaded.grace() {
                self.troubles
                    .push(format!("cannot wait for running programs: {error}"));
                break;
            }
            // A firing sends its notice before it switches: those that filled these buffers are all here now.
            self.drain(out)?;
            for buffer in kept {
                if !self.save_buffer(pack, buffer, false) {
                    continue;
                }
                if let Some(rings) = self.loaded.rings.get(pack).and_then(|p| p.get(buffer)) {
                    rings.give_up();
                }
                self.loaded
                    .change_state(pack, |word| Some(word & !(1 << state::KEPT_SHIFT << buffer)));
            }
        }
        self.close_incidents();
        Ok(())
    }

    /// An incident is over when recording is in `main` and nothing is due.
    fn close_incidents(&mut self) {
        for number in 0..self.packs.len() {
            let word = self.loaded.state(number);
            let returns = self.loaded.switch_until(number) != u64::MAX;
            // What is kept now, after what was saved just now, belongs to it too.
            let kept = word >> state::KEPT_SHIFT & 0xff != 0;
            let away = kept || state::current(word) != 0 && returns;
            if let Some(pack) = self.packs.get_mut(number)
                && let Some(incident) = &pack.incident
                && !away
                && incident.save_at_ns.is_none()
                && incident.parts > 0
            {
                pack.incident = None;
            }
        }
    }

    fn save_due(&mut self, number: usize, now_ns: u64) {
        let Some(incident) = self.packs.get_mut(number).and_then(|p| p.incident.as_mut()) else {
            return;
        };
        if incident.save_at_ns.is_none_or(|at| now_ns < at) {
            return;
        }
        incident.save_at_ns = None;
        let current = state::current(self.loaded.state(number));
        self.save_buffer(number, current, true);
        self.close_incidents();
    }

    /// Saves one buffer into the pack's incident, or into one of its own. Returns whether it is on disk.
    fn save_buffer(&mut self, number: usize, buffer: usize, live: bool) -> bool {
        self.names.look();
        let Some(pack) = self.packs.get_mut(number) else {
            return false;
        };
        let Some(name) = pack.plan.buffers.get(buffer).map(|b| b.name.clone()) else {
            return false;
        };
        pack.open_pending(&self.output, self.boot_offset_ns, None);
        let now = wall_clock(boot_now_ns(), self.boot_offset_ns);
        let (output, pack_name) = (&self.output, &pack.plan.pack);
        let incident = pack.incident.get_or_insert_with(|| OpenIncident {
            folder: folder_of(output, pack_name, &now, "switch"),
            about: Incident {
                reason: "switch".to_owned(),
                ..Incident::default()
            },
            parts: 0,
            save_at_ns: None,
        });
        let folder = incident.folder.join(format!("{}-{name}", incident.parts + 1));
        let about = incident.about.clone();
        let written = self.write(number, &[buffer], live, &folder, about);
        let Some(pack) = self.packs.get_mut(number) else {
            return false;
        };
        match written {
            Ok(kept) => {
                pack.failed_at_ns = None;
                if let Some(incident) = &mut pack.incident {
                    incident.parts += 1;
                }
                if !live {
                    self.count_kept(number, kept);
                }
                true
            }
            Err(error) => {
                pack.failed_at_ns = Some(boot_now_ns());
                let text = error.to_string();
                if !self.troubles.contains(&text) {
                    self.troubles.push(text);
                }
                false
            }
        }
    }

    fn count_kept(&mut self, number: usize, kept: BTreeMap<String, u64>) {
        let Some(pack) = self.packs.get_mut(number) else {
            return;
        };
        for (event, records) in kept {
            *pack.kept.entry(event).or_default() += records;
        }
    }

    /// What is in a pack's rings and was not saved: neither kept nor overwritten.
    fn count_unsaved(&mut self, number: usize) {
        let (Some(pack), Some(rings)) = (self.packs.get_mut(number), self.loaded.rings.get(number)) else {
            return;
        };
        for rings in rings {
            for cpu in 0..rings.cpus() {
                let copy = rings.copy(cpu, false);
                for found in raw::records(&copy, &pack.classes).records {
                    if let Some(class) = pack.classes.get(found.id) {
                        *pack.unsaved.entry(class.layout.name.clone()).or_default() += 1;
                    }
                }
            }
        }
    }

    /// Writes a trace of some of a pack's buffers; returns how many records of each event are in it.
    fn write(
        &mut self,
        number: usize,
        buffers: &[usize],
        live: bool,
        folder: &Path,
        about: Incident,
    ) -> Result<BTreeMap<String, u64>, SaveError> {
        let (Some(image), Some(rings)) = (self.loaded.image.packs.get(number), self.loaded.rings.get(number))
        else {
            return Ok(BTreeMap::new());
        };
        let info = TraceInfo {
            uuid: self.host.uuid,
            hostname: self.host.hostname.clone(),
            kernel_release: self.host.kernel_release.clone(),
            boot_id: self.host.boot_id.clone(),
            lkst_version: env!("CARGO_PKG_VERSION").to_owned(),
            pack: image.plan.pack.clone(),
            boot_offset_ns: self.boot_offset_ns,
            layouts: image.layouts.clone(),
            env: Vec::new(),
        };
        let about = Incident {
            saved_at_unix_ns: boot_now_ns().wrapping_add_signed(self.boot_offset_ns),
            generation: 1,
            counts: self.counts(number),
            names: self.names.table(),
            ..about
        };
        let streams = buffers
            .iter()
            .filter_map(|buffer| rings.get(*buffer))
            .flat_map(|rings| (0..rings.cpus()).map(move |cpu| rings.copy(cpu, live)));
        let saved = seal::save(folder, &info, streams, about)?;
        let kept = saved
            .kept
            .into_iter()
            .map(|(event, by_cpu)| (event, by_cpu.values().sum()))
            .collect();
        if let Some(pack) = self.packs.get_mut(number) {
            pack.saved.push(folder.to_owned());
        }
        Ok(kept)
    }

    /// What was counted of a pack, by event and CPU.
    fn counts(&self, number: usize) -> BTreeMap<String, BTreeMap<u32, Counts>> {
        let Some(image) = self.loaded.image.packs.get(number) else {
            return BTreeMap::new();
        };
        let of_event = |counters: u32| {
            let cpus = (0..self.loaded.cpus()).map(|cpu| {
                let counts = self.loaded.event_counts(counters, cpu);
                let counts = Counts {
                    recorded: counts.recorded,
                    lost: counts.lost,
                    capped: counts.capped,
                    unreadable: counts.unreadable,
                    ..Counts::default()
                };
                (cpu as u32, counts)
            });
            cpus.collect()
        };
        image
            .events
            .iter()
            .map(|event| (event.name.clone(), of_event(event.counters)))
            .collect()
    }

    /// Stops tracing and saves what is left: one folder a pack. Returns the folders of the whole session.
    ///
    /// # Errors
    /// Where `out` cannot be written.
    pub fn finish(&mut self, out: &mut dyn Write) -> io::Result<Vec<PathBuf>> {
        if let Err(error) = self.loaded.stop() {
            self.troubles
                .push(format!("cannot wait for running programs: {error}"));
        }
        // Whoever read what we say may have gone; that is no reason to lose what was recorded.
        let told = self.notices(out).and_then(|()| self.tick(out));
        let now = wall_clock(boot_now_ns(), self.boot_offset_ns);
        for number in 0..self.packs.len() {
            let Some(pack) = self.packs.get(number) else {
                continue;
            };
            let folder = folder_of(&self.output, &pack.plan.pack, &now, "end");
            let buffers: Vec<usize> = (0..pack.plan.buffers.len()).collect();
            let about = Incident {
                reason: "end".to_owned(),
                ..Incident::default()
            };
            match self.write(number, &buffers, false, &folder, about) {
                Ok(kept) => self.count_kept(number, kept),
                Err(error) => {
                    self.troubles.push(error.to_string());
                    self.count_unsaved(number);
                }
            }
        }
        told?;
        Ok(self.packs.iter().flat_map(|pack| pack.saved.clone()).collect())
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
