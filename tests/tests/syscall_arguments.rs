//! `raw_syscalls:sys_enter`: its six arguments are what a process has passed, by the registers of its kind of call, whether
//! a typed program takes them out of these or a classic one finds them formatted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![cfg(target_arch = "x86_64")]

use lkst_tests::lab::Lab;
use lkst_tests::live::{Cell, records};
use lkst_tests::worker::{MARK, Worker, cpus};

const TIMES: u64 = 100;
/// The call that the rule leaves out, by its last argument.
const SKIPPED: u64 = 7;
/// `prctl` of 32-bit programs: arch/x86/entry/syscalls/syscall_32.tbl.
const PRCTL_32: u64 = 172;

/// Six that differ, the first an option that the kernel does not know. They fit into 32 bits.
fn arguments(time: u64, of_32: bool) -> [u64; 6] {
    let first = u64::from(MARK) + u64::from(of_32);
    [
        first,
        time,
        0x1000_0000 + time,
        3,
        0xffff_ffff,
        0x5555_0000 + time,
    ]
}

fn call_64([a, b, c, d, e, f]: [u64; 6]) {
    // SAFETY: no option of this number exists, so no argument is taken for an address.
    unsafe { libc::syscall(libc::SYS_prctl, a, b, c, d, e, f) };
}

/// As a 32-bit program calls: arguments in ebx, ecx, edx, esi, edi, ebp.
fn call_32([a, b, c, d, e, f]: [u64; 6]) {
    // SAFETY: as for `call_64`. Both registers that the compiler keeps for itself are as before.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "push rbp",
            "mov rbx, r12",
            "mov rbp, r13",
            "int 0x80",
            "pop rbp",
            "pop rbx",
            inlateout("rax") PRCTL_32 => _,
            in("r12") a,
            in("rcx") b,
            in("rdx") c,
            in("rsi") d,
            in("rdi") e,
            in("r13") f,
            lateout("r8") _,
            lateout("r9") _,
            lateout("r10") _,
            lateout("r11") _,
        );
    }
}

/// Whether this kernel takes such calls: who makes one elsewhere is ended.
fn takes_32() -> bool {
    let worker = Worker::new(cpus()[0], || call_32(arguments(0, true))).unwrap();
    worker.join().is_ok()
}

#[test]
fn all_six_are_recorded_as_they_were_passed() {
    let Some(lab) = Lab::open("syscall arguments").unwrap() else {
        return;
    };
    let takes_32 = takes_32();
    let worker = Worker::new(cpus()[0], move || {
        for time in 0..TIMES {
            call_64(arguments(time, false));
            if takes_32 {
                call_32(arguments(time, true));
            }
        }
    })
    .unwrap();
    let text = format!(
        "set s {{
           raw_syscalls:sys_enter with task.pid == {} and id in {{ {}, {PRCTL_32} }} and args[0] >> 8 == {} and args[5] != {}
         }}
         start with s",
        worker.pid,
        libc::SYS_prctl,
        MARK >> 8,
        arguments(SKIPPED, false)[5]
    );
    let mut both = [true, false].map(|typed| {
        let loaded = lab.load_one_way(&text, typed).unwrap();
        loaded.start();
        loaded
    });
    worker.join().unwrap();
    for loaded in &mut both {
        loaded.stop().unwrap();
        let found: Vec<(u64, Vec<u64>)> = records(loaded, 0, 10_000)
            .into_iter()
            .filter_map(|record| match (record.int("id"), record.cell("args")) {
                (Some(id), Some(Cell::Ints(args))) => Some((id, args.clone())),
                _ => None,
            })
            .collect();
        let mut passed = Vec::new();
        for time in (0..TIMES).filter(|time| *time != SKIPPED) {
            passed.push((libc::SYS_prctl as u64, arguments(time, false).to_vec()));
            if takes_32 {
                passed.push((PRCTL_32, arguments(time, true).to_vec()));
            }
        }
        assert_eq!(found, passed);
    }
    println!("syscall arguments: {TIMES} calls of 64 bits, of 32 bits as many: {takes_32}");
}
