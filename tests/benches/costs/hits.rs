//! What a hit costs.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Result;
use lkst_rules::plan::Plan;
use lkst_tests::lab::Lab;

use crate::loads::{ping_pong, renames, renames_a_second};
use crate::report::{Report, Target};
use crate::rounds::{Contestant, Nothing, run};
use crate::tracers::{Bpftrace, Empty, Ftrace, Lkst, Must, Perf};

const RENAME: &str = "task:task_rename";
const SWITCH: &str = "sched:sched_switch";

/// So many rules on one field, none of which holds for the load.
fn rules(count: usize, condition: impl Fn(usize) -> String) -> String {
    let mut text = format!("set never {{ {RENAME} }}\n");
    for rule in 1..=count {
        let with = condition(rule);
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "rule r{rule} {{ when {RENAME} with {with} then enable never }}"
        );
    }
    text
}

/// `task:task_rename`, recorded and rejected.
///
/// # Errors
/// What the kernel says, or a tracer that has missed hits.
pub(crate) fn hits(lab: &Lab, rounds: usize, report: &mut Report) -> Result<()> {
    let always = |member: &str| format!("set s {{ {member} }}\nstart with s");
    let one = |text: &str| -> Result<Vec<Arc<Plan>>> { Ok(vec![lab.plan(text)?]) };
    let record = one(&always(RENAME))?;
    let budget = one(&format!("budget 100%\n{}", always(RENAME)))?;
    let integer = one(&always(&format!("{RENAME} with oom_score_adj == 77")))?;
    let text = one(&always(&format!("{RENAME} with newcomm == \"nobody\"")))?;
    let unwanted = one(&format!(
        "set s {{ {RENAME} }}\nset t {{ task:task_newtask }}\nstart with t\nrule r {{ when signal:signal_generate with sig == 99 then enable s }}"
    ))?;
    let by_number = |count| one(&rules(count, |rule| format!("oom_score_adj == {rule}")));
    let by_name = |count| one(&rules(count, |rule| format!("newcomm == \"worker-{rule}\"")));
    let [rules_1, rules_1000] = [by_number(1)?, by_number(1000)?];
    let [names_1, names_1000] = [by_name(1)?, by_name(1000)?];
    let packs = (0..8)
        .map(|pack| lab.plan_of(&format!("p{pack}"), &always(RENAME)))
        .collect::<Result<Vec<_>>>()?;
    let lkst = |name, plans: &'_ [Arc<Plan>], must| {
        let plans = plans.to_vec();
        Contestant::new(name, move || Lkst::new(lab, &plans, RENAME, must))
    };
    let ftrace = |name, filter: &'static str, must| {
        Contestant::new(name, move || Ftrace::new(lab, RENAME, filter, must))
    };
    let triggers = |name, count| {
        Contestant::new(name, move || {
            Ftrace::with_triggers(lab, RENAME, "oom_score_adj", count)
        })
    };
    let mut contestants = [
        Contestant::new("nothing", || Ok(Nothing)),
        Contestant::new("empty tp_btf program", || Empty::new(lab, "task_rename")),
        lkst("lkst, in no enabled set", &unwanted, Must::Reject),
        lkst("lkst, rejected by an integer", &integer, Must::Reject),
        ftrace(
            "ftrace, rejected by an integer",
            "oom_score_adj == 77",
            Must::Reject,
        ),
        lkst("lkst, rejected by a text", &text, Must::Reject),
        ftrace(
            "ftrace, rejected by a text",
            "newcomm == \"nobody\"",
            Must::Reject,
        ),
        lkst("lkst, recorded", &record, Must::Record),
        lkst("lkst, recorded, with a budget", &budget, Must::Record),
        ftrace("ftrace, recorded", "", Must::Record),
        Contestant::new("perf record", || Perf::new(RENAME)),
        Contestant::new("bpftrace, count()", || Bpftrace::new(RENAME)),
        lkst("lkst, 1 rule", &rules_1, Must::Reject),
        lkst("lkst, 1,000 rules", &rules_1000, Must::Reject),
        lkst("lkst, 1 rule by a text", &names_1, Must::Reject),
        lkst("lkst, 1,000 rules by a text", &names_1000, Must::Reject),
        triggers("ftrace, 1 trigger", 1),
        triggers("ftrace, 100 triggers", 100),
        lkst("lkst, 8 packs record", &packs, Must::Record),
    ];
    let result = run("a hit of task:task_rename", rounds, &mut contestants, renames)?;
    report.costs(
        "a hit of `task:task_rename`, beyond the system call that makes it",
        &result,
    );
    for (what, one, parts, other, at_most) in [
        (
            "recorded with all fields, over ftrace",
            "lkst, recorded",
            1.0,
            "ftrace, recorded",
            0.95,
        ),
        (
            "the same with a budget, as in the agent, over ftrace",
            "lkst, recorded, with a budget",
            1.0,
            "ftrace, recorded",
            0.95,
        ),
        (
            "recorded, over perf record",
            "lkst, recorded",
            1.0,
            "perf record",
            0.20,
        ),
        (
            "recorded, over bpftrace's `count()`",
            "lkst, recorded",
            1.0,
            "bpftrace, count()",
            1.0,
        ),
        (
            "rejected by an integer, over ftrace",
            "lkst, rejected by an integer",
            1.0,
            "ftrace, rejected by an integer",
            0.90,
        ),
        (
            "rejected by a text, over ftrace",
            "lkst, rejected by a text",
            1.0,
            "ftrace, rejected by a text",
            0.90,
        ),
        (
            "in no enabled set, over an empty program",
            "lkst, in no enabled set",
            1.0,
            "empty tp_btf program",
            1.2,
        ),
        (
            "1,000 rules on one field, over 1",
            "lkst, 1,000 rules",
            1.0,
            "lkst, 1 rule",
            1.5,
        ),
        (
            "1,000 rules on one text, over 1",
            "lkst, 1,000 rules by a text",
            1.0,
            "lkst, 1 rule by a text",
            1.5,
        ),
        (
            "8 packs record, over 1, for each record",
            "lkst, 8 packs record",
            8.0,
            "lkst, recorded",
            0.5,
        ),
    ] {
        report.ratio(what, &result.ratios(one, parts, other), Target::AtMost(at_most));
    }
    report.ratio(
        "beside it: ftrace with 100 triggers, over 1",
        &result.ratios("ftrace, 100 triggers", 1.0, "ftrace, 1 trigger"),
        Target::None,
    );
    Ok(())
}

/// `sched:sched_switch` of two processes that wait for each other.
///
/// # Errors
/// What the kernel says, or a tracer that has missed hits.
pub(crate) fn switches(lab: &Lab, rounds: usize, report: &mut Report) -> Result<()> {
    let plans = [lab.plan(&format!("set s {{ {SWITCH} }}\nstart with s"))?];
    let mut contestants = [
        Contestant::new("nothing", || Ok(Nothing)),
        Contestant::new("lkst, recorded", || Lkst::new(lab, &plans, SWITCH, Must::Record)),
        Contestant::new("ftrace, recorded", || Ftrace::new(lab, SWITCH, "", Must::Record)),
    ];
    let result = run(
        "a round trip through two pipes",
        rounds,
        &mut contestants,
        ping_pong,
    )?;
    report.costs(
        "a round trip through two pipes: two hits of `sched:sched_switch`",
        &result,
    );
    report.ratio(
        "`sched:sched_switch` under a ping-pong, slow-down over ftrace's",
        &result.ratios("lkst, recorded", 1.0, "ftrace, recorded"),
        Target::AtMost(0.95),
    );
    Ok(())
}

/// Records of two CPUs at once.
///
/// # Errors
/// What the kernel says, or a tracer that has missed hits.
pub(crate) fn two_cpus(lab: &Lab, rounds: usize, report: &mut Report) -> Result<()> {
    let plans = [lab.plan(&format!("set s {{ {RENAME} }}\nstart with s"))?];
    let mut ratios = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let off = [renames_a_second(1)?, renames_a_second(2)?];
        let attached = Lkst::new(lab, &plans, RENAME, Must::Record)?;
        let on = [renames_a_second(1)?, renames_a_second(2)?];
        drop(attached);
        for (ratios, [one, two]) in ratios.iter_mut().zip([on, off]) {
            ratios.push(two / one);
        }
    }
    let [on, off] = ratios;
    report.ratio("two CPUs, records a second, over one", &on, Target::AtLeast(1.95));
    report.ratio(
        "beside it: two CPUs, renames a second, over one, with no tracer",
        &off,
        Target::None,
    );
    Ok(())
}
