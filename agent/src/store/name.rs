//! The names of what is in the state folder: a name in, what it is out.

/// How the name of a folder ends that is being deleted.
const DELETED: &str = ".deleted";

/// What an incident is called while it is deleted.
pub(super) fn deleted(name: &str) -> String {
    format!(".{name}{DELETED}")
}

/// True for what may be the name of a pack.
pub(super) fn is_pack(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(is_letter)
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// True for the name of an incident: `20261122T231854.073-write_failed`.
pub(super) fn is_incident(name: &str) -> bool {
    const TIME: &[u8] = b"00000000T000000.000-";
    let Some((time, reason)) = name.as_bytes().split_at_checked(TIME.len()) else {
        return false;
    };
    let is_time = time.iter().zip(TIME).all(|(byte, shape)| match shape {
        b'0' => byte.is_ascii_digit(),
        shape => byte == shape,
    });
    is_time && !reason.is_empty() && reason.iter().copied().all(is_letter)
}

/// True for what an incident is called while it is deleted.
pub(super) fn is_deleted(name: &str) -> bool {
    let name = name.strip_prefix('.').and_then(|name| name.strip_suffix(DELETED));
    name.is_some_and(is_incident)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_they_look_like() {
        let incident = "20261122T231854.073-write_failed";
        assert!(is_incident(incident) && is_incident("20261122T231854.073-end-2"));
        assert!(is_deleted(&deleted(incident)) && !is_incident(&deleted(incident)));
        for name in [
            "",
            "20261122T231854.073-",
            "20261122T231854.073",
            "20261122t231854.073-end",
            "2026112éT231854.073-end",
            "20261122T231854.073-a b",
            "20261122T231854.073-..",
            "lost+found",
        ] {
            assert!(!is_incident(name) && !is_deleted(&deleted(name)), "{name}");
        }
        assert!(
            is_pack("io_stall-2")
                && !is_pack(".x")
                && !is_pack("a/b")
                && !is_pack("")
                && !is_pack("guard.json")
        );
    }
}
