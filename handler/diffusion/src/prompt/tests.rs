//! The syntax as the web UI documents it.

use super::*;

fn table(cases: &[(&str, &[(&str, f64)])]) {
    for (prompt, expected) in cases {
        let found = fragments(prompt).unwrap();
        let texts = |parts: &[Fragment]| parts.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&found), expected.iter().map(|(text, _)| *text).collect::<Vec<_>>(), "{prompt}");
        for ((text, weight), (_, wanted)) in found.iter().zip(*expected) {
            assert!((weight - wanted).abs() < 1e-12, "{prompt}: `{text}` weighs {weight}, not {wanted}");
        }
    }
}

#[test]
fn brackets_are_weights() {
    table(&[
        ("normal text", &[("normal text", 1.0)]),
        ("an (important) word", &[("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("a [quiet] word", &[("a ", 1.0), ("quiet", 1.0 / 1.1), (" word", 1.0)]),
        ("(cat:1.3) (dog: +.5 ) (-1:-1)", &[("cat", 1.3), (" ", 1.0), ("dog", 0.5), (" ", 1.0), ("-1", -1.0)]),
        ("((loud)) [[quiet]]", &[("loud", 1.21), (" ", 1.0), ("quiet", 1.0 / 1.21)]),
        ("((a:2) b:3)", &[("a", 6.0), (" b", 3.0)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
    ]);
}

#[test]
fn neighbours_of_one_weight_are_one_fragment() {
    table(&[("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]), ("a(:1.0)b", &[("ab", 1.0)]), ("", &[])]);
}

#[test]
fn brackets_that_do_not_match() {
    table(&[
        ("(unbalanced", &[("unbalanced", 1.1)]),
        ("[unbalanced", &[("unbalanced", 1.0 / 1.1)]),
        ("((a) b", &[("a", 1.21), (" b", 1.1)]),
        ("smile :) there", &[("smile :) there", 1.0)]),
        ("a] b) c:1.5)", &[("a] b) c:1.5)", 1.0)]),
        // Brackets of different kinds may overlap.
        ("(a [b) c]", &[("a ", 1.1), ("b", 1.0), (" c", 1.0 / 1.1)]),
    ]);
}

#[test]
fn escapes_and_what_is_text() {
    table(&[
        (r"\(literal\]", &[("(literal]", 1.0)]),
        (r"(a \(b\):1.5)", &[("a (b)", 1.5)]),
        (r"back\\slash \x", &[(r"back\slash x", 1.0)]),
        ("ratio 16:9, time: now", &[("ratio 16:9, time: now", 1.0)]),
        ("(a:b)", &[("a:b", 1.1)]),
        ("[day:night:0.5]", &[("day:night:0.5", 1.0 / 1.1)]),
        ("cat BREAK dog", &[("cat BREAK dog", 1.0)]),
        ("猫 (茶色:1.2) ü", &[("猫 ", 1.0), ("茶色", 1.2), (" ü", 1.0)]),
    ]);
}

#[test]
fn a_weight_that_is_no_number_is_refused() {
    for prompt in ["(a:1.2.3)", "(a:.)", "(a:-..)"] {
        assert!(fragments(prompt).is_none(), "{prompt}");
    }
}
