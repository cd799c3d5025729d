//! Control groups: made, used, renamed, frozen, removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lkst_tests::namespace::mount_new;

use super::{in_child, pause};

/// The groups of this tour, which [`Groups::remove`] removes.
#[derive(Default)]
pub(crate) struct Groups {
    /// In the hierarchy of version 2.
    pub(crate) unified: Option<PathBuf>,
    /// Where memory can be limited: the folder, and the name of the file with the limit.
    pub(crate) memory: Option<(PathBuf, &'static str)>,
}

impl Groups {
    /// Makes them.
    pub(crate) fn make(&mut self, folder: &Path) -> io::Result<()> {
        let name = format!("lkst-tour-{}", std::process::id());
        let unified = folder.join("unified");
        fs::create_dir(&unified)?;
        mount_new(c"cgroup2", &unified, "")?;
        let group = unified.join(&name);
        fs::create_dir(&group)?;
        self.unified = Some(group.clone());
        if group.join("memory.max").exists() {
            self.memory = Some((group, "memory.max"));
            return Ok(());
        }
        let memory = folder.join("memory");
        fs::create_dir(&memory)?;
        mount_new(c"cgroup", &memory, "memory")?;
        let group = memory.join(&name);
        fs::create_dir(&group)?;
        self.memory = Some((group, "memory.limit_in_bytes"));
        Ok(())
    }

    /// What happens to control groups.
    pub(crate) fn use_them(&self) -> io::Result<()> {
        let Some(group) = &self.unified else {
            return Ok(());
        };
        let inner = group.join("inner");
        fs::create_dir(&inner)?;
        in_child(|| {
            fs::write(inner.join("cgroup.procs"), "0")?;
            let freeze = inner.join("cgroup.freeze");
            in_child(|| fs::write(group.join("cgroup.procs"), "0"))?;
            // SAFETY: there is one thread, and the child only waits.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: as above.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::pause();
                    libc::_exit(0);
                }
            }
            fs::write(group.join("cgroup.procs"), "0")?;
            fs::write(&freeze, "1")?;
            pause(20);
            fs::write(&freeze, "0")?;
            pause(5);
            // SAFETY: our child.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, std::ptr::null_mut(), 0);
            }
            Ok(())
        })?;
        fs::read_to_string(group.join("cpu.stat"))?;
        remove(&inner);
        if let Some((group, _)) = &self.memory {
            fs::read_to_string(group.join("memory.stat"))?;
            // Only the old hierarchies let a group be renamed.
            let (one, other) = (group.join("one"), group.join("other"));
            if fs::create_dir(&one).is_ok() {
                let _ = fs::rename(&one, &other);
                remove(&one);
                remove(&other);
            }
        }
        Ok(())
    }

    /// Removes them, when their processes have ended.
    pub(crate) fn remove(&self) {
        for group in self.unified.iter().chain(self.memory.iter().map(|(at, _)| at)) {
            for inner in ["inner", "one", "other"] {
                remove(&group.join(inner));
            }
            remove(group);
        }
    }
}

/// The kernel may need a moment to let go of processes that have ended.
fn remove(group: &Path) {
    for _ in 0..100 {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => pause(20),
            _ => return,
        }
    }
}
