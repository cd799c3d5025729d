//! The command `lkst` as its users meet it: exit codes, and what it says when the input is wrong.
//!
//! 0 done, 1 the input is wrong, 2 the usage is wrong, 3 this kernel or these privileges do not allow it.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

fn lkst(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lkst"))
        .args(arguments)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether this kernel shows us its events; where it must and does not, the test fails.
fn has_kernel() -> bool {
    let there = lkst(&["events", "task:task_rename"]).status.success();
    let required = std::env::var_os("LKST_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    assert!(there || !required, "the kernel's events cannot be read");
    if !there {
        eprintln!("skipped: the kernel's events cannot be read");
    }
    there
}

const GOOD: &str = "set s { task:task_rename }\nstart with s\n";

/// (name of the file, its bytes, what the error must speak of)
fn bad_files() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let text = |name, text: &str, says| (name, text.as_bytes().to_vec(), says);
    let with = |condition: &str| format!("set s {{ sched:sched_switch with {condition} }}\nstart with s\n");
    let rule = |rest: &str| format!("{GOOD}rule r {{ {rest} }}\n");
    let mut all = vec![
        ("binary.lkst", (0..=255).cycle().take(5_000).collect(), "UTF-8"),
        (
            "elf.lkst",
            fs::read("/proc/self/exe").unwrap()[..4096].to_vec(),
            "UTF-8",
        ),
        ("huge.lkst", vec![b'#'; (1 << 20) + 1], "1 MiB"),
        (
            "deep.lkst",
            with(&format!("{}next_pid == 1", "(".repeat(100_000))).into_bytes(),
            "64 levels",
        ),
        (
            "nots.lkst",
            with(&format!("{}true", "not ".repeat(10_000))).into_bytes(),
            "64 levels",
        ),
        (
            "unclosed.lkst",
            format!("{GOOD}rule r {{ when").into_bytes(),
            "is not closed",
        ),
    ];
    all.extend([
        text("nul.lkst", "set s\0 { }", "invisible character"),
        text("word.lkst", "sett s { task:task_rename }", "`set`"),
        text(
            "event.lkst",
            "set s { task:task_renamed }\nstart with s",
            "task:task_rename",
        ),
        text(
            "system.lkst",
            "set s { tusk:task_rename }\nstart with s",
            "task:task_rename",
        ),
        text("field.lkst", &with("next_pidd == 1"), "next_pid"),
        text("argument.lkst", &with("args.prev.nosuch == 1"), "nosuch"),
        text("text_is_int.lkst", &with("next_comm == 1"), "text"),
        text("int_is_text.lkst", &with("next_pid == \"1\""), "text"),
        text("int_is_bool.lkst", &with("next_pid & 4"), "!= 0"),
        text("assignment.lkst", &with("next_pid = 4"), "=="),
        text("duration.lkst", &with("next_pid > 5ms"), "duration"),
        text("range.lkst", &with("next_pid == 5000000000"), "2147483647"),
        text(
            "signs.lkst",
            "set s { kmem:kmalloc with bytes_alloc == prev }",
            "bytes_alloc",
        ),
        text("like.lkst", &with("next_comm like \"a*b*c\""), "`*`"),
        text("symbol.lkst", &with("prev_state == SLEEPY"), "SLEEPY"),
        text(
            "set_name.lkst",
            &rule("when task:task_rename then enable sss"),
            "`s`",
        ),
        text(
            "buffer_name.lkst",
            &rule("when task:task_rename then switch buffer incident"),
            "incident",
        ),
        text("no_then.lkst", &rule("when task:task_rename enable s"), "then"),
        text(
            "unit.lkst",
            &rule("when task:task_rename then enable s for 1.5s"),
            "1.5",
        ),
        text("size.lkst", "buffer b { size = 4MB }\n", "MiB"),
        text(
            "twice.lkst",
            &format!("{GOOD}set s {{ sched:sched_switch }}"),
            "twice",
        ),
        text(
            "later.lkst",
            "span s { from task:task_rename by pid to task:task_newtask }",
            "not",
        ),
        text(
            "limit.lkst",
            &rule("when task:task_rename then disable s limit 70000 per 1s"),
            "65535",
        ),
        text("language.lkst", "language 2\n", "language 1"),
        text(
            "syscall.lkst",
            "set s { syscalls:sys_enter_opn }\nstart with s",
            "sys_enter_open",
        ),
    ]);
    let sets: String = (0..41)
        .map(|n| format!("set s{n} {{ task:task_rename }}\n"))
        .collect();
    all.push(("sets.lkst", sets.into_bytes(), "40 is the most"));
    let buffers: String = (0..9)
        .map(|n| format!("buffer b{n} {{ size = 64KiB }}\n"))
        .collect();
    all.push(("buffers.lkst", buffers.into_bytes(), "8 is the most"));
    all
}

#[test]
fn every_malformed_file_is_refused_with_its_place_and_a_way_out() {
    if !has_kernel() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let files = bad_files();
    assert!(files.len() >= 30);
    let mut silent = Vec::new();
    for (name, bytes, says) in files {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let output = lkst(&["check", path.to_str().unwrap()]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(name), "{name} does not say which file: {said}");
        if !said.contains(says) {
            silent.push(format!("{name} does not speak of {says:?}: {said}"));
        }
        assert!(said.starts_with("error"), "{name}: {said}");
        assert!(said.len() < 64 << 10, "{name} says {} bytes", said.len());
        assert!(
            !said.chars().any(|c| c.is_control() && c != '\n'),
            "{name}: control characters in {said:?}"
        );
        // What check refuses, run refuses too, before anything is loaded.
        if output.status.code() == Some(1) && name == "event.lkst" {
            assert_eq!(
                lkst(&["run", "--for", "1s", path.to_str().unwrap()])
                    .status
                    .code(),
                Some(1)
            );
        }
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

#[test]
fn a_path_without_rules_is_refused() {
    if !has_kernel() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("empty")).unwrap();
    let made = Command::new("mkfifo").arg(path("fifo.lkst")).status().unwrap();
    assert!(made.success());
    for (wrong, says) in [
        (path("empty"), "holds no rules"),
        (path("nowhere.lkst"), "No such file"),
        (path("fifo.lkst"), "regular file"),
        ("/dev/zero".to_owned(), "neither a file nor a folder"),
    ] {
        let output = lkst(&["check", &wrong]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{wrong}: {said}");
        assert!(said.contains(says) && said.contains(&wrong), "{wrong}: {said}");
    }
}

#[test]
fn machines_get_the_diagnostics_as_json() {
    if !has_kernel() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.lkst");
    fs::write(
        &path,
        "set s { task:task_rename with pidd == 1 }\nset t { nosuch:event }\n",
    )
    .unwrap();
    let output = lkst(&["check", "--json", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let errors = said
        .as_array()
        .unwrap()
        .iter()
        .filter(|d| d["severity"] == "error")
        .count();
    assert_eq!(errors, 2, "{said:#}");
}

#[test]
fn wrong_usage_is_told_from_wrong_input() {
    for arguments in [
        &["runn"][..],
        &["run"],
        &["run", "--for", "10", "x.lkst"],
        &["show"],
        &["check"],
    ] {
        assert_eq!(lkst(arguments).status.code(), Some(2), "{arguments:?}");
    }
    for command in ["run", "check", "events", "event", "show", "explain"] {
        let output = lkst(&[command, "--help"]);
        assert!(output.status.success(), "{command} has no help");
    }
}

#[test]
fn missing_privileges_are_named() {
    if !has_kernel() || !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::Builder::new()
        .prefix("lkst-unprivileged")
        .tempdir_in("/tmp")
        .unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("lkst");
    fs::copy(env!("CARGO_BIN_EXE_lkst"), &binary).unwrap();
    let rules = folder.path().join("good.lkst");
    fs::write(&rules, GOOD).unwrap();
    let run = |path: &Path| {
        let mut command = Command::new(&binary);
        command
            .args(["run", "--for", "1s"])
            .arg(path)
            .uid(65_534)
            .gid(65_534)
            .current_dir(folder.path());
        command.output().unwrap()
    };
    let output = run(&rules);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("CAP_BPF") && said.contains("CAP_PERFMON"), "{said}");
}
