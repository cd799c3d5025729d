//! Many packs on one event: its program has several parts, each pack still sees each hit once, and a change of one pack in
//! the last part is as exact as any.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use lkst::kernel::generation::load;
use lkst_probes::asm::MapRef;
use lkst_rules::plan::Plan;
use lkst_tests::lab::Lab;
use lkst_tests::streamed::Numbered;
use lkst_tests::view::View;
use lkst_tests::worker::{cpus, renamed};

/// The most packs that a host may have.
const PACKS: usize = 64;
const TAG: u8 = b'M';
const CHANGES: usize = 40;

fn plans(lab: &Lab, variant: usize) -> Vec<Arc<Plan>> {
    let plan = |pack: usize| {
        let columns = match (pack, variant) {
            (63, 1) => "newcomm, pid",
            _ => "newcomm",
        };
        let size = if pack == 63 { "256MiB" } else { "64KiB" };
        let rules = format!(
            "buffer main {{ size = {size} }}
             set s {{ task:task_rename with newcomm like \"lktM-*\" record {columns} }}
             start with s"
        );
        lab.plan_of(&format!("p{pack:02}"), &rules).unwrap()
    };
    (0..PACKS).map(plan).collect()
}

#[test]
fn sixty_four_packs_of_one_event_each_see_each_hit_once() {
    let Some(lab) = Lab::open("many packs").unwrap() else {
        return;
    };
    let variants = [plans(&lab, 0), plans(&lab, 1)];
    let env = lab.environment().unwrap();
    let mut loaded = load(&variants[0], &env).unwrap();
    let parts = loaded.image.programs[0].parts.clone();
    assert!(parts.len() > 1, "it fits into one program");
    let pages = |part: &lkst_probes::asm::Code| {
        let pages = part
            .maps
            .iter()
            .filter(|(_, map)| matches!(map, MapRef::Pages(_)));
        pages.count()
    };
    let rings: usize = parts.iter().map(pages).sum();
    assert_eq!(rings, PACKS, "each pack is in one part");
    loaded.start();

    let cpus = cpus();
    let mut numbered = Numbered::new(TAG, u32::MAX, 0).unwrap();
    numbered.go();
    for change in 1..=CHANGES {
        let former = loaded.reload(&variants[change % 2], &env).unwrap();
        assert_eq!(former.loaded, 1, "only the one event's program");
        std::thread::sleep(Duration::from_millis(5));
    }
    numbered.stop().unwrap();
    loaded.stop().unwrap();

    let mut by_columns = [0_u64; 2];
    let all_made = numbered.made();
    for cpu in &cpus {
        let made = u64::from(all_made[&(*cpu as u32)]);
        for pack in 0..PACKS {
            let events = &loaded.image.packs[pack].events;
            let event = events
                .iter()
                .find(|event| event.name == "task:task_rename")
                .unwrap();
            let counts = loaded.event_counts(event.counters, *cpu);
            assert_eq!(
                (counts.recorded, counts.lost),
                (made, 0),
                "pack {pack}, CPU {cpu}"
            );
        }
        let rings = loaded.rings_of(63, 0).unwrap();
        let view = View::new(
            rings.look().unwrap().copy(*cpu, false),
            &loaded.image.packs[63].layouts,
        );
        assert_eq!((view.found.overwritten_pages, view.found.torn), (0, 0));
        let mut serials = 0..made as u32;
        for record in view.records() {
            let serial = renamed(record.text("newcomm")).map(|(_, serial)| serial);
            assert_eq!(serial, serials.next(), "CPU {cpu}");
            by_columns[record.class.layout.columns.len() - 1] += 1;
        }
        assert_eq!(serials.next(), None, "CPU {cpu}");
    }
    assert!(by_columns.iter().all(|records| *records > 0), "{by_columns:?}");
    println!(
        "many packs: {PACKS} packs in {} parts, {CHANGES} changes, {} hits, each recorded once by each pack",
        parts.len(),
        by_columns[0] + by_columns[1]
    );
}
