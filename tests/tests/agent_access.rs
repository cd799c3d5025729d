//! Who may do what with an agent: the socket's group, whose rules are believed, boots that did not end well, and
//! `lkst=off`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use lkst::guard::GUARD_FILE;
use lkst::status::PackPhase;
use lkst_tests::agents::Bed;
use lkst_tests::lab::Lab;
use lkst_tests::namespace::{bind, with_own_mounts};

/// Nobody, and groups that nobody else is in.
const NOBODY: u32 = 65534;
const MEMBERS: u32 = 61_234;
const OTHERS: u32 = 61_235;

const OTHER_RULES: &str = "set t { sched:sched_process_exit }\nstart with t\n";
const RULES: &str = "set s { sched:sched_process_exec }\nstart with s\n";

fn bed(test: &str) -> Option<(Lab, Bed)> {
    let lab = Lab::open(test).unwrap()?;
    Some((lab, Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap()))
}

/// A command that also those may run who may not see where it was built.
fn command_for_all(bed: &Bed) -> PathBuf {
    let copy = bed.path("lkst");
    fs::copy(env!("CARGO_BIN_EXE_lkst-under-test"), &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    copy
}

fn ask_as(bed: &Bed, lkst: &PathBuf, group: u32, arguments: &[&str]) -> Output {
    Command::new(lkst)
        .arg(arguments[0])
        .args([std::path::Path::new("--run-dir"), &bed.path("run")])
        .args(&arguments[1..])
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .gid(group)
        .uid(NOBODY)
        .output()
        .unwrap()
}

const QUESTIONS: [&[&str]; 7] = [
    &["status"],
    &["reload"],
    &["save"],
    &["switch", "p", "main"],
    &["enable", "p", "s"],
    &["disable", "p", "s"],
    &["reset", "p"],
];

fn refused(bed: &Bed, lkst: &PathBuf, group: u32) {
    for question in QUESTIONS {
        let output = ask_as(bed, lkst, group, question);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{question:?}");
        assert!(output.stdout.is_empty(), "{question:?}: {output:?}");
        assert!(said.contains("is not for you"), "{question:?}: {said}");
    }
}

#[test]
fn who_is_not_in_the_group_gets_nothing() {
    let Some((_lab, mut bed)) = bed("group of the socket") else {
        return;
    };
    let lkst = command_for_all(&bed);
    bed.put("p.lkst", RULES).unwrap();

    // Without a group it is root's alone.
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    let socket = fs::metadata(bed.path("run/control.sock")).unwrap();
    assert_eq!((socket.uid(), socket.mode() & 0o777), (0, 0o600));
    refused(&bed, &lkst, MEMBERS);
    refused(&bed, &lkst, NOBODY);
    assert!(bed.status().unwrap().is_some());
    bed.end().unwrap();

    // With one it is the group's too.
    fs::write(bed.path("lkst.toml"), format!("socket_group = \"{MEMBERS}\"\n")).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    let socket = fs::metadata(bed.path("run/control.sock")).unwrap();
    assert_eq!(
        (socket.uid(), socket.gid(), socket.mode() & 0o777),
        (0, MEMBERS, 0o660)
    );
    refused(&bed, &lkst, OTHERS);
    refused(&bed, &lkst, NOBODY);
    for question in QUESTIONS {
        let output = ask_as(&bed, &lkst, MEMBERS, question);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // To switch to the buffer that one is in is no error.
        assert!(output.status.success(), "{question:?}: {said}");
    }
    // A member sees no incident, and makes no rules.
    bed.ask("save", &["p"]).unwrap();
    let traces = bed.traces("p");
    assert!(!traces.is_empty());
    for (folder, mode) in [(bed.path("state"), None), (bed.path("state/p"), Some(0o700))] {
        let found = fs::metadata(&folder).unwrap();
        assert_eq!(found.uid(), 0);
        if let Some(mode) = mode {
            assert_eq!(found.mode() & 0o777, mode, "{folder:?}");
        }
    }
    let read = Command::new("cat")
        .arg(traces[0].join("incident.json"))
        .gid(MEMBERS)
        .uid(NOBODY)
        .output()
        .unwrap();
    assert!(!read.status.success() && read.stdout.is_empty(), "{read:?}");
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}

#[test]
fn a_group_that_is_not_there_is_said_before_anything_is_loaded() {
    let Some((_lab, bed)) = bed("unknown group") else {
        return;
    };
    fs::write(bed.path("lkst.toml"), "socket_group = \"no_such_group\"\n").unwrap();
    let output = bed.agent_command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("socket_group") && said.contains("no_such_group"),
        "{said}"
    );
    assert_eq!(bed.pins(), Vec::<String>::new());
}

#[test]
fn rules_that_somebody_else_may_write_are_refused_and_that_is_said() {
    let Some((_lab, mut bed)) = bed("rules of others") else {
        return;
    };
    let folder = bed.path("rules.d");
    bed.put("good.lkst", RULES).unwrap();
    bed.put("owned.lkst", RULES).unwrap();
    chown(folder.join("owned.lkst"), Some(NOBODY), None).unwrap();
    let pack = folder.join("open");
    fs::create_dir(&pack).unwrap();
    fs::write(pack.join("pack.toml"), "").unwrap();
    fs::write(pack.join("a.lkst"), RULES).unwrap();
    for file in ["pack.toml", "a.lkst"] {
        fs::set_permissions(pack.join(file), Permissions::from_mode(0o644)).unwrap();
    }
    fs::set_permissions(&pack, Permissions::from_mode(0o777)).unwrap();
    bed.start().unwrap();
    bed.said("rules in force", 1).unwrap();
    for (name, what) in [("owned", "chown root"), ("open", "chmod go-w")] {
        let status = bed
            .pack_until(name, "is refused", |pack| pack.error.is_some())
            .unwrap();
        assert!(status.error.as_ref().unwrap().contains(what), "{status:#?}");
        assert_eq!((status.phase, status.hash), (PackPhase::Off, None));
        assert!(bed.log().contains(what), "{}", bed.log());
    }
    let shown = String::from_utf8(bed.ask("status", &[]).unwrap().stdout).unwrap();
    assert!(
        shown.contains("chown root") && shown.contains("chmod go-w"),
        "{shown}"
    );
    assert_eq!(bed.pack("good").unwrap().unwrap().phase, PackPhase::Active);

    // Mended, they come into force without a word to the agent.
    chown(folder.join("owned.lkst"), Some(0), None).unwrap();
    fs::set_permissions(&pack, Permissions::from_mode(0o755)).unwrap();
    for name in ["owned", "open"] {
        bed.pack_until(name, "is in force", |pack| {
            pack.phase == PackPhase::Active && pack.error.is_none()
        })
        .unwrap();
    }

    // The folder as a whole: what is in force stays so.
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    bed.until("trouble with the folder", |bed| {
        let status = bed.status().unwrap().unwrap_or_default();
        status
            .troubles
            .iter()
            .any(|trouble| trouble.contains("chmod go-w"))
    })
    .unwrap();
    bed.put("intruder.lkst", RULES).unwrap();
    bed.ask("reload", &[]).unwrap();
    let status = bed.status().unwrap().unwrap();
    assert!(
        status.packs.iter().all(|pack| pack.name != "intruder"),
        "{status:#?}"
    );
    let in_force = status.packs.iter().filter(|pack| pack.hash.is_some()).count();
    assert_eq!(in_force, 3, "{status:#?}");
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    bed.pack_until("intruder", "is in force", |pack| pack.hash.is_some())
        .unwrap();
    assert!(bed.status().unwrap().unwrap().troubles.is_empty());
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}

#[test]
fn settings_that_somebody_else_may_write_are_refused() {
    let Some((_lab, bed)) = bed("settings of others") else {
        return;
    };
    let file = bed.path("lkst.toml");
    fs::write(&file, "").unwrap();
    for (mode, owner, what) in [(0o666, 0, "chmod go-w"), (0o644, NOBODY, "chown root")] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        chown(&file, Some(owner), None).unwrap();
        let output = bed.agent_command().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(what), "{said}");
    }
}

/// What a machine has of a boot that a test can show in its place.
struct Machine<'b> {
    bed: &'b mut Bed,
    boots: u32,
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const COMMAND_LINE: &str = "/proc/cmdline";

impl Machine<'_> {
    /// The machine is switched off and on again: another boot, and nothing in the kernel. How the agent ended is for
    /// the caller to say.
    fn boot(&mut self, command_line: &str) {
        self.boots += 1;
        if fs::exists(self.bed.path("bpf/lkst")).unwrap() {
            fs::remove_dir_all(self.bed.path("bpf/lkst")).unwrap();
        }
        let id = self.bed.path(&format!("boot_id.{}", self.boots));
        fs::write(&id, format!("6c6b7374-0000-4000-8000-{:012}\n", self.boots)).unwrap();
        bind(&id, BOOT_ID.as_ref()).unwrap();
        let line = self.bed.path(&format!("cmdline.{}", self.boots));
        fs::write(&line, format!("{command_line}\n")).unwrap();
        bind(&line, COMMAND_LINE.as_ref()).unwrap();
        self.bed.start().unwrap();
    }

    /// It came up with its rules.
    fn loads(&mut self) {
        self.bed.said("rules in force", 1).unwrap();
        let status = self.bed.status().unwrap().unwrap();
        assert!(status.troubles.is_empty(), "{status:#?}");
        assert_eq!(self.bed.pack("p").unwrap().unwrap().phase, PackPhase::Active);
        assert!(!self.bed.pins().is_empty());
    }

    /// It came up without, and says why.
    fn has_none(&mut self, why: &str) {
        self.bed
            .until("an answer", |bed| bed.status().unwrap().is_some())
            .unwrap();
        let status = self.bed.status().unwrap().unwrap();
        let said = |text: &str| status.troubles.iter().any(|trouble| trouble.contains(text));
        assert!(said("no rules are loaded") && said(why), "{status:#?}");
        assert!(status.packs.iter().all(|pack| pack.hash.is_none()), "{status:#?}");
        assert!(self.bed.log().contains(why), "{}", self.bed.log());
        assert!(!self.bed.pins().iter().any(|name| name.starts_with("link_")));
        // Also a change of the rules loads none.
        self.bed.put("p.lkst", OTHER_RULES).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(800));
        assert!(self.bed.pack("p").unwrap().is_none_or(|pack| pack.hash.is_none()));
    }

    /// How many boots in a row the agent remembers as ended early.
    fn remembered(&self) -> u64 {
        let text = fs::read_to_string(self.bed.path("state").join(GUARD_FILE)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["ended_early"].as_u64().unwrap()
    }
}

fn on_a_machine(test: &str, body: impl FnOnce(&mut Machine<'_>) + Send) {
    let Some(_lab) = Lab::open(test).unwrap() else {
        return;
    };
    with_own_mounts(move || {
        // Its bpffs is of this namespace, which ends with the test.
        let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
        bed.put("p.lkst", RULES).unwrap();
        let mut machine = Machine {
            bed: &mut bed,
            boots: 0,
        };
        body(&mut machine);
        bed.end().unwrap();
        bed.stop_tracing().unwrap();
    })
    .unwrap();
}

#[test]
fn after_two_boots_that_ended_early_the_third_is_without_rules() {
    on_a_machine("guard", |machine| {
        for boot in 0..2 {
            machine.boot("quiet");
            machine.loads();
            assert_eq!(machine.remembered(), boot);
            // The machine goes down, and nobody had the time to say so.
            machine.bed.kill().unwrap();
        }
        machine.boot("quiet");
        machine.has_none("the last 2 boots ended within five minutes of a load");
        // It stays so when the agent is started again in this boot, and in the next.
        machine.bed.end().unwrap();
        machine.bed.start().unwrap();
        machine.has_none("the last 2 boots");
        machine.bed.kill().unwrap();
        machine.boot("quiet");
        machine.has_none("the last 2 boots");
        // A person says that the rules are mended.
        let output = machine.bed.ask("reload", &[]).unwrap();
        assert!(output.status.success(), "{output:?}");
        machine.loads();
        assert_eq!(machine.remembered(), 0);
    });
}

#[test]
fn a_boot_that_ends_in_good_order_or_lives_long_is_no_bad_one() {
    on_a_machine("good boots", |machine| {
        for _ in 0..4 {
            machine.boot("quiet");
            machine.loads();
            machine.bed.end().unwrap();
        }
        assert_eq!(machine.remembered(), 0);
        // One bad boot, then one whose load is long past: as if five minutes had gone by.
        machine.boot("quiet");
        machine.loads();
        machine.bed.kill().unwrap();
        machine.boot("quiet");
        machine.loads();
        assert_eq!(machine.remembered(), 1);
        machine.bed.kill().unwrap();
        let file = machine.bed.path("state").join(GUARD_FILE);
        let mut value: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let loaded = value["loaded_at_s"].as_u64().unwrap();
        value["loaded_at_s"] = loaded.saturating_sub(400).into();
        fs::write(&file, value.to_string()).unwrap();
        machine.bed.start().unwrap();
        machine.bed.said("took over", 1).unwrap();
        machine
            .bed
            .until("the end of the five minutes", |bed| {
                let text = fs::read_to_string(bed.path("state").join(GUARD_FILE)).unwrap_or_default();
                text.contains("\"ended_early\":0") || text.contains("\"ended_early\": 0")
            })
            .unwrap();
    });
}

#[test]
fn lkst_off_on_the_kernels_command_line_loads_nothing() {
    on_a_machine("lkst=off", |machine| {
        machine.boot("quiet lkst=off panic=1");
        machine.has_none("`lkst=off` is on the kernel's command line");
        // And no person can do it by mistake.
        let output = machine.bed.ask("reload", &[]).unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("lkst=off"), "{said}");
        assert!(!machine.bed.pins().iter().any(|name| name.starts_with("link_")));
        machine.bed.end().unwrap();
        // Of two the last counts, and so do whole words only.
        machine.boot("lkst=off xlkst=off lkst=on");
        machine.loads();
    });
}
