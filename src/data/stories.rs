//! The story generator of the built-in data: a cast, a plot and several wordings of every sentence.

use super::random::Draw;

/// Names and their pronouns: subject, object, possessive.
pub const HEROES: &[(&str, [&str; 3])] = &[
    ("Anna", SHE),
    ("Ben", HE),
    ("Clara", SHE),
    ("David", HE),
    ("Emma", SHE),
    ("Finn", HE),
    ("Grace", SHE),
    ("Henry", HE),
    ("Ida", SHE),
    ("Jack", HE),
    ("Kate", SHE),
    ("Leo", HE),
    ("Mia", SHE),
    ("Noah", HE),
    ("Olive", SHE),
    ("Paul", HE),
    ("Rosa", SHE),
    ("Sam", HE),
    ("Tilda", SHE),
    ("Victor", HE),
];
const SHE: [&str; 3] = ["she", "her", "her"];
const HE: [&str; 3] = ["he", "him", "his"];

/// Companions.
pub const ANIMALS: &[&str] = &[
    "cat", "dog", "fox", "owl", "hen", "goat", "duck", "pony", "mouse", "rabbit", "hedgehog", "turtle", "frog",
    "squirrel", "crow", "otter", "donkey", "sheep",
];

/// Where things happen, as adverbials.
pub const PLACES: &[&str] = &[
    "in the garden",
    "in the forest",
    "by the river",
    "on the hill",
    "at the lake",
    "in the old barn",
    "on the beach",
    "in the kitchen",
    "behind the school",
    "under the bridge",
    "in the meadow",
    "at the market",
    "near the mill",
    "in the orchard",
    "on the farm",
    "by the tall tree",
];

/// What is wanted, lost, made or given.
pub const THINGS: &[&str] = &[
    "ball", "kite", "lamp", "boat", "drum", "book", "key", "hat", "bell", "basket", "blanket", "cake", "map", "flute",
    "coat", "ring", "cup", "wagon", "ladder", "umbrella",
];

/// How things look.
pub const COLOURS: &[&str] =
    &["red", "blue", "green", "yellow", "white", "brown", "orange", "golden", "grey", "purple", "silver", "pink"];

/// Known words for spelling.
pub const WORDS: &[&str] = &[
    "apple", "autumn", "baker", "banana", "barn", "basket", "bear", "bell", "bird", "blanket", "boat", "book",
    "bottle", "bread", "bridge", "brother", "butter", "cake", "candle", "castle", "chair", "cheese", "cherry", "child",
    "circle", "clock", "cloud", "coat", "corner", "cousin", "cow", "cup", "dance", "desk", "dinner", "doctor", "door",
    "dream", "drum", "eagle", "earth", "engine", "evening", "family", "farmer", "father", "feather", "field", "finger",
    "fire", "fish", "floor", "flower", "flute", "forest", "friend", "garden", "glass", "grass", "hammer", "hand",
    "harbour", "heart", "hedge", "hill", "honey", "horse", "house", "island", "jacket", "juice", "kettle", "key",
    "kitchen", "kite", "ladder", "lake", "lamp", "leaf", "letter", "lemon", "lion", "machine", "market", "meadow",
    "milk", "mirror", "money", "moon", "morning", "mother", "mountain", "mouse", "music", "needle", "night", "ocean",
    "onion", "orange", "paper", "pencil", "pepper", "piano", "picture", "pillow", "planet", "plate", "pocket",
    "potato", "queen", "rabbit", "rain", "river", "road", "roof", "room", "rope", "salt", "school", "season", "shadow",
    "sheep", "shirt", "shoe", "silver", "sister", "sky", "snow", "soap", "song", "spoon", "spring", "star", "stone",
    "story", "street", "sugar", "summer", "sun", "table", "teacher", "thunder", "tiger", "tomato", "town", "train",
    "tree", "turtle", "valley", "village", "violin", "wagon", "wall", "water", "weather", "wheel", "whistle", "window",
    "winter", "wolf", "wood", "yellow", "zebra",
];

struct Cast {
    hero: &'static str,
    /// Subject, object, possessive.
    she: [&'static str; 3],
    friend: &'static str,
    place: &'static str,
    thing: &'static str,
    colour: &'static str,
}

/// `a` or `an`, as `noun` wants it.
fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn capital(word: &str) -> String {
    word[..1].to_uppercase() + &word[1..]
}

/// A story of five to ten sentences and its key: plot and cast.
pub fn story(draw: &mut Draw) -> (String, String) {
    let (hero, she) = *draw.pick(HEROES);
    let cast = Cast {
        hero,
        she,
        friend: draw.pick::<&str>(ANIMALS),
        place: draw.pick::<&str>(PLACES),
        thing: draw.pick::<&str>(THINGS),
        colour: draw.pick::<&str>(COLOURS),
    };
    let plot = draw.below(PLOTS.len());
    let Cast { friend, place, thing, colour, .. } = cast;
    let key = format!("story {plot} {hero} {friend} {place} {colour} {thing}");
    let mut sentences = opening(draw, &cast);
    sentences.extend(PLOTS[plot](draw, &cast));
    sentences.push(ending(draw, &cast));
    (key, sentences.join(" ") + "\n")
}

fn opening(draw: &mut Draw, cast: &Cast) -> Vec<String> {
    let Cast { hero, she: [she, _, her], friend, .. } = cast;
    let an = article(friend);
    let first = match draw.below(4) {
        0 => format!("Once upon a time there was a child named {hero}, who had {an} {friend} as a friend."),
        1 => format!("{hero} had a good friend, {an} {friend}."),
        2 => format!("There once lived a child called {hero} with {her} {friend}."),
        _ => format!("Every morning {hero} played with {her} {friend}."),
    };
    let weather = *draw.pick(&["sunny", "windy", "rainy", "cold", "warm", "foggy", "quiet", "snowy"]);
    let second = match draw.below(3) {
        0 => format!("One {weather} day, {she} went out with the {friend}."),
        1 => format!("It was a {weather} day, and they were both awake early."),
        _ => format!("The day was {weather}, and {hero} was in a good mood."),
    };
    vec![first, second]
}

type Plot = fn(&mut Draw, &Cast) -> Vec<String>;
const PLOTS: [Plot; 6] = [lost, shared, afraid, built, helped, traded];

fn lost(draw: &mut Draw, cast: &Cast) -> Vec<String> {
    let Cast { hero, she: [she, her, own], friend, place, thing, colour } = cast;
    let mut told = vec![match draw.below(3) {
        0 => format!(
            "{capital_place}, {hero} noticed that {own} {colour} {thing} was gone.",
            capital_place = capital(place)
        ),
        1 => format!("{hero} had lost {own} {colour} {thing} somewhere {place}."),
        _ => format!("{hero} looked for {own} {colour} {thing} {place}, but it was not there."),
    }];
    told.push(format!("\"Where is my {thing}?\" {she} asked, and {she} was very sad."));
    told.push(match draw.below(3) {
        0 => format!("The {friend} wanted to help {her} and searched behind every stone."),
        1 => format!("\"Do not cry,\" said the {friend}. \"We will find it together.\""),
        _ => format!("They searched for a long time, and the {friend} did not give up."),
    });
    told.push(match draw.below(2) {
        0 => format!("At last the {friend} found the {thing} under some leaves."),
        _ => format!("Then the {friend} saw something {colour} in the grass. It was the {thing}!"),
    });
    told
}

fn shared(draw: &mut Draw, cast: &Cast) -> Vec<String> {
    let Cast { hero, she: [she, her, _], friend, place, thing, colour } = cast;
    let a = article(colour);
    let mut told = vec![match draw.below(2) {
        0 => format!("{} they found {a} {colour} {thing}.", capital(place)),
        _ => format!("{hero} and the {friend} saw {a} {colour} {thing} {place}."),
    }];
    told.push(format!("Both of them wanted to have it. \"It is mine!\" cried {hero}."));
    told.push(match draw.below(2) {
        0 => format!("\"I saw it first,\" said the {friend}, and they did not talk for an hour."),
        _ => format!("The {friend} turned away and said nothing to {her}."),
    });
    told.push(match draw.below(2) {
        0 => format!("Then {hero} said, \"I am sorry. Let us share the {thing}.\""),
        _ => format!("After a while {she} said, \"You can have the {thing} today, and I will have it tomorrow.\""),
    });
    told.push(format!("The {friend} was glad and agreed."));
    told
}

fn afraid(draw: &mut Draw, cast: &Cast) -> Vec<String> {
    let Cast { hero, she: [she, her, own], friend, place, thing, colour } = cast;
    let mut told = vec![match draw.below(2) {
        0 => format!("In the evening they heard a strange sound {place}."),
        _ => format!("Something was moving {place}, and it made a loud noise."),
    }];
    told.push(match draw.below(2) {
        0 => format!("{hero} was afraid and held {own} {colour} {thing} tight."),
        _ => format!("\"Is it a monster?\" whispered {hero}, and {she} hid behind {own} {colour} {thing}."),
    });
    told.push(format!("But the {friend} was brave and went to look."));
    told.push(match draw.below(3) {
        0 => "It was only the wind in an old door.".to_owned(),
        1 => format!("It was only a small bird that wanted to play with the {thing}."),
        _ => "It was only an apple that had fallen from a tree.".to_owned(),
    });
    told.push(format!("The {friend} called {her}, and they both laughed."));
    told
}

fn built(draw: &mut Draw, cast: &Cast) -> Vec<String> {
    let Cast { hero, she: [she, _, own], friend, place, thing, colour } = cast;
    let a = article(colour);
    let mut told = vec![match draw.below(2) {
        0 => format!("{hero} wanted to make {a} {colour} {thing} all by {own}self.").replace("hisself", "himself"),
        _ => format!("\"Today I will make {a} {colour} {thing},\" said {hero}."),
    }];
    told.push(format!("{} worked {place} until noon, but the {thing} broke.", capital(she)));
    told.push(match draw.below(2) {
        0 => format!("\"Try it again, but more slowly,\" said the {friend}."),
        _ => format!("The {friend} brought some string and showed {hero} what was wrong."),
    });
    told.push(match draw.below(2) {
        0 => format!("{hero} tried again, and this time the {thing} was strong and beautiful."),
        _ => format!("They worked together, and in the evening the {thing} was ready."),
    });
    told
}

fn helped(draw: &mut Draw, cast: &Cast) -> Vec<String> {
    let Cast { hero, she: [she, _, own], friend, place, thing, colour } = cast;
    let neighbour = *draw.pick(&["an old woman", "an old man", "a farmer", "a little boy", "a little girl"]);
    let known = neighbour.split_once(' ').map_or(neighbour, |(_, rest)| rest);
    let mut told = vec![match draw.below(2) {
        0 => format!("They met {neighbour} {place}, who looked tired."),
        _ => format!("{} sat {neighbour} and looked sad.", capital(place)),
    }];
    told.push(format!("\"What is wrong?\" asked {hero}."));
    told.push(match draw.below(2) {
        0 => format!("\"I have to carry this {colour} {thing} home, and it is heavy,\" said the {known}."),
        _ => format!("\"My {colour} {thing} is broken,\" said the {known}."),
    });
    told.push(format!("So {she} and {own} {friend} helped the {known} with the {thing}."));
    told.push(format!("The {known} thanked them and gave them each an apple."));
    told
}

fn traded(draw: &mut Draw, cast: &Cast) -> Vec<String> {
    let Cast { hero, she: [she, her, own], friend, place, thing, colour } = cast;
    let other = *draw.pick(&["sandwich", "pear", "story", "song", "bag of nuts"]);
    vec![
        format!("{} a merchant was selling {} {colour} {thing}.", capital(place), article(colour)),
        match draw.below(2) {
            0 => format!("{hero} liked it very much, but {she} had no money."),
            _ => format!("\"I would love to have that {thing},\" said {hero}, \"but I have no money.\""),
        },
        format!("\"I will take a {other} for it,\" said the merchant."),
        match draw.below(2) {
            0 => format!("The {friend} gave {her} a {other}, and so the {thing} was {own}s.").replace("hiss", "his"),
            _ => format!("{hero} had a {other}, and so they traded. The {friend} was amazed."),
        },
    ]
}

fn ending(draw: &mut Draw, cast: &Cast) -> String {
    let Cast { hero, she: [_, _, her], friend, .. } = cast;
    match draw.below(5) {
        0 => format!("{hero} and the {friend} went home and were happy."),
        1 => format!("From that day on, {hero} and {her} {friend} were the best of friends."),
        2 => format!("{hero} smiled, hugged the {friend} and went to bed."),
        3 => format!("\"Thank you,\" said {hero} to {her} {friend}. It had been a good day."),
        _ => format!("And that is how {hero} learnt what a friend like the {friend} is worth."),
    }
}
