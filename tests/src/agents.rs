//! `lkst agent` with folders of its own, for suites that start, kill and question it.
//!
//! A [`Bed`] that is dropped ends its agent, takes what it has put into the kernel out again and unmounts what was
//! mounted in its folders, so a test that fails leaves nothing behind.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lkst::status::{EventStatus, PackStatus, Status};

use crate::namespace::{mount_new, unmount_all};

/// How long anything may take that takes well below a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a pack says of an event.
#[must_use]
pub fn event_of<'p>(pack: &'p PackStatus, name: &str) -> Option<&'p EventStatus> {
    pack.events.iter().find(|event| event.name == name)
}

/// An agent and its folders.
#[derive(Debug)]
pub struct Bed {
    binary: String,
    dir: tempfile::TempDir,
    child: Option<Child>,
    logs: usize,
}

impl Bed {
    /// Makes the folders; `binary` is the command `lkst`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(binary: &str) -> anyhow::Result<Bed> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        for folder in ["rules.d", "state", "run", "bpf"] {
            fs::create_dir(dir.path().join(folder))?;
            fs::set_permissions(dir.path().join(folder), Permissions::from_mode(0o755))?;
        }
        mount_new(c"bpf", &dir.path().join("bpf"), "").context("cannot mount a bpffs")?;
        Ok(Bed {
            binary: binary.to_owned(),
            dir,
            child: None,
            logs: 0,
        })
    }

    /// The folder of all.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `lkst` with a subcommand and the flags of this bed's folders.
    #[must_use]
    pub fn agent_command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("agent")
            .args([Path::new("--config"), &self.path("lkst.toml")])
            .args([Path::new("--rules-dir"), &self.path("rules.d")])
            .args([Path::new("--state-dir"), &self.path("state")])
            .args([Path::new("--run-dir"), &self.path("run")])
            .args([Path::new("--pin-dir"), &self.path("bpf/lkst")])
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// `lkst SUBCOMMAND --run-dir …` with further arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ask(&self, subcommand: &str, arguments: &[&str]) -> io::Result<std::process::Output> {
        Command::new(&self.binary)
            .arg(subcommand)
            .args([Path::new("--run-dir"), &self.path("run")])
            .args(arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.start_by(|mut command, log| command.stderr(log).spawn())
    }

    /// Starts the agent in a way of one's own: `spawn` has its command and its log.
    ///
    /// # Errors
    /// From `spawn`.
    pub fn start_by(&mut self, spawn: impl FnOnce(Command, File) -> io::Result<Child>) -> anyhow::Result<()> {
        self.logs += 1;
        let log = File::create(self.log_path())?;
        self.child = Some(spawn(self.agent_command(), log)?);
        Ok(())
    }

    fn log_path(&self) -> PathBuf {
        self.path(&format!("log.{}", self.logs))
    }

    /// What the agent that was started last has said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Waits until the log has so many lines with `text`.
    ///
    /// # Errors
    /// It takes too long, or the agent has ended.
    pub fn said(&mut self, text: &str, times: usize) -> anyhow::Result<()> {
        self.until(&format!("`{text}` in the log"), |bed| {
            bed.log().matches(text).count() >= times
        })
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// It takes too long, or the agent has ended.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&Bed) -> bool) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !holds(self) {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!(
                    "waiting for {what}, the agent ended with {status}:\n{}",
                    self.log()
                );
            }
            if begun.elapsed() > PATIENCE {
                bail!("no {what} after {PATIENCE:?}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends it a signal.
    pub fn signal(&self, number: i32) {
        if let Some(pid) = self.pid() {
            // SAFETY: our child, which nobody has waited for.
            unsafe { libc::kill(pid.cast_signed(), number) };
        }
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// It ends with an error.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.signal(libc::SIGTERM);
        if let Some(mut child) = self.child.take() {
            let status = child.wait()?;
            if !status.success() {
                bail!("the agent ended with {status}:\n{}", self.log());
            }
        }
        Ok(())
    }

    /// `lkst status --json`; `None` while nobody listens.
    ///
    /// # Errors
    /// What it says is no status.
    pub fn status(&self) -> anyhow::Result<Option<Status>> {
        let output = self.ask("status", &["--json"])?;
        if !output.status.success() {
            return Ok(None);
        }
        Ok(Some(serde_json::from_slice(&output.stdout)?))
    }

    /// A pack as the agent shows it.
    ///
    /// # Errors
    /// As [`Bed::status`].
    pub fn pack(&self, name: &str) -> anyhow::Result<Option<PackStatus>> {
        let status = self.status()?.unwrap_or_default();
        Ok(status.packs.into_iter().find(|pack| pack.name == name))
    }

    /// Waits until a pack is as wanted, and returns it.
    ///
    /// # Errors
    /// As [`Bed::until`].
    pub fn pack_until(
        &mut self,
        name: &str,
        what: &str,
        mut holds: impl FnMut(&PackStatus) -> bool,
    ) -> anyhow::Result<PackStatus> {
        let mut last = None;
        let waited = self.until(&format!("pack {name} that {what}"), |bed| {
            last = bed.pack(name).ok().flatten();
            last.as_ref().is_some_and(&mut holds)
        });
        waited.with_context(|| format!("{last:#?}"))?;
        last.context("there is one")
    }

    /// `lkst agent --stop-tracing`.
    ///
    /// # Errors
    /// It does not succeed.
    pub fn stop_tracing(&self) -> anyhow::Result<String> {
        let output = self.agent_command().arg("--stop-tracing").output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("--stop-tracing ended with {}:\n{said}", output.status);
        }
        Ok(said)
    }

    /// Writes a rule file under another name and renames it into place.
    ///
    /// # Errors
    /// What the file system says.
    pub fn put(&self, name: &str, text: &str) -> io::Result<()> {
        let new = self.path(&format!("rules.d/.{name}.new"));
        fs::write(&new, text)?;
        fs::set_permissions(&new, Permissions::from_mode(0o644))?;
        fs::rename(new, self.path("rules.d").join(name))
    }

    /// Every trace of a pack: folders with an `incident.json`, in name order.
    #[must_use]
    pub fn traces(&self, pack: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("state").join(pack)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                // What is being written, or was when its writer was killed, is no trace.
                if entry.file_name().as_bytes().starts_with(b".") {
                    continue;
                }
                if path.join("incident.json").exists() {
                    found.push(path);
                } else if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// What has a name in the bpffs.
    #[must_use]
    pub fn pins(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("bpf/lkst"))
            .into_iter()
            .flatten()
            .flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone_already = child.kill();
            let _waited_already = child.wait();
        }
        let _not_there = fs::remove_dir_all(self.path("bpf/lkst"));
        // By hand, since a `TempDir` says nothing of what it has to leave behind.
        let removed = unmount_all(self.dir.path()).and_then(|()| fs::remove_dir_all(self.dir.path()));
        if let Err(error) = removed
            && !std::thread::panicking()
        {
            panic!("{} cannot be removed: {error}", self.dir.path().display());
        }
    }
}
