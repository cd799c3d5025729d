//! The rules folder, watched: a path in, one word out whenever something in it changed and has come to rest.
//!
//! ```text
//! inotify ─filter→ burst ─settle→ changed() ─→ every watch made anew
//! ```
//!
//! Everything counts that can change what [`crate::rules_dir::scan`] finds: files, pack folders, links and what they
//! lead to, the folder itself, which may go and come. That nothing is overlooked does not depend on keeping account of
//! folders that went and came: after each change all watches are made anew, before it is reported.
//!
//! INVARIANT: no timer runs while nothing happens, unless there is [`Watch::trouble`].
//! INVARIANT: what happens after a report is reported again; events are merged, never forgotten.

mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::sleep_until;

use places::{Interest, MOST_FOLDERS, Places};

/// What has been quiet for so long has come to rest.
pub const SETTLE: Duration = Duration::from_millis(200);
/// What does not come to rest is reported so long after it began.
const LONGEST: Duration = Duration::from_secs(2);
/// How often to look where nothing can be watched.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often watches are made again because the folders changed meanwhile.
const TRIES: usize = 8;

/// Why to look at the rules folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// Something happened.
    Something,
    /// Nobody knows: it cannot be watched, see [`Watch::trouble`].
    Perhaps,
}

/// A rules folder that is watched.
#[derive(Debug)]
pub struct Watch {
    rules: PathBuf,
    settle: Duration,
    look_every: Duration,
    shared: Arc<Shared>,
    arm: Arm,
    /// Dropped with its thread when another takes its place.
    armed: Option<Armed>,
    trouble: Option<String>,
    /// Which folder the path led to when it was watched, by device and inode.
    watched: Option<(u64, u64)>,
    /// When to look, where nothing can be watched. Kept here, so that a wait that is broken off does not begin anew.
    look_at: Option<Instant>,
}

/// Events that were not reported yet.
#[derive(Debug, Default)]
struct Shared {
    burst: Mutex<Option<Burst>>,
    begun: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Burst {
    first: Instant,
    last: Instant,
}

impl Shared {
    fn event(&self) {
        let now = Instant::now();
        let mut burst = self.burst.lock().unwrap_or_else(PoisonError::into_inner);
        match burst.as_mut() {
            Some(burst) => burst.last = now,
            None => {
                *burst = Some(Burst {
                    first: now,
                    last: now,
                });
                // Only the first: whoever waits looks again at the time of the last by itself.
                self.begun.notify_one();
            }
        }
    }

    /// When the burst is over, if there is one.
    fn over_at(&self, settle: Duration) -> Option<Instant> {
        let burst = *self.burst.lock().unwrap_or_else(PoisonError::into_inner);
        burst.map(|burst| (burst.last + settle).min(burst.first + LONGEST.max(settle)))
    }

    fn take(&self) {
        *self.burst.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Makes all watches; replaced in tests.
type Arm = fn(&Path, &Arc<Shared>) -> Result<Armed, notify::Error>;

#[derive(Debug)]
struct Armed {
    /// Watches for as long as it lives.
    _watcher: Option<RecommendedWatcher>,
    crowded: bool,
}

impl Watch {
    /// Watches a folder, which need not be there. A change is reported once nothing happened for `settle` ([`SETTLE`]),
    /// and at the latest two seconds after it began.
    ///
    /// # Errors
    /// The path is relative and the current folder unknown. That nothing can be watched is no error but
    /// [`Watch::trouble`].
    pub fn new(path: &Path, settle: Duration) -> io::Result<Watch> {
        Watch::with(path, settle, LOOK_EVERY, arm)
    }

    fn with(path: &Path, settle: Duration, look_every: Duration, arm: Arm) -> io::Result<Watch> {
        let mut watch = Watch {
            rules: std::path::absolute(path)?,
            settle,
            look_every,
            shared: Arc::default(),
            arm,
            armed: None,
            trouble: None,
            watched: None,
            look_at: None,
        };
        watch.rearm();
        Ok(watch)
    }

    /// Why changes may be seen late or not at all, for people.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Waits for the next change. A future that is dropped loses nothing: to be used in `select!`.
    pub async fn changed(&mut self) -> Changed {
        loop {
            let over_at = self.shared.over_at(self.settle);
            let (until, why) = match (over_at, self.look_at) {
                (Some(over_at), _) => (over_at, Changed::Something),
                (None, Some(look_at)) => (look_at, Changed::Perhaps),
                (None, None) => {
                    self.shared.begun.notified().await;
                    continue;
                }
            };
            if until <= Instant::now() {
                // No await from here on: what is taken is reported.
                self.shared.take();
                self.rearm();
                return why;
            }
            match why {
                Changed::Something => sleep_until(until.into()).await,
                Changed::Perhaps => tokio::select! {
                    () = sleep_until(until.into()) => {}
                    () = self.shared.begun.notified() => {}
                },
            }
        }
    }

    /// Looks whether the path leads to another folder: what is mounted over one tells no watch. To be called now and
    /// then; it costs one system call.
    pub fn look_for_mounts(&mut self) {
        let there = folder_id(&self.rules);
        if there != self.watched {
            self.watched = there;
            self.shared.event();
        }
    }

    /// Makes all watches anew. The old ones go only then, so that there is always one.
    fn rearm(&mut self) {
        self.watched = folder_id(&self.rules);
        let armed = (self.arm)(&self.rules, &self.shared);
        let every = self.look_every.as_secs();
        self.trouble = match &armed {
            Ok(armed) if armed.crowded => Some(format!(
                "{:?} and what it links to are more than {MOST_FOLDERS} folders: not all of them are watched",
                self.rules
            )),
            Ok(_) => None,
            Err(error) => Some(format!(
                "{:?} cannot be watched, and is looked at every {every} s instead: {}",
                self.rules,
                reason(error)
            )),
        };
        self.look_at = armed.is_err().then(|| Instant::now() + self.look_every);
        // Watches that were made earlier may still see something.
        if let Ok(armed) = armed {
            self.armed = Some(armed);
        }
    }
}

fn folder_id(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

fn reason(error: &notify::Error) -> String {
    let raw = match &error.kind {
        ErrorKind::Io(error) => error.raw_os_error(),
        _ => None,
    };
    match (&error.kind, raw) {
        (ErrorKind::MaxFilesWatch, _) => "too many watches: raise `fs.inotify.max_user_watches`".to_owned(),
        (_, Some(libc::EMFILE)) => {
            "too many programs watch files: raise `fs.inotify.max_user_instances`".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Names that matter, by the path of the folder.
type Interests = BTreeMap<PathBuf, Interest>;

/// Watches everything with a watcher of its own.
fn arm(rules: &Path, shared: &Arc<Shared>) -> Result<Armed, notify::Error> {
    let interests: Arc<Mutex<Interests>> = Arc::default();
    let handler = {
        let (interests, shared) = (Arc::clone(&interests), Arc::clone(shared));
        move |event: notify::Result<Event>| {
            let interests = interests.lock().unwrap_or_else(PoisonError::into_inner);
            // An error is a reason to look, too: something may have been missed.
            if event.is_ok_and(|event| !matters(&event, &interests)) {
                return;
            }
            shared.event();
        }
    };
    let mut watcher = RecommendedWatcher::new(handler, notify::Config::default())?;
    let mut watched = BTreeSet::new();
    let mut crowded = false;
    // Folders may come and go while they are listed, until nothing new is found.
    for _ in 0..TRIES {
        let places = Places::of(rules);
        crowded = places.crowded;
        let pairs = places
            .folders
            .iter()
            .map(|f| (f.path.clone(), f.interest.clone()));
        *interests.lock().unwrap_or_else(PoisonError::into_inner) = pairs.collect();
        let before = watched.len();
        for folder in places.folders {
            if watched.contains(&folder.id) {
                continue;
            }
            match watcher.watch(&folder.path, RecursiveMode::NonRecursive) {
                Ok(()) => watched.insert(folder.id),
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
        }
        if watched.len() == before {
            return Ok(Armed {
                _watcher: Some(watcher),
                crowded,
            });
        }
    }
    // They still change: this is worth another look.
    shared.event();
    Ok(Armed {
        _watcher: Some(watcher),
        crowded,
    })
}

fn is_gone(error: &notify::Error) -> bool {
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(error) => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// True for what can change the rules: not for what merely opens or reads, as the agent itself does, and not for
/// neighbours of what is looked for.
fn matters(event: &Event, interests: &Interests) -> bool {
    let is_read = match event.kind {
        EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
        _ => false,
    };
    // The kernel's queue was full: anything may have happened.
    event.need_rescan()
        || (!is_read
            && event.paths.iter().any(|path| {
                interests.contains_key(path)
                    || path.parent().zip(path.file_name()).is_some_and(|(folder, name)| {
                        interests.get(folder).is_some_and(|interest| interest.wants(name))
                    })
            }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests;
