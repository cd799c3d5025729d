//! What the unit of systemd allows the agent, made by hand where no systemd runs: the unit's own lines in, a process in
//! that sandbox out.
//!
//! Made so: capabilities, no new privileges, the filter of system calls (by systemd's own lists), of address families,
//! namespaces and writable code; everything read-only but the folders of the agent, no homes, no devices. Not made so:
//! limits on network and tasks, which a process does not notice.

use std::io;
use std::mem::offset_of;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context as _, bail, ensure};
use lkst::kernel::syscall;

use crate::namespace::{bind, mount_new, view_read_only, with_own_mounts};

/// A sandbox.
#[derive(Debug)]
pub struct Sandbox {
    capabilities: String,
    filter: Vec<libc::sock_filter>,
    /// What may be written.
    writable: Vec<PathBuf>,
    /// An empty folder, for a `/dev`.
    devices: PathBuf,
}

/// What the unit says about a key, line by line.
fn lines<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    let values = unit
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.collect()
}

impl Sandbox {
    /// As a unit has it; the unit's own folders are `writable`. `devices` is an empty folder.
    ///
    /// # Errors
    /// The unit has something that is not known here, or systemd's lists of system calls cannot be read.
    pub fn of_unit(unit: &str, writable: Vec<PathBuf>, devices: PathBuf) -> anyhow::Result<Sandbox> {
        for line in [
            "NoNewPrivileges=yes",
            "RestrictNamespaces=yes",
            "MemoryDenyWriteExecute=yes",
            "ProtectSystem=strict",
            "ProtectHome=yes",
            "PrivateDevices=yes",
            "ProtectKernelTunables=yes",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
            "SystemCallErrorNumber=EPERM",
        ] {
            ensure!(
                unit.lines().any(|found| found == line),
                "the unit has no `{line}`"
            );
        }
        let [capabilities] = lines(unit, "CapabilityBoundingSet")[..] else {
            bail!("the unit has not one CapabilityBoundingSet=");
        };
        let names: Vec<String> = capabilities
            .split(' ')
            .filter_map(|name| Some(format!("+{}", name.strip_prefix("CAP_")?.to_lowercase())))
            .collect();
        Ok(Sandbox {
            capabilities: format!("-all,{}", names.join(",")),
            filter: filter(&allowed(&lines(unit, "SystemCallFilter"))?),
            writable,
            devices,
        })
    }

    /// Starts a command in it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn spawn(&self, inner: &Command, prepare: impl FnOnce(&mut Command) + Send) -> io::Result<Child> {
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set", &self.capabilities, "--inh-caps", "-all", "--"])
            .arg(inner.get_program())
            .args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        prepare(&mut command);
        let filter = self.filter.clone();
        // SAFETY: the closure makes two system calls and allocates nothing; the filter is owned by it.
        unsafe {
            command.pre_exec(move || {
                let program = libc::sock_fprog {
                    len: filter.len() as libc::c_ushort,
                    filter: filter.as_ptr().cast_mut(),
                };
                let done = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                    && libc::prctl(
                        libc::PR_SET_SECCOMP,
                        libc::SECCOMP_MODE_FILTER,
                        &raw const program,
                    ) == 0;
                match done {
                    true => Ok(()),
                    false => Err(io::Error::last_os_error()),
                }
            });
        }
        with_own_mounts(|| {
            self.mounts()?;
            command.spawn()
        })?
    }

    fn mounts(&self) -> io::Result<()> {
        for folder in &self.writable {
            bind(folder, folder)?;
        }
        for name in ["null", "zero", "full", "random", "urandom"] {
            let node = self.devices.join(name);
            std::fs::write(&node, "")?;
            bind(&Path::new("/dev").join(name), &node)?;
        }
        bind(&self.devices, Path::new("/dev"))?;
        for home in ["/home", "/root"] {
            if Path::new(home).is_dir() {
                mount_new(c"tmpfs", Path::new(home), "size=4k,mode=000")?;
            }
        }
        // As systemd has mounted it; who is in here could not.
        match mount_new(c"tracefs", Path::new("/sys/kernel/tracing"), "") {
            // Another tracer has mounted it there.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            mounted => mounted?,
        }
        view_read_only(Path::new("/"), true)?;
        self.writable
            .iter()
            .try_for_each(|folder| view_read_only(folder, false))
    }
}

/// The numbers of the system calls that lines of `SystemCallFilter=` leave.
fn allowed(lines: &[&str]) -> anyhow::Result<Vec<u32>> {
    let mut names: Vec<String> = Vec::new();
    for line in lines {
        let (removes, words) = match line.strip_prefix('~') {
            Some(words) => (true, words),
            None => (false, *line),
        };
        let mut these = Vec::new();
        for word in words.split(' ') {
            expand(word, &mut these)?;
        }
        match removes {
            true => names.retain(|name| !these.contains(name)),
            false => names.extend(these),
        }
    }
    // Those that this architecture does not have are no matter.
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| syscall::number(name)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    ensure!(
        numbers.len() > 100,
        "only {} system calls are allowed",
        numbers.len()
    );
    Ok(numbers)
}

/// A group of system calls, or one.
fn expand(word: &str, names: &mut Vec<String>) -> anyhow::Result<()> {
    if !word.starts_with('@') {
        names.push(word.to_owned());
        return Ok(());
    }
    let output = Command::new("systemd-analyze")
        .args(["--no-pager", "syscall-filter", word])
        .output()
        .context("systemd-analyze cannot be run")?;
    ensure!(output.status.success(), "systemd-analyze does not know {word}");
    let text = String::from_utf8(output.stdout)?;
    for line in text.lines().skip(1) {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') {
            expand(line, names)?;
        }
    }
    Ok(())
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Skips the next one where it holds not.
const fn unless_skip(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code,
        jt: 0,
        jf: 1,
        k,
    }
}

/// The low half of an argument. Both architectures that lkst knows are little-endian.
const fn argument(number: usize) -> u32 {
    (offset_of!(libc::seccomp_data, args) + 8 * number) as u32
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// A program that returns `errno` for everything else than what is allowed.
fn filter(allowed: &[u32]) -> Vec<libc::sock_filter> {
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    let refuse = |errno: libc::c_int| statement(RETURN, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned());
    let number = statement(LOAD, offset_of!(libc::seccomp_data, nr) as u32);
    let mut program = vec![
        statement(LOAD, offset_of!(libc::seccomp_data, arch) as u32),
        libc::sock_filter {
            code: EQUAL,
            jt: 1,
            jf: 0,
            k: ARCHITECTURE,
        },
        refuse(libc::EPERM),
        number,
    ];
    // Of one call by its arguments: `body` ends with a return, or falls through to where the number is loaded again.
    let mut of_call = |call: libc::c_long, body: &[libc::sock_filter]| {
        program.push(libc::sock_filter {
            code: EQUAL,
            jt: 0,
            jf: body.len() as u8,
            k: call as u32,
        });
        program.extend_from_slice(body);
        program.push(number);
    };
    let (write, execute) = (libc::PROT_WRITE.cast_unsigned(), libc::PROT_EXEC.cast_unsigned());
    of_call(
        libc::SYS_mmap,
        &[
            statement(LOAD, argument(2)),
            libc::sock_filter {
                code: ANY_BIT,
                jt: 0,
                jf: 2,
                k: write,
            },
            unless_skip(ANY_BIT, execute),
            refuse(libc::EPERM),
        ],
    );
    of_call(
        libc::SYS_mprotect,
        &[
            statement(LOAD, argument(2)),
            unless_skip(ANY_BIT, execute),
            refuse(libc::EPERM),
        ],
    );
    let namespaces = (libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP)
        .cast_unsigned();
    for call in [libc::SYS_clone, libc::SYS_unshare] {
        of_call(
            call,
            &[
                statement(LOAD, argument(0)),
                unless_skip(ANY_BIT, namespaces),
                refuse(libc::EPERM),
            ],
        );
    }
    of_call(libc::SYS_setns, &[refuse(libc::EPERM)]);
    // Its flags lie in memory, where no filter sees them.
    of_call(libc::SYS_clone3, &[refuse(libc::ENOSYS)]);
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(libc::c_int::cast_unsigned);
    of_call(
        libc::SYS_socket,
        &[
            statement(LOAD, argument(0)),
            libc::sock_filter {
                code: EQUAL,
                jt: 3,
                jf: 0,
                k: families[0],
            },
            libc::sock_filter {
                code: EQUAL,
                jt: 2,
                jf: 0,
                k: families[1],
            },
            libc::sock_filter {
                code: EQUAL,
                jt: 1,
                jf: 0,
                k: families[2],
            },
            refuse(libc::EAFNOSUPPORT),
        ],
    );
    for call in allowed {
        program.push(unless_skip(EQUAL, *call));
        program.push(statement(RETURN, ALLOW));
    }
    program.push(refuse(libc::EPERM));
    program
}
