//! From a ring to text: what the writer wrote is in the trace, is what babeltrace2 reads, and is what `lkst show` shows.
//!
//! Rings are filled by a model of the kernel's writer (`lkst_tests::ring`).
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

use lkst::command::show::{self, ShowOptions};
use lkst::trace::incident::Incident;
use lkst::trace::metadata::TraceInfo;
use lkst::trace::raw::RawStream;
use lkst::trace::seal::{self, SaveError, Saved};
use lkst_probes::layout::{Encoding, PAGE_BYTES, RecordLayout, page, record};
use lkst_tests::babeltrace::{assert_same_as_show, same_as_show, show_json, show_text};
use lkst_tests::ring::{Cell, Reserved, Ring, encode};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::{Value, json};

fn info(layouts: Vec<RecordLayout>) -> TraceInfo {
    TraceInfo {
        uuid: [7; 16],
        hostname: "box".into(),
        kernel_release: "6.18.0".into(),
        boot_id: "boot".into(),
        lkst_version: "0.1.0".into(),
        pack: "io".into(),
        boot_offset_ns: 1_700_000_000_000_000_005,
        layouts,
        env: Vec::new(),
    }
}

fn save(folder: &Path, layouts: &[RecordLayout], streams: Vec<RawStream>) -> Saved {
    seal::save(folder, &info(layouts.to_vec()), streams, Incident::default()).unwrap()
}

fn layout(id: u16, name: &str, columns: &[(&str, Encoding)]) -> RecordLayout {
    let columns = columns
        .iter()
        .map(|(name, encoding)| (name.to_string(), encoding.clone(), false));
    RecordLayout::new(id, name, columns).unwrap()
}

fn rename() -> RecordLayout {
    let pid = Encoding::Int {
        bits: 32,
        signed: true,
    };
    layout(
        7,
        "task:task_rename",
        &[
            ("pid", pid),
            ("comm", Encoding::Text { bytes: 16 }),
            ("path", Encoding::String),
        ],
    )
}

fn cells(number: u64) -> Vec<Cell> {
    vec![
        Cell::Int(number),
        Cell::Bytes(b"cat dog".into()),
        Cell::Bytes(b"/\x1b\xff".into()),
    ]
}

#[test]
fn a_record_is_shown_as_people_and_programs_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a");
    let rename = rename();
    let mut ring = Ring::new("main", 3, 2, 1, 1);
    ring.write(&rename, encode(&rename, 12_000_000_345, 10, 11, &cells(5)));
    let incident = Incident {
        names: [(11, "bash".to_owned())].into(),
        ..Incident::default()
    };
    let saved = seal::save(&folder, &info(vec![rename]), [ring.raw], incident).unwrap();
    assert_eq!((saved.records, saved.torn), (1, 0));
    let line = "            bash-11      [003] 12.000000345: task:task_rename: pid=5 comm=\"cat dog\" path=\"/\\x1b\\xff\"\n";
    assert_eq!(show_text(&folder), line);
    let line = json!({
        "time_ns": 12_000_000_345_u64, "cpu": 3, "pack": "io", "buffer": "main", "event": "task:task_rename", "pid": 10,
        "tid": 11, "comm": "bash", "fields": {"pid": 5, "comm": "cat dog", "path": "/\u{1b}\\xff"},
    });
    assert_eq!(show_json(std::slice::from_ref(&folder)).unwrap(), [line]);
    assert_eq!(assert_same_as_show(&folder), 1);

    let incident: Incident =
        serde_json::from_slice(&fs::read(folder.join("incident.json")).unwrap()).unwrap();
    assert_eq!(incident.counts["task:task_rename"][&3].kept, 1);
    assert_eq!(
        (incident.begin_ns, incident.end_ns),
        (Some(12_000_000_345), Some(12_000_000_345))
    );
    assert_eq!(incident.streams[0].file.as_deref(), Some("main_3"));
}

#[test]
fn a_damaged_stream_of_names_costs_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a");
    let rename = rename();
    let mut ring = Ring::new("main", 0, 2, 1, 1);
    let names = [(11, "bash"), (12, "a\x1b\u{202e}"), (13, "")];
    for (tid, _) in names {
        ring.write(&rename, encode(&rename, tid.into(), 10, tid, &cells(5)));
    }
    let incident = Incident {
        // Of a thread without a record too: that is none of the trace's.
        names: names
            .into_iter()
            .chain([(99, "other")])
            .map(|(tid, comm)| (tid, comm.to_owned()))
            .collect(),
        ..Incident::default()
    };
    seal::save(&folder, &info(vec![rename]), [ring.raw], incident).unwrap();
    let comms = |folder: &PathBuf| -> Vec<Value> {
        let lines = show_json(std::slice::from_ref(folder)).unwrap();
        lines.into_iter().map(|line| line["comm"].clone()).collect()
    };
    assert_eq!(comms(&folder), names.map(|(_, comm)| Value::from(comm)));
    // By the stream alone.
    let ctf = folder.join("ctf");
    fs::remove_file(folder.join("incident.json")).unwrap();
    assert_eq!(comms(&folder), names.map(|(_, comm)| Value::from(comm)));

    let path = ctf.join("names");
    let whole = fs::read(&path).unwrap();
    let shown = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let options = ShowOptions {
            paths: vec![folder.clone()],
            json: true,
            ..ShowOptions::default()
        };
        let shown = show::run(&options, &mut Vec::new(), false).unwrap();
        (shown.records, shown.problems.len())
    };
    for length in 0..whole.len() {
        assert_eq!(shown(&whole[..length]), (3, 1), "{length} bytes");
    }
    for place in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 0xff;
        let (records, problems) = shown(&bytes);
        assert!(records == 3 && problems <= 1, "byte {place}: {problems}");
    }
}

#[test]
fn a_condition_chooses_records() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a");
    let rename = rename();
    let int = Encoding::Int {
        bits: 64,
        signed: false,
    };
    let other = layout(
        8,
        "block:rq",
        &[
            ("sector", int),
            (
                "dev",
                Encoding::Array {
                    bits: 16,
                    signed: true,
                    count: 2,
                },
            ),
        ],
    );
    let mut ring = Ring::new("main", 1, 2, 1, 1);
    for number in 0..8 {
        ring.write(
            &rename,
            encode(&rename, number, 10, number as u32, &cells(number)),
        );
        let cells = [Cell::Int(number * 512), Cell::Ints(vec![8, number])];
        ring.write(&other, encode(&other, number, 10, 11, &cells));
    }
    let incident = Incident {
        names: [(3, "bash".to_owned())].into(),
        ..Incident::default()
    };
    seal::save(&folder, &info(vec![rename, other]), [ring.raw], incident).unwrap();
    let count = |condition: &str| {
        let options = ShowOptions {
            paths: vec![folder.clone()],
            condition: Some(condition.to_owned()),
            ..ShowOptions::default()
        };
        show::run(&options, &mut Vec::new(), false)
            .map(|shown| shown.records)
            .map_err(|error| format!("{error:#}"))
    };
    for (condition, records) in [
        ("sector >= 1024 and sector < 2048", 2),
        ("dev[1] == 3", 1),
        ("pid in 2..4", 3),
        ("comm like \"cat*\" and task.tid == 5", 1),
        ("task.comm == \"bash\"", 1),
        ("hit.event == \"block:rq\"", 8),
        ("hit.cpu == 1 and task.pid == 10 and hit.time >= 2ns", 12),
        ("task.uid == 0", 0),
    ] {
        assert_eq!(count(condition), Ok(records), "{condition}");
    }
    assert!(count("nonsense == 1").unwrap_err().contains("nonsense"));
    assert!(count("sector ==").is_err());
}

#[test]
fn files_are_their_owners_alone_and_nothing_is_left_beside_them() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("pack/a");
    let rename = rename();
    let mut ring = Ring::new("main", 0, 2, 1, 1);
    ring.write(&rename, encode(&rename, 1, 10, 11, &cells(5)));
    save(&folder, std::slice::from_ref(&rename), vec![ring.raw.clone()]);
    for (path, mode) in [
        ("", 0o700),
        ("ctf", 0o700),
        ("ctf/main_0", 0o600),
        ("incident.json", 0o600),
    ] {
        assert_eq!(
            fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o777,
            mode,
            "{path}"
        );
    }

    let again = seal::save(
        &folder,
        &info(vec![rename.clone()]),
        [ring.raw.clone()],
        Incident::default(),
    );
    assert!(matches!(again, Err(SaveError::Exists { .. })), "{again:?}");
    let other = dir.path().join("pack/b");
    ring.raw.buffer = "../x".into();
    let evil = seal::save(
        &other,
        &info(vec![rename.clone()]),
        [ring.raw.clone()],
        Incident::default(),
    );
    assert!(matches!(evil, Err(SaveError::BufferName { .. })), "{evil:?}");
    ring.raw.buffer = "main".into();
    let twice = seal::save(
        &other,
        &info(vec![rename]),
        [ring.raw.clone(), ring.raw],
        Incident::default(),
    );
    assert!(matches!(twice, Err(SaveError::Twice { .. })), "{twice:?}");
    assert_eq!(fs::read_dir(dir.path().join("pack")).unwrap().count(), 1);
}

#[test]
fn rings_without_a_record_leave_a_trace_without_a_stream() {
    let without_pages = RawStream {
        buffer: "none".into(),
        pos: 12_345,
        ..RawStream::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("a");
    let saved = save(
        &folder,
        &[rename()],
        vec![Ring::new("main", 0, 2, 1, 1).raw, without_pages],
    );
    assert_eq!((saved.records, saved.streams.len()), (0, 2));
    assert_eq!(assert_same_as_show(&folder), 0);
}

#[test]
fn a_record_saved_in_two_incidents_is_shown_once() {
    let dir = tempfile::tempdir().unwrap();
    let rename = rename();
    let layouts = [rename.clone()];
    let mut ring = Ring::new("main", 0, 2, 1, 99);
    // Two equal records at one time are two; the same two in the other incident are no more.
    for time in [5, 5, 6, 6, 7] {
        ring.write(&rename, encode(&rename, time, 1, 1, &cells(1)));
    }
    ring.write(&rename, encode(&rename, 5, 1, 1, &cells(2)));
    save(&dir.path().join("1"), &layouts, vec![ring.raw.clone()]);
    for number in 0..60 {
        ring.write(&rename, encode(&rename, 7 + number / 2, 1, 1, &cells(number)));
    }
    save(&dir.path().join("2"), &layouts, vec![ring.raw.clone()]);
    let mut other = ring.raw.clone();
    other.instance_id = 100;
    save(&dir.path().join("3"), &layouts, vec![other]);
    let lines = show_json(&[dir.path().join("1"), dir.path().join("2")]).unwrap();
    assert_eq!(lines.len(), 66);
    assert!(lines.is_sorted_by_key(|line| line["time_ns"].as_u64()));
    assert_eq!(
        show_json(&[dir.path().join("1"), dir.path().to_owned()])
            .unwrap()
            .len(),
        132
    );
}

#[test]
fn what_was_overwritten_lost_or_given_up_is_counted_and_read_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let rename = rename();
    let mut ring = Ring::new("main", 0, 3, 1, 1);
    for number in 0..1000 {
        ring.write(&rename, encode(&rename, number, 1, 1, &cells(number)));
    }
    let saved = save(
        &dir.path().join("a"),
        std::slice::from_ref(&rename),
        vec![ring.raw.clone()],
    );
    assert!(saved.streams[0].overwritten_pages > 3, "{saved:?}");
    assert_eq!(assert_same_as_show(&dir.path().join("a")) as u64, saved.records);

    ring.raw.floor = ring.raw.pos;
    ring.write(&rename, encode(&rename, 2000, 1, 1, &cells(0)));
    let saved = save(
        &dir.path().join("b"),
        std::slice::from_ref(&rename),
        vec![ring.raw.clone()],
    );
    assert_eq!((saved.records, saved.streams[0].overwritten_pages), (1, 0));

    ring.raw.lost = 3;
    save(&dir.path().join("c"), &[rename], vec![ring.raw]);
    assert_eq!(seal_discarded(&dir.path().join("c/ctf/main_0")), 3);
}

fn seal_discarded(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    u64::from_le_bytes(bytes[page::EVENTS_DISCARDED..][..8].try_into().unwrap())
}

#[test]
fn a_crash_between_reserving_and_marking_is_one_torn_record() {
    let rename = rename();
    let classes = lkst::trace::decode::Classes::of_layouts(std::slice::from_ref(&rename));
    for before in [0, 2, 27, 40] {
        let mut ring = Ring::new("main", 0, 3, 1, 1);
        for number in 0..before {
            ring.write(&rename, encode(&rename, number, 1, 1, &cells(number)));
        }
        let hole = ring.reserve(&rename, encode(&rename, 100, 1, 1, &cells(9)));
        assert!(hole.is_some());
        ring.write(&rename, encode(&rename, 101, 1, 1, &cells(9)));
        let whole = lkst::trace::raw::records(&ring.raw, &classes);
        assert_eq!((whole.torn, whole.records.len() as u64), (1, before + 1));
        // The word of the reserved record was never stored: `busy` says that there is one.
        let length = encode(&rename, 0, 0, 0, &cells(9)).len();
        let at = (ring.raw.pos as usize - 2 * length) % ring.raw.pages.len();
        ring.raw.pages[at..at + 8].fill(0);
        assert_eq!(
            lkst::trace::raw::records(&ring.raw, &classes),
            whole,
            "after {before}"
        );
    }
}

fn encodings() -> impl Strategy<Value = Encoding> {
    let bits = || prop_oneof![Just(8_u8), Just(16), Just(32), Just(64)];
    let label = ("[ -~é]{0,8}", prop_oneof![0..4_u32, any::<u32>()]);
    prop_oneof![
        4 => (bits(), any::<bool>()).prop_map(|(bits, signed)| Encoding::Int { bits, signed }),
        1 => vec(label, 1..4).prop_map(Encoding::Enum),
        1 => (bits(), any::<bool>(), 0..5_u16).prop_map(|(bits, signed, count)| Encoding::Array { bits, signed, count }),
        1 => (0..20_u16).prop_map(|bytes| Encoding::Text { bytes }),
        2 => Just(Encoding::String),
        1 => (bits(), any::<bool>()).prop_map(|(bits, signed)| Encoding::Sequence { bits, signed }),
    ]
}

const NAMES: &[&str] = &[
    "event",
    "struct",
    "string",
    "_x",
    "__y",
    "int",
    "enum",
    "signed",
    "stream",
    "integer",
    "args.prev.pid",
    "text",
    "u32",
    "length",
    "_int_length",
    "time",
    "name",
    "Ünicode",
    "task comm",
    "0",
    "clock",
];

fn layouts() -> impl Strategy<Value = Vec<RecordLayout>> {
    let columns = proptest::sample::subsequence(NAMES, 0..8)
        .prop_flat_map(|names| {
            let encodings = vec((encodings(), any::<bool>()), names.len());
            (Just(names), encodings)
        })
        .prop_map(|(names, encodings)| {
            let columns = names.into_iter().zip(encodings);
            let hex = |encoding: &Encoding| {
                !matches!(
                    encoding,
                    Encoding::Enum(_) | Encoding::Text { .. } | Encoding::String
                )
            };
            columns
                .map(|(name, (encoding, flag))| (name.to_owned(), encoding.clone(), flag && hex(&encoding)))
                .collect::<Vec<_>>()
        });
    vec((columns, "[a-z]{1,5}:[a-z\"\\\\]{1,9}"), 1..5).prop_map(|events| {
        let layouts = (1..)
            .zip(events)
            .map(|(id, (columns, name))| RecordLayout::new(id * 37, &name, columns));
        layouts.collect::<Result<_, _>>().unwrap()
    })
}

/// One record to write: which layout, values for any, whether it ends later (nested ones come between) or never.
#[derive(Debug, Clone)]
struct Write {
    layout: usize,
    cells: Vec<(u64, Vec<u8>, Vec<u64>)>,
    nests: u8,
    ring: usize,
    step: u64,
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let small = prop_oneof![0..3_u64, any::<u64>()];
    let text = prop_oneof![
        "[ -~]{0,30}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..300)
    ];
    let cell = (small.clone(), text, vec(small, 0..40));
    let write = (any::<usize>(), vec(cell, 8), 0..20_u8, 0..3_usize, 0..5_u64);
    let write = write.prop_map(|(layout, cells, nests, ring, step)| Write {
        layout,
        cells,
        nests,
        ring,
        step,
    });
    vec(write, 0..150)
}

fn cells_of(layout: &RecordLayout, write: &Write) -> Vec<Cell> {
    let cells = layout.columns.iter().zip(&write.cells);
    cells
        .map(|(column, (int, bytes, ints))| match column.encoding {
            Encoding::Int { .. } | Encoding::Enum(_) => Cell::Int(*int),
            Encoding::Text { .. } | Encoding::String => Cell::Bytes(bytes.clone()),
            Encoding::Array { .. } | Encoding::Sequence { .. } => Cell::Ints(ints.clone()),
        })
        .collect()
}

/// Writes records, some nested in others and some never committed. Returns the rings and how many were never committed.
fn fill(layouts: &[RecordLayout], writes: &[Write], pages: usize) -> (Vec<Ring>, Vec<u64>) {
    let mut rings: Vec<Ring> = (0..3)
        .map(|cpu| {
            Ring::new(
                ["main", "main", "x_1"][cpu],
                cpu as u32 % 2,
                pages,
                cpu as u32 * 977,
                cpu as u64,
            )
        })
        .collect();
    let mut open: [Vec<Reserved>; 3] = Default::default();
    let mut torn = vec![0; 3];
    let mut time = 1_000_000_000;
    for write in writes {
        time += write.step;
        let layout = &layouts[write.layout % layouts.len()];
        let bytes = encode(
            layout,
            time,
            write.nests.into(),
            write.ring as u32,
            &cells_of(layout, write),
        );
        let (ring, open) = (&mut rings[write.ring], &mut open[write.ring]);
        let reserved = ring.reserve(layout, bytes);
        match write.nests {
            0 => torn[write.ring] += u64::from(reserved.is_some()),
            1..4 => open.extend(reserved),
            _ => {
                reserved.into_iter().for_each(|reserved| ring.commit(reserved));
                // Last in, first out; a record that is never committed keeps the others open no longer.
                open.drain(..).rev().for_each(|reserved| ring.commit(reserved));
            }
        }
    }
    for (ring, open) in rings.iter_mut().zip(open) {
        open.into_iter().rev().for_each(|reserved| ring.commit(reserved));
    }
    (rings, torn)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn what_was_written_is_what_babeltrace2_reads_and_what_is_shown(
        layouts in layouts(), writes in writes(), pages in prop_oneof![Just(100_usize), 2..6_usize],
    ) {
        let (rings, torn) = fill(&layouts, &writes, pages);
        let lost: u64 = rings.iter().map(|ring| ring.raw.lost).sum();
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a");
        let saved = save(&folder, &layouts, rings.into_iter().map(|ring| ring.raw).collect());
        let all = writes.len() as u64 - lost - torn.iter().sum::<u64>();
        if pages == 100 {
            prop_assert_eq!(saved.records, all);
            prop_assert_eq!(saved.torn, torn.iter().sum::<u64>());
        } else {
            prop_assert!(saved.records <= all);
        }
        if lost == 0 {
            let read = same_as_show(&folder).map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
            prop_assert_eq!(read as u64, saved.records);
        }
        // Packets are rebuilt: nothing of the ring's padding is left.
        for stream in saved.streams {
            if let Some(file) = stream.file {
                let bytes = fs::read(folder.join("ctf").join(file)).unwrap();
                prop_assert!(bytes.len().is_multiple_of(record::ALIGN));
            }
        }
    }

    #[test]
    fn any_bytes_in_a_ring_give_records_or_counts(
        layouts in layouts(), writes in writes(), changes in vec((any::<usize>(), any::<u8>()), 0..60), head in any::<[u64; 4]>(),
        heads in 0..16_u8,
    ) {
        let (rings, _) = fill(&layouts, &writes, 3);
        let classes = lkst::trace::decode::Classes::of_layouts(&layouts);
        for mut raw in rings.into_iter().map(|ring| ring.raw) {
            for (at, byte) in &changes {
                let at = at % (3 * PAGE_BYTES);
                raw.pages[at] = *byte;
            }
            let [pos, busy, lost, floor] = head;
            raw.pos = if heads & 1 == 0 { raw.pos } else { pos };
            raw.busy = if heads & 2 == 0 { raw.busy } else { busy };
            raw.lost = if heads & 4 == 0 { raw.lost } else { lost };
            raw.floor = if heads & 8 == 0 { raw.floor } else { floor };
            let found = lkst::trace::raw::records(&raw, &classes);
            for record in found.records {
                prop_assert!(classes.get(record.id).unwrap().content_bytes(&raw.pages[record.bytes.clone()]) == Some(record.bytes.len()));
            }
        }
    }

    #[test]
    fn a_damaged_trace_is_told_and_never_a_panic(
        layouts in layouts(), writes in writes(), changes in vec((0..3_u8, any::<usize>(), any::<u8>()), 1..20), cut in any::<Option<usize>>(),
    ) {
        let (rings, _) = fill(&layouts, &writes, 5);
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a");
        save(&folder, &layouts, rings.into_iter().map(|ring| ring.raw).collect());
        for (file, at, byte) in changes {
            let path = folder.join("ctf").join(["metadata", "main_0", "main_1"][usize::from(file)]);
            let Ok(mut bytes) = fs::read(&path) else { continue };
            let at = at % bytes.len();
            bytes[at] = byte;
            fs::write(&path, bytes).unwrap();
        }
        let stream = folder.join("ctf/main_0");
        let mut cut_off = false;
        if let (Some(cut), Ok(bytes)) = (cut, fs::read(&stream)) {
            fs::write(&stream, &bytes[..cut % bytes.len()]).unwrap();
            cut_off = cut % bytes.len() != 0;
        }
        // The metadata may be damaged too: then there is an error and nothing else.
        if let Ok(traces) = lkst::trace::read::Traces::open(&[&folder]) {
            let mut records = traces.records();
            let mut problems = traces.problems.len();
            loop {
                match records.next_record() {
                    Ok(None) => break,
                    Ok(Some(record)) => drop(record.values().count()),
                    Err(_) => problems += 1,
                }
            }
            prop_assert!(problems > 0 || !cut_off);
        }
        show_text(&folder);
    }
}
