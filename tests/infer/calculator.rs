//! The calculator: values, and what is no expression.

use nanochat_gpu::infer::calculator::evaluate;
use proptest::prelude::*;

#[test]
fn values() {
    for (expression, value) in [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3", "9"),
        ("12 / 4", "3"),
        ("7 / 2", "3.5"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("2 ** 10", "1024"),
        ("-2 ** 2", "-4"),
        ("2 ** -1", "0.5"),
        ("2 ** 3 ** 2", "512"),
        ("1,234,567 + 1", "1234568"),
        ("0.1 + 0.2", "0.30000000000000004"),
        (".5 * 4", "2"),
        ("10 - 4 - 3", "3"),
        ("100 / 10 / 5", "2"),
        ("--5", "5"),
        (" 99999999999999999999 * 99999999999 ", "9999999999899999999900000000001"),
        ("'strawberry'.count('r')", "3"),
        ("\"aaaa\".count(\"aa\")", "2"),
    ] {
        assert_eq!(evaluate(expression).as_deref(), Some(value), "{expression}");
    }
    // Beyond 127 bits it goes on in doubles.
    assert_eq!(evaluate("10 ** 40").unwrap().parse::<f64>().unwrap(), 1e40);
}

#[test]
fn what_is_no_expression_has_no_value() {
    for expression in [
        "",
        " ",
        "1 +",
        "1 2",
        "(1",
        "1)",
        "a",
        "1e5",
        "1 / 0",
        "5 % 0",
        "1 // 0",
        "10 ** 400",
        "..",
        ",",
        "__import__('os')",
        "'a'.count",
        "'a'.count('a').x",
        "'a'.upper()",
        "1; 2",
        "2 ** 99999999999",
    ] {
        assert_eq!(evaluate(expression), None, "{expression}");
    }
    assert_eq!(evaluate(&"(".repeat(100)), None);
    assert_eq!(evaluate(&"-".repeat(200)), None);
    assert_eq!(evaluate(&"1+".repeat(200)), None, "too long");
    let nested = format!("{}1{}", "(".repeat(20), ")".repeat(20));
    assert_eq!(evaluate(&nested).as_deref(), Some("1"));
}

proptest! {
    #[test]
    fn sums_and_products_are_those_of_integers(a in -1_000_000i64..1_000_000, b in 1i64..1_000_000, c in -1000i64..1000) {
        let both = |text: String, value: i64| (evaluate(&text), Some(value.to_string()));
        let (got, want) = both(format!("{a} + {b} * {c}"), a + b * c);
        prop_assert_eq!(got, want);
        let (got, want) = both(format!("({a} - {c}) // {b}"), (a - c).div_euclid(b));
        prop_assert_eq!(got, want);
        let (got, want) = both(format!("{a} % {b}"), a.rem_euclid(b));
        prop_assert_eq!(got, want);
    }

    #[test]
    fn any_text_is_borne(text in "[-0-9+*/%(). ,'a-c]{0,60}") {
        let _ = evaluate(&text);
    }
}
