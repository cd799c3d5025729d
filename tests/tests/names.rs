//! Names of threads that the kernel keeps: of processes that live a millisecond, that ended while no agent ran, and
//! that end when the table is full. Each names itself after its number and then makes one event with that
//! number in it, so each record says by itself which name it must be shown with.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use aya::maps::{HashMap, Map, MapData, MapError};
use lkst::kernel::link::open_pinned;
use lkst::session::{Host, Session};
use lkst_probes::layout::name;
use lkst_tests::agents::Bed;
use lkst_tests::babeltrace::{assert_same_as_show, show_json};
use lkst_tests::lab::Lab;
use lkst_tests::objects::Objects;
use lkst_tests::shared::words;
use lkst_tests::worker::{Worker, cpus, pin, rename};

/// What no process number reaches: a hit with this number and more is one of ours.
const FIRST: u32 = 0x4c00_0000;
const RULES: &str = "
    budget 100%
    set numbered { syscalls:sys_enter_getpgid with pid >= 0x4c000000 record pid }
    start with numbered
";
const TAG: u8 = b'N';

/// A process that names itself after its number, makes one event, and ends.
fn live(serial: u32) {
    let cpus = cpus();
    let cpu = cpus[serial as usize % cpus.len()];
    let worker = Worker::new(cpu, move || {
        rename(TAG, serial);
        event(serial);
    });
    worker.unwrap().join().unwrap();
}

fn event(serial: u32) {
    // SAFETY: asks for the group of a process that does not exist.
    unsafe { libc::syscall(libc::SYS_getpgid, libc::c_long::from(FIRST + serial)) };
}

/// Number and shown name of every record, in order of the numbers.
fn shown(traces: &[PathBuf]) -> Vec<(u32, Option<String>)> {
    let lines = show_json(traces).unwrap();
    let mut found: Vec<(u32, Option<String>)> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["event"], "syscalls:sys_enter_getpgid", "{line}");
            let number = line["fields"]["pid"].as_u64().unwrap() as u32;
            (number - FIRST, line["comm"].as_str().map(str::to_owned))
        })
        .collect();
    found.sort();
    found
}

/// What [`shown`] must be for these numbers.
fn named(serials: impl IntoIterator<Item = u32>) -> Vec<(u32, Option<String>)> {
    let name = |serial| (serial, Some(format!("lkt{}-{serial:08x}", char::from(TAG))));
    serials.into_iter().map(name).collect()
}

/// The folders of traces that a session has left.
fn saved(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("test")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn processes_that_live_a_millisecond_are_shown_with_their_names() {
    let Some(lab) = Lab::open("names of short-lived processes").unwrap() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut session = lab.session(RULES, folder.path().to_owned()).unwrap();
    session.start();
    (0..500).for_each(live);
    session.finish(&mut |_| Ok(())).unwrap();
    assert!(session.troubles.is_empty(), "{:?}", session.troubles);
    let traces = saved(folder.path());
    assert_eq!(shown(&traces), named(0..500));
    for trace in &traces {
        assert_eq!(assert_same_as_show(&trace.join("ctf")), 500);
        // The names that the trace needs, and no others.
        let incident = fs::read(trace.join("incident.json")).unwrap();
        let incident: lkst::trace::incident::Incident = serde_json::from_slice(&incident).unwrap();
        let names: Vec<String> = incident.names.into_values().collect();
        assert_eq!(names.len(), 500, "{names:?}");
        assert!(names.iter().all(|name| name.starts_with("lktN-")), "{names:?}");
    }

    // Where the verifier of another kernel wants probe reads.
    let folder = tempfile::tempdir().unwrap();
    let mut env = lab.environment().unwrap();
    let names = env.features.names.as_mut().unwrap();
    let paths = [&mut names.tid, &mut names.pid, &mut names.comm];
    let hops = paths.into_iter().flat_map(|path| &mut path.hops);
    hops.for_each(|hop| hop.direct = false);
    let mut loaded = lab.load(RULES).unwrap();
    loaded.keep_names(&env, true);
    assert!(loaded.names().is_some());
    let mut session = Session::new(loaded, Host::this().unwrap(), folder.path().to_owned());
    session.start();
    (0..20).for_each(live);
    session.finish(&mut |_| Ok(())).unwrap();
    assert_eq!(shown(&saved(folder.path())), named(0..20));

    // And by nothing but the kernel's table: /proc, which is what there is without it, knows the living alone.
    let folder = tempfile::tempdir().unwrap();
    let loaded = lab.load(RULES).unwrap();
    let mut session = Session::new(loaded, Host::this().unwrap(), folder.path().to_owned());
    session.start();
    (0..20).for_each(live);
    let mut worker = stay(20);
    session.finish(&mut |_| Ok(())).unwrap();
    let mut expected: Vec<_> = (0..20).map(|serial| (serial, None)).collect();
    expected.extend(named([20]));
    assert_eq!(shown(&saved(folder.path())), expected);
    worker.kill();
}

/// A process that names itself, makes one event, and stays until it is killed.
fn stay(serial: u32) -> Worker {
    let words = words().unwrap();
    let worker = Worker::new(cpus()[0], move || {
        rename(TAG, serial);
        event(serial);
        words[0].store(1, SeqCst);
        loop {
            // SAFETY: sleeps.
            unsafe { libc::pause() };
        }
    });
    let mut worker = worker.unwrap();
    worker.go();
    while words[0].load(SeqCst) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    worker
}

/// What has a name in the bed's bpffs because names are kept.
const PINS: [&str; 2] = ["link_sched_process_exit", "map_names"];

fn names_pins(bed: &Bed) -> Vec<String> {
    let mut pins = bed.pins();
    pins.retain(|pin| PINS.contains(&pin.as_str()));
    pins.sort();
    pins
}

fn pinned(bed: &Bed, pin: &str) -> OwnedFd {
    let path = bed.path("bpf/lkst").join(pin);
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    open_pinned(&path).unwrap()
}

/// Fills the table with threads that do not exist, from each CPU: the youngest entries of each are the last to go.
fn push_out(bed: &Bed) {
    std::thread::scope(|scope| {
        for (place, cpu) in cpus().into_iter().enumerate() {
            scope.spawn(move || {
                pin(cpu);
                let map = Map::LruHashMap(MapData::from_fd(pinned(bed, "map_names")).unwrap());
                let mut table: HashMap<MapData, u32, [u8; name::BYTES]> = HashMap::try_from(map).unwrap();
                let first = FIRST + place as u32 * 2 * name::ENTRIES;
                for nobody in first..first + 2 * name::ENTRIES {
                    // As a fork and an exec: what was used twice is kept longer (kernel/bpf/bpf_lru_list.c).
                    table.insert(nobody, [0; name::BYTES], 0).unwrap();
                    table.insert(nobody, [0; name::BYTES], 0).unwrap();
                }
            });
        }
    });
}

fn save(bed: &Bed) -> Vec<PathBuf> {
    let output = bed.ask("save", &["names"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    bed.traces("names")
}

fn started(bed: &mut Bed) {
    bed.start().unwrap();
    bed.pack_until("names", "is in force", |pack| pack.hash.is_some())
        .unwrap();
}

#[test]
fn names_outlive_the_agent_and_whoever_is_pushed_out() {
    let Some(_lab) = Lab::open("names and kill -9").unwrap() else {
        return;
    };
    let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
    bed.put("names.lkst", RULES).unwrap();
    started(&mut bed);
    assert_eq!(names_pins(&bed), PINS);
    bed.kill().unwrap();
    (0..50).for_each(live);
    started(&mut bed);
    assert!(bed.log().contains("took over"), "{}", bed.log());
    // Of what has a name no descriptor stays open, or `rm -r` would end nothing.
    let agents = Objects::of_process(bed.pid().unwrap());
    assert!(agents.links.is_empty(), "{agents:?}");
    assert_eq!(shown(&save(&bed)), named(0..50));

    // A living one is in no table; one that ends finds a place in one that is full.
    let words = words().unwrap();
    let worker = Worker::new(cpus()[0], move || {
        rename(TAG, 50);
        words[0].store(1, SeqCst);
        while words[1].load(SeqCst) == 0 {
            // SAFETY: sleeps.
            unsafe { libc::usleep(1000) };
        }
        event(50);
    });
    let mut worker = worker.unwrap();
    let tid = worker.pid;
    worker.go();
    while words[0].load(SeqCst) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let map = Map::LruHashMap(MapData::from_fd(pinned(&bed, "map_names")).unwrap());
    let table: HashMap<MapData, u32, [u8; name::BYTES]> = HashMap::try_from(map).unwrap();
    assert!(matches!(table.get(&tid, 0), Err(MapError::KeyNotFound)));
    push_out(&bed);
    words[1].store(1, SeqCst);
    worker.join().unwrap();
    let entry = table.get(&tid, 0).unwrap();
    assert_eq!(entry[name::PID..name::COMM], tid.to_le_bytes());
    assert_eq!(entry[name::COMM..][..16], *b"lktN-00000032\0\0\0");
    drop(table);
    let traces = save(&bed);
    assert_eq!(shown(&traces[traces.len() - 1..]).last(), named([50]).first());

    let mut held = Objects::of_process(bed.pid().unwrap());
    for pin in PINS.iter().filter(|pin| pin.starts_with("link_")) {
        let _link = pinned(&bed, pin);
        held.links.extend(Objects::of_process(std::process::id()).links);
    }
    assert!(!held.links.is_empty() && !held.maps.is_empty(), "{held:?}");
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
    assert_eq!(bed.pins(), Vec::<String>::new());
    let left = held.left();
    assert!(left.is_empty(), "left in the kernel: {left:?}");
}

#[test]
fn names_are_kept_for_as_long_as_anything_is_traced() {
    let Some(_lab) = Lab::open("names without packs").unwrap() else {
        return;
    };
    let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
    bed.put("names.lkst", RULES).unwrap();
    started(&mut bed);
    bed.kill().unwrap();
    // As an agent leaves it that keeps no names, or was killed before it had them all.
    for pin in &PINS[..1] {
        fs::remove_file(bed.path("bpf/lkst").join(pin)).unwrap();
    }
    started(&mut bed);
    assert!(bed.log().contains("took over"), "{}", bed.log());
    bed.until("names again", |bed| names_pins(bed) == PINS).unwrap();
    live(0);
    assert_eq!(shown(&save(&bed)), named([0]));
    // Nothing is traced any more.
    fs::remove_file(bed.path("rules.d/names.lkst")).unwrap();
    bed.until("end of what keeps names", |bed| names_pins(bed).is_empty())
        .unwrap();
    bed.put("names.lkst", RULES).unwrap();
    bed.until("names again", |bed| names_pins(bed) == PINS).unwrap();
    // The kill switch is theirs too.
    let ids = Objects::of_process(std::process::id());
    let links: Vec<OwnedFd> = PINS[..1].iter().map(|pin| pinned(&bed, pin)).collect();
    let held = Objects::of_process(std::process::id()).without(&ids);
    assert_eq!(held.links.len(), 1, "{held:?}");
    drop(links);
    bed.kill().unwrap();
    fs::remove_dir_all(bed.path("bpf/lkst")).unwrap();
    let left = held.left();
    assert!(left.is_empty(), "left in the kernel: {left:?}");
}
