//! Whole tools: writing a stream to disk, showing a trace, and what it takes until many rules are in force.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lkst_tests::agents::Bed;
use lkst_tests::lab::Lab;
use lkst_tests::worker::cpu_time;

use crate::LKST;
use crate::loads::storm;
use crate::report::{Report, Target};
use crate::tracers::{Cats, Perf, Stream, bytes_below, records_in, settled};

const RENAME: &str = "task:task_rename";
/// Every tracer's buffer, of each CPU.
const BUFFER_KIB: u32 = 4096;
/// At full rate this is more than any of the buffers holds.
const RENAMES_EACH: u32 = 500_000;

/// What a tracer took to bring a storm to disk.
#[derive(Debug, Clone, Copy)]
struct Brought {
    /// Processor seconds for a million records that reached the disk.
    seconds_a_million: f64,
    /// The share that was lost.
    lost: f64,
}

/// Runs a storm. `pids` are whoever copies; `written` says how far they are; `end` how many records reached the disk.
fn brought(
    pids: &[u32],
    written: impl Fn() -> Result<u64>,
    end: impl FnOnce() -> Result<u64>,
) -> Result<Brought> {
    let seconds = || -> std::io::Result<f64> {
        let times = pids.iter().map(|pid| Ok(cpu_time(*pid)?.as_secs_f64()));
        times.sum()
    };
    let before = seconds()?;
    let made = storm(RENAMES_EACH)?;
    settled(&written)?;
    let took = seconds()? - before;
    let kept = end()?;
    // What else renames itself on the machine meanwhile is recorded too.
    ensure!(kept <= made + made / 10, "{kept} of {made} records");
    Ok(Brought {
        seconds_a_million: took / (kept as f64 / 1e6),
        lost: 1.0 - kept.min(made) as f64 / made as f64,
    })
}

/// `task:task_rename` of both CPUs at full rate, to disk, by lkst, `perf record` and copies of `trace_pipe_raw`.
///
/// # Errors
/// What the tools say.
pub(crate) fn stream(lab: &Lab, rounds: usize, report: &mut Report) -> Result<()> {
    let [mut lkst, mut perf, mut cats] = [const { Vec::new() }; 3];
    for round in 0..rounds {
        eprint!("\ra stream to disk: round {} of {rounds} ", round + 1);
        for turn in 0..3 {
            match (turn + round) % 3 {
                0 => {
                    let tool = Stream::new(LKST, RENAME, BUFFER_KIB)?;
                    let (pid, folder) = (tool.pid(), tool.folder().to_owned());
                    lkst.push(brought(&[pid], || bytes_below(&folder), || tool.end())?);
                }
                1 => {
                    let tool = Perf::with_buffer(RENAME, Some(BUFFER_KIB))?;
                    let (pid, folder) = (tool.pid(), tool.folder().to_owned());
                    perf.push(brought(&[pid], || bytes_below(&folder), || tool.end())?);
                }
                _ => {
                    let tool = Cats::new(lab, RENAME, BUFFER_KIB)?;
                    let kept = || tool.kept(2 * u64::from(RENAMES_EACH));
                    cats.push(brought(&tool.pids(), || tool.bytes(), kept)?);
                }
            }
        }
    }
    eprintln!();
    let pick = |all: &[Brought], which: fn(&Brought) -> f64| all.iter().map(which).collect::<Vec<f64>>();
    let seconds = |all: &[Brought]| pick(all, |brought| brought.seconds_a_million);
    let ratios = |other: &[Brought]| -> Vec<f64> {
        let pairs = seconds(&lkst).into_iter().zip(seconds(other));
        pairs.map(|(lkst, other)| lkst / other).collect()
    };
    report.ratio(
        "a stream to disk, CPU seconds for a record, over perf record",
        &ratios(&perf),
        Target::AtMost(0.5),
    );
    report.ratio(
        "a stream to disk, CPU seconds for a record, over copying `trace_pipe_raw`",
        &ratios(&cats),
        Target::AtMost(1.0),
    );
    let lost = |all: &[Brought]| pick(all, |brought| brought.lost);
    let least = lost(&perf)
        .into_iter()
        .zip(lost(&cats))
        .map(|(perf, cats)| perf.min(cats));
    let more: Vec<f64> = lost(&lkst)
        .into_iter()
        .zip(least)
        .map(|(lkst, least)| lkst - least)
        .collect();
    report.ratio(
        "a stream to disk at full rate, share lost, beyond the better of the two",
        &more,
        Target::AtMost(0.0),
    );
    for (name, all) in [("lkst", &lkst), ("perf record", &perf), ("trace_pipe_raw", &cats)] {
        let ms: Vec<f64> = seconds(all).iter().map(|seconds| seconds * 1e3).collect();
        report.row(
            &format!("beside it: {name}, CPU time for a million records"),
            &ms,
            "ms",
            Target::None,
        );
        report.ratio(
            &format!("beside it: {name}, share lost"),
            &lost(all),
            Target::None,
        );
    }
    Ok(())
}

/// Records so many renames on each CPU into a trace below `folder`.
fn trace_of(lab: &Lab, folder: &Path, renames_each: u32) -> Result<u64> {
    let mib = (u64::from(renames_each) * 96).div_ceil(1 << 20) + 1;
    let rules = format!("buffer main {{ size = {mib}MiB }}\nset s {{ {RENAME} }}\nstart with s");
    let mut session = lab.session(&rules, folder.to_owned())?;
    session.start();
    storm(renames_each)?;
    session.finish(&mut |_| Ok(()))?;
    ensure!(session.troubles.is_empty(), "{:?}", session.troubles);
    let count = records_in(folder)?;
    ensure!(count >= 2 * u64::from(renames_each), "{count} records");
    Ok(count)
}

/// Runs a command whose output nobody reads. Returns seconds, and the most memory that it had, in MiB.
fn run(command: &mut Command) -> Result<(f64, f64)> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    // What the kernel says at its end counts the memory that we had when it was forked.
    let mut mib = 0.0_f64;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if let Ok(seen) = memory_mib(child.id(), "VmHWM:") {
            mib = mib.max(seen);
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok((begun.elapsed().as_secs_f64(), mib))
}

/// A line of `/proc/PID/status`, in MiB.
fn memory_mib(pid: u32, line: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|text| text.strip_prefix(line));
    let kib = kib.and_then(|kib| kib.trim().strip_suffix(" kB"));
    Ok(kib.with_context(|| line.to_owned())?.trim().parse::<f64>()? / 1024.0)
}

/// `lkst show` beside babeltrace2.
///
/// # Errors
/// What the tools say.
pub(crate) fn show(lab: &Lab, rounds: usize, report: &mut Report) -> Result<()> {
    let small = tempfile::tempdir()?;
    trace_of(lab, small.path(), 250_000)?;
    let mut ratios = Vec::new();
    for round in 0..rounds {
        eprint!("\rshowing a trace: round {} of {rounds} ", round + 1);
        let lkst = || run(Command::new(LKST).arg("show").arg(small.path()));
        let babeltrace = || run(Command::new("babeltrace2").arg(small.path()));
        let (lkst, babeltrace) = match round % 2 {
            0 => (lkst()?, babeltrace()?),
            _ => {
                let babeltrace = babeltrace()?;
                (lkst()?, babeltrace)
            }
        };
        ratios.push(lkst.0 / babeltrace.0);
    }
    eprintln!();
    report.ratio(
        "`lkst show` of half a million records, time over babeltrace2's",
        &ratios,
        Target::AtMost(0.1),
    );
    let large = tempfile::tempdir()?;
    let count = trace_of(lab, large.path(), 5_000_000)?;
    let (seconds, mib) = run(Command::new(LKST).arg("show").arg(large.path()))?;
    report.row(
        "`lkst show` of ten million records, memory at most",
        &[mib],
        "MiB",
        Target::AtMost(64.0),
    );
    report.row(
        "beside it: millions of records a second",
        &[count as f64 / seconds / 1e6],
        "M/s",
        Target::None,
    );
    Ok(())
}

/// 64 packs of 10 rules each, over 60 events.
fn many_rules(lab: &Lab, bed: &Bed) -> Result<()> {
    let events = lab.usual_events(60);
    ensure!(events.len() == 60, "{} events", events.len());
    for pack in 0..64 {
        let mut text = String::from("buffer main { size = 64KiB }\nset s { sched:sched_process_exec }\n");
        for rule in 0..10 {
            let event = &events[(pack * 10 + rule) % 60];
            text += &format!(
                "rule r{rule} {{ when {event} with task.pid == {} then enable s }}\n",
                4_000_000 + rule
            );
        }
        bed.put(&format!("p{pack:02}.lkst"), &text)?;
    }
    Ok(())
}

/// From the start of an agent that has nothing until 64 packs are in force, and its memory afterwards.
///
/// # Errors
/// What the agent says.
pub(crate) fn compile_and_load(lab: &Lab, rounds: usize, report: &mut Report) -> Result<()> {
    let [mut seconds, mut resident] = [const { Vec::new() }; 2];
    for round in 0..rounds {
        eprint!("\rcompiling and loading: round {} of {rounds} ", round + 1);
        let mut bed = Bed::new(LKST)?;
        many_rules(lab, &bed)?;
        let begun = Instant::now();
        bed.start()?;
        bed.pack_until("p63", "is in force", |pack| pack.hash.is_some())?;
        seconds.push(begun.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_millis(500));
        let pid = bed.pid().context("it runs")?;
        resident.push(memory_mib(pid, "VmRSS:")?);
        bed.end()?;
        bed.stop_tracing()?;
        // The kernel takes down some thirty events in turn, each after a grace period, and holds `event_mutex`
        // meanwhile, which whoever reads a format file waits for: the next agent would pay for the end of this one.
        std::thread::sleep(Duration::from_secs(3));
    }
    eprintln!();
    report.row(
        "64 packs of 10 rules over 60 events, from nothing until in force",
        &seconds,
        "s",
        Target::AtMost(1.0),
    );
    report.row(
        "the agent's resident memory afterwards",
        &resident,
        "MiB",
        Target::AtMost(16.0),
    );
    Ok(())
}
