//! Numbers and strings: what is one, what it is worth, and what to say where it is none.
//!
//! In: a literal as written. Out: its value, or a [`Complaint`] that shows how to write what was meant.

use super::sink::quote;
use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// Units of time in nanoseconds, the finest first.
const TIMES: [(&str, u64); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Units of size in bytes, the finest first.
const SIZES: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// What is wrong with a literal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    TooLarge,
    NotANumber(Option<String>),
    Duration(Option<String>),
    Size(Option<String>),
}

impl Complaint {
    /// The complaint as a diagnostic.
    pub(super) fn at(&self, span: Span, written: &str) -> Diagnostic {
        let shown = quote(written);
        match self {
            Complaint::TooLarge => {
                Diagnostic::error("E008", span, format!("{shown} does not fit in 64 bits"))
            }
            Complaint::NotANumber(instead) => {
                let error = Diagnostic::error("E009", span, format!("{shown} is not a number"));
                match instead {
                    Some(instead) => error.help(instead.clone()),
                    None => error.help("numbers are written `42`, `0x2a`, `1_000`, `100ms` or `4MiB`"),
                }
            }
            Complaint::Duration(instead) => {
                let error = Diagnostic::error("E010", span, format!("{shown} is not a duration"));
                let rule = "a duration is one whole number and one unit: `ns`, `us`, `ms`, `s`, `m` or `h`";
                match instead {
                    Some(instead) => error.help(format!("write `{instead}`: {rule}")),
                    None => error.help(rule),
                }
            }
            Complaint::Size(instead) => {
                let error = Diagnostic::error("E011", span, format!("{shown} is not a size"));
                let rule = "a size is one whole number and `KiB`, `MiB` or `GiB`";
                match instead {
                    Some(instead) => error.help(format!("write `{instead}`: {rule}")),
                    None => error.help(rule),
                }
            }
        }
    }

    /// A sound literal of the kind that was meant, no longer than what was written.
    pub(super) fn stand_in(&self, written: &str) -> &'static str {
        let unit = written.trim_start_matches(|ch: char| ch.is_ascii_digit() || ch == '_');
        match self {
            Complaint::Duration(_) => "1s",
            Complaint::Size(_) if written.len() >= 4 => "1KiB",
            Complaint::TooLarge if TIMES.iter().any(|(name, _)| *name == unit) => "1s",
            Complaint::TooLarge if SIZES.iter().any(|(name, _)| *name == unit) => "1KiB",
            _ => "1",
        }
    }
}

/// Is this number right? `decimal`: a point is allowed, as in `budget 2.5 %`.
pub(super) fn check(written: &str, decimal: bool) -> Result<(), Complaint> {
    if let Some(digits) = written.strip_prefix("0x") {
        let sound = digits.chars().all(|ch| ch.is_ascii_hexdigit() || ch == '_');
        return match digits.chars().any(|ch| ch != '_') {
            true if sound => integer(written).map(|_| ()).ok_or(Complaint::TooLarge),
            _ => Err(Complaint::NotANumber(None)),
        };
    }
    let (whole, rest) = split_digits(written);
    if let Some(after_point) = rest.strip_prefix('.') {
        let (digits, unit) = split_digits(after_point);
        if decimal && unit.is_empty() {
            return ppm(written).map(|_| ()).ok_or(Complaint::NotANumber(Some(
                "a budget is at most 100 %, with at most four digits after the point".to_owned(),
            )));
        }
        return Err(fraction(whole, digits, unit));
    }
    if rest.is_empty() {
        return integer(written).map(|_| ()).ok_or(Complaint::TooLarge);
    }
    if TIMES.iter().any(|(name, _)| *name == rest) {
        return duration(written).map(|_| ()).ok_or(Complaint::TooLarge);
    }
    if SIZES.iter().any(|(name, _)| *name == rest) {
        return size(written).map(|_| ()).ok_or(Complaint::TooLarge);
    }
    Err(guess(written, whole, rest))
}

/// `1.5s`, `1.5MiB`, `1.5`.
fn fraction(whole: &str, digits: &str, unit: &str) -> Complaint {
    let units = |units: &[(&'static str, u64)]| {
        let at = units.iter().position(|(name, _)| *name == unit)?;
        let (_, worth) = *units.get(at)?;
        let scale = 10u64.checked_pow(u32::try_from(digits.len()).ok()?)?;
        let all = integer(&format!("{whole}{digits}"))?.checked_mul(worth)?;
        // The coarsest unit in which it is whole.
        let (name, worth) = units
            .iter()
            .rev()
            .find(|(_, worth)| worth.checked_mul(scale).is_some_and(|worth| all % worth == 0))?;
        Some(format!("{}{name}", all / worth.checked_mul(scale)?))
    };
    if TIMES.iter().any(|(name, _)| *name == unit) {
        Complaint::Duration(units(&TIMES))
    } else if SIZES.iter().any(|(name, _)| *name == unit) {
        Complaint::Size(units(&SIZES))
    } else {
        Complaint::NotANumber(Some(
            "numbers are whole; only a `budget` may have a point".to_owned(),
        ))
    }
}

/// What was meant by a number with letters that are no unit.
fn guess(written: &str, whole: &str, unit: &str) -> Complaint {
    if let Some(nanoseconds) = several_units(written) {
        return Complaint::Duration(Some(duration_text(nanoseconds)));
    }
    let time = match unit.to_lowercase().as_str() {
        "µs" | "μs" | "usec" | "micros" => Some("us"),
        "nsec" | "nanos" => Some("ns"),
        "msec" | "millis" => Some("ms"),
        "sec" | "secs" | "second" | "seconds" => Some("s"),
        "min" | "mins" | "minute" | "minutes" => Some("m"),
        "hr" | "hour" | "hours" => Some("h"),
        "d" | "day" | "days" => {
            let hours = integer(whole).and_then(|days| days.checked_mul(24));
            return Complaint::Duration(hours.map(|hours| format!("{hours}h")));
        }
        lower => TIMES
            .iter()
            .find(|(name, _)| *name == lower && lower != "m")
            .map(|(name, _)| *name),
    };
    if let Some(time) = time {
        return Complaint::Duration(Some(format!("{whole}{time}")));
    }
    match unit.to_lowercase().as_str() {
        "k" | "kb" | "kib" => Complaint::Size(Some(format!("{whole}KiB"))),
        "m" | "mb" | "mib" => Complaint::Size(Some(format!("{whole}MiB"))),
        "g" | "gb" | "gib" => Complaint::Size(Some(format!("{whole}GiB"))),
        "t" | "tb" | "tib" => {
            let gibibytes = integer(whole).and_then(|n| n.checked_mul(1024));
            Complaint::Size(gibibytes.map(|n| format!("{n}GiB")))
        }
        "b" | "bytes" => Complaint::Size(None),
        _ => Complaint::NotANumber(None),
    }
}

/// `1m30s` and its like.
fn several_units(written: &str) -> Option<u64> {
    let (mut rest, mut sum, mut parts) = (written, 0u64, 0);
    while !rest.is_empty() {
        let (digits, after) = split_digits(rest);
        let letters = after.find(|ch: char| ch.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(letters)?;
        let (_, worth) = TIMES.iter().find(|(name, _)| *name == unit)?;
        sum = sum.checked_add(integer(digits)?.checked_mul(*worth)?)?;
        rest = next;
        parts += 1;
    }
    (parts > 1).then_some(sum)
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|ch: char| !(ch.is_ascii_digit() || ch == '_'))
        .unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// The value of `42`, `0x2a`, `1_000`.
pub(super) fn integer(written: &str) -> Option<u64> {
    let (digits, radix) = match written.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (written, 10),
    };
    let mut value = 0u64;
    for ch in digits.chars().filter(|ch| *ch != '_') {
        value = value
            .checked_mul(u64::from(radix))?
            .checked_add(u64::from(ch.to_digit(radix)?))?;
    }
    Some(value)
}

fn with_unit(written: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (digits, unit) = split_digits(written);
    let (_, worth) = units.iter().find(|(name, _)| *name == unit)?;
    integer(digits)?.checked_mul(*worth)
}

/// The value of `100ms` in nanoseconds.
pub(super) fn duration(written: &str) -> Option<u64> {
    with_unit(written, &TIMES)
}

/// The value of `4MiB` in bytes.
pub(super) fn size(written: &str) -> Option<u64> {
    with_unit(written, &SIZES)
}

/// The value of `2.5`, percent, in millionths.
pub(super) fn ppm(written: &str) -> Option<u64> {
    let plain: String = written.chars().filter(|ch| *ch != '_').collect();
    let (whole, digits) = plain.split_once('.').unwrap_or((plain.as_str(), ""));
    if digits.len() > 4 {
        return None;
    }
    let value = integer(whole)?
        .checked_mul(10_000)?
        .checked_add(integer(&format!("{digits:0<4}"))?)?;
    (value <= 1_000_000).then_some(value)
}

/// A duration as it is written: in the coarsest unit in which it is whole.
pub(crate) fn duration_text(nanoseconds: u64) -> String {
    if nanoseconds == 0 {
        return "0s".to_owned();
    }
    let unit = TIMES
        .iter()
        .rev()
        .find(|(_, worth)| nanoseconds.is_multiple_of(*worth));
    unit.map_or_else(String::new, |(name, worth)| {
        format!("{}{name}", nanoseconds / worth)
    })
}

/// A size as it is written: in the coarsest unit in which it is whole.
pub(crate) fn size_text(bytes: u64) -> String {
    let unit = SIZES
        .iter()
        .rev()
        .find(|(_, worth)| bytes > 0 && bytes.is_multiple_of(*worth));
    unit.map_or_else(
        || format!("{}KiB", bytes >> 10),
        |(name, worth)| format!("{}{name}", bytes / worth),
    )
}

/// What stands between the quotes of a string, unescaped, and for each byte of that where it came from: `place` is given
/// the offset between the quotes. One more place than bytes, for the end.
pub(super) fn unescape(inner: &str, place: impl Fn(usize) -> u32) -> (String, Vec<u32>) {
    let mut text = String::with_capacity(inner.len());
    let mut places = Vec::with_capacity(inner.len() + 1);
    let mut chars = inner.char_indices();
    while let Some((at, ch)) = chars.next() {
        let ch = match ch {
            '\\' => match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, 't')) => '\t',
                Some((_, other)) => other,
                None => '\\',
            },
            other => other,
        };
        text.push(ch);
        let first = place(at);
        places.extend((first..).take(ch.len_utf8()));
    }
    places.push(place(inner.len()));
    (text, places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(integer("1_000"), Some(1000));
        assert_eq!(integer("0xFfff_ffff_ffff_ffff"), Some(u64::MAX));
        assert_eq!(integer("18446744073709551616"), None);
        assert_eq!(duration("2s"), Some(2_000_000_000));
        assert_eq!(duration("18446744073709551615h"), None);
        assert_eq!(size("4MiB"), Some(4 << 20));
        assert_eq!(ppm("2.5"), Some(25_000));
        assert_eq!(ppm("100"), Some(1_000_000));
        assert_eq!(ppm("100.0001"), None);
    }

    #[test]
    fn slips_are_answered_with_what_was_meant() {
        let duration = |text: &str| Err(Complaint::Duration(Some(text.to_owned())));
        let size = |text: &str| Err(Complaint::Size(Some(text.to_owned())));
        assert_eq!(check("1.5s", false), duration("1500ms"));
        assert_eq!(check("1m30s", false), duration("90s"));
        assert_eq!(check("10sec", false), duration("10s"));
        assert_eq!(check("10µs", false), duration("10us"));
        assert_eq!(check("2d", false), duration("48h"));
        assert_eq!(check("1.5MiB", false), size("1536KiB"));
        assert_eq!(check("4MB", false), size("4MiB"));
        assert_eq!(check("4M", false), size("4MiB"));
        assert_eq!(check("4m", false), Ok(()));
        assert_eq!(check("0x", false), Err(Complaint::NotANumber(None)));
        assert_eq!(check("2.5", true), Ok(()));
    }

    #[test]
    fn texts_read_back() {
        for nanoseconds in [0, 1, 999, 1_000, 90_000_000_000, 3_600_000_000_000] {
            assert_eq!(super::duration(&duration_text(nanoseconds)), Some(nanoseconds));
        }
        for bytes in [0, 1 << 10, 3 << 20, 1 << 30] {
            assert_eq!(super::size(&size_text(bytes)), Some(bytes));
        }
    }
}
