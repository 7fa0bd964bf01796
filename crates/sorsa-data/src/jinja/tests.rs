//! Tests of limits and of marks. `tests/golden/chat_templates` has the comparison with jinja2.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;

fn render_with(source: &str, limits: Limits) -> Result<Rendered, Fault> {
    let message = |role: &str, content: &str, index: usize| {
        let json = json!({"role": role, "content": content});
        Value::message(json.as_object().unwrap(), index)
    };
    let messages = vec![message("user", " hi ", 0)?, message("assistant", "a, b", 1)?];
    Template::compile(source)?.render(vec![("messages".to_owned(), Value::list(messages)?)], limits)
}

fn render(source: &str) -> Result<Rendered, Fault> {
    render_with(source, Limits::for_input(100))
}

fn text(source: &str) -> String {
    match render(source) {
        Ok(rendered) => rendered.text,
        Err(fault) => format!("error: {fault}"),
    }
}

#[test]
fn no_template_runs_for_ever_or_takes_all_memory() {
    let deep = |open: &str, inside: &str, close: &str| open.repeat(100_000) + inside + &close.repeat(100_000);
    let bombs = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}".to_owned(),
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x | replace('a', 'aaaa') %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x == [ns.x] }}{{ ns.x < ns.x }}{{ [ns.x] == [ns.x] }}".to_owned(),
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x={}) %}{% for i in range(99999) %}{% set ns.x = {'a': ns.x} %}{% endfor %}".to_owned(),
        "{% set ns = namespace() %}{% for i in range(99999) %}{% set ns.x = namespace(y=ns) %}{% endfor %}".to_owned(),
        "{{ [1] * 10 ** 13 }}".to_owned(),
        "{{ 'a' * 10 ** 13 }}".to_owned(),
        "{{ 9 ** 9 ** 9 }}".to_owned(),
        "{{ range(10 ** 13) | list }}".to_owned(),
        "{{ '%999999999d' % 1 }}".to_owned(),
        "{{ '{:>999999999}'.format(1) }}".to_owned(),
        "{{ 'a'.center(10 ** 12) }}{{ 'a' | center(10 ** 12) }}".to_owned(),
        "{{ [1] | batch(10 ** 13, 0) | list }}".to_owned(),
        "{{ [1] | slice(10 ** 13) | list }}".to_owned(),
        "{{ ('a' * 1000000) | indent(1000) | list | tojson(indent=1000) }}{% for i in range(99999) %}{{ 'x' in 'a' * 100000 }}{% endfor %}".to_owned(),
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% macro f(x) %}{% for i in range(9) %}{{ f(x + 1) }}{% endfor %}{% endmacro %}{{ f(0) }}".to_owned(),
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}".to_owned(),
        deep("{{ ", "(", ""),
        format!("{{{{ {} }}}}", deep("(", "1", ")")),
        format!("{{{{ {} }}}}", deep("[", "1", "]")),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(100_000)),
        format!("{{{{ a{} }}}}", ".a".repeat(100_000)),
        format!("{{{{ 1{} }}}}", "|abs".repeat(100_000)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(100_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(40), format!("{})", " + 1".repeat(150)).repeat(40)),
        deep("{% if 1 %}", "", "{% endif %}"),
        deep("{% for a in [1] %}", "", "{% endfor %}"),
    ];
    // As on the threads that encode rows.
    let run = || {
        for bomb in &bombs {
            let started = Instant::now();
            let shown: String = bomb.chars().take(150).collect();
            assert!(render(bomb).is_err(), "{shown}");
            assert!(started.elapsed() < Duration::from_secs(20), "{shown}: {:?}", started.elapsed());
        }
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new().stack_size(2 << 20).spawn_scoped(scope, run).unwrap().join().unwrap();
    });
}

#[test]
fn limits_count_what_is_made() {
    let few_bytes = Limits { steps: 1000, bytes: 100 };
    assert_eq!(
        render_with("{{ 'a' * 90 }}", few_bytes).unwrap_err().to_string(),
        "the template makes too much text or too long lists (in chat_template:1)"
    );
    let few_steps = Limits { steps: 20, bytes: 10_000 };
    assert_eq!(
        render_with("\n{% for i in range(9) %}{{ i }}{% endfor %}", few_steps).unwrap_err().to_string(),
        "the template takes too many steps: it may run for ever (in chat_template:2)"
    );
}

#[test]
fn errors_name_the_line() {
    assert_eq!(text("a\n{% if %}"), "error: syntax error: unexpected end of block (in chat_template:2)");
    assert_eq!(text("a\n\n{{ x.y }}"), "error: undefined value: 'x' is undefined (in chat_template:3)");
    assert_eq!(
        text("{% if true %}"),
        "error: syntax error: unexpected end of template, expected elif or else or endif (in chat_template:1)"
    );
    assert_eq!(text("{% nonsense %}"), "error: syntax error: unknown statement nonsense (in chat_template:1)");
    assert_eq!(text("{% break %}"), "error: syntax error: `break` outside of a loop (in chat_template:1)");
    assert_eq!(text("{{ 'a"), "error: syntax error: unexpected end of string (in chat_template:1)");
    assert_eq!(text("{% include 'x' %}"), "error: syntax error: unknown statement include (in chat_template:1)");
}

/// The marked parts of the output.
fn marked(source: &str, wanted: impl Fn(MarkKind) -> bool) -> Vec<String> {
    let rendered = render(source).unwrap();
    let marks = rendered.marks.iter().filter(|mark| wanted(mark.kind));
    marks.map(|mark| rendered.text[mark.range.clone()].to_owned()).collect()
}

#[test]
fn texts_of_messages_stay_marked_through_every_operation() {
    let said = |source: &str| marked(source, |kind| kind == MarkKind::Said { message: 1, field: 1 });
    for (source, parts) in [
        ("<{{ messages[1].content }}>", vec!["a, b"]),
        ("{{ '<' + messages[1].content ~ '>' }}", vec!["a, b"]),
        ("{{ messages[1].content.split(', ')[1] + '.' }}", vec!["b"]),
        ("{{ messages[1].content[3:] }}|{{ messages[1].content[0] }}", vec!["b", "a"]),
        ("{{ '%s!' % messages[1].content }}{{ '-{}-'.format(messages[1].content) }}", vec!["a, b", "a, b"]),
        ("{{ messages[1].content | upper | trim }}", vec!["A, B"]),
        ("{{ messages[1].content | tojson }}", vec!["\"a, b\""]),
        ("{{ messages[1] | tojson }}", vec!["\"a, b\""]),
        ("{{ messages | map(attribute='content') | join('|') }}", vec!["a, b"]),
        ("{{ messages[1].content | replace(',', ';') }}", vec!["a", " b"]),
        ("{% set x %}[{{ messages[1].content }}]{% endset %}{{ x | trim }}", vec!["a, b"]),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(messages[1].content) }}", vec!["a, b"]),
        ("{{ messages[1].role }}", vec![]),
    ] {
        assert_eq!(said(source), parts, "{source}");
    }
}

#[test]
fn turns_and_generation_blocks_are_marked() {
    let turn = |source: &str| marked(source, |kind| kind == MarkKind::Turn(1));
    assert_eq!(turn("{% for m in messages %}<{{ m.role }}>{% endfor %}"), ["<assistant>"]);
    assert_eq!(
        turn("{% for m in messages[1:] %}{% if m.role == 'user' %}{% continue %}{% endif %}x{% endfor %}"),
        ["x"]
    );
    assert_eq!(
        turn("{% macro all() %}{% for m in messages %}{{ m.content }};{% endfor %}{% endmacro %}>{{ all() | trim }}"),
        ["a, b;"]
    );
    for tags in [
        "{% generation %}|{% endgeneration %}",
        "{%generation%}|{%endgeneration%}",
        "{%-  generation\n-%}|{%+ endgeneration +%}",
    ] {
        let (open, close) = tags.split_once('|').unwrap();
        let source = format!("{{% for m in messages %}}[{open}{{{{ m.content }}}}{close}]{{% endfor %}}");
        assert_eq!(marked(&source, |kind| kind == MarkKind::Generation), [" hi ", "a, b"], "{tags}");
        assert!(Template::compile(&source).unwrap().has_generation_blocks());
    }
}
