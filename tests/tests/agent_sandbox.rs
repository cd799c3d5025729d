//! The agent under what its unit allows it, where no systemd runs: it loads, traces, saves, reloads, is killed and
//! takes over; and what it may not do it cannot do.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use lkst_tests::agents::Bed;
use lkst_tests::lab::Lab;
use lkst_tests::namespace::with_own_mounts;
use lkst_tests::numbered::{Counting, each_once, rules, trigger};
use lkst_tests::sandbox::Sandbox;

const UNIT: &str = include_str!("../../packaging/lkst.service");

/// Whether there is what a sandbox is made with, said aloud where not; an error where it is required.
fn has_tools(test: &str) -> bool {
    let required = std::env::var_os("LKST_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    for tool in ["setpriv", "systemd-analyze"] {
        let there = Command::new(tool)
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success());
        assert!(there || !required, "no `{tool}`");
        if !there {
            eprintln!("{test}: skipped: no `{tool}`");
            return false;
        }
    }
    true
}

fn start(bed: &mut Bed, sandbox: &Sandbox) {
    bed.start_by(|command, log| {
        sandbox.spawn(&command, |sandboxed| {
            sandboxed.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        })
    })
    .unwrap();
    bed.said("rules in force", 1).unwrap();
}

/// What a shell in the sandbox comes to.
fn shell(sandbox: &Sandbox, script: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    let child = sandbox.spawn(&command, |sandboxed| {
        sandboxed
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
    });
    child.unwrap().wait().unwrap().success()
}

#[test]
fn the_agent_does_all_its_work_under_what_its_unit_allows() {
    let test = "sandbox";
    let Some(_lab) = Lab::open(test).unwrap() else {
        return;
    };
    if !has_tools(test) {
        return;
    }
    // The command may lie in a home, which the sandbox does not have.
    let tool = tempfile::tempdir().unwrap();
    fs::set_permissions(tool.path(), Permissions::from_mode(0o755)).unwrap();
    let lkst = tool.path().join("lkst");
    fs::copy(env!("CARGO_BIN_EXE_lkst-under-test"), &lkst).unwrap();
    with_own_mounts(|| {
        let mut bed = Bed::new(lkst.to_str().unwrap()).unwrap();
        let devices = bed.path("dev");
        fs::create_dir(&devices).unwrap();
        let writable = ["state", "run", "bpf"].map(|name| bed.path(name)).to_vec();
        let sandbox = Sandbox::of_unit(UNIT, writable, devices).unwrap();

        // It is one.
        assert!(shell(&sandbox, "true"));
        let state = bed.path("state");
        assert!(shell(&sandbox, &format!("echo > {0:?}/x && rm {0:?}/x", state)));
        for forbidden in [
            format!("echo > {:?}/x", bed.path("rules.d")),
            "echo > /etc/lkst-test".to_owned(),
            "echo 0 > /proc/sys/kernel/printk".to_owned(),
            "echo 1 > /sys/kernel/tracing/tracing_on".to_owned(),
            "test -n \"$(ls -A /root)\"".to_owned(),
            "unshare -m true".to_owned(),
            "mount -t tmpfs x /mnt".to_owned(),
            "test -e /dev/kmsg || test -e /dev/mem || exit 1".to_owned(),
            "chroot / true".to_owned(),
        ] {
            assert!(!shell(&sandbox, &forbidden), "{forbidden}");
        }

        bed.put("p.lkst", &rules(1024)).unwrap();
        start(&mut bed, &sandbox);
        let counting = Counting::start().unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", bed.pid().unwrap())).unwrap();
        // CAP_DAC_READ_SEARCH, CAP_PERFMON, CAP_BPF.
        let capabilities = 1_u64 << 2 | 1 << 38 | 1 << 39;
        for (name, value) in [
            ("CapBnd", format!("{capabilities:016x}")),
            ("CapPrm", format!("{capabilities:016x}")),
            ("CapInh", format!("{:016x}", 0)),
            ("NoNewPrivs", "1".to_owned()),
            ("Seccomp", "2".to_owned()),
        ] {
            assert!(
                status.contains(&format!("{name}:\t{value}\n")),
                "{name} {value}\n{status}"
            );
        }

        // Saves what a firing keeps.
        trigger(false).unwrap();
        bed.pack_until("p", "has saved", |pack| pack.incidents.saved == 1)
            .unwrap();
        // Takes other rules: classic programs and typed ones, and a system call.
        let more = rules(1024).replace(
            "start with numbered",
            "set more { irq:softirq_entry with vec > 100 sched:sched_switch with next_pid == 1
               syscalls:sys_enter_prctl with option == 1 sched:sched_process_exec }
             start with numbered, more",
        );
        bed.put("p.lkst", &more).unwrap();
        bed.pack_until("p", "has more", |pack| {
            pack.sets.iter().any(|set| set.name == "more" && set.enabled)
        })
        .unwrap();
        let typed = bed.pack("p").unwrap().unwrap();
        assert!(typed.events.iter().any(|event| event.typed), "{typed:#?}");
        trigger(true).unwrap();
        bed.pack_until("p", "has saved again", |pack| pack.incidents.saved >= 2)
            .unwrap();
        let asked = bed.ask("save", &["p"]).unwrap();
        assert!(asked.status.success(), "{asked:?}");
        bed.put("p.lkst", &rules(1024)).unwrap();
        bed.pack_until("p", "has less", |pack| {
            pack.sets.iter().all(|set| set.name != "more")
        })
        .unwrap();

        // Is killed, and takes over.
        bed.kill().unwrap();
        trigger(false).unwrap();
        start(&mut bed, &sandbox);
        assert!(bed.log().contains("took over"), "{}", bed.log());
        bed.pack_until("p", "has nothing kept", |pack| {
            pack.buffers.iter().all(|buffer| !buffer.kept)
        })
        .unwrap();
        let status = bed.status().unwrap().unwrap();
        assert!(status.troubles.is_empty(), "{status:#?}");

        let made = counting.end().unwrap();
        bed.end().unwrap();
        bed.stop_tracing().unwrap();
        assert_eq!(bed.pins(), Vec::<String>::new());
        let numbers = each_once(&bed.traces("p"), &made).unwrap();
        println!("{test}: {numbers} numbers, each in one trace");
    })
    .unwrap();
}
