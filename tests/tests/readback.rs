//! What `lkst run` leaves is what babeltrace2 reads: traces of this kernel, with records of every shape, incidents and
//! live saves among them, read by both without a warning and with the same values, field for field.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lkst::session::Firing;
use lkst_tests::babeltrace::assert_same_as_show;
use lkst_tests::lab::Lab;

/// Everything that a record can hold: fixed and varying text, arrays, sequences, pointers, times, truths, enums; unions
/// of two lists; typed events, classic ones and system calls.
const RULES: &str = r#"
set wide max 3000/s {
  sched:*  signal:*  task:*  irq:*  timer:*  workqueue:*  exceptions:*  kmem:*  net:*?  skb:*?  sock:*?
  writeback:*  filemap:*?  ext4:*?  jbd2:*?  block:*?  cgroup:*?  raw_syscalls:sys_enter  percpu:*?
}
set calls max 3000/s { syscalls:* }
set texts {
  syscalls:sys_enter_openat  record str(filename) as path, flags, task.comm, task.ppid, cpu, time, flags > 0 as any
  sched:sched_process_exec   record filename, args.bprm.filename as again, old_pid
}
set other { syscalls:sys_enter_openat record dfd, task.uid }
buffer main { size = 2MiB }
buffer incident { size = 1MiB }
start with wide, calls, texts, other
rule switched {
  when sched:sched_process_exec with filename like "*/true"
  then switch buffer incident for 50ms  notify "{filename} by {task.comm}, {pid}"
  limit 2 per 1h
}
rule saved { when sched:sched_process_exec with filename like "*/false" then save after 10ms  once }
"#;

/// Programs, files, sockets, signals: what most systems have events for.
fn workload() -> std::io::Result<()> {
    let script = "/bin/true; ls / >/dev/null; /bin/false; head -c 100000 /dev/zero > $0; sync $0; rm $0; \
                  kill -USR1 $$; sleep 0.15; /bin/true; cat /proc/self/status >/dev/null";
    let scratch = tempfile::NamedTempFile::new()?;
    Command::new("sh")
        .arg("-c")
        .arg(format!("trap : USR1; {script}"))
        .arg(scratch.path())
        .status()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let _client = std::net::TcpStream::connect(listener.local_addr()?)?;
    let _server = listener.accept()?;
    std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"lkst", listener.local_addr()?)?;
    Ok(())
}

/// Every folder below this one that holds a trace.
fn traces(below: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(below)? {
        let path = entry?.path();
        if path.join("metadata").is_file() {
            found.push(path);
        } else if path.is_dir() {
            traces(&path, found)?;
        }
    }
    Ok(())
}

#[test]
fn babeltrace2_reads_what_this_kernel_gave_as_show_does() -> anyhow::Result<()> {
    let Some(lab) = Lab::open("readback")? else {
        return Ok(());
    };
    if !lkst_tests::babeltrace::is_installed() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut session = lab.session(RULES, folder.path().to_owned())?;
    session.start();
    let mut said = Vec::new();
    let mut tell = |firing: &Firing<'_>| {
        said.push(format!("{} {}", firing.rule, firing.text));
        Ok(())
    };
    for _ in 0..2 {
        workload()?;
        for _ in 0..5 {
            session.look_at_names();
            session.tick(&mut tell)?;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    session.finish(&mut tell)?;
    anyhow::ensure!(session.troubles.is_empty(), "{:?}", session.troubles);

    let mut found = Vec::new();
    traces(folder.path(), &mut found)?;
    let mut records = 0;
    for trace in &found {
        records += assert_same_as_show(trace);
    }
    println!("{records} records in {} traces, read alike", found.len());
    let said = said.join(" ");
    assert!(said.contains("switched") && said.contains("saved"), "{said}");
    // The buffer left, the one returned from, the live save, the end.
    assert!(found.len() >= 4, "{found:?}");
    assert!(records > 3_000, "only {records} records");
    Ok(())
}
