//! What a pack that names all of the busiest events takes of each CPU, seen from outside, beside its budget.
//!
//! The agent stands still meanwhile: whatever holds the pack is the kernel. Of a CPU that does nothing but reads, a tracer
//! has what each of them takes longer.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lkst_tests::agents::event_of;
use lkst_tests::costly::{Costly, READS, reads};
use lkst_tests::lab::Lab;

use crate::LKST;
use crate::report::{Report, Target};
use crate::rounds::{Attached, Contestant, Nothing, Rounds, Sample, median, run};

/// Some seconds: a budget is of each.
const LOAD: Duration = Duration::from_secs(4);
/// To find a budget: that much is known well enough.
const FIRST_ROUNDS: usize = 5;

/// What has become of the reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Must {
    NotSee,
    RecordAll,
    RecordSome,
}

struct Stopped {
    costly: Costly,
    must: Must,
}

impl Attached for Stopped {
    fn finish(self: Box<Self>, hits: u64) -> Result<()> {
        let ([pack, _], _) = self.costly.end()?;
        let seen = event_of(&pack, READS).context("no word of the reads")?;
        let good = match self.must {
            Must::NotSee => (seen.recorded, seen.over_budget) == (0, 0),
            Must::RecordAll => (seen.recorded, seen.over_budget) == (hits, 0),
            Must::RecordSome => seen.recorded + seen.over_budget == hits && seen.over_budget > 0,
        };
        ensure!(good, "of {hits} reads: {seen:?}");
        // The kernel takes down what is no longer pinned a little later.
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }
}

fn contestant<'c>(name: &'static str, budget: f64, must: Must) -> Contestant<'c> {
    Contestant::new(name, move || {
        let costly = Costly::start(LKST, budget, must != Must::NotSee)?;
        Ok(Stopped { costly, must })
    })
}

fn load() -> Result<Sample> {
    let reads = reads(LOAD)?;
    Ok(Sample {
        ns: reads.ns,
        hits: reads.made,
    })
}

/// What a contestant had of each CPU, in percent, in each round.
fn percent(rounds: &Rounds, name: &str) -> Vec<f64> {
    let of_round = rounds.over_first(name).into_iter().zip(rounds.first());
    of_round
        .map(|(over, first)| over / (first + over) * 100.0)
        .collect()
}

/// A budget that mere hits do not use up, far below what recording all of them takes; and whether it holds.
///
/// # Errors
/// What the agent says.
pub(crate) fn budget(_: &Lab, rounds: usize, report: &mut Report) -> Result<()> {
    const NOTHING: &str = "no tracer";
    const HITS: &str = "nothing recorded";
    const ALL: &str = "everything recorded";
    const HELD: &str = "held to a budget";
    let nothing = || Contestant::new(NOTHING, || Ok(Nothing));
    let mut found = [
        nothing(),
        contestant(HITS, 100.0, Must::NotSee),
        contestant(ALL, 100.0, Must::RecordAll),
    ];
    let first = run("to find a budget", FIRST_ROUNDS, &mut found, load)?;
    let [hits, all] = [HITS, ALL].map(|name| median(&percent(&first, name)));
    ensure!(
        0.0 < hits && hits < all,
        "hits {hits:.1}%, records {all:.1}%: this machine is too busy"
    );
    let budget = hits + 0.25 * (all - hits);
    let mut held = [nothing(), contestant(HELD, budget, Must::RecordSome)];
    // Each takes as long as ten rounds of the others.
    let rounds = run("held to a budget", rounds.div_ceil(2), &mut held, load)?;
    let taken = percent(&rounds, HELD);
    let over_budget: Vec<f64> = taken.iter().map(|percent| percent / budget).collect();
    report.ratio(
        "every `sched`, `timer` and `syscalls` event under full load, the agent stopped: CPU taken, over the budget",
        &over_budget,
        Target::AtMost(1.5),
    );
    report.row("beside it: the budget, of each CPU", &[budget], "%", Target::None);
    report.row(
        "beside it: CPU taken, where all is recorded",
        &percent(&first, ALL),
        "%",
        Target::None,
    );
    report.row(
        "beside it: CPU taken, where nothing is",
        &percent(&first, HITS),
        "%",
        Target::None,
    );
    Ok(())
}
