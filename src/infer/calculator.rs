//! The calculator that a model may ask: arithmetic, and counting a string in a string. A small parser of its own: nothing is executed.
//!
//! Whole numbers are exact as far as 127 bits go; a quotient that is not whole, and everything that comes of one, is a double. As nanochat in
//! Python does it, `'text'.count('t')` counts, and commas inside numbers are left out.

/// Longest expression, in bytes.
const BYTES_MAX: usize = 256;
/// Deepest nesting of brackets and signs.
const DEPTH_MAX: usize = 32;

/// A number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Whole(i128),
    Real(f64),
}

impl Number {
    fn real(self) -> f64 {
        match self {
            Number::Whole(x) => x as f64,
            Number::Real(x) => x,
        }
    }

    fn combine(self, other: Number, whole: fn(i128, i128) -> Option<i128>, real: fn(f64, f64) -> f64) -> Number {
        match (self, other) {
            (Number::Whole(a), Number::Whole(b)) if whole(a, b).is_some() => Number::Whole(whole(a, b).unwrap_or(0)),
            (a, b) => Number::Real(real(a.real(), b.real())),
        }
    }
}

/// The value of an expression as text; none where it is no expression, has no finite value, or is too long.
pub fn evaluate(expression: &str) -> Option<String> {
    let expression = expression.trim();
    if expression.is_empty() || expression.len() > BYTES_MAX {
        return None;
    }
    if let Some(count) = counted(expression) {
        return Some(count.to_string());
    }
    let mut parser = Parser { rest: expression.as_bytes(), depth: 0 };
    let value = parser.sum()?;
    parser.skip_space();
    if !parser.rest.is_empty() {
        return None;
    }
    match value {
        Number::Whole(x) => Some(x.to_string()),
        Number::Real(x) if x.is_finite() => Some(x.to_string()),
        Number::Real(_) => None,
    }
}

/// `'text'.count('part')`, either quote: how often the part is in the text without overlap.
fn counted(expression: &str) -> Option<usize> {
    let (text, rest) = quoted(expression)?;
    let (part, rest) = quoted(rest.strip_prefix(".count(")?)?;
    if rest != ")" {
        return None;
    }
    Some(if part.is_empty() { text.chars().count() + 1 } else { text.matches(part).count() })
}

/// A string between quotes at the beginning, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (inside, rest) = text[1..].split_once(quote)?;
    Some((inside, rest))
}

/// Recursive descent over what is left.
struct Parser<'a> {
    rest: &'a [u8],
    depth: usize,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        while let [b' ' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    /// Takes `token` where it comes next.
    fn takes(&mut self, token: &[u8]) -> bool {
        self.skip_space();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn sum(&mut self) -> Option<Number> {
        let mut value = self.product()?;
        loop {
            if self.takes(b"+") {
                value = value.combine(self.product()?, i128::checked_add, |a, b| a + b);
            } else if self.takes(b"-") {
                value = value.combine(self.product()?, i128::checked_sub, |a, b| a - b);
            } else {
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<Number> {
        let mut value = self.signed()?;
        loop {
            if self.takes(b"//") {
                let divisor = self.divisor()?;
                value = value.combine(divisor, floor_quotient, |a, b| (a / b).floor());
            } else if self.takes(b"/") {
                let divisor = self.divisor()?;
                let whole = |a: i128, b: i128| (a.checked_rem(b) == Some(0)).then(|| a / b);
                value = value.combine(divisor, whole, |a, b| a / b);
            } else if self.takes(b"%") {
                let divisor = self.divisor()?;
                let whole = |a: i128, b: i128| a.checked_sub(b.checked_mul(floor_quotient(a, b)?)?);
                value = value.combine(divisor, whole, |a, b| a - b * (a / b).floor());
            } else if self.takes(b"*") {
                value = value.combine(self.signed()?, i128::checked_mul, |a, b| a * b);
            } else {
                return Some(value);
            }
        }
    }

    fn divisor(&mut self) -> Option<Number> {
        self.signed().filter(|divisor| divisor.real() != 0.0)
    }

    /// A power with its sign: `-2 ** 2` is -4.
    fn signed(&mut self) -> Option<Number> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return None;
        }
        let value = if self.takes(b"-") {
            Number::Whole(0).combine(self.signed()?, i128::checked_sub, |a, b| a - b)
        } else if self.takes(b"+") {
            self.signed()?
        } else {
            let base = self.atom()?;
            match self.takes(b"**") || self.takes(b"^") {
                true => base.combine(self.signed()?, power, f64::powf),
                false => base,
            }
        };
        self.depth -= 1;
        Some(value)
    }

    fn atom(&mut self) -> Option<Number> {
        if self.takes(b"(") {
            let value = self.sum()?;
            return self.takes(b")").then_some(value);
        }
        self.skip_space();
        let is_part = |c: &u8| c.is_ascii_digit() || matches!(c, b'.' | b',');
        let len = self.rest.iter().take_while(|c| is_part(c)).count();
        let (number, rest) = self.rest.split_at(len);
        let digits = String::from_utf8(number.iter().copied().filter(|c| *c != b',').collect()).ok()?;
        if !digits.starts_with(|c: char| c.is_ascii_digit()) && !digits.starts_with('.') {
            return None;
        }
        self.rest = rest;
        match digits.parse::<i128>() {
            Ok(whole) => Some(Number::Whole(whole)),
            Err(_) => digits.parse().ok().map(Number::Real),
        }
    }
}

fn floor_quotient(a: i128, b: i128) -> Option<i128> {
    let quotient = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
}

fn power(base: i128, exponent: i128) -> Option<i128> {
    base.checked_pow(u32::try_from(exponent).ok()?)
}
