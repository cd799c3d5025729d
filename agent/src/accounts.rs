//! Users and groups by name: a name and `/etc/passwd` or `/etc/group` in, a number out.
//!
//! Only the files are asked, never the name service: a static binary cannot load its modules, and an agent that starts
//! at boot must not wait for a network. Whoever is only known there is named by number.

use std::fs;
use std::io;

/// The number of a user, by name or as a number.
///
/// # Errors
/// What is wrong, for people.
pub fn user(name: &str) -> Result<u32, String> {
    number(name, "user", "/etc/passwd")
}

/// The number of a group, by name or as a number.
///
/// # Errors
/// What is wrong, for people.
pub fn group(name: &str) -> Result<u32, String> {
    number(name, "group", "/etc/group")
}

fn number(name: &str, what: &str, file: &str) -> Result<u32, String> {
    // The highest number means "nobody in particular" to the kernel.
    if let Ok(number) = name.parse::<u32>() {
        return match number {
            u32::MAX => Err(format!("{name} is no {what}")),
            number => Ok(number),
        };
    }
    // Root is root, also in a container without such files.
    if name == "root" {
        return Ok(0);
    }
    let text = match fs::read(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("cannot read {file}: {error}")),
    };
    look_up(&text, name).ok_or_else(|| {
        format!(
            "there is no {what} `{name}` in {file}: make it, or give its number where it is known elsewhere"
        )
    })
}

/// `name:password:number:…`, one a line.
fn look_up(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut parts = line.split(':');
        let found = parts.next()? == name;
        let number = parts.nth(1)?.parse().ok()?;
        (found && !name.is_empty()).then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up() {
        let text = "root:x:0:0:root:/root:/bin/sh\n# a remark\nlkst:x:998:\nlkst2:x\n";
        assert_eq!(look_up(text, "lkst"), Some(998));
        assert_eq!(look_up(text, "lkst2"), None);
        assert_eq!(look_up(text, ""), None);
        assert_eq!(user("root"), Ok(0));
        assert_eq!(group("4000"), Ok(4000));
        assert!(user("4294967295").is_err());
        assert!(user("no-such-user").is_err_and(|text| text.contains("/etc/passwd")));
    }
}
