//! `/etc/lkst/lkst.toml`: its text in, settings with types out, or one message that says where it is wrong and how to
//! mend it.
//!
//! INVARIANT: every key has a default, so that an agent without the file works; and no key that is not known is passed
//! over, so that a slip of the fingers never leaves a limit unset.

mod capture;
mod message;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use lkst_rules::Options;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use crate::session::stream::Rotation;
use crate::trust::Trust;

pub use capture::{EventPattern, FieldPattern, NeverCapture};
pub use message::ConfigError;
pub use values::{Age, Bytes, MetricsAddress, Param};

/// Where the file is unless the command line says otherwise.
pub const CONFIG_FILE: &str = "/etc/lkst/lkst.toml";
/// The most bytes of it that are read.
const LARGEST: u64 = 1 << 20;

/// Everything that a host sets.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The rules folder: absolute.
    #[serde(deserialize_with = "values::folder")]
    pub rules_dir: PathBuf,
    /// Where incidents and what must survive a boot are kept: absolute.
    #[serde(deserialize_with = "values::folder")]
    pub state_dir: PathBuf,
    /// Where the socket is: absolute.
    #[serde(deserialize_with = "values::folder")]
    pub run_dir: PathBuf,
    /// Where maps, programs and links are pinned, on a bpffs: absolute.
    #[serde(deserialize_with = "values::folder")]
    pub pin_dir: PathBuf,
    /// The most memory that the buffers and maps of all packs may have together.
    pub max_memory: Bytes,
    /// The most that all incidents may have on disk.
    pub max_incidents_size: Bytes,
    /// The most that the incidents of one pack may have on disk.
    pub max_incidents_size_per_pack: Bytes,
    /// An incident that is older is deleted.
    pub max_incident_age: Age,
    /// A piece of a stream buffer that has so many bytes is finished, and the next one begun.
    pub stream_rotate_size: Bytes,
    /// As is one that is so old.
    pub stream_rotate_age: Age,
    /// The user who may own rules beside root: a name or a number.
    #[serde(deserialize_with = "values::account")]
    pub owner: String,
    /// The group that may use the socket: a name or a number. Without it only root may.
    #[serde(deserialize_with = "values::optional_account")]
    pub socket_group: Option<String>,
    /// Where metrics are served. Nowhere without it.
    pub metrics_address: Option<MetricsAddress>,
    /// What no rule may record.
    pub never_capture: NeverCapture,
    /// What is set for one pack.
    #[serde(rename = "pack", deserialize_with = "values::packs")]
    pub packs: BTreeMap<String, PackConfig>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            rules_dir: "/etc/lkst/rules.d".into(),
            state_dir: "/var/lib/lkst".into(),
            run_dir: "/run/lkst".into(),
            pin_dir: "/sys/fs/bpf/lkst".into(),
            max_memory: Bytes(256 << 20),
            max_incidents_size: Bytes(4 << 30),
            max_incidents_size_per_pack: Bytes(1 << 30),
            max_incident_age: Age::from_hours(30 * 24),
            stream_rotate_size: Bytes(256 << 20),
            stream_rotate_age: Age::from_minutes(10),
            owner: "root".to_owned(),
            socket_group: None,
            metrics_address: None,
            never_capture: NeverCapture::default(),
            packs: BTreeMap::new(),
        }
    }
}

/// What is set for one pack: `[pack.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackConfig {
    /// Whether it acts.
    pub mode: PackMode,
    /// Other values for its params.
    pub params: BTreeMap<String, Param>,
}

/// Whether a pack acts on what it decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackMode {
    /// It does.
    #[default]
    Active,
    /// It decides and counts, and acts on nothing.
    Observe,
}

/// The folders that an agent lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// The rules folder.
    pub rules: PathBuf,
    /// Incidents, and what must survive a boot.
    pub state: PathBuf,
    /// The socket.
    pub run: PathBuf,
    /// Pinned maps, programs and links.
    pub pin: PathBuf,
}

/// Folders that the command line names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FolderFlags {
    /// In place of `rules_dir`.
    pub rules: Option<PathBuf>,
    /// In place of `state_dir`.
    pub state: Option<PathBuf>,
    /// In place of `run_dir`.
    pub run: Option<PathBuf>,
    /// In place of `pin_dir`.
    pub pin: Option<PathBuf>,
}

impl Config {
    /// Reads a file. One that is not there sets nothing. It decides whose rules are believed, so it must itself be.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path, trust: Trust) -> Result<Config, ConfigError> {
        let failed = |error| ConfigError::unreadable(path, &error);
        // Opening a FIFO would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(Config::default()),
            Err(error) => return Err(failed(error.into())),
        };
        let stat = file.metadata().map_err(failed)?;
        if !stat.is_file() {
            return Err(failed(io::Error::other("it is not a file")));
        }
        trust
            .judge(path, stat.uid(), stat.mode())
            .map_err(|mistrust| ConfigError::mistrusted(&mistrust))?;
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > LARGEST {
            return Err(failed(io::Error::other("it has more than 1 MiB")));
        }
        let text = String::from_utf8(bytes).map_err(|_| failed(io::Error::other("it is not UTF-8 text")))?;
        Config::parse(path, &text)
    }

    /// Reads a text; `path` is for messages.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::wrong(path, text, &error))
    }

    /// The folders, where the command line names others those.
    #[must_use]
    pub fn folders(&self, flags: FolderFlags) -> Folders {
        let or = |flag: Option<PathBuf>, set: &PathBuf| flag.unwrap_or_else(|| set.clone());
        Folders {
            rules: or(flags.rules, &self.rules_dir),
            state: or(flags.state, &self.state_dir),
            run: or(flags.run, &self.run_dir),
            pin: or(flags.pin, &self.pin_dir),
        }
    }

    /// When pieces of streams are finished.
    #[must_use]
    pub fn rotation(&self) -> Rotation {
        Rotation {
            size_bytes: self.stream_rotate_size.0,
            age: self.stream_rotate_age.0,
        }
    }

    /// Whether a pack acts.
    #[must_use]
    pub fn mode(&self, pack: &str) -> PackMode {
        self.packs.get(pack).map(|pack| pack.mode).unwrap_or_default()
    }

    /// Whether a pack decides and acts on nothing.
    #[must_use]
    pub fn is_observed(&self, pack: &str) -> bool {
        self.mode(pack) == PackMode::Observe
    }

    /// What a pack is compiled with.
    #[must_use]
    pub fn options(&self, pack: &str) -> Options {
        let params = self.packs.get(pack).into_iter().flat_map(|pack| &pack.params);
        let text = |(name, value): (&String, &Param)| (name.clone(), value.0.clone());
        Options {
            params: params.map(text).collect(),
            ..Options::default()
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests;
