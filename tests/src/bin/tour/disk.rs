//! File systems of our own, each in a file behind a loop device: ext4 with all that is new, and as it was.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{c_path, checked, step};

const PAGE: usize = 4096;

pub(crate) fn all(folder: &Path) {
    let new = ["-b", "4096", "-O", "fast_commit,64bit,metadata_csum"];
    step("ext4", || {
        let at = mounted(folder, "new", &new, "discard,lazytime,commit=1")?;
        files(&at)
    });
    step("ext4 whose journal has all data, without extents", || {
        let old = ["-b", "1024", "-O", "^extents,^64bit"];
        let at = mounted(folder, "old", &old, "data=journal,nodelalloc")?;
        files(&at)
    });
    step("ext4 with clusters", || {
        let clusters = ["-b", "1024", "-C", "16384", "-O", "bigalloc,extents"];
        let at = mounted(folder, "clusters", &clusters, "nodelalloc,dioread_lock")?;
        files(&at)
    });
    for name in ["new", "old", "clusters"] {
        step("unmount", || {
            let at = c_path(&folder.join(name))?;
            // SAFETY: a C string.
            checked(unsafe { libc::umount2(at.as_ptr(), 0) })?;
            Ok(())
        });
    }
}

/// A new file system, mounted. Its file has no name any more when this returns, and goes with the mount.
fn mounted(folder: &Path, name: &str, options: &[&str], mount: &str) -> io::Result<PathBuf> {
    let (image, at) = (folder.join(format!("{name}.img")), folder.join(name));
    File::create(&image)?.set_len(48 << 20)?;
    fs::create_dir(&at)?;
    let done = run(Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .args(options)
        .arg(&image))
    .and_then(|()| {
        run(Command::new("mount")
            .args(["-o", &format!("loop,{mount}")])
            .arg(&image)
            .arg(&at))
    });
    fs::remove_file(&image)?;
    done.map(|()| at)
}

fn run(command: &mut Command) -> io::Result<()> {
    let status = command.stdin(Stdio::null()).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{command:?}: {status}"))),
    }
}

fn files(at: &Path) -> io::Result<()> {
    let inner = at.join("inner");
    fs::create_dir(&inner)?;
    step("files", || written(&inner));
    step("allocation", || allocated(&inner));
    step("direct", || direct(&inner));
    step("mapped", || mapped(&inner));
    step("names", || names(&inner));
    step("many extents", || fragmented(&inner));
    step("whole", || whole(at));
    fs::remove_dir_all(&inner)?;
    sync(at)
}

fn file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn sync(at: &Path) -> io::Result<()> {
    let folder = File::open(at)?;
    // SAFETY: it is open.
    checked(unsafe { libc::syncfs(folder.as_raw_fd()) })?;
    Ok(())
}

fn written(at: &Path) -> io::Result<()> {
    let mut file = file(&at.join("written"))?;
    for _ in 0..40 {
        file.write_all(&[7; 5000])?;
    }
    file.sync_data()?;
    file.write_all(&[8; 5000])?;
    file.sync_all()?;
    for round in 0..4 {
        file.write_all_at(&[round; 100], 50_000)?;
        // SAFETY: it is open.
        checked(unsafe {
            libc::sync_file_range(
                file.as_raw_fd(),
                0,
                0,
                libc::SYNC_FILE_RANGE_WAIT_BEFORE
                    | libc::SYNC_FILE_RANGE_WRITE
                    | libc::SYNC_FILE_RANGE_WAIT_AFTER,
            )
        })?;
    }
    // Out of memory, and read again.
    // SAFETY: it is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = vec![0; 3000];
    while file.read(&mut bytes)? > 0 {}
    // SAFETY: as above.
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
        libc::readahead(file.as_raw_fd(), 0, 100_000);
        libc::lseek(file.as_raw_fd(), 0, libc::SEEK_HOLE);
        libc::lseek(file.as_raw_fd(), 0, libc::SEEK_DATA);
    }
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    // SAFETY: both are open.
    unsafe { libc::sendfile(null.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), 60_000) };
    file.set_len(70_000)?;
    file.set_len(12)?;
    file.sync_all()
}

fn allocated(at: &Path) -> io::Result<()> {
    const KEEP: libc::c_int = libc::FALLOC_FL_KEEP_SIZE;
    let file = file(&at.join("allocated"))?;
    let allocate = |mode, from: usize, pages: usize| {
        // SAFETY: it is open. Not every file system has every mode.
        unsafe {
            libc::fallocate(
                file.as_raw_fd(),
                mode,
                (from * 4 * PAGE) as i64,
                (pages * 4 * PAGE) as i64,
            )
        }
    };
    allocate(0, 0, 64);
    // Into the middle of what is allocated and not written.
    for page in [10, 11, 12, 40, 63] {
        file.write_all_at(&[1; PAGE], page * 4 * PAGE as u64)?;
        file.sync_data()?;
    }
    file.write_all_at(&[1; 40 * PAGE], 0)?;
    file.sync_all()?;
    allocate(KEEP, 64, 16);
    allocate(KEEP | libc::FALLOC_FL_PUNCH_HOLE, 20, 8);
    allocate(libc::FALLOC_FL_ZERO_RANGE, 4, 4);
    file.sync_all()?;
    allocate(libc::FALLOC_FL_COLLAPSE_RANGE, 2, 2);
    allocate(libc::FALLOC_FL_INSERT_RANGE, 2, 2);
    file.sync_all()?;
    file.set_len(0)?;
    file.sync_all()
}

/// A page at an address that direct I/O takes.
#[repr(align(4096))]
struct Aligned([u8; 4 * PAGE]);

fn direct(at: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(at.join("direct"))?;
    let mut block = Box::new(Aligned([3; 4 * PAGE]));
    for place in 0..4 {
        file.write_all_at(&block.0, place * 4 * PAGE as u64)?;
    }
    file.sync_data()?;
    file.write_all_at(&block.0, 4 * PAGE as u64)?;
    file.read_exact_at(&mut block.0, 0)
}

fn mapped(at: &Path) -> io::Result<()> {
    const BYTES: usize = 32 * PAGE;
    let file = file(&at.join("mapped"))?;
    file.set_len(BYTES as u64)?;
    // SAFETY: a new mapping of a file that is as long, given back at the end.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for page in 0..32 {
            map.cast::<u8>().add(page * PAGE).write_volatile(9);
        }
        libc::msync(map, BYTES, libc::MS_SYNC);
        libc::madvise(map, BYTES, libc::MADV_REMOVE);
        let _ = map.cast::<u8>().read_volatile();
        libc::munmap(map, BYTES);
    }
    // Page by page, from disk.
    file.write_all_at(&[2; BYTES], 0)?;
    file.sync_all()?;
    // SAFETY: as above.
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
        let map = libc::mmap(
            std::ptr::null_mut(),
            BYTES,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        libc::madvise(map, BYTES, libc::MADV_RANDOM);
        for page in [3, 17, 30] {
            let _ = map.cast::<u8>().add(page * PAGE).read_volatile();
        }
        libc::munmap(map, BYTES);
    }
    Ok(())
}

fn names(at: &Path) -> io::Result<()> {
    let name = |name: &str| at.join(name);
    for number in 0..30 {
        fs::write(name(&format!("file {number}")), vec![number; 2000])?;
    }
    let changed = File::open(name("file 1"))?;
    changed.sync_all()?;
    fs::hard_link(name("file 1"), name("link"))?;
    changed.sync_all()?;
    fs::rename(name("file 2"), name("another"))?;
    fs::rename(name("file 3"), name("file 4"))?;
    std::os::unix::fs::symlink("a".repeat(200), name("symbolic"))?;
    fs::set_permissions(name("link"), fs::Permissions::from_mode(0o640))?;
    changed.sync_all()?;
    let path = c_path(&name("file 5"))?;
    let value = [5_u8; 900];
    for attribute in ["user.a", "user.b"] {
        let attribute = CString::new(attribute)?;
        // SAFETY: C strings, and as many bytes as are said. Not every kernel has attributes.
        unsafe {
            libc::setxattr(path.as_ptr(), attribute.as_ptr(), value.as_ptr().cast(), 900, 0);
            libc::chown(path.as_ptr(), 1, 1);
        }
    }
    fs::remove_file(name("link"))?;
    changed.sync_all()?;
    for number in 6..30 {
        fs::remove_file(name(&format!("file {number}")))?;
    }
    fs::create_dir(name("folder"))?;
    sync(at)?;
    fs::remove_dir(name("folder"))
}

/// More extents than an inode holds, from the end, and their tree removed again.
fn fragmented(at: &Path) -> io::Result<()> {
    let file = file(&at.join("fragmented"))?;
    for place in (0..400_u64).rev() {
        file.write_all_at(&[4; 512], place * 2 * PAGE as u64)?;
        if place % 100 == 0 {
            file.sync_data()?;
        }
    }
    // SAFETY: it is open; `fiemap` is as large as it says.
    unsafe {
        let mut fiemap = [0_u64; 4 + 7 * 20];
        fiemap[1] = u64::MAX;
        fiemap[3] = 20;
        libc::ioctl(file.as_raw_fd(), 0xc020_660b, fiemap.as_mut_ptr());
        libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
    }
    drop(file);
    fs::remove_file(at.join("fragmented"))
}

/// The file system as a whole: what is free is given back, and its map is read.
fn whole(at: &Path) -> io::Result<()> {
    const FITRIM: libc::c_ulong = 0xc018_5879;
    const GETFSMAP: libc::c_ulong = 0xc0c0_583b;
    let folder = File::open(at)?;
    let mut range = [0_u64, u64::MAX, 0];
    // `struct fsmap_head` of include/uapi/linux/fsmap.h with room for 16 records.
    let mut map = vec![0_u64; 24 + 8 * 16];
    let count = map.as_mut_ptr().cast::<u32>();
    // SAFETY: it is open, and the structures are as large as the kernel believes.
    unsafe {
        libc::ioctl(folder.as_raw_fd(), FITRIM, range.as_mut_ptr());
        count.add(2).write(16);
        // The high key: everything.
        map[16..21].fill(u64::MAX);
        libc::ioctl(folder.as_raw_fd(), GETFSMAP, map.as_mut_ptr());
    }
    sync(at)
}
