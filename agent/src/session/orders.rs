//! What people ask of a running session: sets enabled and disabled, buffers switched and saved, packs reset.
//!
//! The state is changed as programs change it: the end first, then the word, by compare-and-exchange with a new
//! sequence number. So an order is one more firing among those of the kernel.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use lkst_probes::layout::{control, state};

use super::{OpenIncident, Session, boot_now_ns, folder_of, wall_clock};
use crate::trace::incident::Incident;

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// There is no such thing.
    #[error("there is no {what} `{name}`{}", known(among))]
    Unknown {
        /// Pack, set or buffer.
        what: &'static str,
        /// As it was asked for.
        name: String,
        /// What there is.
        among: Vec<String>,
    },
    /// The buffer waits to be saved.
    #[error("the buffer `{0}` is kept and was not saved yet: recording stays where it is")]
    Kept(String),
    /// The pack has stopped.
    #[error("the pack has stopped: `lkst reset {0}` lets it go on")]
    Stopped(String),
    /// It could not be saved.
    #[error("{0}")]
    Save(String),
}

fn known(among: &[String]) -> String {
    match among {
        [] => String::new(),
        names => format!("; there is {}", names.join(", ")),
    }
}

/// The place of a name among names; what has none is not there.
fn place(what: &'static str, name: &str, names: impl Iterator<Item = String>) -> Result<usize, OrderError> {
    let names: Vec<String> = names.collect();
    let found = names.iter().position(|known| known == name && !name.is_empty());
    found.ok_or_else(|| OrderError::Unknown {
        what,
        name: name.to_owned(),
        among: names.into_iter().filter(|name| !name.is_empty()).collect(),
    })
}

impl Session {
    fn pack(&self, name: &str) -> Result<usize, OrderError> {
        place("pack", name, self.packs.iter().map(|pack| pack.plan.pack.clone()))
    }

    fn set(&self, pack: usize, name: &str) -> Result<u32, OrderError> {
        let sets = self.packs.get(pack).into_iter().flat_map(|pack| &pack.plan.sets);
        Ok(place("set", name, sets.map(|set| set.name.clone()))? as u32)
    }

    fn buffer(&self, pack: usize, name: &str) -> Result<usize, OrderError> {
        let buffers = self
            .packs
            .get(pack)
            .into_iter()
            .flat_map(|pack| &pack.plan.buffers);
        place("buffer", name, buffers.map(|buffer| buffer.name.clone()))
    }

    fn not_stopped(&self, pack: usize, name: &str) -> Result<(), OrderError> {
        match state::is_stopped(self.loaded.state(pack)) {
            true => Err(OrderError::Stopped(name.to_owned())),
            false => Ok(()),
        }
    }

    /// Enables a set, for so many nanoseconds or without end. As in a rule: an end is moved later, never earlier, and
    /// a set without end keeps none.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn enable(&mut self, pack: &str, set: &str, for_ns: Option<u64>) -> Result<(), OrderError> {
        let number = self.pack(pack)?;
        let set = self.set(number, set)?;
        self.not_stopped(number, pack)?;
        let end = for_ns.map_or(control::NEVER, |for_ns| boot_now_ns().saturating_add(for_ns));
        let Some(until) = self.loaded.block_word(number, control::SET_UNTIL + 8 * set) else {
            return Ok(());
        };
        self.loaded.change_state(number, |word| {
            let is_on = word >> set & 1 == 1;
            match is_on {
                true if until.load(Ordering::SeqCst) >= control::SINCE_START => return None,
                true => {
                    until.fetch_max(end, Ordering::SeqCst);
                }
                false => until.store(end, Ordering::SeqCst),
            }
            Some(word | 1 << set)
        });
        Ok(())
    }

    /// Disables a set at once.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn disable(&mut self, pack: &str, set: &str) -> Result<(), OrderError> {
        let number = self.pack(pack)?;
        let set = self.set(number, set)?;
        self.loaded
            .change_state(number, |word| Some(word & !(1 << set)).filter(|new| *new != word));
        Ok(())
    }

    /// Switches to a buffer, for so many nanoseconds or until the next switch. The buffer left is kept, to be saved by
    /// the next [`Session::tick`]. To the current buffer it only moves the end later.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn switch(&mut self, pack: &str, buffer: &str, for_ns: Option<u64>) -> Result<(), OrderError> {
        let number = self.pack(pack)?;
        let to = self.buffer(number, buffer)?;
        self.not_stopped(number, pack)?;
        let end = for_ns.map_or(u64::MAX, |for_ns| boot_now_ns().saturating_add(for_ns));
        let Some(until) = self.loaded.block_word(number, control::SWITCH_UNTIL) else {
            return Ok(());
        };
        let switched = self.loaded.change_state(number, |word| {
            let from = state::current(word);
            if from == to {
                until.fetch_max(end, Ordering::SeqCst);
                return Some(word);
            }
            if state::is_kept(word, to) {
                return None;
            }
            until.store(if to == 0 { u64::MAX } else { end }, Ordering::SeqCst);
            let kept = word | 1 << state::KEPT_SHIFT << from;
            Some(kept & !(7 << state::CURRENT_SHIFT) | (to as u64) << state::CURRENT_SHIFT)
        });
        match switched {
            Some(_) => Ok(()),
            None => Err(OrderError::Kept(buffer.to_owned())),
        }
    }

    /// Saves the current buffer of a pack, or of all packs, while recording goes on. Returns the traces.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn save_now(&mut self, pack: Option<&str>) -> Result<Vec<PathBuf>, OrderError> {
        let packs = match pack {
            Some(name) => vec![self.pack(name)?],
            None => (0..self.packs.len()).collect(),
        };
        let mut traces = Vec::new();
        for number in packs {
            let current = state::current(self.loaded.state(number));
            let now = wall_clock(boot_now_ns(), self.boot_offset_ns);
            let Some(pack) = self.packs.get_mut(number) else {
                continue;
            };
            // What is asked for has a folder of its own, also while an incident is open.
            let folder = folder_of(&self.output, &pack.plan.pack, &now, "request");
            let open = pack.incident.replace(OpenIncident {
                folder,
                about: Incident {
                    reason: "request".to_owned(),
                    ..Incident::default()
                },
                parts: 0,
                save_at_ns: None,
            });
            let before = pack.saved_traces;
            let saved = self.save_buffer(number, current, true);
            self.collect_finished(true);
            let Some(pack) = self.packs.get_mut(number) else {
                continue;
            };
            pack.incident = open;
            match saved {
                true if pack.saved_traces > before => traces.extend(pack.last_saved.clone()),
                true => {}
                false => {
                    let why = self.troubles.last().cloned();
                    return Err(OrderError::Save(
                        why.unwrap_or_else(|| "it was not saved".to_owned()),
                    ));
                }
            }
        }
        Ok(traces)
    }

    /// Brings a pack back to how it starts: its `start` sets enabled and no others, recording in `main`, limits and
    /// `once` unused, not stopped. What is in another current buffer is kept, to be saved.
    ///
    /// # Errors
    /// See [`OrderError`].
    pub fn reset(&mut self, pack: &str) -> Result<(), OrderError> {
        let number = self.pack(pack)?;
        let Some(image) = self.loaded.image.packs.get(number) else {
            return Ok(());
        };
        let (start, sets) = (image.start(), image.sets());
        for rule in &image.rules {
            if let Some(limit) = self.loaded.shared_word(rule.limit) {
                limit.store(0, Ordering::SeqCst);
            }
        }
        for set in (0..state::SETS).filter(|set| start >> set & 1 == 1) {
            if let Some(until) = self.loaded.block_word(number, control::SET_UNTIL + 8 * set) {
                until.store(control::SINCE_START, Ordering::SeqCst);
            }
        }
        self.loaded.change_state(number, |word| {
            let mut new = word & !sets & !(1 << state::STOPPED_SHIFT) | start;
            let current = state::current(word);
            if current != 0 && !state::is_kept(word, 0) {
                new = new & !(7 << state::CURRENT_SHIFT) | 1 << state::KEPT_SHIFT << current;
            }
            Some(new)
        });
        Ok(())
    }

    /// Disables sets whose time is over. Programs look at the ends of those sets alone that some rule gives one.
    pub(super) fn end_sets(&self, pack: usize, now_ns: u64) {
        self.loaded.change_state(pack, |word| {
            let is_over = |set: &u32| {
                word >> set & 1 == 1 && self.loaded.control_word(pack, control::SET_UNTIL + 8 * set) <= now_ns
            };
            let over = (0..state::SETS).filter(is_over);
            let new = over.fold(word, |word, set| word & !(1 << set));
            (new != word).then_some(new)
        });
    }
}
