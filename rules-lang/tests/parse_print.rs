//! What is printed parses to the same tree, whatever the tree, and printing it again changes nothing.

use lkst_rules::ast::*;
use lkst_rules::diagnostic::{Diagnostics, render};
use lkst_rules::parse::{parse, parse_expression};
use lkst_rules::print::{print, print_expression};
use lkst_rules::source::{Name, Source, Span, Spanned};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

const RESERVED: [&str; 9] = ["and", "or", "not", "in", "like", "as", "true", "false", "nothing"];
/// Keywords, as names.
const TRICKY: [&str; 14] = [
    "start", "with", "set", "span", "buffer", "then", "for", "by", "stack", "kernel", "user", "open",
    "event", "s",
];

fn at<T>(value: T) -> Spanned<T> {
    Spanned {
        value,
        span: Span::default(),
    }
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-zA-Z_][a-z0-9_]{0,5}", 1 => select(&TRICKY[..]).prop_map(str::to_owned)]
}

fn plain_name() -> impl Strategy<Value = String> {
    word().prop_filter("a word of expressions", |word| !RESERVED.contains(&word.as_str()))
}

fn name() -> impl Strategy<Value = Name> {
    plain_name().prop_map(at)
}

fn names() -> impl Strategy<Value = Vec<Name>> {
    vec(name(), 1..4)
}

fn number() -> impl Strategy<Value = Spanned<u64>> {
    prop_oneof![0..100u64, any::<u64>()].prop_map(at)
}

fn text() -> impl Strategy<Value = String> {
    "[ -~\n\té→]{0,8}"
}

fn pattern() -> impl Strategy<Value = Pattern> {
    ("[a-z0-9][a-z0-9_-]{0,5}", "[a-z0-9*_-]{1,6}").prop_map(|(system, event)| Pattern {
        system,
        event,
        span: Span::default(),
    })
}

fn source() -> impl Strategy<Value = EventSource> {
    prop_oneof![
        (pattern(), any::<bool>()).prop_map(|(pattern, optional)| EventSource::Events { pattern, optional }),
        name().prop_map(EventSource::Span),
    ]
}

fn expr() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        any::<u64>().prop_map(ExprKind::Int),
        prop_oneof![0..100_000_000_000u64, any::<u64>()].prop_map(ExprKind::Duration),
        (0..1u64 << 50).prop_map(|kibibytes| ExprKind::Size(kibibytes << 10)),
        text().prop_map(ExprKind::Text),
        any::<bool>().prop_map(ExprKind::Bool),
        plain_name().prop_map(ExprKind::Name),
    ];
    leaf.prop_map(kind).prop_recursive(5, 24, 4, |inner| {
        let one = inner.clone().prop_map(Box::new);
        let unary = select(vec![UnaryOp::Negate, UnaryOp::Complement, UnaryOp::Not]);
        let binary = select(BinaryOp::ALL.to_vec());
        let compare = select(vec![
            CompareOp::Equal,
            CompareOp::NotEqual,
            CompareOp::Less,
            CompareOp::LessEqual,
            CompareOp::Greater,
            CompareOp::GreaterEqual,
        ]);
        prop_oneof![
            (one.clone(), word()).prop_map(|(base, name)| ExprKind::Member(base, at(name))),
            (one.clone(), number()).prop_map(|(base, index)| ExprKind::Index(base, index)),
            (name(), vec(inner.clone(), 0..4)).prop_map(|(name, arguments)| ExprKind::Call(name, arguments)),
            (unary, one.clone()).prop_map(|(operator, operand)| ExprKind::Unary(operator, operand)),
            (binary, one.clone(), one.clone())
                .prop_map(|(op, left, right)| ExprKind::Binary(op, left, right)),
            (compare, one.clone(), one.clone())
                .prop_map(|(op, left, right)| ExprKind::Compare(op, left, right)),
            (one.clone(), any::<bool>(), vec(inner, 1..4))
                .prop_map(|(value, negated, list)| ExprKind::InList { value, negated, list }),
            (one.clone(), any::<bool>(), one.clone(), option::of(one.clone())).prop_map(
                |(value, negated, low, high)| ExprKind::InRange {
                    value,
                    negated,
                    low,
                    high
                }
            ),
            (one.clone(), any::<bool>(), text()).prop_map(|(value, negated, text)| ExprKind::Like {
                value,
                negated,
                pattern: at(text)
            }),
            (one.clone(), one.clone()).prop_map(|(left, right)| ExprKind::And(left, right)),
            (one.clone(), one).prop_map(|(left, right)| ExprKind::Or(left, right)),
        ]
        .prop_map(kind)
    })
}

fn kind(kind: ExprKind) -> Expr {
    Expr {
        kind,
        span: Span::default(),
    }
}

fn by() -> impl Strategy<Value = Vec<Expr>> {
    vec(expr(), 0..3)
}

fn stack() -> impl Strategy<Value = Stack> {
    any::<bool>().prop_map(|user| Stack {
        user,
        span: Span::default(),
    })
}

fn column() -> impl Strategy<Value = Column> {
    prop_oneof![
        4 => (expr(), option::of(name())).prop_map(|(expr, name)| Column::Value { expr, name }),
        1 => stack().prop_map(Column::Stack),
    ]
}

fn member() -> impl Strategy<Value = Member> {
    let record = prop_oneof![
        Just(Columns::Nothing(Span::default())),
        vec(column(), 1..4).prop_map(Columns::List),
    ];
    (
        source(),
        vec(pattern(), 0..3),
        option::of(expr()),
        option::of(number()),
        option::of(record),
    )
        .prop_map(|(source, except, with, sample, record)| Member {
            source,
            except,
            with,
            sample,
            record,
            span: Span::default(),
        })
}

fn end() -> impl Strategy<Value = End> {
    (pattern(), any::<bool>(), option::of(expr()), by()).prop_map(|(pattern, optional, with, by)| End {
        pattern,
        optional,
        with,
        by,
        span: Span::default(),
    })
}

fn guard() -> impl Strategy<Value = Guard> {
    name().prop_map(Guard::Set).prop_recursive(4, 12, 2, |inner| {
        let one = inner.prop_map(Box::new);
        prop_oneof![
            one.clone().prop_map(Guard::Not),
            (one.clone(), one.clone()).prop_map(|(left, right)| Guard::And(left, right)),
            (one.clone(), one).prop_map(|(left, right)| Guard::Or(left, right)),
        ]
    })
}

fn pieces() -> impl Strategy<Value = Vec<NotifyPiece>> {
    let texts = text().prop_filter("empty", |text| !text.is_empty());
    vec((option::of(texts), expr()), 0..3).prop_map(|parts| {
        let each = |(text, value): (Option<String>, Expr)| {
            text.map(NotifyPiece::Text)
                .into_iter()
                .chain([NotifyPiece::Value(value)])
        };
        parts.into_iter().flat_map(each).collect()
    })
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (names(), option::of(number())).prop_map(|(sets, for_ns)| ActionKind::Enable { sets, for_ns }),
        names().prop_map(|sets| ActionKind::Disable { sets }),
        (name(), option::of(number())).prop_map(|(buffer, for_ns)| ActionKind::Switch { buffer, for_ns }),
        option::of(number()).prop_map(|after_ns| ActionKind::Save { after_ns }),
        pieces().prop_map(|pieces| ActionKind::Notify { pieces }),
        (name(), by()).prop_map(|(name, by)| ActionKind::Count { name, by }),
        (name(), expr(), by()).prop_map(|(name, value, by)| ActionKind::Measure { name, value, by }),
        stack().prop_map(ActionKind::Stack),
        Just(ActionKind::Stop),
    ]
    .prop_map(|kind| Action {
        kind,
        span: Span::default(),
    })
}

fn triggers() -> impl Strategy<Value = Vec<Trigger>> {
    let span = Span::default();
    let event =
        (source(), option::of(expr())).prop_map(move |(source, with)| Trigger::Event { source, with, span });
    let open = (name(), number(), option::of(expr())).prop_map(move |(name, for_ns, with)| {
        vec![Trigger::Open {
            name,
            for_ns,
            with,
            span,
        }]
    });
    let no = (pattern(), number()).prop_map(move |(pattern, for_ns)| {
        vec![Trigger::No {
            pattern,
            for_ns,
            span,
        }]
    });
    prop_oneof![3 => vec(event, 1..3), 1 => open, 1 => no]
}

fn rule() -> impl Strategy<Value = Rule> {
    let span = Span::default();
    let window = prop_oneof![
        (number(), number(), by()).prop_map(move |(times, in_ns, by)| Window::Repeated {
            times,
            in_ns,
            by,
            span
        }),
        (expr(), expr(), number(), by()).prop_map(move |(value, over, in_ns, by)| Window::Total {
            value,
            over,
            in_ns,
            by,
            span
        }),
    ];
    let limit = prop_oneof![
        (number(), number(), by()).prop_map(move |(count, window_ns, by)| Limit::Per {
            count,
            window_ns,
            by,
            span
        }),
        by().prop_map(move |by| Limit::Once { by, span }),
    ];
    let parts = (
        name(),
        triggers(),
        option::of(window),
        option::of(guard()),
        vec(action(), 1..4),
        option::of(limit),
    );
    parts.prop_map(move |(name, triggers, window, guard, actions, limit)| Rule {
        name,
        triggers,
        window,
        guard,
        actions,
        limit,
        span,
    })
}

fn param() -> impl Strategy<Value = Param> {
    (name(), expr()).prop_map(|(name, value)| Param {
        name,
        value,
        span: Span::default(),
    })
}

fn step() -> impl Strategy<Value = Step> {
    let span = Span::default();
    let dotted = "[a-z_][a-z0-9_]{0,4}(\\.[a-z_][a-z0-9_]{0,4})?".prop_map(at);
    let what = prop_oneof![
        (name(), option::of(number())).prop_map(|(rule, times)| Expectation::Fired { rule, times }),
        name().prop_map(Expectation::Enabled),
        name().prop_map(Expectation::Buffer),
        name().prop_map(Expectation::Kept),
        source().prop_map(Expectation::Recorded),
    ];
    let one_event = pattern().prop_filter("a glob", |pattern| !pattern.event.contains('*'));
    prop_oneof![
        (one_event, vec((dotted, expr()), 0..3)).prop_map(move |(pattern, values)| Step::Hit {
            pattern,
            values,
            span
        }),
        (any::<bool>(), what).prop_map(move |(negated, what)| Step::Expect { negated, what, span }),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    let span = Span::default();
    let moment = (number(), vec(step(), 0..4)).prop_map(move |(at_ns, steps)| Moment { at_ns, steps, span });
    let size = (0..1u64 << 50).prop_map(|kibibytes| at(kibibytes << 10));
    prop_oneof![
        param().prop_map(Item::Param),
        (name(), option::of(number()), vec(member(), 0..4)).prop_map(move |(name, max_per_s, members)| {
            Item::Set(Set {
                name,
                max_per_s,
                members,
                span,
            })
        }),
        (name(), vec(end(), 1..3), vec(end(), 1..3)).prop_map(move |(name, from, to)| Item::Span(SpanItem {
            name,
            from,
            to,
            span
        })),
        (name(), vec(size, 0..3), vec(any::<bool>().prop_map(at), 0..3)).prop_map(
            move |(name, sizes, streams)| Item::Buffer(Buffer {
                name,
                sizes,
                streams,
                span
            })
        ),
        (0..=1_000_000u64).prop_map(move |ppm| Item::Budget(Budget { ppm: at(ppm), span })),
        names().prop_map(move |sets| Item::Start(Start { sets, span })),
        rule().prop_map(Item::Rule),
        (text(), vec(param(), 0..3), vec(moment, 0..3)).prop_map(move |(title, params, moments)| {
            Item::Test(Test {
                title: at(title),
                params,
                moments,
                span,
            })
        }),
    ]
}

/// A tree without its places.
fn placeless(tree: &impl std::fmt::Debug) -> String {
    let mut rest = format!("{tree:#?}");
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once("Span {") {
        out.push_str(before);
        rest = after
            .split_once('}')
            .map(|(_, after)| after.to_owned())
            .unwrap_or_default();
    }
    out + &rest
}

fn shown(diagnostics: &Diagnostics, text: &str) -> String {
    render(
        diagnostics,
        &[Source {
            name: "printed.lkst".to_owned(),
            text: text.to_owned(),
        }],
        false,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_read_back(items in vec(item(), 0..4)) {
        let file = File { items, ..File::default() };
        let text = print(&file);
        let mut diagnostics = Diagnostics::default();
        let again = parse(0, &text, &mut diagnostics);
        prop_assert!(diagnostics.list.is_empty(), "{}\n{text}", shown(&diagnostics, &text));
        prop_assert_eq!(placeless(&again), placeless(&file), "{}", text);
        prop_assert_eq!(print(&again), text);
    }

    #[test]
    fn expressions_read_back(expr in expr()) {
        let text = print_expression(&expr);
        let mut diagnostics = Diagnostics::default();
        let again = parse_expression(0, &text, &mut diagnostics);
        prop_assert!(diagnostics.list.is_empty(), "{}\n{text}", shown(&diagnostics, &text));
        prop_assert_eq!(placeless(&again), placeless(&Some(expr)), "{}", text);
    }
}
