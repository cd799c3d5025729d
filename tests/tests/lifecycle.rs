//! However a session ends, nothing of it stays in the kernel; where it could still speak, its trace is there.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use lkst_tests::lab::Lab;
use lkst_tests::objects::Objects;

/// Typed and classic programs, a rule, two buffers.
const RULES: &str = "
    buffer incident { size = 64KiB }
    set always { sched:sched_process_exec sched:sched_process_exit syscalls:sys_enter_openat irq:softirq_entry }
    start with always
    rule r { when sched:sched_process_exec with task.traced then switch buffer incident for 1s }
";

fn assert_gone(held: &Objects, how: &str) {
    assert!(
        !held.programs.is_empty() && !held.maps.is_empty(),
        "{how}: {held:?}"
    );
    let left = held.left();
    assert!(left.is_empty(), "{how}: left in the kernel: {left:?}");
    println!(
        "lifecycle: {how}: {} programs, {} maps, {} links are gone",
        held.programs.len(),
        held.maps.len(),
        held.links.len()
    );
}

#[test]
fn nothing_stays_when_it_is_dropped_or_panics() {
    let Some(lab) = Lab::open("lifecycle in the process").unwrap() else {
        return;
    };
    let own = std::process::id();
    let before = Objects::of_process(own);
    let loaded = lab.load(RULES).unwrap();
    loaded.start();
    let held = Objects::of_process(own).without(&before);
    drop(loaded);
    assert_gone(&held, "dropped");

    let mut held = Objects::default();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let loaded = lab.load(RULES).unwrap();
        loaded.start();
        held = Objects::of_process(own).without(&before);
        panic!("this panic is part of the test");
    }));
    assert!(panicked.is_err());
    assert_gone(&held, "panicked");
}

/// `lkst run`, killed when it is dropped.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _waited_already = self.0.wait();
    }
}

/// Starts `lkst run` with a COMMAND that waits, and returns once it traces.
fn start(folder: &Path) -> (Run, BufReader<ChildStderr>) {
    let rules = folder.join("life.lkst");
    std::fs::write(&rules, RULES).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lkst-under-test"))
        .arg("run")
        .arg("-o")
        .args([&folder.join("out"), &rules])
        .args(["--", env!("CARGO_BIN_EXE_lkst-load"), "wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let run = Run(child);
    let mut all = String::new();
    while !all.contains("lkst: tracing") {
        assert!(said.read_line(&mut all).unwrap() > 0, "{all}");
    }
    // It is told when tracing has begun; COMMAND is started next.
    while children(run.0.id()).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    (run, said)
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace()
        .map(|child| child.parse().unwrap())
        .collect()
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: a child of ours that nobody has waited for, or one that its death has left to us by number.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

#[test]
fn nothing_stays_after_sigkill() {
    let Some(_lab) = Lab::open("lifecycle and SIGKILL").unwrap() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (mut run, _said) = start(dir.path());
    let command = children(run.0.id());
    let held = Objects::of_process(run.0.id());
    run.0.kill().unwrap();
    run.0.wait().unwrap();
    // Nobody is left who could end COMMAND.
    for pid in command {
        signal(pid, libc::SIGKILL);
    }
    assert_gone(&held, "SIGKILL");
}

#[test]
fn the_trace_is_there_after_an_interrupt() {
    let Some(_lab) = Lab::open("lifecycle and SIGINT").unwrap() else {
        return;
    };
    for number in [libc::SIGINT, libc::SIGTERM] {
        let dir = tempfile::tempdir().unwrap();
        let (mut run, mut said) = start(dir.path());
        let command = children(run.0.id());
        let held = Objects::of_process(run.0.id());
        signal(run.0.id(), number);
        let mut out = String::new();
        run.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        let mut errors = String::new();
        said.read_to_string(&mut errors).unwrap();
        let status = run.0.wait().unwrap();
        assert!(status.success(), "{status}: {out}\n{errors}");
        let output = dir.path().join("out");
        assert!(
            out.contains(&format!("trace: {}", output.display())) || out.contains("traces: "),
            "{out}"
        );
        assert!(out.contains(output.to_str().unwrap()), "{out}");
        let pack = std::fs::read_dir(output.join("life")).unwrap();
        let ends = pack.filter(|entry| {
            let folder = entry.as_ref().unwrap().path();
            folder.to_str().unwrap().ends_with("-end") && folder.join("ctf/metadata").is_file()
        });
        assert_eq!(ends.count(), 1);
        // COMMAND has ended with it.
        for pid in command {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "COMMAND still runs");
        }
        assert_gone(&held, &format!("signal {number}"));
    }
}
