//! *Exact reload* as an operator does it: rule files are written over while every CPU fires numbered events, two good
//! versions in turn and a broken one every third time. Each number is recorded once, by the one or the other; a broken
//! file changes nothing and is said.
//!
//! `LKST_AGENT_RELOADS` says how many files are written; 30 where it is not set.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use lkst_tests::agents::Bed;
use lkst_tests::lab::Lab;
use lkst_tests::numbered::{each_once, ours};
use lkst_tests::streamed::Numbered;

const TAG: u8 = b'K';

/// One of two versions that differ in everything but the ring.
fn rules(variant: usize) -> String {
    let (with, columns) = [
        (r#"newcomm like "lktK-*""#, "newcomm, pid"),
        (
            r#"pid > 1 and newcomm like "lktK*""#,
            "oldcomm, newcomm, oom_score_adj",
        ),
    ][variant];
    format!(
        "budget 100%
         buffer main {{ size = 128MiB }}
         set numbered_{variant} {{
           task:task_rename with {with} and {} record {columns}
           sched:sched_switch with prev_pid == {variant} and next_pid == {variant}
           syscalls:sys_enter_prctl with option == {} record option
         }}
         start with numbered_{variant}",
        ours(),
        7_000_000 + variant
    )
}

fn wanted() -> usize {
    std::env::var("LKST_AGENT_RELOADS").map_or(30, |text| text.parse().unwrap())
}

#[test]
fn every_number_is_recorded_once_however_files_change_or_break() {
    let Some(_lab) = Lab::open("reload by files").unwrap() else {
        return;
    };
    let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
    std::fs::write(bed.path("lkst.toml"), "max_memory = \"2GiB\"").unwrap();
    bed.put("exact.lkst", &rules(0)).unwrap();
    bed.start().unwrap();
    bed.pack_until("exact", "is in force", |pack| pack.hash.is_some())
        .unwrap();
    let mut numbered = Numbered::new(TAG, u32::MAX, 2000).unwrap();
    numbered.go();
    let (mut variant, mut broken) = (0, 0);
    let mut hash = bed.pack("exact").unwrap().unwrap().hash;
    for write in 1..=wanted() {
        if write % 3 == 0 {
            bed.put(
                "exact.lkst",
                &format!("{} set broken {{ sched:sched_swich }}", rules(variant)),
            )
            .unwrap();
            let pack = bed
                .pack_until("exact", "has an error", |pack| pack.error.is_some())
                .unwrap();
            assert_eq!(pack.hash, hash, "the last good version stays");
            broken += 1;
        } else {
            variant = 1 - variant;
            bed.put("exact.lkst", &rules(variant)).unwrap();
            let set = format!("numbered_{variant}");
            let pack = bed
                .pack_until("exact", "has its new set", |pack| {
                    pack.error.is_none() && pack.sets.iter().any(|known| known.name == set && known.enabled)
                })
                .unwrap();
            assert_ne!(pack.hash, hash);
            hash = pack.hash;
        }
    }
    numbered.stop().unwrap();
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
    let made = each_once(&bed.traces("exact"), &numbered.made()).unwrap();
    println!(
        "reload by files: {} written, {broken} of them broken: {made} numbered events, each recorded once",
        wanted()
    );
}
