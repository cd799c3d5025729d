//! The values of keys, each with a type of its own: TOML's texts and numbers in, checked values out.
//!
//! Sizes and durations are read by the parser of the rule language, so that they are spelled alike everywhere. A
//! message's first line says what is wrong, a second one how to write it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lkst_rules::ast::ExprKind;
use lkst_rules::diagnostic::Diagnostics;
use lkst_rules::parse::parse_expression;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

use super::PackConfig;

/// A size in bytes, written as in the rule language: `64KiB`, `1GiB`. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A length of time, written as in the rule language: `10s`, `24h`. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age(pub Duration);

impl Age {
    pub(super) const fn from_minutes(minutes: u64) -> Age {
        Age(Duration::from_secs(minutes * 60))
    }

    pub(super) const fn from_hours(hours: u64) -> Age {
        Age(Duration::from_secs(hours * 3600))
    }
}

/// The value of a param as an expression of the rule language: `100ms`, `3`, `"nginx"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param(pub String);

/// Where metrics are served: nothing that another machine reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A port of the loopback interface.
    Tcp(SocketAddr),
    /// A Unix socket, by absolute path.
    Unix(PathBuf),
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let rule = "a size such as \"256MiB\": one whole number and `KiB`, `MiB` or `GiB`";
        from.deserialize_any(Text(rule, |text: &str| match literal(text) {
            Ok(ExprKind::Size(bytes)) if bytes > 0 => Ok(Bytes(bytes)),
            other => Err(refused(text, "a size", rule, other.err())),
        }))
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Age, D::Error> {
        let rule = "a duration such as \"24h\": one whole number and `ns`, `us`, `ms`, `s`, `m` or `h`";
        from.deserialize_any(Text(rule, |text: &str| match literal(text) {
            Ok(ExprKind::Duration(ns)) if ns > 0 => Ok(Age(Duration::from_nanos(ns))),
            other => Err(refused(text, "a duration", rule, other.err())),
        }))
    }
}

impl<'de> Deserialize<'de> for MetricsAddress {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<MetricsAddress, D::Error> {
        let rule = "\"127.0.0.1:PORT\", \"[::1]:PORT\" or the absolute path of a Unix socket";
        from.deserialize_any(Text(rule, |text: &str| {
            if text.starts_with('/') {
                return Ok(MetricsAddress::Unix(text.into()));
            }
            match text.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() && address.port() != 0 => {
                    Ok(MetricsAddress::Tcp(address))
                }
                Ok(address) if !address.ip().is_loopback() => Err(format!(
                    "`{text}` can be reached from other machines, and metrics are only served on this one\nwrite {rule}"
                )),
                _ => Err(format!("`{text}` is not an address for metrics\nwrite {rule}")),
            }
        }))
    }
}

impl<'de> Deserialize<'de> for Param {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Param, D::Error> {
        struct Value;
        impl Visitor<'_> for Value {
            type Value = Param;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(
                    "an integer, true, false or a text that holds an expression of the rule language",
                )
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Param, E> {
                Ok(Param(value.to_string()))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Param, E> {
                Ok(Param(value.to_string()))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Param, E> {
                Ok(Param(value.to_string()))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Param, E> {
                match expression(text) {
                    Ok(_) => Ok(Param(text.to_owned())),
                    Err(said) => Err(E::custom(format!(
                        "`{text}` is not an expression of the rule language: {said}\nwrite \"100ms\", 3, or '\"nginx\"' for a text"
                    ))),
                }
            }
        }
        from.deserialize_any(Value)
    }
}

/// An absolute path without `..`.
pub(super) fn folder<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let rule = "an absolute path, such as \"/etc/lkst/rules.d\"";
    from.deserialize_any(Text(rule, |text: &str| {
        if text.starts_with('/') && !text.contains('\0') {
            Ok(PathBuf::from(text))
        } else {
            Err(format!("`{text}` is not an absolute path\nlet it begin with `/`"))
        }
    }))
}

/// The name or number of a user or group. Whether there is one is asked later: a message about this file is about its
/// text.
pub(super) fn account<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    struct Account;
    impl Visitor<'_> for Account {
        type Value = String;
        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("the name or number of an account")
        }
        fn visit_i64<E: Error>(self, value: i64) -> Result<String, E> {
            let number = u32::try_from(value).ok().filter(|number| *number != u32::MAX);
            number
                .map(|number| number.to_string())
                .ok_or_else(|| E::invalid_value(Unexpected::Signed(value), &self))
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
            match text.is_empty() || text.contains([':', '\n', '\0']) {
                true => Err(E::invalid_value(Unexpected::Str(text), &self)),
                false => Ok(text.to_owned()),
            }
        }
    }
    from.deserialize_any(Account)
}

pub(super) fn optional_account<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    account(from).map(Some)
}

/// Packs by their names, which have no `NN-` and no `.lkst`: a key with one would never be found.
pub(super) fn packs<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, PackConfig>, D::Error> {
    let packs = BTreeMap::<PackName, PackConfig>::deserialize(from)?;
    Ok(packs
        .into_iter()
        .map(|(PackName(name), pack)| (name, pack))
        .collect())
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct PackName(String);

impl<'de> Deserialize<'de> for PackName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<PackName, D::Error> {
        let rule = "the name of a pack, as `lkst status` shows it";
        from.deserialize_any(Text(rule, |text: &str| {
            match crate::pack::pack_name(text.as_ref()) {
                Some(name) if name == text => Ok(PackName(name)),
                Some(name) => Err(format!("`{text}` is the pack `{name}`\nwrite `{name}` here")),
                None => Err(format!(
                    "`{text}` is no name of a pack\na name has letters, digits, `_` and `-`"
                )),
            }
        }))
    }
}

/// Takes a text and what makes a value of it.
struct Text<F>(&'static str, F);

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).map_err(E::custom)
    }
}

pub(super) fn text_value<'de, D: Deserializer<'de>, T>(
    from: D,
    rule: &'static str,
    make: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    from.deserialize_any(Text(rule, make))
}

fn refused(text: &str, what: &str, rule: &str, help: Option<String>) -> String {
    let help = help.unwrap_or_else(|| format!("write {rule}"));
    format!("`{text}` is not {what}\n{help}")
}

/// What kind of literal a text is, or how to write what was meant.
fn literal(text: &str) -> Result<ExprKind, String> {
    expression(text.trim())
}

fn expression(text: &str) -> Result<ExprKind, String> {
    let mut diagnostics = Diagnostics::default();
    match parse_expression(0, text, &mut diagnostics) {
        Some(expr) if !diagnostics.has_errors() => Ok(expr.kind),
        _ => {
            let first = diagnostics.list.into_iter().next();
            Err(
                first.map_or_else(String::new, |first| match first.help.into_iter().next() {
                    Some(help) => help,
                    None => first.message,
                }),
            )
        }
    }
}
