//! Buffers that are kept, or wanted now, on their way to the disk: rings in, folders of incidents out.
//!
//! What is kept is saved after a grace period and given back once it is on disk. What cannot be saved stays kept and is
//! tried again, and so do buffers that new rules do not have any more.
//!
//! INVARIANT: a buffer is given back only when a trace of all of it is whole, or was already.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use lkst_probes::arena::Spot;
use lkst_probes::image::PackImage;
use lkst_probes::layout::state;
use lkst_rules::plan::Action;

use super::{
    OpenIncident, PackState, RETRY_NS, RuleOf, Session, Tell, boot_now_ns, folder_of, message, of_firing,
    wall_clock,
};
use crate::kernel::ring::{Look, Rings};
use crate::trace::incident::{Counts, Incident};
use crate::trace::raw::{self, RawStream};
use crate::trace::seal::{self, SaveError};
impl Session {
    /// Writes the buffers of former generations, each into a folder of its own.
    pub(super) fn save_leaving(&mut self) {
        for leaving in std::mem::take(&mut self.leaving) {
            if let Some(map) = leaving.stream() {
                if !self.save_leaving_stream(map, &leaving.pack, &leaving.rings) {
                    self.leaving.push(leaving);
                }
                continue;
            }
            if leaving.rings.is_empty() {
                continue;
            }
            if self.is_saved(&leaving.rings) {
                continue;
            }
            let now = wall_clock(boot_now_ns(), self.boot_offset_ns);
            let folder = folder_of(&self.output, &leaving.pack.plan.pack, &now, "reload")
                .join(format!("1-{}", leaving.rings.buffer));
            let about = Incident {
                reason: "reload".to_owned(),
                ..Incident::default()
            };
            self.names.look(self.loaded.names());
            let look = leaving.rings.look().map_err(SaveError::Rings);
            let written =
                look.and_then(|look| self.write_streams(&leaving.pack, look.copies(false), &folder, about));
            match written {
                Ok(_) => {
                    let pack = self
                        .packs
                        .iter_mut()
                        .find(|pack| pack.index == leaving.pack.index);
                    if let Some(pack) = pack {
                        pack.saved_traces += 1;
                        pack.last_saved = Some(folder);
                    }
                }
                Err(error) => {
                    self.trouble(error.to_string());
                    self.leaving.push(leaving);
                }
            }
        }
        if self.leaving.is_empty() {
            self.loaded.forget_former();
            self.loaded.end_idle_names();
        }
    }

    /// Whether an agent before us has saved all of this.
    pub(super) fn is_saved(&self, rings: &Rings) -> bool {
        !self.saved_before.is_empty() && rings.unsaved().all(|ring| self.saved_before.contains(&ring))
    }

    /// Saves every buffer that is kept, then gives it back.
    pub(super) fn save_kept(&mut self, tell: Tell<'_>) -> io::Result<()> {
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
                self.trouble(format!("cannot wait for running programs: {error}"));
                break;
            }
            // A firing sends its notice before it switches: those that filled these buffers are all here now.
            self.drain(tell)?;
            for buffer in kept {
                let rings = self.loaded.rings_of(pack, buffer);
                let is_saved =
                    !self.is_stream(pack, buffer) && rings.is_some_and(|rings| self.is_saved(rings));
                if !is_saved && !self.save_buffer(pack, buffer, false) {
                    continue;
                }
                if let Some(rings) = self.loaded.rings_of_mut(pack, buffer) {
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
    pub(super) fn close_incidents(&mut self) {
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

    pub(super) fn save_due(&mut self, number: usize, now_ns: u64) {
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
    pub(super) fn save_buffer(&mut self, number: usize, buffer: usize, live: bool) -> bool {
        if self.is_stream(number, buffer) {
            return self.save_stream(number, buffer);
        }
        self.names.look(self.loaded.names());
        let Some(pack) = self.packs.get_mut(number) else {
            return false;
        };
        let Some(name) = pack.plan.buffers.get(buffer).map(|b| b.name.clone()) else {
            return false;
        };
        pack.open_pending(&self.output, self.boot_offset_ns, None);
        if pack.incident.is_none() && !live {
            self.open_found(number, buffer);
        }
        let Some(pack) = self.packs.get_mut(number) else {
            return false;
        };
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
                pack.failed = None;
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
                pack.failed = Some(error.to_string());
                self.trouble(error.to_string());
                false
            }
        }
    }

    /// Opens the incident of a kept buffer of whose firing an agent before us was told: the reason lies in the buffer,
    /// as the last firing in it that switches.
    pub(super) fn open_found(&mut self, number: usize, buffer: usize) {
        let look = self.loaded.rings_of(number, buffer).map(Rings::look);
        let (Some(Ok(look)), Some(pack)) = (look, self.packs.get_mut(number)) else {
            return;
        };
        let switches = |id: u16| {
            let (plan, rule) = pack.fired.get(&id)?;
            let actions = &plan.rules.get(*rule)?.actions;
            let is_switch = |action: &Action| matches!(action, Action::Switch { .. });
            actions.iter().any(is_switch).then(|| (plan.clone(), *rule))
        };
        let mut last: Option<(u64, u16, RuleOf, Vec<u8>)> = None;
        // One ring at a time: there may be many, and large ones.
        for stream in look.copies(false) {
            for found in raw::records(&stream, &pack.classes).records {
                let is_later = last.as_ref().is_none_or(|(time_ns, ..)| *time_ns < found.time);
                if let Some(rule) = switches(found.id).filter(|_| is_later) {
                    let record = stream.pages.get(found.bytes).unwrap_or_default().to_vec();
                    last = Some((found.time, found.id, rule, record));
                }
            }
        }
        let Some((time_ns, id, (plan, rule_number), record)) = last else {
            return;
        };
        if let (Some(rule), Some(class)) = (plan.rules.get(rule_number), pack.classes.get(id)) {
            let values = message::values(&plan, rule_number, class, &record);
            pack.pending = Some(of_firing(rule, time_ns, message::text(rule, &values), values));
            pack.open_pending(&self.output, self.boot_offset_ns, None);
        }
    }

    pub(super) fn count_kept(&mut self, number: usize, kept: BTreeMap<String, u64>) {
        let Some(pack) = self.packs.get_mut(number) else {
            return;
        };
        for (event, records) in kept {
            *pack.kept.entry(event).or_default() += records;
        }
    }

    /// What is in a pack's rings and was not saved: neither kept nor overwritten.
    pub(super) fn count_unsaved(&mut self, number: usize) {
        let Some(pack) = self.packs.get_mut(number) else {
            return;
        };
        for rings in (0..pack.plan.buffers.len()).filter_map(|buffer| self.loaded.rings_of(number, buffer)) {
            // Where they cannot even be looked at, nobody knows how many.
            let Ok(look) = rings.look() else { continue };
            for copy in look.copies(false) {
                for found in raw::records(&copy, &pack.classes).records {
                    if let Some(class) = pack.classes.get(found.id) {
                        *pack.unsaved.entry(class.layout.name.clone()).or_default() += 1;
                    }
                }
            }
        }
    }

    /// Writes a trace of some of a pack's buffers; returns how many records of each event are in it.
    pub(super) fn write(
        &mut self,
        number: usize,
        buffers: &[usize],
        live: bool,
        folder: &Path,
        about: Incident,
    ) -> Result<BTreeMap<String, u64>, SaveError> {
        let Some(image) = self.loaded.image.packs.get(number) else {
            return Ok(BTreeMap::new());
        };
        let about = Incident {
            counts: self.counts(number),
            live,
            ..about
        };
        let rings = buffers
            .iter()
            .filter_map(|buffer| self.loaded.rings_of(number, *buffer));
        let looks: Vec<Look<'_>> = rings
            .map(Rings::look)
            .collect::<io::Result<_>>()
            .map_err(SaveError::Rings)?;
        let streams = looks.iter().flat_map(|look| look.copies(live));
        let kept = self.write_streams(image, streams, folder, about)?;
        if let Some(pack) = self.packs.get_mut(number) {
            pack.saved_traces += 1;
            pack.last_saved = Some(folder.to_owned());
        }
        Ok(kept)
    }

    pub(super) fn write_streams(
        &self,
        image: &PackImage,
        streams: impl Iterator<Item = RawStream>,
        folder: &Path,
        about: Incident,
    ) -> Result<BTreeMap<String, u64>, SaveError> {
        let info = self.host.trace_info(image, self.boot_offset_ns);
        let about = Incident {
            saved_at_unix_ns: boot_now_ns().wrapping_add_signed(self.boot_offset_ns),
            generation: self.loaded.generation(),
            ..about
        };
        let namer = &mut |tid, pid| self.names.of_thread(self.loaded.names(), tid, pid);
        let saved = seal::save_named(folder, &info, streams, about, namer)?;
        Ok(saved
            .kept
            .into_iter()
            .map(|(event, by_cpu)| (event, by_cpu.values().sum()))
            .collect())
    }

    /// What was counted of a pack, by event and CPU.
    pub(super) fn counts(&self, number: usize) -> BTreeMap<String, BTreeMap<u32, Counts>> {
        let Some(image) = self.loaded.image.packs.get(number) else {
            return BTreeMap::new();
        };
        let of_event = |counters: Spot| {
            let cpus = (0..self.loaded.cpus()).map(|cpu| {
                let counts = self.loaded.event_counts(counters, cpu);
                let counts = Counts {
                    recorded: counts.recorded,
                    lost: counts.lost,
                    capped: counts.capped,
                    unreadable: counts.unreadable,
                    over_budget: counts.over_budget,
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
}
