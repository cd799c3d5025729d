//! What a session recorded and what it did not, as a table.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::Session;
use crate::kernel::loaded::EventCounts;

impl Session {
    /// Writes, for each pack, what was recorded of each event and what was not, and what each rule did.
    ///
    /// # Errors
    /// Where `out` cannot be written.
    pub fn summary(&self, out: &mut dyn Write) -> io::Result<()> {
        for (image, pack) in self.loaded.image.packs.iter().zip(&self.packs) {
            writeln!(out, "\npack {}", image.plan.pack)?;
            writeln!(
                out,
                "{:>12} {:>12} {:>9} {:>9} {:>10} {:>9}  event",
                "recorded", "overwritten", "capped", "lost", "unreadable", "skipped"
            )?;
            let mut quiet = 0_u64;
            for event in &image.events {
                let sum = self.loaded.event_total(event.counters);
                let typed = event.program.is_none_or(|program| self.loaded.is_typed(program));
                let skipped = event.program.and_then(|program| self.loaded.skipped(program));
                if sum == EventCounts::default() && skipped.unwrap_or(0) == 0 {
                    quiet += 1;
                    continue;
                }
                // A classic program is skipped also where no counter sees it.
                let skipped = match (typed, skipped) {
                    (true, number) => number.unwrap_or(0).to_string(),
                    (false, Some(number)) => format!(">= {number}"),
                    (false, None) => "unknown".to_owned(),
                };
                let of = |counts: &BTreeMap<String, u64>| counts.get(&event.name).copied().unwrap_or(0);
                let still_there = of(&pack.kept) + of(&pack.unsaved);
                writeln!(
                    out,
                    "{:>12} {:>12} {:>9} {:>9} {:>10} {:>9}  {}",
                    sum.recorded,
                    sum.recorded.saturating_sub(still_there),
                    sum.capped,
                    sum.lost,
                    sum.unreadable,
                    skipped,
                    event.name
                )?;
            }
            if quiet > 0 {
                writeln!(
                    out,
                    "{:>12} {} with nothing to say",
                    "",
                    counted(quiet, "more event")
                )?;
            }
            let over_budget: u64 = image
                .events
                .iter()
                .map(|event| self.loaded.event_total(event.counters).over_budget)
                .sum();
            if over_budget > 0 {
                writeln!(
                    out,
                    "{:>12} {} not recorded: the pack was over its budget",
                    "",
                    counted(over_budget, "hit")
                )?;
            }
            let unsaved: u64 = pack.unsaved.values().sum();
            if unsaved > 0 {
                writeln!(
                    out,
                    "{:>12} {} could not be saved",
                    "",
                    counted(unsaved, "record")
                )?;
            }
            for (rule, spots) in image.plan.rules.iter().zip(&image.rules) {
                let counts = self.loaded.rule_counts(spots.counters);
                let firings = if counts.fired == 1 { "firing" } else { "firings" };
                write!(out, "{:>12} {firings} of {}", counts.fired, rule.name)?;
                if counts.limited > 0 {
                    write!(out, ", {} held back by its limit", counts.limited)?;
                }
                if counts.refused > 0 {
                    write!(out, ", {} of a switch refused", counts.refused)?;
                }
                if counts.given_up > 0 {
                    write!(out, ", {} given up", counts.given_up)?;
                }
                writeln!(out)?;
            }
        }
        Ok(())
    }
}

/// `1 event`, `2 events`.
pub(crate) fn counted(number: impl Into<u64>, what: &str) -> String {
    match number.into() {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}
