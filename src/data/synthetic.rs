//! Built-in data: small tasks generated without end. Document `i` is a pure function of seed, task and `i`.
//!
//! Every document has a content key (a sum's operands, a word, a story's cast) that alone decides its split, so no sum,
//! word or story of the training data occurs in the validation data, in whatever wording or task.

use super::random::{Draw, identity};
use super::source::{Document, Place, Reader, Record, Source};
use super::stories;
use crate::tokenizer::special::Message;
use crate::user_bail;

/// The built-in tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// All of them; most documents are stories.
    Mixture,
    /// Sums, half of them with reversed digits.
    Addition,
    /// `37+45=82`.
    AdditionPlain,
    /// `reversed: 73+54=28`: every number with its lowest digit first, so that carries run with the text.
    AdditionReversed,
    /// `Count from 5 to 14 by 3: 5, 8, 11, 14.`, downwards too.
    Counting,
    /// `The word "lamp" is spelled l-a-m-p.`, letters counted and words reversed.
    Spelling,
    /// Short stories with a problem and its solution.
    Stories,
    /// Questions and answers as chats.
    Qa,
    /// The same as plain transcripts with `User:` and `Assistant:` lines.
    QaText,
}

impl Task {
    /// Every task with the name that follows `synthetic:`.
    pub const ALL: [(&'static str, Task); 9] = [
        ("mixture", Task::Mixture),
        ("addition", Task::Addition),
        ("addition-plain", Task::AdditionPlain),
        ("addition-reversed", Task::AdditionReversed),
        ("counting", Task::Counting),
        ("spelling", Task::Spelling),
        ("stories", Task::Stories),
        ("qa", Task::Qa),
        ("qa-text", Task::QaText),
    ];

    /// The task called `name`. Errors: a user error that lists the names and the nearest one.
    pub fn parse(name: &str) -> anyhow::Result<Task> {
        if let Some((_, task)) = Task::ALL.iter().find(|(known, _)| *known == name) {
            return Ok(*task);
        }
        let names: Vec<&str> = Task::ALL.iter().map(|(known, _)| *known).collect();
        let near = |known: &&&str| strsim::damerau_levenshtein(known, name);
        match names.iter().min_by_key(near).filter(|known| near(known) <= 3) {
            Some(nearest) => user_bail!("no built-in task 'synthetic:{name}'; did you mean 'synthetic:{nearest}'?"),
            None => user_bail!("no built-in task 'synthetic:{name}'; there are {}", names.join(", ")),
        }
    }

    fn number(self) -> u64 {
        self as u64
    }
}

/// A generated document and the key that decides its split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Determines the content up to wording.
    pub key: String,
    /// The document.
    pub document: Document,
}

/// Document `index` of `task`; with `chats` false the mixture renders its chats as transcripts.
pub fn sample(seed: u64, task: Task, index: u64, chats: bool) -> Sample {
    let mut draw = Draw::new(&[seed, task.number(), index]);
    let text = |(key, text): (String, String)| Sample { key, document: Document::Bytes(text.into_bytes()) };
    match task {
        Task::Mixture => {
            let part = match draw.below(100) {
                0..40 => Task::Stories,
                40..62 => Task::Addition,
                62..70 => Task::Counting,
                70..80 => Task::Spelling,
                80..92 if chats => Task::Qa,
                _ => Task::QaText,
            };
            sample(draw.next_u64(), part, index, chats)
        }
        Task::Addition if draw.below(2) == 0 => text(addition(&mut draw, false)),
        Task::Addition => text(addition(&mut draw, true)),
        Task::AdditionPlain => text(addition(&mut draw, false)),
        Task::AdditionReversed => text(addition(&mut draw, true)),
        Task::Counting => text(counting(&mut draw)),
        Task::Spelling => text(spelling(&mut draw)),
        Task::Stories => text(stories::story(&mut draw)),
        Task::Qa => {
            let (key, messages) = conversation(&mut draw);
            Sample { key, document: Document::Chat(messages) }
        }
        Task::QaText => {
            let (key, messages) = conversation(&mut draw);
            let line = |message: &Message| match message.role.as_str() {
                "user" => format!("User: {}\n", message.content),
                _ => format!("Assistant: {}\n", message.content),
            };
            text((key, messages.iter().map(line).collect()))
        }
    }
}

/// A number of one to four digits, each length equally often.
fn operand(draw: &mut Draw) -> usize {
    match draw.between(1, 4) {
        1 => draw.below(10),
        2 => draw.between(10, 99),
        3 => draw.between(100, 999),
        _ => draw.between(1000, 9999),
    }
}

fn sum_key(a: usize, b: usize) -> String {
    format!("sum {} {}", a.min(b), a.max(b))
}

fn addition(draw: &mut Draw, reversed: bool) -> (String, String) {
    let (a, b) = (operand(draw), operand(draw));
    let digits = |n: usize| -> String {
        let digits = n.to_string();
        if reversed { digits.chars().rev().collect() } else { digits }
    };
    let prefix = if reversed { "reversed: " } else { "" };
    (sum_key(a, b), format!("{prefix}{}+{}={}\n", digits(a), digits(b), digits(a + b)))
}

fn counting(draw: &mut Draw) -> (String, String) {
    let (start, step, length) = (draw.below(200), draw.between(1, 12), draw.between(4, 12));
    let end = start + step * (length - 1);
    let mut numbers: Vec<String> = (0..length).map(|i| (start + i * step).to_string()).collect();
    let (mut from, mut to) = (start, end);
    let mut verb = "Count";
    if draw.below(3) == 0 {
        numbers.reverse();
        (from, to, verb) = (end, start, "Count down");
    }
    let by = if step == 1 { String::new() } else { format!(" by {step}") };
    (format!("count {start} {step} {length}"), format!("{verb} from {from} to {to}{by}: {}.\n", numbers.join(", ")))
}

/// A known word, or (as often) a made-up one that can be pronounced.
fn word(draw: &mut Draw) -> String {
    const ONSETS: [&str; 24] = [
        "b", "c", "d", "f", "g", "h", "l", "m", "n", "p", "r", "s", "t", "w", "br", "cl", "dr", "fl", "gr", "pl", "st",
        "tr", "sh", "th",
    ];
    const VOWELS: [&str; 9] = ["a", "e", "i", "o", "u", "ai", "ea", "oo", "ou"];
    const CODAS: [&str; 12] = ["", "", "n", "t", "r", "l", "s", "m", "ck", "nd", "st", "p"];
    if draw.below(2) == 0 {
        return (*draw.pick(stories::WORDS)).to_owned();
    }
    let syllables = draw.between(1, 3);
    let syllable = |_| [*draw.pick(&ONSETS), *draw.pick(&VOWELS), *draw.pick(&CODAS)].concat();
    (0..syllables).map(syllable).collect()
}

fn spelling(draw: &mut Draw) -> (String, String) {
    let word = word(draw);
    let letters: Vec<String> = word.chars().map(String::from).collect();
    let backwards: String = word.chars().rev().collect();
    let text = match draw.below(4) {
        0 => format!("The word \"{word}\" is spelled {}.\n", letters.join("-")),
        1 => format!("{} spells \"{word}\".\n", letters.join("-").to_uppercase()),
        2 => format!("The word \"{word}\" has {} letters: {}.\n", letters.len(), letters.join(", ")),
        _ => format!("The word \"{word}\" read backwards is \"{backwards}\".\n"),
    };
    (format!("word {word}"), text)
}

/// A chat of one question and what may stand around it; the question alone makes the key.
fn conversation(draw: &mut Draw) -> (String, Vec<Message>) {
    let mut messages = Vec::new();
    let mut say = |role: &str, content: String| messages.push(Message::new(role, &content));
    if draw.below(4) == 0 {
        say("user", (*draw.pick(&["Hello!", "Hi there.", "Good morning!", "Can you help me?"])).to_owned());
        say("assistant", (*draw.pick(&["Hello! What would you like to know?", "Of course. Just ask."])).to_owned());
    }
    let (key, question, answer) = question(draw);
    say("user", question);
    say("assistant", answer);
    if draw.below(4) == 0 {
        say("user", (*draw.pick(&["Thank you!", "Thanks.", "Good, I see."])).to_owned());
        say("assistant", (*draw.pick(&["You are welcome!", "Any time.", "I am glad I could help."])).to_owned());
    }
    (key, messages)
}

/// A question, its key and its answer.
fn question(draw: &mut Draw) -> (String, String, String) {
    match draw.below(6) {
        0 => {
            let (a, b) = (operand(draw), operand(draw));
            let question = match draw.below(3) {
                0 => format!("What is {a} plus {b}?"),
                1 => format!("How much is {a} + {b}?"),
                _ => format!("Please add {a} and {b}."),
            };
            (sum_key(a, b), question, format!("{a} plus {b} is {}.", a + b))
        }
        1 => {
            let (a, b) = (operand(draw), operand(draw));
            let answer = match a.cmp(&b) {
                std::cmp::Ordering::Less => format!("{b} is larger than {a}."),
                std::cmp::Ordering::Equal => format!("Neither: {a} and {b} are the same."),
                std::cmp::Ordering::Greater => format!("{a} is larger than {b}."),
            };
            (format!("larger {} {}", a.min(b), a.max(b)), format!("Which is larger, {a} or {b}?"), answer)
        }
        2 => {
            let n = operand(draw) + 1;
            let (side, other) = if draw.below(2) == 0 { ("after", n + 1) } else { ("before", n - 1) };
            (format!("neighbour {n}"), format!("Which number comes {side} {n}?"), format!("{other} comes {side} {n}."))
        }
        3 => {
            let word = word(draw);
            let letters: Vec<String> = word.chars().map(String::from).collect();
            let (first, last) = (&letters[0], &letters[letters.len() - 1]);
            let (question, answer) = match draw.below(3) {
                0 => (format!("How do you spell \"{word}\"?"), format!("It is spelled {}.", letters.join("-"))),
                1 => (format!("What is the first letter of \"{word}\"?"), format!("It is the letter {first}.")),
                _ => (format!("What is the last letter of \"{word}\"?"), format!("It is the letter {last}.")),
            };
            (format!("word {word}"), question, answer)
        }
        4 => {
            let (a, b) = *draw.pick(OPPOSITES);
            let (a, b) = if draw.below(2) == 0 { (a, b) } else { (b, a) };
            let (c, d) = *draw.pick(OPPOSITES);
            let question = format!("What are the opposites of \"{a}\" and \"{c}\"?");
            let answer = format!("The opposite of \"{a}\" is \"{b}\", and the opposite of \"{c}\" is \"{d}\".");
            (format!("opposites {a} {c}"), question, answer)
        }
        _ => {
            let thing = *draw.pick(stories::THINGS);
            let (colour, owner) = (*draw.pick(stories::COLOURS), draw.pick(stories::HEROES).0);
            let place = *draw.pick(stories::PLACES);
            let told = format!("{owner} left the {colour} {thing} {place}.");
            let (question, answer) = match draw.below(3) {
                0 => (format!("Where is the {thing}?"), format!("The {thing} is {place}.")),
                1 => (format!("Which colour is the {thing}?"), format!("The {thing} is {colour}.")),
                _ => (format!("Who left the {thing}?"), format!("{owner} left the {thing} {place}.")),
            };
            (format!("left {owner} {colour} {thing} {place}"), format!("{told} {question}"), answer)
        }
    }
}

const OPPOSITES: &[(&str, &str)] = &[
    ("hot", "cold"),
    ("big", "small"),
    ("long", "short"),
    ("fast", "slow"),
    ("old", "young"),
    ("light", "dark"),
    ("high", "low"),
    ("happy", "sad"),
    ("full", "empty"),
    ("wet", "dry"),
    ("hard", "soft"),
    ("open", "closed"),
    ("early", "late"),
    ("near", "far"),
    ("loud", "quiet"),
    ("thick", "thin"),
    ("strong", "weak"),
    ("rich", "poor"),
    ("clean", "dirty"),
    ("wide", "narrow"),
    ("deep", "shallow"),
    ("brave", "afraid"),
    ("first", "last"),
    ("left", "right"),
];

/// A generator as a source: one unit without end, whose offsets are indices of documents.
pub struct Synthetic {
    name: String,
    task: Task,
    seed: u64,
    chats: bool,
}

impl Synthetic {
    /// The documents of `task` drawn with `seed`; `chats` as in [`sample`].
    pub fn new(name: &str, task: Task, seed: u64, chats: bool) -> Synthetic {
        Synthetic { name: name.to_owned(), task, seed, chats }
    }
}

impl Source for Synthetic {
    fn name(&self) -> &str {
        &self.name
    }

    fn fingerprint(&self) -> u64 {
        Draw::new(&[self.task.number(), self.seed, u64::from(self.chats)]).next_u64()
    }

    fn units(&self) -> u64 {
        1
    }

    fn endless(&self) -> bool {
        true
    }

    fn open(&self, place: Place) -> anyhow::Result<Box<dyn Reader>> {
        let (task, seed, chats) = (self.task, self.seed, self.chats);
        Ok(Box::new(Generator { task, seed, chats, index: place.offset, current: None }))
    }
}

struct Generator {
    task: Task,
    seed: u64,
    chats: bool,
    index: u64,
    current: Option<Document>,
}

impl Reader for Generator {
    fn advance(&mut self) -> anyhow::Result<Option<Record>> {
        let Sample { key, document } = sample(self.seed, self.task, self.index, self.chats);
        let (offset, next) = (self.index, self.index.wrapping_add(1));
        self.index = next;
        self.current = Some(document);
        Ok(Some(Record { offset, next, identity: identity(key.as_bytes()) }))
    }

    fn document(&mut self) -> anyhow::Result<Document> {
        Ok(self.current.take().expect("advance made a document"))
    }
}
