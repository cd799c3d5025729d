//! The hot path, counted: instructions, in the programs as we make them, held against a table that only grows where
//! somebody blesses it; and helper calls, in what the kernel made of them (`bpftool prog dump xlated`).
//!
//! Calls that the verifier has turned into plain instructions (the CPU's number, a look-up in an array) are no longer
//! calls there, so what is counted is what is paid.
#![expect(
    clippy::indexing_slicing,
    reason = "a listing that is not as expected fails the test"
)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use lkst::kernel::schema::KernelSchema;
use lkst_probes::asm::{Code, Helper, Insn, code};
use lkst_probes::features::Features;
use lkst_probes::image::{self, Image};
use lkst_probes::numbers::Numbers;

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
            free.len() < 150,
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

/// Instructions and helper calls.
type Count = (usize, usize);

/// Where an instruction may go next, with all sets enabled or none: R7 is the state. A CPU always has a number that is
/// small enough.
fn following(insns: &[Insn], at: usize, enabled: bool) -> Vec<usize> {
    const STATE: u8 = 7;
    const JUMP_IF_SET: u8 = 0x45;
    const JUMP_IF_AT_LEAST: u8 = 0x35;
    let is_cpu =
        |at: usize| insns[at].code == code::CALL && insns[at].imm == Helper::GetSmpProcessorId as i32;
    let insn = insns[at];
    let to = |by: i64| (at as i64 + 1 + by) as usize;
    match insn.code {
        code::LD_IMM64 => vec![at + 2],
        code::EXIT => Vec::new(),
        code::JA => vec![to(insn.off.into())],
        code::JA32 => vec![to(insn.imm.into())],
        JUMP_IF_SET if insn.dst == STATE && enabled => vec![to(insn.off.into())],
        JUMP_IF_SET if insn.dst == STATE => vec![at + 1],
        JUMP_IF_AT_LEAST if at > 0 && is_cpu(at - 1) => vec![at + 1],
        other if matches!(other & 7, 5 | 6) && other != code::CALL => vec![at + 1, to(insn.off.into())],
        _ => vec![at + 1],
    }
}

/// The fewest instructions from one to each other.
fn fewest(insns: &[Insn], from: usize, enabled: bool) -> BTreeMap<usize, Count> {
    let mut known = BTreeMap::new();
    let mut open = BinaryHeap::from([Reverse(((0, 0), from))]);
    while let Some(Reverse(((instructions, calls), at))) = open.pop() {
        if known.contains_key(&at) {
            continue;
        }
        known.insert(at, (instructions, calls));
        let call = usize::from(insns[at].code == code::CALL);
        for next in following(insns, at, enabled) {
            open.push(Reverse(((instructions + 1, calls + call), next)));
        }
    }
    known
}

fn to_the_end(insns: &[Insn], from: usize, enabled: bool) -> Count {
    let known = fewest(insns, from, enabled);
    let ends = known.iter().filter(|(at, _)| insns[**at].code == code::EXIT);
    ends.map(|(_, count)| *count).min().unwrap_or_default()
}

/// The way of a hit that no set wants; the shortest way out for one that a set wants; and the way through the first
/// record.
fn ways(code: &Code) -> [Option<Count>; 3] {
    let commit = code.notes.iter().find(|(_, note)| note == "commit");
    let recorded = commit.map(|(commit, _)| {
        let there = fewest(&code.insns, 0, true)[commit];
        let back = to_the_end(&code.insns, *commit, true);
        (there.0 + back.0, there.1 + back.1)
    });
    let [unwanted, rejected] = [false, true].map(|enabled| to_the_end(&code.insns, 0, enabled));
    [Some(unwanted), Some(rejected), recorded]
}

fn image_of(rules: &str, schema: &KernelSchema, features: &Features) -> anyhow::Result<Image> {
    let plan = plan("hot_path", rules, schema)?;
    let mut numbers = Numbers::new(features.cpus);
    image::build(&[plan], features, &BTreeSet::new(), &mut numbers)
        .map_err(|error| anyhow::anyhow!("{error:?}"))
}

#[test]
fn the_ways_of_a_hit_are_no_longer_than_the_table_says() -> anyhow::Result<()> {
    let Some(schema) = kernel_schema("hot_path")? else {
        return Ok(());
    };
    let many: String = (1..=1000)
        .map(|n| format!("rule r{n} {{ when task:task_rename with oom_score_adj == {n} then stop }}\n"))
        .collect();
    let always = |member: &str| format!("set s {{ {member} }}\nstart with s");
    let cases = [
        ("task_rename", always("task:task_rename")),
        (
            "task_rename, budget",
            format!("budget 1% {}", always("task:task_rename")),
        ),
        (
            "task_rename with oom_score_adj == 77",
            always("task:task_rename with oom_score_adj == 77"),
        ),
        (
            "task_rename with oldcomm == \"nobody\"",
            always("task:task_rename with oldcomm == \"nobody\""),
        ),
        (
            "task_rename with newcomm == \"nobody\"",
            always("task:task_rename with newcomm == \"nobody\""),
        ),
        ("task_rename, 1,000 rules", many),
        ("sched_switch", always("sched:sched_switch")),
        ("kmalloc", always("kmem:kmalloc")),
        ("softirq_entry", always("irq:softirq_entry")),
        ("sys_enter_openat", always("syscalls:sys_enter_openat")),
        ("sys_exit_openat", always("syscalls:sys_exit_openat")),
        ("all system calls", always("syscalls:*")),
        ("raw sys_enter", always("raw_syscalls:sys_enter")),
    ];
    let features = lkst::command::run::generator_features(&schema)?;
    let mut table = String::new();
    writeln!(
        table,
        "{:<40} {:>10} {:>10} {:>10}",
        "instructions + helper calls of a hit", "unwanted", "rejected", "recorded"
    )?;
    for (name, rules) in &cases {
        let image = image_of(rules, &schema, &features)?;
        let program = &image.programs[0];
        // Through the dispatcher, whose tail call does not return.
        let dispatched = to_the_end(&program.dispatcher.insns, 0, true).0;
        let cells = ways(&program.parts[0]).map(|count| match count {
            Some((instructions, calls)) => format!("{} + {calls}", instructions + dispatched),
            None => "-".to_owned(),
        });
        writeln!(
            table,
            "{name:<40} {:>10} {:>10} {:>10}",
            cells[0], cells[1], cells[2]
        )?;
    }
    print!("{table}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hot_path.txt");
    if std::env::var_os("LKST_BLESS").is_some() {
        std::fs::write(&path, &table)?;
    }
    let blessed = std::fs::read_to_string(&path)?;
    assert_eq!(
        table, blessed,
        "the way of a hit has changed: LKST_BLESS=1 takes it over, where that is meant"
    );
    Ok(())
}

#[test]
fn what_several_rules_need_is_read_once() -> anyhow::Result<()> {
    let Some(schema) = kernel_schema("hot_path")? else {
        return Ok(());
    };
    let features = lkst::command::run::generator_features(&schema)?;
    let reads = |condition: &dyn Fn(u32) -> String, rules: u32| -> anyhow::Result<usize> {
        let rules: String = (1..=rules)
            .map(|n| {
                let condition = condition(n);
                format!("rule r{n} {{ when task:task_rename with {condition} then stop }}\n")
            })
            .collect();
        let image = image_of(&rules, &schema, &features)?;
        let reads = image.programs[0].parts[0]
            .insns
            .iter()
            .filter(|insn| insn.code == code::CALL && insn.imm == Helper::ProbeReadKernelStr as i32);
        Ok(reads.count())
    };
    assert_eq!(reads(&|n| format!("newcomm == \"worker-{n}\""), 1000)?, 1);
    assert_eq!(reads(&|n| format!("newcomm like \"*-{n}\""), 8)?, 1);
    // Whoever is seldom judged does not pay for it at every hit.
    assert_eq!(
        reads(&|n| format!("oom_score_adj > {n} and newcomm like \"*-{n}\""), 8)?,
        8
    );
    Ok(())
}
