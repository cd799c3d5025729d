//! Events that happen so often that recording each of them is felt.
//!
//! In: a [`Plan`], and what a record costs. Out: a warning for each member of a set that records too many of them all the
//! time. The rates are orders of magnitude, of a busy server, for each CPU: what one host does only a running agent knows,
//! and says in `lkst status`.

use std::collections::BTreeMap;

use crate::diagnostic::Diagnostic;
use crate::plan::Plan;
use crate::source::Span;

/// Percent of a CPU from where on a pack without `budget` is warned of.
const FELT_PERCENT: f64 = 0.5;

/// A second and CPU. A `*` stands for any rest.
const RATES: [(&str, u32); 33] = [
    ("exceptions:page_fault_*", 50_000),
    ("irq:irq_handler_*", 20_000),
    ("irq:softirq_*", 50_000),
    ("irq_vectors:*", 20_000),
    ("kmem:kfree", 300_000),
    ("kmem:kmalloc", 200_000),
    ("kmem:kmem_cache_*", 300_000),
    ("kmem:mm_page_*", 100_000),
    ("kmem:rss_stat", 50_000),
    ("lock:*", 1_000_000),
    ("maple_tree:*", 30_000),
    ("napi:napi_poll", 50_000),
    ("net:*", 100_000),
    ("preemptirq:*", 2_000_000),
    ("raw_syscalls:*", 200_000),
    ("rcu:*", 100_000),
    ("sched:sched_stat_runtime", 50_000),
    ("sched:sched_switch", 50_000),
    ("sched:sched_wak*", 50_000),
    ("skb:consume_skb", 200_000),
    ("skb:kfree_skb", 50_000),
    ("syscalls:sys_*_epoll_wait", 30_000),
    ("syscalls:sys_*_futex", 50_000),
    ("syscalls:sys_*_read", 50_000),
    ("syscalls:sys_*_recvfrom", 50_000),
    ("syscalls:sys_*_recvmsg", 30_000),
    ("syscalls:sys_*_sendmsg", 30_000),
    ("syscalls:sys_*_sendto", 50_000),
    ("syscalls:sys_*_write", 50_000),
    ("tcp:tcp_probe", 100_000),
    ("timer:hrtimer_*", 30_000),
    ("timer:timer_*", 20_000),
    ("workqueue:*", 10_000),
];

/// How often an event may happen in a second on a busy CPU; 0 where it is not known to be frequent.
fn rate(event: &str) -> u32 {
    let is = |pattern: &str| match pattern.split_once('*') {
        Some((start, end)) => {
            event.len() >= start.len() + end.len() && event.starts_with(start) && event.ends_with(end)
        }
        None => event == pattern,
    };
    let known = RATES.iter().find(|(pattern, _)| is(pattern));
    known.map_or(0, |(_, rate)| *rate)
}

/// What one member of a set asks for.
#[derive(Default)]
struct Asked<'p> {
    rate: u64,
    /// The most frequent event, and how many others there are.
    worst: (u32, &'p str),
    others: usize,
}

/// A warning for each member that records every hit of frequent events from the beginning on, in a pack that does not say
/// what it may cost. `record_ns` is what a record takes.
pub(crate) fn warnings(plan: &Plan, record_ns: u32) -> Vec<Diagnostic> {
    if plan.budget_ppm.is_some() {
        return Vec::new();
    }
    let names: Vec<String> = plan.events.iter().map(|wish| wish.event.full_name()).collect();
    let mut asked: BTreeMap<(u32, u32), (Span, Asked<'_>)> = BTreeMap::new();
    for (wish, name) in plan.events.iter().zip(&names) {
        let rate = rate(name);
        for member in wish.members.iter().filter(|_| rate > 0) {
            let set = plan.sets.get(member.set);
            let always = set.is_some_and(|set| set.start && set.max_per_s.is_none());
            if !always || member.with.is_some() || member.sample.is_some() {
                continue;
            }
            let place = (member.span.file, member.span.start);
            let (_, asked) = asked
                .entry(place)
                .or_insert_with(|| (member.span, Asked::default()));
            asked.rate += u64::from(rate);
            if rate > asked.worst.0 {
                asked.others += usize::from(asked.worst.0 > 0);
                asked.worst = (rate, name);
            } else {
                asked.others += 1;
            }
        }
    }
    let felt = asked.into_values().filter_map(|(span, asked)| {
        let percent = asked.rate as f64 * f64::from(record_ns) / 1e7;
        if percent < FELT_PERCENT {
            return None;
        }
        let others = match asked.others {
            0 => String::new(),
            1 => " and another event".to_owned(),
            others => format!(" and {others} other events"),
        };
        let message = format!(
            "`{}`{others} may happen {} times a second on a busy CPU",
            asked.worst.1,
            grouped(asked.rate)
        );
        let help = "`with`, `sample 1/N` and `max N/s` record fewer of them; `budget N%` says what the pack may cost, and is \
                    kept to in the kernel";
        Some(
            Diagnostic::warning("W510", span, message)
                .label(format!("to record each takes some {percent:.1} % of it"))
                .help(help),
        )
    });
    felt.collect()
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    match number {
        0..1000 => number.to_string(),
        _ => format!("{},{:03}", grouped(number / 1000), number % 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_its_rate() {
        assert_eq!(rate("kmem:kfree"), 300_000);
        assert_eq!(rate("kmem:kfree_x"), 0);
        assert_eq!(rate("syscalls:sys_exit_read"), 50_000);
        assert_eq!(rate("syscalls:sys_exit_readv"), 0);
        assert_eq!(rate("lock:contention_begin"), 1_000_000);
        assert_eq!(rate("sched:sched_process_exec"), 0);
    }

    #[test]
    fn thousands_are_grouped() {
        let all = [7, 1_000, 20_000, 3_456_789].map(grouped);
        assert_eq!(all, ["7", "1,000", "20,000", "3,456,789"]);
    }
}
