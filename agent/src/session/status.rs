//! What a session knows of its packs, as `lkst status` shows it.

use lkst_probes::layout::{control, state};

use super::{Session, boot_now_ns};
use crate::kernel::ring::Rings;
use crate::status::{
    BufferStatus, EventStatus, IncidentStatus, LastFiring, PackPhase, PackStatus, RuleStatus, SetStatus,
};

impl Session {
    /// What is known of the packs in force, by name; who made them, and from what, the caller adds.
    #[must_use]
    pub fn pack_statuses(&self) -> Vec<PackStatus> {
        (0..self.packs.len())
            .filter_map(|pack| self.pack_status(pack))
            .collect()
    }

    fn pack_status(&self, number: usize) -> Option<PackStatus> {
        let (pack, image) = (self.packs.get(number)?, self.loaded.image.packs.get(number)?);
        let word = self.loaded.state(number);
        let now_ns = boot_now_ns();
        let left = |until: u64| (until < control::SINCE_START).then(|| until.saturating_sub(now_ns));
        let set = |(set, plan): (usize, &lkst_rules::plan::Set)| {
            let until = self
                .loaded
                .control_word(number, control::SET_UNTIL + 8 * set as u32);
            let left_ns = left(until);
            let enabled = word >> set & 1 == 1 && left_ns != Some(0);
            SetStatus {
                name: plan.name.clone(),
                enabled,
                left_ns: left_ns.filter(|_| enabled),
            }
        };
        let buffer = |(buffer, plan): (usize, &lkst_rules::plan::Buffer)| {
            let current = state::current(word) == buffer;
            let stream = self.stream_status(number, buffer);
            BufferStatus {
                name: plan.name.clone(),
                size_bytes: plan.size_bytes,
                current,
                kept: state::is_kept(word, buffer),
                left_ns: left(self.loaded.switch_until(number)).filter(|_| current && buffer != 0),
                overwritten_bytes: self
                    .loaded
                    .rings_of(number, buffer)
                    .filter(|_| stream.is_none())
                    .map_or(0, Rings::overwritten_bytes),
                stream: stream.is_some(),
                written_bytes: stream.as_ref().map_or(0, |(written, ..)| *written),
                lost: stream.as_ref().map_or(0, |(_, lost, _)| *lost),
                error: stream.and_then(|(.., error)| error),
            }
        };
        let rule = |(rule, spots): (&lkst_rules::plan::Rule, &lkst_probes::numbers::RuleSpots)| {
            let counts = self.loaded.rule_counts(spots.counters);
            let last = pack.last.get(&rule.name).map(|(at_ns, text)| LastFiring {
                at_unix_ns: self.unix_ns(*at_ns),
                message: text.clone(),
            });
            RuleStatus {
                name: rule.name.clone(),
                fired: counts.fired,
                limited: counts.limited,
                refused: counts.refused,
                given_up: counts.given_up,
                last,
            }
        };
        let named = image.plan.rules.iter().zip(&image.rules);
        Some(PackStatus {
            name: image.plan.pack.clone(),
            phase: match state::is_stopped(word) {
                true => PackPhase::Stopped,
                false => PackPhase::Active,
            },
            sets: image
                .plan
                .sets
                .iter()
                .enumerate()
                .filter(|(_, set)| !set.name.is_empty())
                .map(set)
                .collect(),
            buffers: image
                .plan
                .buffers
                .iter()
                .enumerate()
                .filter(|(_, buffer)| !buffer.name.is_empty())
                .map(buffer)
                .collect(),
            rules: named
                .filter(|(rule, _)| !rule.name.is_empty())
                .map(rule)
                .collect(),
            events: image
                .events
                .iter()
                .map(|event| self.event_status(event))
                .collect(),
            incidents: IncidentStatus {
                saved: pack.saved_traces,
                last: pack.last_saved.clone(),
                error: pack.failed.clone(),
            },
            cost: self.costs.of(image),
            ..PackStatus::default()
        })
    }

    fn event_status(&self, event: &lkst_probes::image::EventImage) -> EventStatus {
        let counts = self.loaded.event_total(event.counters);
        EventStatus {
            name: event.name.clone(),
            typed: event.program.is_none_or(|program| self.loaded.is_typed(program)),
            recorded: counts.recorded,
            lost: counts.lost,
            capped: counts.capped,
            over_budget: counts.over_budget,
            unreadable: counts.unreadable,
            skipped: event.program.and_then(|program| self.loaded.skipped(program)),
        }
    }
}
