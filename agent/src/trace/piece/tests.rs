use lkst_probes::layout::{PAGE_BYTES, RecordLayout, page, record, tag};

use super::left::{Left, cut_left, left_pieces};
use super::*;

const SALT: u32 = 5;

fn info() -> TraceInfo {
    TraceInfo {
        uuid: [7; 16],
        pack: "p".to_owned(),
        layouts: vec![RecordLayout::new(1, "a:b", []).unwrap()],
        ..TraceInfo::default()
    }
}

/// A page of records of 24 bytes, each at the time of its place in the ring.
fn page_of(seq: u64) -> Vec<u8> {
    let mut page = vec![0; page::HEADER_BYTES];
    let mut at = seq * PAGE_BYTES as u64 + page.len() as u64;
    while page.len() + record::FIELDS <= PAGE_BYTES {
        let word = u64::from(tag(seq, SALT)) << 32 | (record::FIELDS as u64) << 16 | 1;
        page.extend([word, at, 0].iter().flat_map(|word| word.to_le_bytes()));
        at += record::FIELDS as u64;
    }
    page.resize(PAGE_BYTES, 0);
    page
}

fn written(folder: &Path, pages: u64) -> Piece {
    let start = RingStart {
        cpu: 0,
        instance_id: 4,
        salt: SALT,
        // Far behind what 32 bits of a packet's head can say.
        position: (1 << 36) + 2 * PAGE_BYTES as u64,
        told: 3,
    };
    let about = Incident::default();
    let mut piece = Piece::begin(folder, info(), about, "main", &[start]).unwrap();
    let wanted = Wanted {
        to: start.position + pages * PAGE_BYTES as u64,
        lost: 8,
        before_ns: u64::MAX,
        partial: true,
    };
    let shapes = Shapes::of(&info().layouts);
    let copy: CopyPage<'_> = &mut |seq, range, to| {
        to.extend_from_slice(page_of(seq).get(range).unwrap());
        true
    };
    piece
        .take(0, &mut Bench::default(), &shapes, &wanted, copy, &mut |_| {})
        .unwrap();
    piece
}

#[test]
fn a_piece_that_was_left_is_cut_to_whole_packets_wherever_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path();
    let packet = page_of(0).len() as u64 - (PAGE_BYTES - page::HEADER_BYTES) as u64 % record::FIELDS as u64;
    for bytes in (0..3 * packet)
        .step_by(97)
        .chain([packet, packet - 1, 2 * packet, 3 * packet])
    {
        let folder = state.join("p/20260101T000000.000-stream/1-main");
        drop(written(&folder, 3));
        let left = left_pieces(state);
        assert_eq!(left.len(), 1);
        let path = left.first().unwrap();
        let file = path.join("ctf/main_0");
        assert_eq!(fs::metadata(&file).unwrap().len(), 3 * packet);
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let (rings, closing) = cut_left(path, 1).unwrap();
        let whole = bytes / packet;
        let position = (1 << 36) + (2 + whole) * PAGE_BYTES as u64;
        let told = if whole == 3 { 8 } else { 3 };
        let expected = Left {
            instance_id: 4,
            position,
            told,
        };
        assert_eq!(rings, [expected]);
        match closing {
            None => assert!(whole == 0 && !path.exists() && !folder.parent().unwrap().exists()),
            Some(closing) => {
                closing.finish().unwrap();
                assert_eq!(
                    fs::metadata(folder.join("ctf/main_0")).unwrap().len(),
                    whole * packet
                );
                assert!(!folder.join(BEGUN_FILE).exists() && left_pieces(state).is_empty());
                let text = fs::read(folder.join(INCIDENT_FILE)).unwrap();
                let incident: Incident = serde_json::from_slice(&text).unwrap();
                let stream = incident.streams.first().unwrap();
                assert_eq!(
                    stream.records,
                    whole * (PAGE_BYTES - page::HEADER_BYTES) as u64 / 24
                );
                assert_eq!((stream.position, stream.lost), (position, told - 3));
                fs::remove_dir_all(state.join("p")).unwrap();
            }
        }
    }
}

#[test]
fn a_piece_that_lacks_only_its_name_is_given_it_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("p/20260101T000000.000-stream/1-main");
    let piece = written(&folder, 2);
    let path = piece.path.clone();
    let about = Incident {
        reason: "rule".to_owned(),
        ..Incident::default()
    };
    let closing = piece
        .close(about, &Shapes::of(&info().layouts), &mut |_, _| None)
        .unwrap();
    // Killed when all but the rename was done.
    replace(&path, INCIDENT_FILE, &json(&closing.incident)).unwrap();
    let (rings, closing) = cut_left(&path, 1).unwrap();
    assert_eq!(rings.first().map(|ring| ring.told), Some(8));
    closing.unwrap().finish().unwrap();
    let text = fs::read_to_string(folder.join(INCIDENT_FILE)).unwrap();
    assert!(text.contains("\"reason\": \"rule\""), "{text}");
}
