//! The guard against rules that a machine does not survive: what the last boots came to in, "load" or "do not" out.
//!
//! After two boots that ended within five minutes of a load, or with `lkst=off` on the kernel's command line, the agent
//! starts without rules. What it must remember for that is one small file in the state folder.
//!
//! A boot in which the agent was killed and did not come back cannot be told from one that crashed, and counts.
//! A boot that ended by a clean stop neither counts nor excuses those before it.
//!
//! INVARIANT: the file says that a load was begun before it is begun, so that what crashes at once is counted too.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The name of the file in the state folder.
pub const GUARD_FILE: &str = "guard.json";
/// How long after a load a boot has survived it, in seconds.
pub const SURVIVED_AFTER_S: u64 = 300;
/// So many boots in a row that ended early are too many.
pub const TOO_MANY: u32 = 2;
/// The most bytes of the file that are read.
const LARGEST: u64 = 64 << 10;

/// What the guard must know of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's number for this boot.
    pub id: String,
    /// Seconds since it began, by the clock that goes on in suspend.
    pub now_s: u64,
    /// The kernel's command line.
    pub command_line: String,
}

impl Boot {
    /// Asks the kernel.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn read() -> io::Result<Boot> {
        Ok(Boot {
            id: fs::read_to_string("/proc/sys/kernel/random/boot_id")?
                .trim()
                .to_owned(),
            now_s: boot_clock_s(),
            command_line: fs::read_to_string("/proc/cmdline")?,
        })
    }

    /// `lkst=off`; of several, the last counts, as the kernel has it.
    #[must_use]
    pub fn is_off(&self) -> bool {
        let values = self.command_line.split_ascii_whitespace();
        values.filter_map(|word| word.strip_prefix("lkst=")).next_back() == Some("off")
    }
}

/// Seconds since the machine was started, those in suspend included.
#[must_use]
pub fn boot_clock_s() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or(0)
}

/// Whether the agent may load rules when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Load,
    /// It may not, and says why.
    WithoutRules(Why),
}

/// Why there are no rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// `lkst=off`.
    CommandLine,
    /// So many boots in a row ended within five minutes of a load.
    Boots {
        /// How many.
        ended_early: u32,
        /// The file that remembers it.
        file: PathBuf,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::CommandLine => out.write_str(
                "no rules are loaded: `lkst=off` is on the kernel's command line; boot without it",
            ),
            Why::Boots { ended_early, file } => write!(
                out,
                "no rules are loaded: the last {ended_early} boots ended within five minutes of a load; mend the rules, remove \
                 {file:?} and restart the agent"
            ),
        }
    }
}

/// What is remembered from boot to boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The boot that the next three are about.
    pub boot_id: String,
    /// When rules were last loaded in it: seconds since it began.
    pub loaded_at_s: Option<u64>,
    /// Five minutes have passed since.
    pub survived: bool,
    /// The agent was stopped before that, in good order.
    pub stopped: bool,
    /// Boots in a row, before that one, that ended early.
    pub ended_early: u32,
}

impl Memory {
    /// What is remembered once the agent has started.
    #[must_use]
    pub fn begin(mut self, boot: &Boot) -> Memory {
        if self.boot_id == boot.id {
            // What is pinned went on meanwhile, so the five minutes did too.
            self.stopped = false;
            self.loaded_at_s = self.loaded_at_s.map(|at| at.min(boot.now_s));
            self.settle(boot.now_s);
            return self;
        }
        let early = self.loaded_at_s.is_some() && !self.survived && !self.stopped;
        Memory {
            boot_id: boot.id.clone(),
            ended_early: self.ended_early.saturating_add(early.into()),
            ..Memory::default()
        }
    }

    /// Takes note of five minutes that have passed. True where they just did.
    fn settle(&mut self, now_s: u64) -> bool {
        if self.settles_at_s().is_none_or(|at| now_s < at) {
            return false;
        }
        self.survived = true;
        self.ended_early = 0;
        true
    }

    fn settles_at_s(&self) -> Option<u64> {
        let at = self.loaded_at_s.filter(|_| !self.survived);
        at.map(|at| at.saturating_add(SURVIVED_AFTER_S))
    }
}

/// The memory and the file that holds it.
#[derive(Debug)]
pub struct Guard {
    file: PathBuf,
    memory: Memory,
    trouble: Option<String>,
    /// The file lacks what is remembered, since it could not be written.
    unwritten: bool,
}

impl Guard {
    /// Reads what is remembered and judges. A file that is broken is as good as none, and is trouble.
    #[must_use]
    pub fn open(state: &Path, boot: &Boot) -> (Guard, Verdict) {
        let file = state.join(GUARD_FILE);
        let (before, mut trouble) = match read(&file) {
            Ok(memory) => (memory, None),
            Err(error) => {
                let text =
                    format!("{file:?} cannot be read, so boots that ended early are forgotten: {error}");
                (Memory::default(), Some(text))
            }
        };
        let memory = before.clone().begin(boot);
        let verdict = if boot.is_off() {
            Verdict::WithoutRules(Why::CommandLine)
        } else if memory.ended_early >= TOO_MANY {
            Verdict::WithoutRules(Why::Boots {
                ended_early: memory.ended_early,
                file: file.clone(),
            })
        } else {
            Verdict::Load
        };
        let guard = Guard {
            file,
            memory,
            trouble: None,
            unwritten: false,
        };
        let mut unwritten = false;
        // What is not yet worth a file gets none: a machine without rules has nothing to remember.
        if guard.memory != before && before != Memory::default() {
            let failed = guard.save().err().map(|e| guard.cannot_save(&e));
            unwritten = failed.is_some();
            trouble = failed.or(trouble);
        }
        let guard = Guard {
            trouble,
            unwritten,
            ..guard
        };
        (guard, verdict)
    }

    /// What was wrong with the file, for people.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// What is remembered.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// To be called before rules are loaded or changed; `now_s` is the boot clock.
    ///
    /// # Errors
    /// The file cannot be written: a crash would not be counted.
    pub fn loading(&mut self, now_s: u64) -> io::Result<()> {
        self.memory.settle(now_s);
        self.memory.loaded_at_s = Some(now_s);
        self.memory.survived = false;
        self.memory.stopped = false;
        self.write()
    }

    /// When [`Guard::settle`] should be called: seconds of the boot clock. `None`: there is nothing to wait for.
    #[must_use]
    pub fn settles_at_s(&self) -> Option<u64> {
        self.memory.settles_at_s()
    }

    /// Takes note that the machine survived the last load, if it has, and of what could not be written before; `now_s`
    /// is the boot clock.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn settle(&mut self, now_s: u64) -> io::Result<()> {
        match self.memory.settle(now_s) || self.unwritten {
            true => self.write(),
            false => Ok(()),
        }
    }

    /// To be called when the agent ends in good order, such as by SIGTERM: this boot then does not count.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn clean_stop(&mut self, now_s: u64) -> io::Result<()> {
        if self.settles_at_s().is_none() {
            return Ok(());
        }
        if !self.memory.settle(now_s) {
            self.memory.stopped = true;
        }
        self.write()
    }

    /// Forgets boots that ended early.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn forget(&mut self) -> io::Result<()> {
        self.memory.ended_early = 0;
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        let saved = self.save();
        self.unwritten = saved.is_err();
        self.trouble = saved.as_ref().err().map(|error| self.cannot_save(error));
        saved
    }

    fn cannot_save(&self, error: &io::Error) -> String {
        format!(
            "{:?} cannot be written, so a crash after a load would not be counted: {error}",
            self.file
        )
    }

    /// The old file or the new one is there, whenever the machine stops.
    fn save(&self) -> io::Result<()> {
        let new = self.file.with_extension("json.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut out = File::from(rustix::fs::openat(CWD, &new, flags, Mode::RUSR | Mode::WUSR)?);
        serde_json::to_writer(&mut out, &self.memory)?;
        out.write_all(b"\n")?;
        out.sync_all()?;
        fs::rename(&new, &self.file)?;
        let folder = self.file.parent().unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}

fn read(file: &Path) -> io::Result<Memory> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match rustix::fs::openat(CWD, file, flags, Mode::empty()) {
        Ok(opened) => File::from(opened),
        Err(rustix::io::Errno::NOENT) => return Ok(Memory::default()),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    opened.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn boot(id: &str, now_s: u64) -> Boot {
        Boot {
            id: id.to_owned(),
            now_s,
            command_line: "root=/dev/vda quiet\n".to_owned(),
        }
    }

    /// A boot that loads at 10 s and has nothing more to say.
    fn crashes(state: &Path, id: &str) {
        let (mut guard, verdict) = Guard::open(state, &boot(id, 9));
        assert_eq!((verdict, guard.trouble()), (Verdict::Load, None), "{id}");
        guard.loading(10).unwrap();
    }

    fn is_guarded(state: &Path, id: &str) -> bool {
        matches!(
            Guard::open(state, &boot(id, 9)).1,
            Verdict::WithoutRules(Why::Boots { .. })
        )
    }

    #[test]
    fn the_third_boot_is_without_rules_and_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        crashes(dir.path(), "1");
        crashes(dir.path(), "2");
        let (mut guard, verdict) = Guard::open(dir.path(), &boot("3", 9));
        let Verdict::WithoutRules(why) = verdict else {
            panic!("it loads");
        };
        assert!(why.to_string().contains("2 boots") && why.to_string().contains(GUARD_FILE));
        guard.clean_stop(20).unwrap();
        assert!(is_guarded(dir.path(), "3"), "a restart of the agent");
        assert!(is_guarded(dir.path(), "4"), "the next boot");
        guard.forget().unwrap();
        crashes(dir.path(), "5");
    }

    #[test]
    fn removing_the_file_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        crashes(dir.path(), "1");
        crashes(dir.path(), "2");
        let (mut guard, _) = Guard::open(dir.path(), &boot("3", 9));
        fs::remove_file(dir.path().join(GUARD_FILE)).unwrap();
        guard.clean_stop(20).unwrap();
        assert!(
            !is_guarded(dir.path(), "3"),
            "the agent that stops does not bring it back"
        );
    }

    #[test]
    fn five_minutes_excuse_the_boots_before() {
        let dir = tempfile::tempdir().unwrap();
        crashes(dir.path(), "1");
        let (mut guard, _) = Guard::open(dir.path(), &boot("2", 9));
        assert_eq!(guard.settles_at_s(), None);
        guard.loading(10).unwrap();
        assert_eq!(guard.settles_at_s(), Some(310));
        guard.settle(309).unwrap();
        assert_eq!(guard.settles_at_s(), Some(310));
        guard.settle(310).unwrap();
        assert_eq!(guard.settles_at_s(), None);
        crashes(dir.path(), "3");
        assert!(!is_guarded(dir.path(), "4"), "one in a row");
    }

    #[test]
    fn a_later_load_counts_as_the_first_does() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["1", "2"] {
            let (mut guard, _) = Guard::open(dir.path(), &boot(id, 9));
            guard.loading(10).unwrap();
            guard.loading(40_000).unwrap();
        }
        // The second boot outlived its first load, which excused the first boot; only the second ended early.
        let (guard, verdict) = Guard::open(dir.path(), &boot("3", 9));
        assert_eq!((guard.memory().ended_early, verdict), (1, Verdict::Load));
    }

    #[test]
    fn a_clean_stop_neither_counts_nor_excuses() {
        let dir = tempfile::tempdir().unwrap();
        crashes(dir.path(), "1");
        let (mut guard, _) = Guard::open(dir.path(), &boot("2", 9));
        guard.loading(10).unwrap();
        guard.clean_stop(20).unwrap();
        crashes(dir.path(), "3");
        assert!(is_guarded(dir.path(), "4"));
    }

    #[test]
    fn a_stop_counts_no_more_once_the_agent_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut guard, _) = Guard::open(dir.path(), &boot("1", 9));
        guard.loading(10).unwrap();
        guard.clean_stop(20).unwrap();
        let (guard, _) = Guard::open(dir.path(), &boot("1", 30));
        assert_eq!(guard.settles_at_s(), Some(310), "what is pinned went on");
        let (guard, _) = Guard::open(dir.path(), &boot("2", 9));
        assert_eq!(guard.memory().ended_early, 1);
    }

    #[test]
    fn an_agent_that_comes_back_late_has_survived() {
        let dir = tempfile::tempdir().unwrap();
        crashes(dir.path(), "1");
        let (guard, _) = Guard::open(dir.path(), &boot("1", 500));
        assert!(guard.memory().survived);
        assert_eq!(Guard::open(dir.path(), &boot("2", 9)).0.memory().ended_early, 0);
    }

    #[test]
    fn a_boot_without_a_load_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["1", "2", "3", "4"] {
            assert_eq!(Guard::open(dir.path(), &boot(id, 9)).1, Verdict::Load);
        }
        assert!(!dir.path().join(GUARD_FILE).exists());
    }

    #[test]
    fn the_command_line_turns_rules_off() {
        let dir = tempfile::tempdir().unwrap();
        for (line, off) in [
            ("quiet lkst=off ro\n", true),
            ("lkst=on lkst=off", true),
            ("lkst=off lkst=on", false),
            ("xlkst=off", false),
            ("lkst=offline", false),
            ("", false),
        ] {
            let boot = Boot {
                command_line: line.to_owned(),
                ..boot("1", 9)
            };
            let expected = match off {
                true => Verdict::WithoutRules(Why::CommandLine),
                false => Verdict::Load,
            };
            assert_eq!(Guard::open(dir.path(), &boot).1, expected, "{line:?}");
        }
    }

    #[test]
    fn a_broken_file_is_as_good_as_none_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(GUARD_FILE);
        for bytes in [&b""[..], b"{", b"[1]", b"\xff", b"{\"ended_early\": -1}"] {
            fs::write(&file, bytes).unwrap();
            let (mut guard, verdict) = Guard::open(dir.path(), &boot("1", 9));
            assert_eq!(verdict, Verdict::Load);
            assert!(
                guard
                    .trouble()
                    .is_some_and(|text| text.contains("cannot be read"))
            );
            guard.loading(10).unwrap();
            assert_eq!(guard.trouble(), None);
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        let (mut guard, _) = Guard::open(dir.path(), &boot("1", 9));
        assert!(guard.trouble().is_some());
        assert!(guard.loading(10).is_err());
        assert!(
            guard
                .trouble()
                .is_some_and(|text| text.contains("cannot be written"))
        );
    }

    #[test]
    fn the_file_is_for_its_owner_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        crashes(dir.path(), "1");
        let mode = fs::metadata(dir.path().join(GUARD_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn this_machine_can_be_asked() {
        let boot = Boot::read().unwrap();
        assert!(boot.id.len() >= 32 && !boot.command_line.contains('\0'));
    }
}
