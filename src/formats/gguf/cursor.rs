//! A walk through the head of a GGUF file: numbers, strings and values, each checked against what is left.

use std::ops::Range;

/// A value of the metadata. What is long stays in the file, and is named by its range.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// UTF-8.
    Text(Range<usize>),
    /// Texts behind each other, each after its length of 8 bytes.
    Texts(Range<usize>),
    /// Integers of 32 bits.
    Integers(Range<usize>),
    /// A list of another kind: what its elements are.
    List(&'static str),
}

/// The text at a range that a cursor has checked.
pub fn text<'a>(bytes: &'a [u8], range: &Range<usize>) -> &'a str {
    std::str::from_utf8(&bytes[range.clone()]).expect("checked when opened")
}

/// The texts at a range that a cursor has checked.
pub fn texts<'a>(bytes: &'a [u8], range: &Range<usize>) -> Vec<&'a str> {
    let mut cursor = Cursor { bytes: &bytes[..range.end], at: range.start };
    let mut texts = Vec::new();
    while cursor.at < range.end {
        texts.push(cursor.string().expect("checked when opened"));
    }
    texts
}

/// A place in a file.
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Bytes before this place.
    pub fn at(&self) -> usize {
        self.at
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let taken = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        let taken =
            taken.ok_or_else(|| format!("ends inside its head, at byte {}: fetch it again", self.bytes.len()))?;
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many as were asked for"))
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// Refuses a number of things of at least `bytes_each` that the rest of the file cannot hold.
    pub fn could_hold(&self, count: u64, bytes_each: u64, what: &str) -> Result<(), String> {
        let left = (self.bytes.len() - self.at) as u64;
        match count.checked_mul(bytes_each) {
            Some(bytes) if bytes <= left => Ok(()),
            _ => {
                Err(format!("says it holds {count} {what}, more than its {left} bytes can: it is damaged or truncated"))
            }
        }
    }

    /// A text after its length.
    pub fn string(&mut self) -> Result<&'a str, String> {
        let (start, len) = (self.at, self.u64()?);
        self.could_hold(len, 1, "letters of a name")?;
        std::str::from_utf8(self.take(len as usize)?)
            .map_err(|_| format!("holds a text at byte {start} that is not UTF-8: it is damaged"))
    }

    /// A value of the metadata after its type.
    pub fn value(&mut self, key: &str) -> Result<Value, String> {
        let kind = self.u32()?;
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>()?[0])),
            1 => Value::Signed(i64::from(i8::from_le_bytes(self.array()?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => {
                let len = self.string()?.len();
                Value::Text(self.at - len..self.at)
            }
            9 => self.list(key)?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("{key} has the unknown type {other}: it is damaged, or of a newer version")),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let (bytes_each, name) = match kind {
            0 | 1 | 7 => (1, "bytes"),
            2 | 3 => (2, "integers of 16 bits"),
            4..=6 => (4, "words"),
            8 => (8, "texts"),
            10..=12 => (8, "words of 64 bits"),
            9 => return Err(format!("{key} is a list of lists, which is not read")),
            other => return Err(format!("{key} is a list of the unknown type {other}: it is damaged")),
        };
        self.could_hold(count, bytes_each, name)?;
        let start = self.at;
        if kind == 8 {
            for _ in 0..count {
                self.string()?;
            }
            return Ok(Value::Texts(start..self.at));
        }
        self.take((count * bytes_each) as usize)?;
        Ok(if matches!(kind, 4 | 5) { Value::Integers(start..self.at) } else { Value::List(name) })
    }
}
