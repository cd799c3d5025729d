//! What the suites trace: a process that does a little of everything, so that many kinds of event happen for certain.
//!
//! `workload MILLISECONDS`: goes on for that long, and until everything was done some times however busy the machine
//! is, then ends. It ends with its parent too, and leaves nothing behind.
//! It is a program of its own because lkst passes over what its own process does.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const NAMES: [&CStr; 8] = [
    c"a",
    c"bc",
    c"worker",
    c"a name of 14b.",
    c"fifteen bytes..",
    c"kworker/0:1",
    c"x*y",
    c"",
];

/// How often everything is done at least.
const ROUNDS: usize = 12;

fn main() {
    let milliseconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    // SAFETY: asks for a signal when the parent ends.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: the handler does nothing, and the signals are not used otherwise.
    unsafe {
        for signal in [libc::SIGUSR1, libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF] {
            libc::signal(signal, ignore as *const () as libc::sighandler_t);
        }
    }
    let end = Instant::now() + Duration::from_millis(milliseconds.unwrap_or(1000));
    let mut round = 0;
    while Instant::now() < end || round < ROUNDS {
        names(round);
        files(round);
        calls();
        signals();
        timers();
        network();
        memory();
        if round % 4 == 0 {
            processes();
        }
        std::thread::sleep(Duration::from_millis(2));
        round += 1;
    }
}

extern "C" fn ignore(_: libc::c_int) {}

fn names(round: usize) {
    for name in NAMES.iter().cycle().skip(round % NAMES.len()).take(4) {
        // SAFETY: the name is a C string.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
    // SAFETY: as above. The name that the suites look for.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"workload".as_ptr()) };
}

fn files(round: usize) {
    const PATHS: [&CStr; 6] = [
        c"/dev/null",
        c"/etc/hostname",
        c"/proc/self/stat",
        c"/nowhere/at/all",
        c"/etc/a/path/that/is/somewhat/longer/than/thirty-two/bytes",
        c"",
    ];
    for (path, flags) in PATHS.iter().zip([
        libc::O_RDWR,
        libc::O_RDONLY,
        libc::O_RDONLY | libc::O_CLOEXEC,
        libc::O_WRONLY,
        libc::O_RDONLY,
        libc::O_PATH,
    ]) {
        // SAFETY: the path is a C string; what was opened is closed, and -1 is an error like any other.
        unsafe {
            let fd = libc::openat(libc::AT_FDCWD, path.as_ptr(), flags);
            let mut bytes = [0_u8; 64];
            libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len());
            libc::write(fd, bytes.as_ptr().cast(), 7);
            libc::lseek(fd, -3, libc::SEEK_CUR);
            libc::close(fd);
        }
    }
    // What a disk needs to write may take long.
    if round % ROUNDS == 5
        && let Ok(mut file) = tempfile::tempfile()
    {
        let _ = file.write_all(&[7; 9000]);
        let _ = file.sync_all();
    }
}

fn calls() {
    // SAFETY: none of these is given memory to write to; those that are wrong only return an error.
    unsafe {
        libc::syscall(libc::SYS_getpid);
        libc::kill(libc::getpid(), 0);
        libc::kill(-77_777, 0);
        libc::dup2(-1, -5);
        libc::close(-3);
        libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::sched_yield();
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        libc::umask(0o022);
        libc::access(c"/proc/version".as_ptr(), libc::R_OK);
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let bytes = size_of::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, bytes, &raw mut set) == 0 {
            let here = libc::sched_getcpu();
            let mut other: libc::cpu_set_t = std::mem::zeroed();
            let target = usize::try_from(here).map_or(0, |cpu| cpu ^ 1);
            libc::CPU_SET(target, &mut other);
            // A migration, and back.
            libc::sched_setaffinity(0, bytes, &raw const other);
            libc::sched_setaffinity(0, bytes, &raw const set);
        }
    }
}

fn signals() {
    // SAFETY: the handler does nothing; `sigqueue` is told a value that nobody follows.
    unsafe {
        libc::raise(libc::SIGUSR1);
        libc::kill(libc::getpid(), libc::SIGUSR1);
        let value = libc::sigval {
            sival_ptr: std::ptr::null_mut(),
        };
        libc::sigqueue(libc::getpid(), libc::SIGUSR1, value);
    }
}

fn timers() {
    let soon = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        it_value: libc::timeval {
            tv_sec: 0,
            tv_usec: 300,
        },
    };
    let never = libc::itimerval {
        it_value: libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        },
        ..soon
    };
    let later = libc::itimerval {
        it_interval: libc::timeval {
            tv_sec: 3,
            tv_usec: 250_000,
        },
        it_value: libc::timeval {
            tv_sec: 100,
            tv_usec: 5,
        },
    };
    // SAFETY: the structures live on the stack, and the signals are caught.
    unsafe {
        libc::setitimer(libc::ITIMER_REAL, &raw const soon, std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_PROF, &raw const later, std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_VIRTUAL, &raw const soon, std::ptr::null_mut());
    }
    // Processor time for the virtual timer.
    let busy = Instant::now();
    while busy.elapsed() < Duration::from_micros(500) {
        std::hint::spin_loop();
    }
    std::thread::sleep(Duration::from_micros(200));
    // SAFETY: as above.
    unsafe {
        for which in [libc::ITIMER_REAL, libc::ITIMER_PROF, libc::ITIMER_VIRTUAL] {
            libc::setitimer(which, &raw const never, std::ptr::null_mut());
        }
        let fd = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC);
        let at = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: 0,
                tv_nsec: 50_000,
            },
        };
        libc::timerfd_settime(fd, 0, &raw const at, std::ptr::null_mut());
        let mut count = 0_u64;
        libc::read(fd, (&raw mut count).cast(), 8);
        libc::timerfd_settime(fd, 0, &raw const at, std::ptr::null_mut());
        libc::close(fd);
        // A timer of the wheel, not a high-resolution one: a poll of a socket that waits for nobody.
        libc::alarm(0);
    }
}

fn network() {
    let send = || -> std::io::Result<()> {
        let (one, other) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        other.set_read_timeout(Some(Duration::from_millis(20)))?;
        for length in [1, 100, 1400] {
            one.send_to(&vec![7; length], other.local_addr()?)?;
            other.recv_from(&mut [0; 2048])?;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let mut client = std::net::TcpStream::connect(listener.local_addr()?)?;
        let (mut server, _) = listener.accept()?;
        client.write_all(b"some bytes")?;
        server.read_exact(&mut [0; 10])
    };
    // Where there is no loopback there are none of its events.
    let _ = send();
}

fn memory() {
    const BYTES: usize = 64 << 12;
    // SAFETY: a new mapping, written to and given back.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if at != libc::MAP_FAILED {
            for page in 0..64 {
                at.cast::<u8>().add(page << 12).write_volatile(1);
            }
            libc::madvise(at, BYTES, libc::MADV_DONTNEED);
            libc::munmap(at, BYTES);
        }
    }
    if let (Ok(file), Ok(null)) = (File::open("/proc/self/exe"), File::open("/dev/null")) {
        // SAFETY: both are open, and nothing is written.
        unsafe { libc::sendfile(null.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), 4096) };
    }
}

fn processes() {
    let child = Command::new("/bin/true")
        .arg("--an-argument")
        .stdin(Stdio::null())
        .spawn();
    if let Ok(mut child) = child {
        let _ = child.wait();
    }
    let sleeper = Command::new("/bin/sleep").arg("10").spawn();
    if let Ok(mut child) = sleeper {
        let _ = child.kill();
        let _ = child.wait();
    }
    let _ = std::thread::spawn(|| names(1)).join();
    traced_child();
}

/// A child that is traced: the tracer waits until it is off its processor.
fn traced_child() {
    // SAFETY: the child calls nothing but system calls before it ends, and the parent waits for it.
    unsafe {
        match libc::fork() {
            0 => {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
            child if child > 0 => {
                libc::waitpid(child, std::ptr::null_mut(), libc::WUNTRACED);
                libc::ptrace(libc::PTRACE_CONT, child, 0, 0);
                libc::waitpid(child, std::ptr::null_mut(), 0);
            }
            _ => {}
        }
    }
}
