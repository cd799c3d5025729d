//! The agent and its worst users: clients that hang, by the hundred; orders given all at once; disks with a block too
//! few; a rules folder that is mounted and unmounted; links that lead in circles; an agent that is stopped for a while.
//!
//! Tracing goes on, which numbered renames show, and whoever may ask is answered.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use lkst_tests::agents::Bed;
use lkst_tests::lab::Lab;
use lkst_tests::namespace::{mount_new, unmount, with_own_mounts};
use lkst_tests::numbered::{Counting, each_once, rules, trigger};
use lkst_tests::worker::{Worker, cpus};

const RULES: &str = "set s { sched:sched_process_exec }\nstart with s\n";
const MEMBERS: u32 = 61_236;
const NOBODY: u32 = 65_534;

fn bed(test: &str) -> Option<(Lab, Bed)> {
    let lab = Lab::open(test).unwrap()?;
    Some((lab, Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap()))
}

/// Ends it; each number must be in exactly one trace.
fn end(mut bed: Bed, counting: Counting, test: &str) {
    let made = counting.end().unwrap();
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
    assert_eq!(bed.pins(), Vec::<String>::new());
    let traces = bed.traces("p");
    let numbers = each_once(&traces, &made).unwrap();
    println!(
        "{test}: {numbers} numbers, each in one of {} traces",
        traces.len()
    );
}

fn descriptors(bed: &Bed) -> usize {
    fs::read_dir(format!("/proc/{}/fd", bed.pid().unwrap()))
        .unwrap()
        .count()
}

/// A process of a member of the group that connects so often, sends something each time and then only waits. Only
/// system calls are made in it.
fn hang(socket: &Path, connections: usize) -> Worker {
    let parts: [&[u8]; 4] = [
        b"",
        b"GET /v1/sta",
        b"POST /v1/switch HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    // SAFETY: all zeros is an address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let path = socket.as_os_str().as_bytes();
    assert!(path.len() < address.sun_path.len());
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = from.cast_signed();
    }
    let cpu = cpus()[0];
    let mut worker = Worker::new(cpu, move || {
        // SAFETY: plain system calls; the address and the parts are owned by this process.
        unsafe {
            libc::setgroups(0, std::ptr::null());
            libc::setgid(MEMBERS);
            libc::setuid(NOBODY);
            for number in 0..connections {
                let fd = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0);
                let connected = libc::connect(
                    fd,
                    (&raw const address).cast(),
                    size_of::<libc::sockaddr_un>() as libc::socklen_t,
                );
                if connected == 0 {
                    let part = parts[number % parts.len()];
                    libc::send(fd, part.as_ptr().cast(), part.len(), libc::MSG_NOSIGNAL);
                }
            }
            loop {
                libc::pause();
            }
        }
    })
    .unwrap();
    worker.go();
    worker
}

#[test]
fn a_thousand_clients_that_hang_keep_root_out_of_nothing() {
    let test = "a thousand clients";
    let Some((_lab, mut bed)) = bed(test) else { return };
    fs::write(bed.path("lkst.toml"), format!("socket_group = \"{MEMBERS}\"\n")).unwrap();
    bed.put("p.lkst", &rules(1024)).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    let counting = Counting::start().unwrap();
    // It listens once its rules are in force.
    bed.until("an answer", |bed| bed.status().unwrap().is_some())
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let before = descriptors(&bed);
    let socket = bed.path("run/control.sock");
    let mut clients: Vec<Worker> = (0..4).map(|_| hang(&socket, 250)).collect();
    // For longer than a request may take to arrive.
    let begun = Instant::now();
    let mut answers = 0;
    while begun.elapsed() < Duration::from_secs(7) {
        let asked = Instant::now();
        let status = bed.status().unwrap();
        assert!(status.is_some(), "root is not answered");
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
        assert!(descriptors(&bed) < before + 60, "{}", descriptors(&bed));
        answers += 1;
        if answers % 20 == 0 {
            clients.push(hang(&socket, 100));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    trigger(false).unwrap();
    bed.pack_until("p", "has saved", |pack| pack.incidents.saved == 1)
        .unwrap();
    drop(clients);
    bed.until("end of all connections", |bed| descriptors(bed) <= before)
        .unwrap();
    println!("{test}: root was answered {answers} times");
    end(bed, counting, test);
}

#[test]
fn nonsense_on_the_socket_is_answered_or_ended() {
    let Some((_lab, mut bed)) = bed("nonsense") else {
        return;
    };
    bed.put("p.lkst", RULES).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    let headers = format!("GET /v1/status HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(100_000));
    let deep = format!("{}1{}", "[".repeat(30_000), "]".repeat(30_000));
    let body = |body: &str| {
        let length = body.len();
        format!(
            "POST /v1/save HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    };
    let wide = format!("{{\"pack\": \"{}\"}}", "p".repeat(1 << 20));
    for (request, status) in [
        (long.as_str(), "431"),
        (&headers, "431"),
        (&body(&deep), "400"),
        (&body(&wide), "413"),
        (&body("{\"pack\": 1}"), "400"),
        (&body("{\"pack\": \"../../etc\"}"), "404"),
        (&body("{\"pack\": \"p\", \"more\": 1}"), "400"),
        (&body("null"), "400"),
        (
            "GET /v1/../v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "404",
        ),
        (
            "DELETE /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "405",
        ),
        ("\0\0\0\0\r\n\r\n", "400"),
    ] {
        let mut stream = UnixStream::connect(bed.path("run/control.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // It may hang up before it has heard all.
        let _heard = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let shown: String = request.chars().take(60).collect();
        assert!(
            answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{shown:?}: {answer}"
        );
        assert!(bed.status().unwrap().is_some(), "after {shown:?}");
    }
    // What is asked for by many at once is answered to each, or refused; nobody is forgotten.
    let asked: Vec<_> = std::thread::scope(|scope| {
        let bed = &bed;
        let threads: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| bed.ask("status", &["--json"]).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(asked.iter().any(|output| output.status.success()));
    for output in asked.iter().filter(|output| !output.status.success()) {
        assert!(!output.stderr.is_empty());
    }
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}

#[test]
fn orders_that_come_all_at_once_lose_nothing() {
    let test = "orders";
    let Some((_lab, mut bed)) = bed(test) else { return };
    bed.put("p.lkst", &rules(2048)).unwrap();
    bed.put("q.lkst", RULES).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    let counting = Counting::start().unwrap();
    let orders: [&[&str]; 6] = [
        &["save"],
        &["switch", "p", "away"],
        &["switch", "p", "main"],
        &["reload"],
        &["save", "p"],
        &["reset", "q"],
    ];
    let begun = Instant::now();
    let (done, refused) = std::thread::scope(|scope| {
        let bed = &bed;
        let threads: Vec<_> = orders
            .iter()
            .map(|order| {
                scope.spawn(move || {
                    let (mut done, mut refused) = (0, 0);
                    while begun.elapsed() < Duration::from_secs(10) {
                        let output = bed.ask(order[0], &order[1..]).unwrap();
                        match output.status.success() {
                            true => done += 1,
                            false => {
                                // That a buffer is not saved yet is the one good reason.
                                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                                assert_eq!(order[0], "switch", "{order:?}: {said}");
                                refused += 1;
                            }
                        }
                    }
                    (done, refused)
                })
            })
            .collect();
        let each = threads.into_iter().map(|thread| thread.join().unwrap());
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    println!("{test}: {done} done, {refused} refused");
    assert!(done > 100, "{done}");
    bed.pack_until("p", "has nothing kept", |pack| {
        pack.buffers.iter().all(|buffer| !buffer.kept)
    })
    .unwrap();
    end(bed, counting, test);
}

#[test]
fn a_disk_with_a_block_too_few_has_no_half_trace() {
    let test = "blocks";
    let Some(_lab) = Lab::open(test).unwrap() else {
        return;
    };
    with_own_mounts(|| {
        let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
        let state = bed.path("state");
        mount_new(c"tmpfs", &state, "size=16m,mode=0700").unwrap();
        bed.put("p.lkst", &rules(1024)).unwrap();
        bed.start().unwrap();
        bed.said("rules in force", 1).unwrap();
        let counting = Counting::start().unwrap();
        let filler = bed.path("state/filler");
        let mut failed = 0;
        for (round, free) in [0_u64, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24]
            .into_iter()
            .enumerate()
        {
            let before = bed.pack("p").unwrap().unwrap().incidents.saved;
            std::thread::sleep(Duration::from_millis(200));
            let mut file = fs::File::create(&filler).unwrap();
            while file.write_all(&[0; 4096]).is_ok() {}
            let length = file.metadata().unwrap().len();
            file.set_len(length - free * 4096).unwrap();
            drop(file);
            trigger(round % 2 == 1).unwrap();
            let pack = bed
                .pack_until("p", "was saved, or not", |pack| {
                    pack.incidents.error.is_some() || pack.incidents.saved > before
                })
                .unwrap();
            failed += u32::from(pack.incidents.error.is_some());
            fs::remove_file(&filler).unwrap();
            bed.pack_until("p", "was saved", |pack| {
                pack.incidents.saved > before && pack.buffers.iter().all(|buffer| !buffer.kept)
            })
            .unwrap();
        }
        println!("{test}: {failed} of 15 did not fit at first");
        assert!(failed >= 5, "{failed}");
        end(bed, counting, test);
    })
    .unwrap();
}

#[test]
fn a_rules_folder_that_is_mounted_and_unmounted_is_followed() {
    let Some(_lab) = Lab::open("mounted rules folder").unwrap() else {
        return;
    };
    with_own_mounts(|| {
        let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
        let folder = bed.path("rules.d");
        bed.put("below.lkst", RULES).unwrap();
        bed.start().unwrap();
        bed.said("rules in force", 1).unwrap();
        for round in 0..2 {
            mount_new(c"tmpfs", &folder, "size=1m,mode=0755").unwrap();
            bed.put("mounted.lkst", RULES).unwrap();
            bed.pack_until("mounted", "is in force", |pack| pack.hash.is_some())
                .unwrap();
            bed.until("end of what is below", |bed| bed.pack("below").unwrap().is_none())
                .unwrap();
            // What changes in it is seen, as anywhere.
            bed.put("later.lkst", RULES).unwrap();
            bed.pack_until("later", "is in force", |pack| pack.hash.is_some())
                .unwrap();
            unmount(&folder).unwrap();
            bed.pack_until("below", "is in force", |pack| pack.hash.is_some())
                .unwrap();
            bed.until("end of what was mounted", |bed| {
                bed.pack("mounted").unwrap().is_none()
            })
            .unwrap();
            let name = format!("new_{round}.lkst");
            bed.put(&name, RULES).unwrap();
            bed.pack_until(&format!("new_{round}"), "is in force", |pack| pack.hash.is_some())
                .unwrap();
        }
        assert!(bed.status().unwrap().unwrap().troubles.is_empty());
        bed.end().unwrap();
        bed.stop_tracing().unwrap();
    })
    .unwrap();
}

#[test]
fn systemd_is_told_to_wait_while_rules_are_loaded() {
    let Some((_lab, mut bed)) = bed("watchdog") else {
        return;
    };
    let socket = bed.path("notify.sock");
    let notified = UnixDatagram::bind(&socket).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    bed.put("p.lkst", RULES).unwrap();
    bed.start_by(|mut command, log| {
        command
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "30000000")
            .stderr(log)
            .spawn()
    })
    .unwrap();
    let mut bytes = [0; 4096];
    let mut until = |wanted: &str| -> Vec<String> {
        let mut said = Vec::new();
        loop {
            let length = notified
                .recv(&mut bytes)
                .unwrap_or_else(|error| panic!("no {wanted}: {error}: {said:?}"));
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            said.extend(text.lines().map(str::to_owned));
            if said.iter().any(|line| line == wanted) {
                return said;
            }
        }
    };
    let place = |said: &[String], line: &str| said.iter().position(|found| found == line).unwrap();
    let said = until("READY=1");
    assert!(
        place(&said, "WATCHDOG_USEC=600000000") < place(&said, "WATCHDOG_USEC=30000000"),
        "{said:?}"
    );
    assert!(
        said.iter().any(|line| line.starts_with("EXTEND_TIMEOUT_USEC=")),
        "{said:?}"
    );
    // While nothing happens it lives by the usual watchdog, and says so.
    until("WATCHDOG=1");
    bed.put("p.lkst", &RULES.replace("exec", "exit")).unwrap();
    until("WATCHDOG_USEC=600000000");
    until("WATCHDOG_USEC=30000000");
    bed.signal(libc::SIGTERM);
    until("STOPPING=1");
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}

#[test]
fn links_in_circles_and_settings_without_end_have_one() {
    let Some((_lab, mut bed)) = bed("circles") else {
        return;
    };
    let folder = bed.path("rules.d");
    symlink("loop.lkst", folder.join("loop.lkst")).unwrap();
    symlink(".", folder.join("itself")).unwrap();
    symlink("..", folder.join("above")).unwrap();
    symlink("/", folder.join("all")).unwrap();
    symlink("/proc/self/fd", folder.join("descriptors")).unwrap();
    let pack = folder.join("circle");
    fs::create_dir(&pack).unwrap();
    fs::set_permissions(&pack, Permissions::from_mode(0o755)).unwrap();
    fs::write(pack.join("pack.toml"), "").unwrap();
    fs::set_permissions(pack.join("pack.toml"), Permissions::from_mode(0o644)).unwrap();
    symlink("../circle", pack.join("circle")).unwrap();
    symlink("../circle", pack.join("a.lkst")).unwrap();
    bed.put("good.lkst", RULES).unwrap();
    let settings = bed.path("lkst.toml");
    // Settings that never end, and some that are too many.
    assert!(Command::new("mkfifo").arg(&settings).status().unwrap().success());
    let refused = |what: &str| {
        let begun = Instant::now();
        let output = bed.agent_command().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{what}: {said}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        assert!(said.contains("lkst.toml"), "{what}: {said}");
    };
    refused("a FIFO");
    fs::remove_file(&settings).unwrap();
    symlink("/dev/zero", &settings).unwrap();
    refused("a device");
    fs::remove_file(&settings).unwrap();
    fs::write(&settings, "# x\n".repeat(2 << 20)).unwrap();
    refused("8 MiB");
    fs::write(&settings, "a.".repeat(100_000) + "a = 1\n").unwrap();
    refused("depth without end");
    fs::write(&settings, "a = ".to_owned() + &"[".repeat(100_000)).unwrap();
    refused("brackets without end");
    fs::remove_file(&settings).unwrap();

    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    bed.pack_until("good", "is in force", |pack| pack.hash.is_some())
        .unwrap();
    let status = bed.status().unwrap().unwrap();
    for name in ["loop", "circle"] {
        let pack = status.packs.iter().find(|pack| pack.name == name);
        assert!(
            pack.is_some_and(|pack| pack.error.is_some()),
            "{name}: {status:#?}"
        );
    }
    bed.put("later.lkst", RULES).unwrap();
    bed.pack_until("later", "is in force", |pack| pack.hash.is_some())
        .unwrap();
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}

#[test]
fn an_agent_that_is_stopped_for_a_while_catches_up() {
    let test = "stopped agent";
    let Some((_lab, mut bed)) = bed(test) else { return };
    bed.put("p.lkst", &rules(1024)).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    let counting = Counting::start().unwrap();
    for round in 1..=3_u64 {
        let before = bed.pack("p").unwrap().unwrap();
        bed.signal(libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(300));
        // The kernel decides without it; the second is refused, since what was kept is not saved.
        trigger(round % 2 == 0).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        trigger(round % 2 == 1).unwrap();
        bed.put("p.lkst", &(rules(1024) + &format!("# {round}\n")))
            .unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        bed.signal(libc::SIGCONT);
        let refused =
            |pack: &lkst::status::PackStatus| pack.rules.iter().map(|rule| rule.refused).sum::<u64>();
        let pack = bed
            .pack_until("p", "has saved", |pack| {
                pack.incidents.saved > before.incidents.saved
                    && pack.buffers.iter().all(|buffer| !buffer.kept)
            })
            .unwrap();
        assert!(
            pack.rules.iter().map(|rule| rule.fired).sum::<u64>() >= 2 * round,
            "{pack:#?}"
        );
        assert!(refused(&pack) >= refused(&before), "{pack:#?}");
    }
    end(bed, counting, test);
}
