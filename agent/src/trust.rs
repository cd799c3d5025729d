//! Who may write what the agent believes: an owner and a mode in, yes or how to mend it out.
//!
//! Rules decide what a whole machine records, so a file that somebody else can change is refused, as sudo does with
//! its own. What is judged is what was opened, never a path: a path may lead elsewhere a moment later.

use std::path::{Path, PathBuf};

/// Whose files are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Anybody's: whoever runs `lkst run FILE` chose the file.
    Anyone,
    /// Those of root and of the user with this number, where nobody else can write to them.
    Owner(u32),
}

/// Why a file or folder is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistrust {
    /// It is somebody else's.
    #[error("{path:?} belongs to user {uid}, and must belong to {}: `chown root {}`", owners(*.owner), quoted(path))]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose.
        uid: u32,
        /// Whose it may be, beside root.
        owner: u32,
    },
    /// Others can write to it.
    #[error(
        "{path:?} has mode {mode:03o}: somebody else than its owner may write to it: `chmod go-w {}`",
        quoted(path)
    )]
    Writable {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

fn owners(owner: u32) -> String {
    match owner {
        0 => "root".to_owned(),
        owner => format!("root or user {owner}"),
    }
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if text.chars().all(plain) && !text.starts_with('-') {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

impl Trust {
    /// Judges what is open by its owner and mode; `path` is for the message.
    ///
    /// # Errors
    /// See [`Mistrust`].
    pub fn judge(self, path: &Path, uid: u32, mode: u32) -> Result<(), Mistrust> {
        let Trust::Owner(owner) = self else {
            return Ok(());
        };
        if uid != 0 && uid != owner {
            return Err(Mistrust::Owner {
                path: path.to_owned(),
                uid,
                owner,
            });
        }
        // An access control list shows in the bits of the group, which are then the most that it grants.
        if mode & 0o022 != 0 {
            return Err(Mistrust::Writable {
                path: path.to_owned(),
                mode: mode & 0o7777,
            });
        }
        Ok(())
    }

    /// Judges a folder, which on a read-only mount may have any mode: Kubernetes gives the folder of a `ConfigMap` 0777
    /// and mounts it read-only. What is in it is judged all the same.
    ///
    /// # Errors
    /// See [`Mistrust`].
    pub fn judge_folder(self, path: &Path, uid: u32, mode: u32, read_only: bool) -> Result<(), Mistrust> {
        self.judge(path, uid, if read_only { mode & !0o022 } else { mode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_owner_are_believed_and_others_told_how_to_mend_it() {
        let path = Path::new("/etc/lkst/rules.d/a.lkst");
        assert_eq!(Trust::Owner(0).judge(path, 0, 0o100_644), Ok(()));
        assert_eq!(Trust::Owner(7).judge(path, 7, 0o100_600), Ok(()));
        assert_eq!(Trust::Owner(7).judge(path, 0, 0o100_600), Ok(()));
        assert_eq!(Trust::Anyone.judge(path, 7, 0o100_666), Ok(()));
        let said = |trust: Trust, uid, mode| {
            trust
                .judge(path, uid, mode)
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default()
        };
        let foreign = said(Trust::Owner(0), 1000, 0o100_644);
        assert!(
            foreign.contains("user 1000") && foreign.contains("`chown root /etc/lkst/rules.d/a.lkst`"),
            "{foreign}"
        );
        assert!(said(Trust::Owner(7), 1000, 0o100_644).contains("root or user 7"));
        for mode in [0o100_664, 0o100_646] {
            let writable = said(Trust::Owner(0), 0, mode);
            assert!(
                writable.contains("`chmod go-w /etc/lkst/rules.d/a.lkst`"),
                "{writable}"
            );
        }
    }

    #[test]
    fn nobody_writes_to_a_folder_that_is_mounted_read_only() {
        let path = Path::new("/etc/lkst/rules.d");
        assert_eq!(Trust::Owner(0).judge_folder(path, 0, 0o40_777, true), Ok(()));
        assert!(Trust::Owner(0).judge_folder(path, 0, 0o40_777, false).is_err());
        assert!(Trust::Owner(0).judge_folder(path, 1000, 0o40_755, true).is_err());
    }

    #[test]
    fn commands_can_be_pasted() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
