//! What packs cost: the kernel's sums, looked at once a second; rates out, and packs whose mere hits are too much.
//!
//! A budget holds back records, in the kernel. That a program runs at each hit it cannot hold back: where that alone costs
//! more than the budget, for ten seconds, the pack has to go.

use std::collections::BTreeMap;

use lkst_probes::image::PackImage;

use crate::kernel::loaded::{Loaded, PackCosts};
use crate::status::Cost;

/// So many seconds in a row, more than a short burst.
const TOO_LONG_S: u32 = 10;

/// All packs, as they were looked at last.
#[derive(Debug, Default)]
pub(super) struct Meter {
    packs: BTreeMap<String, Reading>,
}

#[derive(Debug, Default)]
struct Reading {
    at_ns: u64,
    /// By CPU.
    costs: Vec<PackCosts>,
    records: u64,
    rate: Rate,
    /// For so many looks in a row mere hits cost more than the budget.
    over: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    hits_per_s: f64,
    records_per_s: f64,
    cpu_percent: f64,
    /// Of mere hits, on the CPU where they cost most.
    hits_percent: f64,
}

/// A pack whose mere hits cost more than its budget.
#[derive(Debug, Clone, PartialEq)]
pub struct TooCostly {
    /// Which.
    pub pack: String,
    /// What they cost, in percent of a CPU.
    pub percent: f64,
    /// Its budget, in percent of a CPU.
    pub budget_percent: f64,
}

impl Meter {
    /// Looks at all packs; returns those that must go.
    pub(super) fn look(&mut self, loaded: &Loaded, now_ns: u64) -> Vec<TooCostly> {
        let mut too_costly = Vec::new();
        let mut before = std::mem::take(&mut self.packs);
        for pack in &loaded.image.packs {
            let Some((per_s_ns, cell)) = pack.budget else {
                continue;
            };
            let name = &pack.plan.pack;
            let costs = loaded.pack_costs(cell);
            let records = pack
                .events
                .iter()
                .map(|event| loaded.event_total(event.counters).recorded)
                .sum();
            let mut reading = Reading {
                at_ns: now_ns,
                costs,
                records,
                ..Reading::default()
            };
            if let Some(before) = before.remove(name)
                && now_ns > before.at_ns
            {
                reading.rate = rate(&before, &reading);
                let budget_percent = per_s_ns as f64 / 1e7;
                if reading.rate.hits_percent > budget_percent {
                    reading.over = before.over + 1;
                }
                if reading.over >= TOO_LONG_S {
                    too_costly.push(TooCostly {
                        pack: name.clone(),
                        percent: reading.rate.hits_percent,
                        budget_percent,
                    });
                }
            }
            self.packs.insert(name.clone(), reading);
        }
        too_costly
    }

    /// What a pack costs, as people are shown it.
    pub(super) fn of(&self, image: &PackImage) -> Cost {
        let reading = self.packs.get(&image.plan.pack);
        let rate = reading.map(|reading| reading.rate).unwrap_or_default();
        Cost {
            budget_percent: image.plan.budget_ppm.map(|ppm| f64::from(ppm) / 1e4),
            hits_per_s: rate.hits_per_s,
            records_per_s: rate.records_per_s,
            cpu_percent: rate.cpu_percent,
        }
    }
}

/// What has come between two looks, a second. Where counters began anew it is nothing.
fn rate(before: &Reading, now: &Reading) -> Rate {
    let elapsed_ns = (now.at_ns - before.at_ns) as f64;
    let pairs = || before.costs.iter().zip(&now.costs);
    let most = |ns: fn(&PackCosts) -> u64| {
        let spent = pairs().map(|(before, now)| ns(now).saturating_sub(ns(before)));
        spent.max().unwrap_or(0) as f64 / elapsed_ns * 100.0
    };
    let hits: u64 = pairs()
        .map(|(before, now)| now.hits.saturating_sub(before.hits))
        .sum();
    Rate {
        hits_per_s: hits as f64 / elapsed_ns * 1e9,
        records_per_s: now.records.saturating_sub(before.records) as f64 / elapsed_ns * 1e9,
        cpu_percent: most(|costs| costs.of_hits_ns + costs.of_records_ns),
        hits_percent: most(|costs| costs.of_hits_ns),
    }
}
