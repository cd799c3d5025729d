//! Memory: reclaim and the OOM killer within a control group of our own, huge pages, migration.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::path::Path;

use lkst_tests::namespace::mount_new;

use super::groups::Groups;
use super::{checked, in_child, pause, step};

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;

pub(crate) fn all(folder: &Path, groups: &Groups) {
    step("reclaim", || reclaim(folder, groups));
    step("out of memory", || out_of_memory(groups));
    step("huge pages", huge_pages);
    step("advice", advice);
    step("hugetlbfs", || hugetlbfs(folder));
    step("oom_score_adj", || fs::write("/proc/self/oom_score_adj", "1"));
}

/// A private mapping, touched page by page.
struct Mapping(*mut u8, usize);

impl Mapping {
    fn new(bytes: usize) -> io::Result<Mapping> {
        // SAFETY: a new mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping(at.cast(), bytes))
    }

    fn touch(&self) {
        for page in (0..self.1).step_by(PAGE) {
            // SAFETY: within the mapping.
            unsafe { self.0.add(page).write_volatile(1) };
        }
    }

    fn advise(&self, advice: libc::c_int) {
        // SAFETY: our mapping, which holds nothing that is needed. Kernels lack some advice.
        unsafe { libc::madvise(self.0.cast(), self.1, advice) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

/// Reads and writes a file that is larger than the group's limit.
fn reclaim(folder: &Path, groups: &Groups) -> io::Result<()> {
    let Some((group, limit)) = &groups.memory else {
        return Ok(());
    };
    fs::write(group.join(limit), "12M")?;
    in_child(|| {
        fs::write(group.join("cgroup.procs"), "0")?;
        let mut file = tempfile::tempfile_in(folder)?;
        let block = vec![7; 1 << 20];
        for _ in 0..24 {
            file.write_all(&block)?;
        }
        file.sync_all()?;
        for _ in 0..2 {
            io::Seek::rewind(&mut file)?;
            let mut bytes = vec![0; 1 << 20];
            while file.read(&mut bytes)? > 0 {}
        }
        let mapping = Mapping::new(4 << 20)?;
        mapping.touch();
        Ok(())
    })?;
    let _ = fs::write(group.join("memory.reclaim"), "4M");
    let _ = fs::write(group.join("memory.force_empty"), "0");
    Ok(())
}

/// A child that wants more than its group may have: the kernel kills it, and nothing else.
fn out_of_memory(groups: &Groups) -> io::Result<()> {
    let Some((group, limit)) = &groups.memory else {
        return Ok(());
    };
    fs::write(group.join(limit), "8M")?;
    in_child(|| {
        fs::write(group.join("cgroup.procs"), "0")?;
        fs::write("/proc/self/oom_score_adj", "1000")?;
        Mapping::new(32 << 20)?.touch();
        Ok(())
    })?;
    // The reaper may come two seconds later.
    pause(100);
    Ok(())
}

fn huge_pages() -> io::Result<()> {
    const COLLAPSE: libc::c_int = 25;
    let mapping = Mapping::new(4 * HUGE)?;
    mapping.advise(libc::MADV_NOHUGEPAGE);
    mapping.touch();
    mapping.advise(libc::MADV_HUGEPAGE);
    mapping.advise(COLLAPSE);
    // A page of it, which splits it.
    // SAFETY: within the mapping, which holds nothing that is needed.
    unsafe { libc::madvise(mapping.0.add(HUGE + PAGE).cast(), HUGE, libc::MADV_DONTNEED) };
    Ok(())
}

fn advice() -> io::Result<()> {
    const COLD: libc::c_int = 20;
    const PAGEOUT: libc::c_int = 21;
    let mapping = Mapping::new(64 * PAGE)?;
    mapping.touch();
    for advice in [COLD, PAGEOUT, libc::MADV_FREE, libc::MADV_MERGEABLE] {
        mapping.advise(advice);
    }
    // SAFETY: our mapping moves, and is given back at its new place.
    unsafe {
        libc::mlock(mapping.0.cast(), 16 * PAGE);
        libc::mprotect(mapping.0.cast(), PAGE, libc::PROT_READ);
        libc::mprotect(mapping.0.cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE);
        libc::munlock(mapping.0.cast(), 16 * PAGE);
        // Kernels without nodes say that they have none.
        let nodes = [1_u64];
        libc::syscall(
            libc::SYS_mbind,
            mapping.0,
            mapping.1,
            2,
            nodes.as_ptr(),
            2,
            1 << 1,
        );
        libc::syscall(libc::SYS_migrate_pages, 0, 2, nodes.as_ptr(), nodes.as_ptr());
    }
    Ok(())
}

fn hugetlbfs(folder: &Path) -> io::Result<()> {
    let at = folder.join("huge");
    fs::create_dir(&at)?;
    mount_new(c"hugetlbfs", &at, "")?;
    let file = File::create(at.join("file"))?;
    file.set_len(HUGE as u64)?;
    // SAFETY: it is open. There may be no huge page.
    unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, HUGE as i64) };
    fs::remove_file(at.join("file"))?;
    // SAFETY: a new descriptor, which is ours.
    unsafe {
        let fd = checked(libc::memfd_create(c"tour".as_ptr(), 0))?;
        drop(File::from_raw_fd(fd as i32));
    }
    Ok(())
}
