//! The rules folder under a running agent: every way in which it changes, everything that can be wrong with it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

use lkst::kernel::link::open_pinned;
use lkst::status::PackPhase;
use lkst_tests::agents::{Bed, event_of};
use lkst_tests::lab::Lab;
use lkst_tests::objects::Objects;
use lkst_tests::worker::{Worker, cpus, rename};

fn rules(set: &str) -> String {
    format!("set {set} {{ sched:sched_process_exec }}\nstart with {set}\n")
}

fn bed(test: &str) -> Option<(Lab, Bed)> {
    let lab = Lab::open(test).unwrap()?;
    Some((lab, Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap()))
}

fn has_set(bed: &mut Bed, pack: &str, set: &str) {
    bed.pack_until(pack, &format!("has the set {set}"), |pack| {
        pack.sets.iter().any(|known| known.name == set && known.enabled)
    })
    .unwrap();
}

fn is_gone(bed: &mut Bed, pack: &str) {
    bed.until(&format!("end of {pack}"), |bed| bed.pack(pack).unwrap().is_none())
        .unwrap();
}

fn write(bed: &Bed, name: &str, text: &str) {
    let path = bed.path("rules.d").join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn every_change_of_the_folder_is_seen() {
    let Some((_lab, mut bed)) = bed("changes of the rules folder") else {
        return;
    };
    // It appears later.
    let folder = bed.path("rules.d");
    fs::remove_dir(&folder).unwrap();
    bed.start().unwrap();
    bed.until("trouble with the folder", |bed| {
        let status = bed.status().unwrap().unwrap_or_default();
        status
            .troubles
            .iter()
            .any(|trouble| trouble.contains("does not exist"))
    })
    .unwrap();
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    // Created, written in place, renamed into place, deleted.
    write(&bed, "a.lkst", &rules("one"));
    has_set(&mut bed, "a", "one");
    write(&bed, "a.lkst", &rules("two"));
    has_set(&mut bed, "a", "two");
    bed.put("a.lkst", &rules("three")).unwrap();
    has_set(&mut bed, "a", "three");
    fs::remove_file(folder.join("a.lkst")).unwrap();
    is_gone(&mut bed, "a");
    // Four together.
    for name in ["p", "q", "r", "s"] {
        write(&bed, &format!("{name}.lkst"), &rules("four"));
    }
    for name in ["p", "q", "r", "s"] {
        has_set(&mut bed, name, "four");
    }
    // As Kubernetes swaps a ConfigMap: NAME -> ..data/NAME, ..data -> ..DATE.
    for (version, set) in [("..1", "first"), ("..2", "second")] {
        let version_folder = folder.join(version);
        fs::create_dir(&version_folder).unwrap();
        fs::set_permissions(&version_folder, Permissions::from_mode(0o755)).unwrap();
        write(&bed, &format!("{version}/k.lkst"), &rules(set));
        symlink(version, folder.join("..data_new")).unwrap();
        fs::rename(folder.join("..data_new"), folder.join("..data")).unwrap();
        if version == "..1" {
            symlink("..data/k.lkst", folder.join("k.lkst")).unwrap();
        }
        has_set(&mut bed, "k", set);
    }
    // The folder as a whole.
    let other = bed.path("other.d");
    fs::create_dir(&other).unwrap();
    fs::set_permissions(&other, Permissions::from_mode(0o755)).unwrap();
    fs::write(other.join("whole.lkst"), rules("whole")).unwrap();
    fs::set_permissions(other.join("whole.lkst"), Permissions::from_mode(0o644)).unwrap();
    fs::rename(&folder, bed.path("old.d")).unwrap();
    fs::rename(&other, &folder).unwrap();
    has_set(&mut bed, "whole", "whole");
    is_gone(&mut bed, "k");
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
    assert_eq!(bed.pins(), Vec::<String>::new());
}

#[test]
fn what_is_wrong_with_one_pack_disturbs_no_other_and_is_said() {
    let Some((_lab, mut bed)) = bed("hostile rules folder") else {
        return;
    };
    bed.put("good.lkst", &rules("good")).unwrap();
    bed.put("kept.lkst", &rules("kept")).unwrap();
    bed.start().unwrap();
    has_set(&mut bed, "kept", "kept");
    let before = bed.pack("kept").unwrap().unwrap();

    // The last good version stays.
    bed.put("kept.lkst", "set kept { sched:no_such_event }").unwrap();
    let broken = bed
        .pack_until("kept", "has an error", |pack| pack.error.is_some())
        .unwrap();
    assert_eq!((&broken.hash, broken.phase), (&before.hash, PackPhase::Active));
    assert!(broken.error.unwrap().contains("E101"));
    assert!(broken.sets.iter().any(|set| set.name == "kept" && set.enabled));
    bed.put("kept.lkst", &rules("kept")).unwrap();
    let mended = bed
        .pack_until("kept", "has none", |pack| pack.error.is_none())
        .unwrap();
    assert_eq!(mended.since_unix_ns, before.since_unix_ns, "it never went");

    let folder = bed.path("rules.d");
    assert!(
        Command::new("mkfifo")
            .arg(folder.join("fifo.lkst"))
            .status()
            .unwrap()
            .success()
    );
    symlink("/dev/zero", folder.join("device.lkst")).unwrap();
    let huge = fs::File::create(folder.join("huge.lkst")).unwrap();
    huge.set_permissions(Permissions::from_mode(0o644)).unwrap();
    huge.set_len(100 << 20).unwrap();
    write(&bed, "writable.lkst", &rules("w"));
    fs::set_permissions(folder.join("writable.lkst"), Permissions::from_mode(0o666)).unwrap();
    for (name, what) in [
        ("fifo", "neither a file"),
        ("device", "neither a file"),
        ("huge", "1 MiB"),
        ("writable", "chmod go-w"),
    ] {
        let pack = bed
            .pack_until(name, "is refused", |pack| pack.error.is_some())
            .unwrap();
        assert!(pack.error.as_ref().unwrap().contains(what), "{pack:#?}");
        assert_eq!(pack.phase, PackPhase::Off);
        assert!(bed.log().contains(what), "{}", bed.log());
    }
    assert_eq!(bed.pack("good").unwrap().unwrap().phase, PackPhase::Active);
    fs::set_permissions(folder.join("writable.lkst"), Permissions::from_mode(0o644)).unwrap();
    has_set(&mut bed, "writable", "w");

    // A thousand files: 64 packs at most, and nothing else is disturbed.
    for number in 0..1000 {
        write(&bed, &format!("x{number:04}.lkst"), &rules("x"));
    }
    bed.pack_until("x0999", "is one too many", |pack| {
        pack.error.as_ref().is_some_and(|error| error.contains("64"))
    })
    .unwrap();
    assert_eq!(bed.pack("good").unwrap().unwrap().phase, PackPhase::Active);
    let status = bed.status().unwrap().unwrap();
    let in_force = status.packs.iter().filter(|pack| pack.hash.is_some()).count();
    assert!(in_force <= 64, "{in_force}");
    for number in 0..1000 {
        fs::remove_file(folder.join(format!("x{number:04}.lkst"))).unwrap();
    }
    is_gone(&mut bed, "x0999");
    has_set(&mut bed, "good", "good");
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}

#[test]
fn hosts_set_limits_and_what_is_only_observed() {
    let Some((_lab, mut bed)) = bed("settings of the host") else {
        return;
    };
    fs::write(
        bed.path("lkst.toml"),
        "max_memory = \"64MiB\"
         [never_capture]
         events = [\"syscalls:sys_enter_write\"]
         fields = [\"newcomm\"]
         [pack.watched]
         mode = \"observe\"
         params = { limit = 7 }
        ",
    )
    .unwrap();
    bed.put("good.lkst", &rules("good")).unwrap();
    bed.put(
        "large.lkst",
        &format!("buffer main {{ size = 512MiB }} {}", rules("large")),
    )
    .unwrap();
    bed.put(
        "forbidden.lkst",
        "set s { syscalls:sys_enter_write task:task_rename record newcomm }\nstart with s",
    )
    .unwrap();
    bed.put(
        "watched.lkst",
        "param limit = 1
         set s { task:task_rename with newcomm == \"never\" }
         rule r { when sched:sched_process_exec then enable s notify \"limit {limit}\" limit 1 per 1s }",
    )
    .unwrap_or_default();
    bed.start().unwrap();
    has_set(&mut bed, "good", "good");
    let large = bed.pack("large").unwrap().unwrap();
    let error = large.error.unwrap();
    assert!(
        error.contains("`max_memory`") && error.contains("64 MiB") && error.contains("large"),
        "{error}"
    );
    let forbidden = bed.pack("forbidden").unwrap().unwrap().error.unwrap();
    assert_eq!(forbidden.matches("error[E118]").count(), 2, "{forbidden}");
    let watched = bed.pack("watched").unwrap().unwrap();
    // Its condition names what is forbidden.
    assert!(watched.error.unwrap().contains("E118"));
    bed.put(
        "watched.lkst",
        "param limit = 1
         set s { sched:sched_process_exit }
         rule r { when sched:sched_process_exec then enable s notify \"limit {limit}\" limit 1 per 1s }",
    )
    .unwrap();
    bed.pack_until("watched", "is observed", |pack| pack.phase == PackPhase::Observe)
        .unwrap();
    assert!(Command::new("true").status().unwrap().success());
    let fired = bed
        .pack_until("watched", "has fired", |pack| {
            pack.rules
                .iter()
                .any(|rule| rule.last.as_ref().is_some_and(|last| last.message == "limit 7"))
        })
        .unwrap();
    assert!(
        fired.sets.iter().all(|set| !set.enabled),
        "it acts on nothing: {fired:#?}"
    );
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}

#[test]
fn one_agent_a_folder_and_rm_is_the_kill_switch() {
    let Some((_lab, mut bed)) = bed("two agents and the kill switch") else {
        return;
    };
    bed.put("good.lkst", &rules("good")).unwrap();
    bed.start().unwrap();
    has_set(&mut bed, "good", "good");
    // The same run folder, then only the same pins.
    let second = bed.agent_command().output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another agent"), "{said}");
    let mut third = bed.agent_command();
    let third = third
        .arg("--run-dir")
        .arg(bed.path("run2"))
        .arg("--state-dir")
        .arg(bed.path("state2"))
        .output();
    let said = String::from_utf8_lossy(&third.unwrap().stderr).into_owned();
    assert!(
        said.contains("another agent") || said.contains("cannot be used multiple times"),
        "{said}"
    );

    let recorded = |bed: &Bed| {
        let pack = bed.pack("good").unwrap().unwrap();
        pack.events.iter().map(|event| event.recorded).sum::<u64>()
    };
    let before = recorded(&bed);
    assert!(Command::new("true").status().unwrap().success());
    assert!(recorded(&bed) > before);
    // Also while the agent hangs.
    let links = links(&bed);
    assert!(!links.links.is_empty());
    bed.signal(libc::SIGSTOP);
    fs::remove_dir_all(bed.path("bpf/lkst")).unwrap();
    let begun = Instant::now();
    assert!(links.left().is_empty(), "{links:?}");
    println!(
        "kill switch: {} links gone after {:?}",
        links.links.len(),
        begun.elapsed()
    );
    bed.signal(libc::SIGCONT);
    bed.until("word of the kill switch", |bed| {
        let status = bed.status().unwrap().unwrap_or_default();
        status
            .troubles
            .iter()
            .any(|trouble| trouble.contains("ended by hand"))
    })
    .unwrap();
    assert!(!bed.traces("good").is_empty(), "what was recorded is saved");
    // A change of the folder does not bring it back; a person does.
    bed.put("good.lkst", &rules("better")).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert!(bed.pack("good").unwrap().unwrap().hash.is_none());
    let reloaded = bed.ask("reload", &[]).unwrap();
    assert!(
        reloaded.status.success(),
        "{}",
        String::from_utf8_lossy(&reloaded.stderr)
    );
    has_set(&mut bed, "good", "better");
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}

/// The links that have names.
fn links(bed: &Bed) -> Objects {
    let mut found = Objects::default();
    for name in bed.pins().iter().filter(|name| name.starts_with("link_")) {
        let path = CString::new(bed.path("bpf/lkst").join(name).as_os_str().as_bytes()).unwrap();
        let _link = open_pinned(&path).unwrap();
        found.links.extend(Objects::of_process(std::process::id()).links);
    }
    found
}

#[test]
fn from_the_write_of_a_rule_to_its_first_record() {
    let Some((lab, mut bed)) = bed("time to the first record") else {
        return;
    };
    const PACKS: usize = 64;
    const RULES: usize = 10;
    const ROUNDS: usize = 11;
    // Sixty events, each of about eleven packs.
    let events = lab.usual_events(60);
    assert_eq!(events.len(), 60);
    let text = |pack: usize, round: usize| {
        let rules: String = (0..RULES)
            .map(|number| {
                let event = &events[(pack * RULES + number) % events.len()];
                format!(
                    "rule r{number} {{ when {event} with task.pid == {} then enable s }}\n",
                    4_000_000 + number
                )
            })
            .collect();
        let numbered = match pack {
            0 => format!(
                "set numbered {{ task:task_rename with newcomm == \"lktL-{round:08x}\" }} start with numbered\n"
            ),
            _ => String::new(),
        };
        format!(
            "buffer main {{ size = 64KiB }}\nset s {{ sched:sched_process_exec with task.pid == {pack} }}\n{numbered}{rules}"
        )
    };
    for pack in 0..PACKS {
        bed.put(&format!("p{pack:02}.lkst"), &text(pack, 0)).unwrap();
    }
    bed.start().unwrap();
    bed.pack_until("p63", "is in force", |pack| pack.hash.is_some())
        .unwrap();
    let errors: Vec<_> = bed
        .status()
        .unwrap()
        .unwrap()
        .packs
        .into_iter()
        .filter(|pack| pack.error.is_some())
        .collect();
    assert!(errors.is_empty(), "{errors:#?}");
    let mut took = Vec::new();
    for round in 1..=ROUNDS {
        let cpu = cpus()[0];
        // Renames itself all the time: the first rename that is recorded is the first after the rules are in force.
        let mut worker = Worker::new(cpu, move || {
            loop {
                rename(b'L', round as u32);
                // SAFETY: sleeps.
                unsafe { libc::usleep(1000) };
            }
        })
        .unwrap();
        worker.go();
        let recorded = |bed: &Bed| {
            let pack = bed.pack("p00").unwrap().unwrap();
            event_of(&pack, "task:task_rename").map_or(0, |event| event.recorded)
        };
        let before = recorded(&bed);
        let begun = Instant::now();
        bed.put("p00.lkst", &text(0, round)).unwrap();
        while recorded(&bed) == before {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", bed.log());
        }
        took.push(begun.elapsed());
        worker.kill();
    }
    took.sort_unstable();
    let status = bed.status().unwrap().unwrap();
    let last = status.last_reload.unwrap();
    println!(
        "first record: {PACKS} packs of {} rules, one changed: {:?} from the write to its first record (median of {ROUNDS}, the \
         200 ms of settling among it); the last change took {:.1} ms and loaded {} programs",
        RULES,
        took[took.len() / 2],
        last.took_ns as f64 / 1e6,
        last.programs_loaded
    );
    assert_eq!(last.programs_loaded, 1, "only what changed is loaded");
    // Nothing changed: nothing is loaded.
    assert!(bed.ask("reload", &[]).unwrap().status.success());
    assert_eq!(
        bed.status()
            .unwrap()
            .unwrap()
            .last_reload
            .unwrap()
            .programs_loaded,
        0
    );
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}
