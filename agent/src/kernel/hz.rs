//! How many `jiffies` a second has (`CONFIG_HZ`). No system call tells: `sysconf(_SC_CLK_TCK)` is `USER_HZ`, always 100.
//!
//! In: the kernel's configuration where it is installed, else two looks at `/proc/timer_list`, which shows jiffies
//! beside the time. Out: HZ, or `None` where neither can be read: no guess is made.

use std::fs;
use std::thread;
use std::time::Duration;

/// What `CONFIG_HZ` can be (kernel/Kconfig.hz, and those of single architectures).
const CHOICES: [u64; 10] = [24, 48, 100, 128, 200, 250, 256, 300, 1000, 1024];

/// Between two looks: long enough that one jiffy more or less cannot be taken for the neighbouring choice, except 250
/// for 256, which no common machine has.
const BETWEEN: Duration = Duration::from_millis(150);

/// HZ of the running kernel. May take `BETWEEN`.
#[must_use]
pub fn of_this_kernel() -> Option<u64> {
    let release = rustix::system::uname();
    let release = release.release().to_str().ok()?;
    if let Some(hz) = fs::read_to_string(format!("/boot/config-{release}"))
        .ok()
        .and_then(|text| configured(&text))
    {
        return Some(hz);
    }
    let look = || {
        fs::read_to_string("/proc/timer_list")
            .ok()
            .and_then(|text| sample(&text))
    };
    let first = look()?;
    thread::sleep(BETWEEN);
    nearest(first, look()?)
}

/// `CONFIG_HZ=` of a configuration.
fn configured(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("CONFIG_HZ="))?
        .trim()
        .parse()
        .ok()
}

/// (nanoseconds, jiffies) of one look at the list of timers.
fn sample(text: &str) -> Option<(u64, u64)> {
    let now = text
        .lines()
        .find_map(|line| line.strip_prefix("now at ")?.strip_suffix(" nsecs"))?;
    let jiffies = text.lines().find_map(|line| line.strip_prefix("jiffies: "))?;
    Some((now.trim().parse().ok()?, jiffies.trim().parse().ok()?))
}

fn nearest(first: (u64, u64), second: (u64, u64)) -> Option<u64> {
    let ns = second.0.checked_sub(first.0).filter(|&ns| ns != 0)?;
    let jiffies = second.1.wrapping_sub(first.1);
    let measured = jiffies.checked_mul(1_000_000_000)? / ns;
    // More than a third off the nearest choice is no measurement.
    CHOICES
        .into_iter()
        .min_by_key(|choice| choice.abs_diff(measured))
        .filter(|choice| choice.abs_diff(measured) * 3 <= *choice)
}

#[cfg(test)]
mod tests {
    use super::{configured, nearest, sample};

    #[test]
    fn a_configuration_says_it() {
        assert_eq!(configured("CONFIG_HZ_250=y\nCONFIG_HZ=250\n"), Some(250));
        assert_eq!(configured("# CONFIG_HZ_100 is not set\n"), None);
    }

    #[test]
    fn two_looks_say_it() {
        let text =
            "Timer List Version: v0.10\nnow at 1000 nsecs\n\ncpu: 0\n  .idle_jiffies   : 4\njiffies: 42\n";
        assert_eq!(sample(text), Some((1000, 42)));
        for hz in [100, 250, 300, 1000] {
            let ns = 150_000_000;
            let jiffies = hz * 150 / 1000;
            for off in [0, 1] {
                assert_eq!(
                    nearest((7, 5), (7 + ns, 5 + jiffies + off)),
                    Some(hz),
                    "{hz} {off}"
                );
            }
        }
        assert_eq!(nearest((7, 5), (7, 6)), None);
        assert_eq!(nearest((0, 5), (1_000_000_000, 5)), None);
    }
}
