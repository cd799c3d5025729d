//! Bytes that came from a kernel or a file in, text that is safe to show out.
//!
//! INVARIANT: nothing that these functions return holds a control character, so a terminal or a log that shows it
//! does what it did before. Bytes that are no UTF-8 become `\xNN`.

/// True for what must not reach a terminal raw: control characters, and those that reorder or hide the text around
/// them (bidirectional overrides, line separators, invisible format characters).
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Calls `text` for runs of valid UTF-8 and `byte` for each byte that belongs to none.
fn split(
    bytes: &[u8],
    out: &mut Vec<u8>,
    text: impl Fn(&str, &mut Vec<u8>),
    byte: impl Fn(u8, &mut Vec<u8>),
) {
    for chunk in bytes.utf8_chunks() {
        text(chunk.valid(), out);
        for &invalid in chunk.invalid() {
            byte(invalid, out);
        }
    }
}

/// True for text that needs no thought: printable ASCII without quotes and backslashes.
fn is_plain(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\'))
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn hex_byte(byte: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\\x");
    out.extend([byte >> 4, byte & 15].map(|digit| HEX.get(usize::from(digit)).copied().unwrap_or(b'0')));
}

fn backslashed(c: char, out: &mut Vec<u8>) {
    match c {
        '\n' => out.extend_from_slice(b"\\n"),
        '\t' => out.extend_from_slice(b"\\t"),
        '\r' => out.extend_from_slice(b"\\r"),
        _ if c.is_ascii() => hex_byte(c as u8, out),
        _ => out.extend_from_slice(c.escape_unicode().collect::<String>().as_bytes()),
    }
}

/// Appends text for people: as it is where it is plain, with `\n`, `\x1b` or `\u{202e}` for what is unsafe. In quotes,
/// with `\"` and `\\`, where `quoted`.
pub fn push_shown(out: &mut Vec<u8>, bytes: &[u8], quoted: bool) {
    if quoted {
        out.push(b'"');
    }
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        let text = |text: &str, out: &mut Vec<u8>| {
            for c in text.chars() {
                match c {
                    '"' if quoted => out.extend_from_slice(b"\\\""),
                    '\\' => out.extend_from_slice(b"\\\\"),
                    _ if is_unsafe(c) => backslashed(c, out),
                    _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
        };
        split(bytes, out, text, hex_byte);
    }
    if quoted {
        out.push(b'"');
    }
}

/// Appends a JSON string. Bytes that are no UTF-8 become the four characters `\xNN`, as [`lossless`] has it.
pub fn push_json(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        let text = |text: &str, out: &mut Vec<u8>| {
            for c in text.chars() {
                match c {
                    '"' => out.extend_from_slice(b"\\\""),
                    '\\' => out.extend_from_slice(b"\\\\"),
                    '\n' => out.extend_from_slice(b"\\n"),
                    '\t' => out.extend_from_slice(b"\\t"),
                    _ if is_unsafe(c) => out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
                    _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
        };
        let byte = |byte: u8, out: &mut Vec<u8>| {
            out.push(b'\\');
            hex_byte(byte, out);
        };
        split(bytes, out, text, byte);
    }
    out.push(b'"');
}

/// Text as JSON readers see it: UTF-8 as it is, any other byte as the four characters `\xNN`.
#[must_use]
pub fn lossless(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    split(
        bytes,
        &mut out,
        |text, out| out.extend_from_slice(text.as_bytes()),
        hex_byte,
    );
    String::from_utf8_lossy(&out).into_owned()
}

/// Text without control characters, which become `\n`, `\x1b` and the like; backslashes and quotes stay as they are.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            backslashed(c, &mut out);
        } else {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(bytes: &[u8], quoted: bool) -> String {
        let mut out = Vec::new();
        push_shown(&mut out, bytes, quoted);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn what_reaches_a_terminal_holds_no_control_character() {
        assert_eq!(shown(b"a \x1b[31m\n\xff\x7f", false), r"a \x1b[31m\n\xff\x7f");
        assert_eq!(shown("\u{9b}é\u{202e}".as_bytes(), false), r"\u{9b}é\u{202e}");
        assert_eq!(shown(br#"say "\""#, true), r#""say \"\\\"""#);
    }

    #[test]
    fn json_is_read_back_as_it_was() -> Result<(), serde_json::Error> {
        for text in ["", "a\"b\\c", "\u{1b}\u{202e}é🦀\u{7f}\u{1}", "\n\t\r"] {
            let mut out = Vec::new();
            push_json(&mut out, text.as_bytes());
            assert!(!out.iter().any(u8::is_ascii_control), "{out:?}");
            assert_eq!(serde_json::from_slice::<String>(&out)?, text);
        }
        let mut out = Vec::new();
        push_json(&mut out, b"a\xff\xc3");
        assert_eq!(serde_json::from_slice::<String>(&out)?, r"a\xff\xc3");
        assert_eq!(lossless(b"a\xff\xc3"), r"a\xff\xc3");
        Ok(())
    }
}
