//! One conversion of `printf`: its parts, and the text of a value, as C has them.

/// A conversion specification: `%-+ #0 width .precision length conversion`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spec {
    pub left: bool,
    pub plus: bool,
    pub space: bool,
    pub alternate: bool,
    pub zero: bool,
    pub width: usize,
    pub precision: Option<usize>,
    /// Bytes of an integer: 1 and 2 are cut out of 4.
    pub bytes: u64,
    pub conversion: char,
}

/// Wider than this is not taken seriously.
const WIDTH_MAX: usize = 4096;

/// Parses what follows a `%`; `next` gives the values of `*`. None where the text ends within it. Gives the rest of the text.
pub fn parse<'t>(text: &'t str, mut next: impl FnMut() -> i32) -> Option<(Spec, &'t str)> {
    let mut spec = Spec { bytes: 4, ..Spec::default() };
    let mut rest = text;
    loop {
        match rest.chars().next()? {
            '-' => spec.left = true,
            '+' => spec.plus = true,
            ' ' => spec.space = true,
            '#' => spec.alternate = true,
            '0' => spec.zero = true,
            _ => break,
        }
        rest = &rest[1..];
    }
    let mut number = |rest: &mut &'t str| -> i32 {
        if let Some(after) = rest.strip_prefix('*') {
            *rest = after;
            return next();
        }
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let value = rest[..digits].parse().unwrap_or(0);
        *rest = &rest[digits..];
        value
    };
    let width = number(&mut rest);
    spec.left |= width < 0;
    spec.width = (width.unsigned_abs() as usize).min(WIDTH_MAX);
    if let Some(after) = rest.strip_prefix('.') {
        rest = after;
        // A negative precision counts as none.
        spec.precision = usize::try_from(number(&mut rest)).ok().map(|precision| precision.min(WIDTH_MAX));
    }
    for (length, bytes) in [("hh", 1), ("h", 2), ("ll", 8), ("l", 8), ("q", 8), ("j", 8), ("z", 8), ("t", 8), ("L", 8)]
    {
        if let Some(after) = rest.strip_prefix(length) {
            (rest, spec.bytes) = (after, bytes);
            break;
        }
    }
    spec.conversion = rest.chars().next()?;
    let rest = &rest[spec.conversion.len_utf8()..];
    Some((spec, rest))
}

impl Spec {
    /// Text of an integer given by its low bytes.
    pub fn integer(&self, bits: u64) -> String {
        let unused = 64 - 8 * self.bytes;
        let signed = (bits << unused) as i64 >> unused;
        let unsigned = bits << unused >> unused;
        let (sign, digits) = match self.conversion {
            'd' | 'i' => (self.sign(signed < 0), signed.unsigned_abs().to_string()),
            'x' => (if self.alternate && unsigned != 0 { "0x" } else { "" }, format!("{unsigned:x}")),
            'X' => (if self.alternate && unsigned != 0 { "0X" } else { "" }, format!("{unsigned:X}")),
            'o' => (if self.alternate && unsigned != 0 { "0" } else { "" }, format!("{unsigned:o}")),
            _ => ("", unsigned.to_string()),
        };
        let digits = match self.precision {
            Some(0) if digits == "0" => String::new(),
            Some(precision) => format!("{digits:0>precision$}"),
            None => digits,
        };
        self.pad(sign, &digits, self.zero && self.precision.is_none())
    }

    /// Text of a string or character.
    pub fn text(&self, text: &str) -> String {
        let cut = match (self.conversion, self.precision) {
            ('s', Some(precision)) => text.chars().take(precision).collect(),
            _ => text.to_string(),
        };
        self.pad("", &cut, false)
    }

    /// Text of a floating-point value.
    pub fn float(&self, value: f64) -> String {
        let sign = self.sign(value.is_sign_negative() && !value.is_nan());
        let upper = self.conversion.is_ascii_uppercase();
        let case = |text: String| if upper { text.to_uppercase() } else { text };
        if !value.is_finite() {
            return self.pad(sign, &case(if value.is_nan() { "nan" } else { "inf" }.into()), false);
        }
        let magnitude = value.abs();
        let precision = self.precision.unwrap_or(6);
        let body = match self.conversion.to_ascii_lowercase() {
            'f' => self.with_point(format!("{magnitude:.precision$}")),
            'e' => exponential(magnitude, precision),
            'g' => self.shortest(magnitude, precision.max(1)),
            _ => hexadecimal(magnitude, self.precision),
        };
        match body.strip_prefix("0x") {
            Some(digits) => {
                let prefix = if upper { "0X" } else { "0x" };
                self.pad(&format!("{sign}{prefix}"), &case(digits.to_string()), self.zero)
            }
            None => self.pad(sign, &case(body), self.zero),
        }
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (.., true) => " ",
            _ => "",
        }
    }

    fn with_point(&self, text: String) -> String {
        if self.alternate && !text.contains('.') { text + "." } else { text }
    }

    /// `%g`: `precision` significant digits in whichever of both notations is shorter, trailing zeros gone.
    fn shortest(&self, value: f64, precision: usize) -> String {
        let text = exponential(value, precision - 1);
        let power: i32 = text.split_once('e').map_or(0, |(_, power)| power.parse().unwrap_or(0));
        let trim = |digits: &str| match digits.contains('.') && !self.alternate {
            true => digits.trim_end_matches('0').trim_end_matches('.').to_string(),
            false => digits.to_string(),
        };
        if power < -4 || power >= precision as i32 {
            let (mantissa, power) = text.split_once('e').unwrap_or((&text, "+00"));
            return format!("{}e{power}", trim(mantissa));
        }
        let decimals = (precision as i32 - 1 - power).max(0) as usize;
        trim(&format!("{value:.decimals$}"))
    }

    fn pad(&self, sign: &str, body: &str, zeros: bool) -> String {
        let fill = self.width.saturating_sub(sign.len() + body.chars().count());
        match (self.left, zeros) {
            (true, _) => format!("{sign}{body}{}", " ".repeat(fill)),
            (false, true) => format!("{sign}{}{body}", "0".repeat(fill)),
            (false, false) => format!("{}{sign}{body}", " ".repeat(fill)),
        }
    }
}

fn exponential(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `%a`: the leading hexadecimal digit is 1 for normal values.
fn hexadecimal(value: f64, precision: Option<usize>) -> String {
    let bits = value.to_bits();
    let field = (bits >> 52) as i32;
    let power = if bits == 0 { 0 } else { field.max(1) - 1023 };
    let mut significand = bits & ((1 << 52) - 1) | ((field != 0) as u64) << 52;
    let mut digits = 13;
    if let Some(precision) = precision.filter(|precision| *precision < 13) {
        let drop = 4 * (13 - precision) as u32;
        let (kept, rest, half) = (significand >> drop, significand & ((1 << drop) - 1), 1 << (drop - 1));
        significand = kept + (rest > half || rest == half && kept & 1 == 1) as u64;
        digits = precision;
    }
    let lead = significand >> (4 * digits);
    let fraction = significand & ((1u64 << (4 * digits)) - 1);
    let text = if digits == 0 { String::new() } else { format!("{fraction:0digits$x}") };
    let text = match precision {
        None => text.trim_end_matches('0').to_string(),
        Some(precision) => format!("{text:0<precision$}"),
    };
    let point = if text.is_empty() { "" } else { "." };
    format!("0x{lead:x}{point}{text}p{power:+}")
}

#[cfg(test)]
mod tests {
    use super::parse;

    fn one(text: &str, value: f64) -> String {
        let (spec, rest) = parse(&text[1..], || 9).expect("a conversion");
        assert_eq!(rest, "");
        if "diuxXoc".contains(spec.conversion) { spec.integer(value as i64 as u64) } else { spec.float(value) }
    }

    /// What the C library prints.
    #[test]
    fn conversions_are_those_of_c() {
        for (text, value, expected) in [
            ("%d", -7.0, "-7"),
            ("%+5d", 7.0, "   +7"),
            ("%-5d", 7.0, "7    "),
            ("% d", 7.0, " 7"),
            ("%05d", -42.0, "-0042"),
            ("%.4d", 42.0, "0042"),
            ("%6.3d", 42.0, "   042"),
            ("%*d", 42.0, "       42"),
            ("%#x", 255.0, "0xff"),
            ("%#o", 8.0, "010"),
            ("%hhd", 300.0, "44"),
            ("%hu", 65537.0, "1"),
            ("%llX", -1.0, "FFFFFFFFFFFFFFFF"),
            ("%u", -1.0, "4294967295"),
            ("%f", 1.5, "1.500000"),
            ("%8.2f", -1.255, "   -1.25"),
            ("%.0f", 2.5, "2"),
            ("%e", 12345.678, "1.234568e+04"),
            ("%.2E", 0.00012, "1.20E-04"),
            ("%g", 100000.0, "100000"),
            ("%g", 1000000.0, "1e+06"),
            ("%g", 0.0001, "0.0001"),
            ("%g", 0.00001234, "1.234e-05"),
            ("%.3g", 2.0f64.sqrt(), "1.41"),
            ("%#.3g", 1.0, "1.00"),
            ("%a", 1.0, "0x1p+0"),
            ("%a", -0.15625, "-0x1.4p-3"),
            ("%.2a", 1.999, "0x2.00p+0"),
            ("%08.3f", -3.125, "-003.125"),
            ("%f", f64::INFINITY, "inf"),
            ("%08F", f64::NEG_INFINITY, "    -INF"),
        ] {
            assert_eq!(one(text, value), expected, "{text} of {value}");
        }
    }
}
