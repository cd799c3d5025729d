//! Rules that compare one text: each finds the hits that are its own, however many they are and wherever the text lies.
//!
//! The ground truth are renames and opened paths whose numbers the test makes: each name another number of times.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::CStr;
use std::fmt::Write as _;

use lkst_tests::lab::{Counted as _, Lab};
use lkst_tests::worker::{Worker, cpus, set_name};

const EVENT: &str = "syscalls:sys_enter_openat";
/// Paths of which each rule asks for one: short, long, and longer than what is compared on the stack.
const PATHS: [&CStr; 6] = [
    c"/lkst-none",
    c"/lkst-none/a",
    c"/lkst-none/ab",
    c"/lkst-none/abcdefghijklmnopqrstuvwxyz",
    c"/lkst-none/abcdefghijklmnopqrstuvwxyz/abcdefghijklmnopqrstuvwxyz.so",
    c"/lkst-none/b.so",
];

/// Names that have beginnings in common, end before, at and behind the eighth byte, and fill all of a task's name.
const NAMES: [&CStr; 16] = [
    c"",
    c"a",
    c"ab",
    c"abc",
    c"abcdefg",
    c"abcdefgh",
    c"abcdefghi",
    c"abcdefghijklmn",
    c"abcdefghijklmno",
    c"abcdefghijklmnx",
    c"abcdefgx",
    c"b",
    c"bcdefgh",
    c"\t",
    c"\xc3\xa4\xc3\xb6\xc3\xbc\xc3\x9f",
    c"zzzzzzzz",
];
/// Names that no rule asks for, each as near to one of the others as can be.
const STRANGERS: [&CStr; 6] = [c"A", c"abd", c"abcdefghij", c"abcdefghijklm", c"zzzzzzz", c"\n"];
/// What a task is called between two names.
const NEUTRAL: &CStr = c"-";

/// As it stands in a rule.
fn quoted(name: &CStr) -> String {
    format!("\"{}\"", name.to_str().unwrap().replace('\t', "\\t"))
}

/// As often as its place says.
fn times(place: usize) -> usize {
    place + 1
}

fn rule(rules: &mut String, event: &str, name: &str, with: &str) {
    writeln!(
        rules,
        "rule {name} {{ when {event} with {with} then enable flag limit 65535 per 1h }}"
    )
    .unwrap();
}

#[test]
fn each_rule_finds_its_own_names() {
    let Some(lab) = Lab::open("equal texts").unwrap() else {
        return;
    };
    let worker = Worker::new(cpus()[0], || {
        set_name(NEUTRAL);
        // Long ones first, so that something lies behind the NUL of the short ones.
        for (place, name) in NAMES.iter().enumerate().rev() {
            for _ in 0..times(place) {
                set_name(name);
                set_name(NEUTRAL);
            }
        }
        for stranger in STRANGERS {
            set_name(stranger);
            set_name(NEUTRAL);
        }
    })
    .unwrap();
    let pid = worker.pid;
    let all: Vec<String> = NAMES.iter().map(|name| quoted(name)).collect();
    let mut rules = String::from("set flag { }\n");
    let mut rule = |name: &str, with: &str| rule(&mut rules, "task:task_rename", name, with);
    for field in ["newcomm", "oldcomm"] {
        for (place, name) in all.iter().enumerate() {
            rule(
                &format!("{field}{place}"),
                &format!("{field} == {name} and pid == {pid}"),
            );
        }
        let listed = all.join(", ");
        rule(
            &format!("{field}_first"),
            &format!("pid == {pid} and {field} in {{ {} }}", all[..8].join(", ")),
        );
        rule(
            &format!("{field}_either"),
            &format!(
                "({field} == {} or {} == {field}) and pid == {pid}",
                all[3], all[9]
            ),
        );
        // No tree over rules finds these two.
        rule(
            &format!("{field}_any"),
            &format!("({field} in {{ {listed} }} or pid == 0) and pid == {pid}"),
        );
        rule(
            &format!("{field}_none"),
            &format!("{field} not in {{ {listed} }} and pid == {pid}"),
        );
    }
    let mut both = [true, false].map(|typed| lab.load_one_way(&rules, typed).unwrap());
    for loaded in &both {
        loaded.start();
    }
    worker.join().unwrap();
    let in_all: usize = (0..NAMES.len()).map(times).sum();
    for loaded in &mut both {
        loaded.stop().unwrap();
        for field in ["newcomm", "oldcomm"] {
            let fired = |rule: &str| loaded.rule(&format!("{field}{rule}")).fired as usize;
            for (place, name) in NAMES.iter().enumerate() {
                assert_eq!(fired(&place.to_string()), times(place), "{field} {name:?}");
            }
            assert_eq!(fired("_first"), (0..8).map(times).sum::<usize>());
            assert_eq!(fired("_either"), times(3) + times(9));
            assert_eq!(fired("_any"), in_all);
            // Each name is left for the neutral one, which is taken once more at the beginning.
            let others = 1 + in_all + 2 * STRANGERS.len();
            assert_eq!(fired("_none"), others);
        }
    }
    println!(
        "equal texts: {} renames, each found by its own rule among {}",
        2 * in_all,
        2 * NAMES.len()
    );
}

fn open(path: *const libc::c_char) {
    // SAFETY: the kernel reads a path, and fails where none is.
    unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, libc::O_RDONLY) };
}

#[test]
fn each_rule_finds_its_own_paths() {
    let Some(lab) = Lab::open("equal paths").unwrap() else {
        return;
    };
    const UNREADABLE: usize = 7;
    let worker = Worker::new(cpus()[0], || {
        // A path that its process has not looked at yet cannot be read at the entry.
        for path in PATHS {
            let bytes = std::hint::black_box(path).to_bytes();
            std::hint::black_box(bytes.iter().fold(0, |sum, byte| sum ^ byte));
        }
        for (place, path) in PATHS.iter().enumerate().rev() {
            for _ in 0..times(place) {
                open(path.as_ptr());
            }
        }
        for _ in 0..UNREADABLE {
            open(std::ptr::without_provenance(8));
        }
    })
    .unwrap();
    let pid = worker.pid;
    let mut rules = String::from("set flag { }\n");
    let mut rule = |name: &str, with: &str| rule(&mut rules, EVENT, name, with);
    for (place, path) in PATHS.iter().enumerate() {
        rule(
            &format!("path{place}"),
            &format!("str(filename) == {}", quoted(path)),
        );
    }
    // What the rest needs is loaded once for all of them: the path, and who opens it.
    rule("below", "str(filename) like \"/lkst-none/*\"");
    rule(
        "libraries",
        &format!("str(filename) like \"*.so\" and task.pid == {pid}"),
    );
    rule(
        "alphabet",
        &format!("str(filename) like \"*xyz*\" and task.pid == {pid}"),
    );
    rule(
        "others",
        &format!("str(filename) not in {{ \"/lkst-none\", \"/lkst-none/a\" }} and task.pid == {pid}"),
    );
    rule("all", &format!("task.pid >= {pid} and task.pid <= {pid}"));
    rule(
        "all_again",
        &format!("task.pid > {} and task.pid < {}", pid - 1, pid + 1),
    );
    let mut loaded = lab.load(&rules).unwrap();
    loaded.start();
    worker.join().unwrap();
    loaded.stop().unwrap();
    let fired = |rule: &str| loaded.rule(rule).fired as usize;
    for (place, path) in PATHS.iter().enumerate() {
        assert_eq!(fired(&format!("path{place}")), times(place), "{path:?}");
    }
    let readable: usize = (0..PATHS.len()).map(times).sum();
    assert_eq!(fired("below"), readable - times(0));
    assert_eq!(fired("libraries"), times(4) + times(5));
    assert_eq!(fired("alphabet"), times(3) + times(4));
    assert_eq!(fired("others"), readable - times(0) - times(1));
    assert_eq!(
        (fired("all"), fired("all_again")),
        (readable + UNREADABLE, readable + UNREADABLE)
    );
    assert!(loaded.event(EVENT).unreadable as usize >= UNREADABLE);
    println!(
        "equal texts: {} opened paths, each found by its own rule",
        readable
    );
}
