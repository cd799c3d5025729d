//! Firings, and what goes wrong, on their way to the log: a few a second, the rest counted.

use std::collections::BTreeSet;
use std::io;

use crate::session::Firing;

/// Firings that are logged in a second, at most. Each rule has a `limit`, but there may be a thousand of them.
const FIRINGS_PER_S: u32 = 20;

/// What was said lately.
#[derive(Debug, Default)]
pub(super) struct Log {
    firings: u32,
    untold: u64,
    /// Said, and perhaps still so.
    troubles: BTreeSet<String>,
    /// Said again in this minute.
    again: BTreeSet<String>,
    seconds: u32,
}

impl Log {
    /// A rule fired.
    pub(super) fn firing(&mut self, firing: &Firing<'_>) -> io::Result<()> {
        if self.firings >= FIRINGS_PER_S {
            self.untold += 1;
            return Ok(());
        }
        self.firings += 1;
        tracing::info!(
            target: "lkst::fired",
            at = %firing.when.strftime("%H:%M:%S%.6f"),
            "{}/{}: {}", firing.pack, firing.rule, firing.text
        );
        Ok(())
    }

    /// A second has passed.
    pub(super) fn second(&mut self) {
        if self.untold > 0 {
            tracing::info!(
                target: "lkst::fired",
                "{} in the last second; `lkst status` counts them all",
                crate::session::counted(self.untold, "more firing")
            );
        }
        (self.firings, self.untold) = (0, 0);
        self.seconds += 1;
        if self.seconds >= 60 {
            self.seconds = 0;
            self.troubles = std::mem::take(&mut self.again);
        }
    }

    /// Something is wrong. It is logged when it begins, and not again while it goes on.
    pub(super) fn trouble(&mut self, text: String) {
        if self.troubles.insert(text.clone()) {
            tracing::warn!("{text}");
        }
        self.again.insert(text);
    }
}
