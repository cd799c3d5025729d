//! Which incidents have to go: what is on disk and the limits in, the oldest that are over one out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::OnDisk;
use crate::config::Config;

/// How much may be on disk, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// All incidents together, in bytes.
    pub all_bytes: u64,
    /// The incidents of one pack, in bytes.
    pub pack_bytes: u64,
    /// An older incident is deleted.
    pub age: Duration,
}

impl Limits {
    /// As a host has set them.
    #[must_use]
    pub fn of(config: &Config) -> Limits {
        Limits {
            all_bytes: config.max_incidents_size.0,
            pack_bytes: config.max_incidents_size_per_pack.0,
            age: config.max_incident_age.0,
        }
    }
}

/// Which limit an incident was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// [`Limits::age`].
    Age,
    /// [`Limits::pack_bytes`].
    PackSize,
    /// [`Limits::all_bytes`].
    Size,
}

impl Over {
    /// The key of the configuration.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Over::Age => "max_incident_age",
            Over::PackSize => "max_incidents_size_per_pack",
            Over::Size => "max_incidents_size",
        }
    }

    /// The most bytes that a single incident may have, to be within this limit.
    pub(super) fn most_bytes(self, limits: &Limits) -> u64 {
        match self {
            Over::Age => u64::MAX,
            Over::PackSize => limits.pack_bytes,
            Over::Size => limits.all_bytes,
        }
    }
}

/// Which incidents have to go, and over which limit each is: indices into `all`, which are in the order of their age,
/// the oldest first.
pub(super) fn doomed(
    all: &[OnDisk],
    limits: &Limits,
    now: SystemTime,
    in_use: &[PathBuf],
) -> Vec<(usize, Over)> {
    let mut total_bytes = 0_u64;
    let mut by_pack = BTreeMap::<&str, u64>::new();
    for incident in all {
        total_bytes = total_bytes.saturating_add(incident.size_bytes);
        let pack_bytes = by_pack.entry(&incident.pack).or_default();
        *pack_bytes = pack_bytes.saturating_add(incident.size_bytes);
    }
    let mut fates: Vec<Option<Over>> = vec![None; all.len()];
    // What is too old and what a pack has too much of goes first: it may be enough.
    for over in [Over::Age, Over::PackSize, Over::Size] {
        for (incident, fate) in all.iter().zip(&mut fates).filter(|(_, fate)| fate.is_none()) {
            let pack_bytes = by_pack.entry(&incident.pack).or_default();
            let is_over = match over {
                Over::Age => is_too_old(incident.saved_at, limits, now),
                Over::PackSize => *pack_bytes > limits.pack_bytes,
                Over::Size => total_bytes > limits.all_bytes,
            };
            if is_over && !uses(in_use, &incident.path) {
                total_bytes = total_bytes.saturating_sub(incident.size_bytes);
                *pack_bytes = pack_bytes.saturating_sub(incident.size_bytes);
                *fate = Some(over);
            }
        }
    }
    let fates = fates.into_iter().enumerate();
    fates.filter_map(|(at, fate)| Some((at, fate?))).collect()
}

/// Nothing was saved before 2020, in seconds since 1970: a clock that says so was not set yet.
const FIRST_S: u64 = 1_577_836_800;

/// Whether it is older than it may be. A clock that was set back makes nothing old; nor does one that was set only
/// after the trace was saved, as on machines whose clock does not run without power.
pub(super) fn is_too_old(saved_at: SystemTime, limits: &Limits, now: SystemTime) -> bool {
    let first = SystemTime::UNIX_EPOCH + Duration::from_secs(FIRST_S);
    saved_at >= first && now.duration_since(saved_at).is_ok_and(|age| age > limits.age)
}

/// True where one of these is the incident, or in it.
pub(super) fn uses(in_use: &[PathBuf], incident: &Path) -> bool {
    in_use.iter().any(|path| path.starts_with(incident))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_before_the_clock_was_set_is_not_old() {
        let limits = Limits {
            all_bytes: 0,
            pack_bytes: 0,
            age: Duration::from_secs(60),
        };
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let now = at(FIRST_S + 1_000_000);
        for (saved_at, expected) in [
            (at(0), false),
            (at(FIRST_S - 1), false),
            (at(FIRST_S), true),
            (at(FIRST_S + 1_000_000 - 60), false),
            (at(FIRST_S + 1_000_000 - 61), true),
            (at(FIRST_S + 2_000_000), false),
        ] {
            assert_eq!(is_too_old(saved_at, &limits, now), expected, "{saved_at:?}");
        }
    }
}
