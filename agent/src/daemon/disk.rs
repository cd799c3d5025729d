//! The state folder as the agent keeps it: within its limits, and watched for what goes wrong with it.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use crate::config::Config;
use crate::store::{Limits, Store, StoreError};

/// How often to look where nothing was saved: for what grows old, and for a folder that is back.
const LOOK_EVERY_S: u64 = 60;
/// And where something was wrong with it.
const LOOK_AGAIN_S: u64 = 5;

/// The state folder, where there is one.
#[derive(Debug)]
pub(super) struct Disk {
    store: Option<Store>,
    limits: Limits,
    looked: Option<Instant>,
    troubles: Vec<String>,
}

impl Disk {
    /// Opens the state folder. That there is no room for it, or a read-only disk, is not the end: it is tried again.
    ///
    /// # Errors
    /// [`StoreError::InUse`] and [`StoreError::Mistrust`].
    pub(super) fn open(path: &Path, config: &Config) -> Result<Disk, StoreError> {
        let mut disk = Disk {
            store: None,
            limits: Limits::of(config),
            looked: None,
            troubles: Vec::new(),
        };
        match Store::open(path) {
            Ok(store) => disk.store = Some(store),
            Err(error @ (StoreError::InUse { .. } | StoreError::Mistrust(_))) => return Err(error),
            Err(error) => disk.troubles.push(error.to_string()),
        }
        Ok(disk)
    }

    /// Keeps within the limits, where something was saved or a minute has passed.
    pub(super) fn keep(&mut self, path: &Path, saved: bool, in_use: &[PathBuf]) {
        let every_s = match self.troubles.is_empty() {
            true => LOOK_EVERY_S,
            false => LOOK_AGAIN_S,
        };
        let is_due = self
            .looked
            .is_none_or(|looked| looked.elapsed().as_secs() >= every_s);
        if !saved && !is_due {
            return;
        }
        self.looked = Some(Instant::now());
        if self.store.is_none() {
            match Store::open(path) {
                Ok(store) => self.store = Some(store),
                Err(error) => self.troubles = vec![error.to_string()],
            }
        }
        let Some(store) = &mut self.store else { return };
        let pruned = store.prune(&self.limits, SystemTime::now(), in_use);
        for (incident, over) in &pruned.removed {
            tracing::info!(pack = incident.pack, path = ?incident.path, limit = over.key(), "deleted an old incident");
        }
        self.troubles = pruned.troubles;
    }

    /// What is wrong, for people.
    pub(super) fn troubles(&self) -> &[String] {
        &self.troubles
    }
}
