//! The hot path, counted in what the kernel made of our programs (`bpftool prog dump xlated`): helper calls on the
//! way to a record, and on the way out for a hit that nobody wants.
//!
//! Calls that the verifier has turned into plain instructions (the CPU's number, a look-up in an array) are no longer
//! calls there, so what is counted is what is paid.
#![expect(
    clippy::indexing_slicing,
    reason = "a listing that is not as expected fails the test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use lkst_tests::kernel_schema;
use lkst_tests::live::{Machine, plan};

/// The kernel's listing of a program: slot → instruction.
fn xlated(id: u32) -> anyhow::Result<BTreeMap<i64, String>> {
    let out = Command::new("bpftool")
        .args(["prog", "dump", "xlated", "id", &id.to_string()])
        .output()?;
    anyhow::ensure!(
        out.status.success(),
        "bpftool: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8(out.stdout)?;
    let line = |line: &str| {
        let (at, rest) = line.trim().split_once(':')?;
        Some((at.parse().ok()?, rest.trim().to_owned()))
    };
    Ok(text.lines().filter_map(line).collect())
}

fn is_call(text: &str) -> bool {
    text.contains(" call ")
}

/// Where an instruction may go next, as long as no helper was called: until then the time in R8 and the task in its
/// slot of the stack are 0, and no rule has fired.
fn next(listing: &BTreeMap<i64, String>, at: i64) -> Vec<i64> {
    let text = &listing[&at];
    let following = listing.range(at + 1..).next().map(|(at, _)| *at);
    let jump = text
        .rsplit_once("goto pc")
        .and_then(|(_, by)| by.parse::<i64>().ok());
    let of_task = listing
        .range(..at)
        .next_back()
        .is_some_and(|(_, before)| before.contains("(r10 -16)"));
    match jump {
        Some(_) if text.contains("if r8 != 0x0") || of_task && text.contains("!= 0x0") => {
            following.into_iter().collect()
        }
        // R9 is the frame of a firing, and nothing has fired.
        Some(by) if text.contains("if r9 == 0x0") => vec![at + 1 + by],
        Some(by) if text.contains(" if ") => following.into_iter().chain([at + 1 + by]).collect(),
        Some(by) => vec![at + 1 + by],
        None if text.ends_with(" exit") => Vec::new(),
        None => following.into_iter().collect(),
    }
}

/// What can be reached from the start without any call.
fn free_of_calls(listing: &BTreeMap<i64, String>) -> BTreeSet<i64> {
    let mut reached = BTreeSet::new();
    let mut open = vec![0];
    while let Some(at) = open.pop() {
        if !is_call(&listing[&at]) && reached.insert(at) {
            open.extend(next(listing, at));
        }
    }
    reached
}

/// A program as the kernel runs it.
struct Program {
    listing: BTreeMap<i64, String>,
    /// Its calls.
    calls: Vec<String>,
    /// What can be reached without any.
    free: BTreeSet<i64>,
}

/// The program for the first event of some rules; `None` where it was not to be had.
fn program(test: &str, rules: &str) -> anyhow::Result<Option<Program>> {
    let Some(schema) = kernel_schema(test)? else {
        return Ok(None);
    };
    if !lkst_tests::bpftool(test)? {
        return Ok(None);
    }
    let loaded = Machine::of(&schema)?.load(&[plan("hot_path", rules, &schema)?])?;
    let id = loaded
        .program_id(0)
        .ok_or_else(|| anyhow::anyhow!("no program"))?;
    let listing = xlated(id)?;
    let calls = listing.values().filter(|text| is_call(text)).cloned().collect();
    let free = free_of_calls(&listing);
    Ok(Some(Program { listing, calls, free }))
}

#[test]
fn a_record_without_text_takes_at_most_three_calls() -> anyhow::Result<()> {
    let events = [
        ("task:task_rename", "record pid, oom_score_adj"),
        (
            "sched:sched_switch",
            "record prev_pid, prev_prio, prev_state, next_pid, next_prio",
        ),
        ("syscalls:sys_enter_openat", ""),
        ("irq:softirq_entry", ""),
        ("kmem:kmalloc", ""),
    ];
    for (event, record) in events {
        let rules = format!("set always {{ {event} {record} }}\nstart with always");
        let Some(Program { calls, .. }) = program("hot_path", &rules)? else {
            return Ok(());
        };
        println!("{event}: {} calls", calls.len());
        assert!(calls.len() <= 3, "{event}: {calls:#?}");
        assert!(
            calls.iter().any(|call| call.contains("ktime_get_boot_ns")),
            "{calls:#?}"
        );
    }
    Ok(())
}

#[test]
fn a_hit_that_nobody_wants_or_that_an_integer_rejects_takes_none() -> anyhow::Result<()> {
    let conditions = [
        ("task:task_rename", "with oom_score_adj == 77"),
        (
            "sched:sched_switch",
            "with next_pid in { 1, 3, 5, 7, 9, 11, 13, 15 }",
        ),
        ("syscalls:sys_enter_openat", "with flags == 77"),
        ("kmem:kmalloc", "with bytes_req > 1000000"),
    ];
    for (event, with) in conditions {
        let rules = format!(
            "set always {{ {event} {with} }}\nset later {{ {event} }}\nstart with always\n\
             rule r {{ when {event} {with} then enable later }}"
        );
        let Some(Program { free, listing, .. }) = program("hot_path", &rules)? else {
            return Ok(());
        };
        let tests = free.iter().filter(|at| listing[at].contains(" if ")).count();
        println!(
            "{event}: {} instructions and {tests} tests before any call",
            free.len()
        );
        assert!(
            free.len() < 90,
            "{event}: {} instructions come before the first call",
            free.len()
        );
        assert!(
            !free.iter().any(|at| listing[at].contains("lock")),
            "{event}: an atomic without a call"
        );
        // The set's bit and the condition of the member, the other set's bit, and the condition of the rule.
        assert!(
            tests >= 4,
            "{event}: only {tests} tests come before the first call"
        );
        assert!(
            free.iter().any(|at| listing[at].ends_with(" exit")),
            "{event}: no way out without a call"
        );
    }
    Ok(())
}
