//! Whether the answers to two keys agree, told from what differs by time: one key is asked, the
//! other, and the first again, and a difference counts only where the first one's own answers
//! before and after agree.
//!
//! | what stands at a place before, between, after | it is |
//! |---|---|
//! | `x y x` | a *candidate*: a difference by key, if it is one every time |
//! | `x x x`, `x x z`, `x z z` | in agreement |
//! | `1 2 4`, or times and identifiers in such an order | in agreement: it moves |
//! | anything else | unclear |
//!
//! Items of a list are matched by what names them (`id` and its like), else by their place or by
//! their content, whichever agrees more: a list may have shifted between two answers. The answers
//! *are the same* once one equals its neighbour whole, or once three were found to agree, where
//! what did not agree in one did in at least a third of the others. They *differ* where one place
//! is a candidate in every one of at least [`LEAST`] questions. All else is *unclear*.

mod answer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use serde_json::Value;

use crate::metrics::guard::Compared;

use answer::{below, digest, digest_of};

pub use answer::Answer;

/// Answers of the second key that all must show a difference before it counts.
pub const LEAST: usize = 8;

/// Answers of the second key that agree before two keys' answers are the same, although none equals
/// its neighbour.
const AGREEING: usize = 3;

/// Members that name an item of a list, the most telling first.
const NAMES: [&str; 10] = [
    "id",
    "_id",
    "uuid",
    "key",
    "slug",
    "name",
    "date",
    "timestamp",
    "createdAt",
    "label",
];

/// Whose answer is wanted next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    First,
    Second,
}

/// The answers of two keys to one question, compared as they come.
#[derive(Debug)]
pub struct Comparison {
    /// Who is asked, the last one first.
    order: Vec<Whose>,
    before: Option<Answer>,
    /// The second key's since then.
    between: Vec<Answer>,
    questions: usize,
    places: HashMap<u64, Place>,
    /// What each question did not explain.
    open: Vec<HashSet<u64>>,
}

/// What was seen of one place.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    agreed: usize,
    candidate: usize,
    seen: usize,
}

impl Comparison {
    /// A comparison whose order of questions is drawn by `seed`: what alternates by itself, such as
    /// two servers behind one address, is not to be taken for a difference by key.
    pub fn new(seed: u64) -> Self {
        use Whose::{First, Second};
        let mut random = fastrand::Rng::with_seed(seed);
        let mut groups: Vec<&[Whose]> = vec![&[Second, Second, First]];
        while groups
            .iter()
            .flat_map(|group| group.iter())
            .filter(|whose| **whose == Second)
            .count()
            < LEAST
        {
            groups.push(match random.u8(..3) {
                0 => &[Second, First],
                1 => &[First, Second, First],
                _ => &[Second, Second, First],
            });
        }
        random.shuffle(&mut groups);
        let begins = [First, Second, First];
        let order: Vec<Whose> = begins
            .iter()
            .chain(groups.concat().iter())
            .copied()
            .collect();
        Self {
            order: order.into_iter().rev().collect(),
            before: None,
            between: Vec::new(),
            questions: 0,
            places: HashMap::new(),
            open: Vec::new(),
        }
    }

    /// Whose answer is wanted next.
    pub fn next(&self) -> Option<Whose> {
        self.order.last().copied()
    }

    /// Adds the answer that was wanted; what it all comes to, where that is known.
    pub fn add(&mut self, answer: Answer) -> Option<Compared> {
        match self.order.pop()? {
            Whose::Second => self.between.push(answer),
            Whose::First => {
                if let Some(before) = self.before.take() {
                    for between in std::mem::take(&mut self.between) {
                        if between == before || between == answer {
                            return Some(Compared::Same);
                        }
                        self.look([&before, &between, &answer]);
                    }
                }
                self.before = Some(answer);
            }
        }
        if self.agreeing() >= AGREEING {
            return Some(Compared::Same);
        }
        self.order.is_empty().then(|| self.last_word())
    }

    fn look(&mut self, answers: [&Answer; 3]) {
        let mut seen = Seen::default();
        let [before, between, after] = answers.map(|answer| Some(&answer.0));
        seen.look(0, 0, [before, between, after], true);
        self.questions += 1;
        for (place, found) in seen.places {
            let known = self.places.entry(place).or_default();
            known.seen += 1;
            known.agreed += usize::from(found == Found::Agrees);
            known.candidate += usize::from(found == Found::Candidate);
        }
        self.open.push(seen.open);
    }

    /// Answers of the second key in which all agrees, or did in others.
    fn agreeing(&self) -> usize {
        let is_explained = |place: &u64| {
            let place = self.places.get(place);
            place.is_some_and(|place| place.agreed > 0 && place.agreed * 3 >= place.seen)
        };
        let agrees = |open: &&HashSet<u64>| open.iter().all(is_explained);
        self.open.iter().filter(agrees).count()
    }

    fn last_word(&self) -> Compared {
        let differs = |place: &Place| place.candidate == self.questions;
        if self.questions >= LEAST && self.places.values().any(differs) {
            Compared::Differs
        } else {
            Compared::Unclear
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Agrees,
    Candidate,
    Open,
}

/// What one question shows.
#[derive(Clone, Debug, Default)]
struct Seen {
    places: HashMap<u64, Found>,
    open: HashSet<u64>,
}

type Three<'a> = [Option<&'a Value>; 3];

impl Seen {
    /// Notes what stands at a place; `class` is the same place in all items of a list. Without
    /// `is_strict`, one of the first key's two answers stands for both.
    fn look(&mut self, place: u64, class: u64, three: Three<'_>, is_strict: bool) {
        match three {
            [
                Some(Value::Object(before)),
                Some(Value::Object(between)),
                Some(Value::Object(after)),
            ] => {
                let all = [before, between, after];
                let mut names: Vec<&String> = all.iter().flat_map(|one| one.keys()).collect();
                names.sort_unstable();
                names.dedup();
                for name in names {
                    let three = all.map(|one| one.get(name));
                    self.look(below(place, name), below(class, name), three, is_strict);
                }
                if all.iter().all(|one| one.is_empty()) {
                    self.note(place, class, Found::Agrees);
                }
            }
            [
                Some(Value::Array(before)),
                Some(Value::Array(between)),
                Some(Value::Array(after)),
            ] => {
                self.look_at_lists(place, class, [before, between, after], is_strict);
            }
            // It comes or goes: what it holds is compared with the one that has it.
            [Some(known), Some(Value::Object(_)), None]
            | [None, Some(Value::Object(_)), Some(known)]
                if is_strict =>
            {
                let edge = below(class, "edge");
                self.look(edge, edge, [Some(known), three[1], Some(known)], false);
            }
            three => {
                let found = match leaf(three) {
                    Found::Candidate if !is_strict => Found::Open,
                    found => found,
                };
                self.note(place, class, found);
            }
        }
    }

    fn note(&mut self, place: u64, class: u64, found: Found) {
        self.places.insert(place, found);
        if found != Found::Agrees {
            self.open.insert(place);
        }
        if class != place {
            // A class differs where some of its items do and none agrees.
            let known = self.places.get(&class).copied();
            let of_all = match (known, found) {
                (None, found) => found,
                (Some(Found::Agrees), _) | (_, Found::Agrees) => Found::Agrees,
                (Some(Found::Open), _) | (_, Found::Open) => Found::Open,
                (Some(Found::Candidate), Found::Candidate) => Found::Candidate,
            };
            self.places.insert(class, of_all);
        }
    }

    fn look_at_lists(&mut self, place: u64, class: u64, lists: [&Vec<Value>; 3], is_strict: bool) {
        if lists.iter().all(|list| list.is_empty()) {
            return self.note(place, class, Found::Agrees);
        }
        let class = below(class, "*");
        let by_name = NAMES.iter().find_map(|name| {
            let [before, between, after] = lists.map(|list| named(list, name));
            Some([before?, between?, after?])
        });
        if let Some(by_name) = by_name {
            return self.look_at_named(place, class, by_name, is_strict);
        }
        let by_content = lists.map(|list| {
            let mut counts: HashMap<u64, usize> = HashMap::new();
            let item = |item: &'_ Value| {
                let content = digest(item);
                let count = counts.entry(content).or_default();
                *count += 1;
                (content, *count)
            };
            let keys: Vec<(u64, usize)> = list.iter().map(item).collect();
            keys.into_iter().zip(list.iter()).collect::<Vec<_>>()
        });
        let mut content = Self::default();
        content.look_at_named(place, class, by_content, is_strict);
        if lists.iter().any(|list| list.len() != lists[0].len()) || content.open.is_empty() {
            return self.add(content);
        }
        let mut places = Self::default();
        for at in 0..lists[0].len() {
            let three = lists.map(|list| list.get(at));
            places.look(below(place, &at), class, three, is_strict);
        }
        // Where most of them agree by their place, the list has not shifted.
        let agrees = places.places.len() - places.open.len().min(places.places.len());
        let stands = agrees >= places.open.len() || places.open.len() <= content.open.len();
        self.add(if stands { places } else { content });
    }

    /// Items that are matched by their names, and the order of those that are there every time.
    fn look_at_named<K: Hash + Eq + Ord + Clone>(
        &mut self,
        place: u64,
        class: u64,
        lists: [Vec<(K, &Value)>; 3],
        is_strict: bool,
    ) {
        let maps: [BTreeMap<K, &Value>; 3] = lists.clone().map(|list| list.into_iter().collect());
        let mut names: Vec<&K> = maps.iter().flat_map(|map| map.keys()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let three = [0, 1, 2].map(|at| maps[at].get(name).copied());
            self.look(below(place, name), class, three, is_strict);
        }
        let in_order = lists.map(|list| {
            let stays = |(name, _): &(K, &Value)| maps.iter().all(|map| map.contains_key(name));
            let order = list.iter().filter(|item| stays(item));
            Value::from(order.map(|(name, _)| digest_of(name)).collect::<Vec<u64>>())
        });
        let [before, between, after] = &in_order;
        let found = leaf([Some(before), Some(between), Some(after)]);
        let order = below(place, "order");
        self.note(order, order, found);
    }

    fn add(&mut self, other: Self) {
        self.places.extend(other.places);
        self.open.extend(other.open);
    }
}

/// The items of a list by a member that names each of them, and no two alike.
fn named<'a>(list: &'a [Value], name: &str) -> Option<Vec<(String, &'a Value)>> {
    let mut known = HashSet::new();
    let key = |item: &'a Value| match item.as_object()?.get(name)? {
        Value::String(text) => Some((text.clone(), item)),
        Value::Number(number) => Some((number.to_string(), item)),
        _ => None,
    };
    let items: Option<Vec<(String, &Value)>> = list.iter().map(key).collect();
    items.filter(|items| items.iter().all(|(key, _)| known.insert(key.clone())))
}

fn leaf([before, between, after]: Three<'_>) -> Found {
    if between == before || between == after {
        return Found::Agrees;
    }
    if before == after {
        return Found::Candidate;
    }
    let moves = match (before, between, after) {
        (Some(Value::Number(before)), Some(Value::Number(between)), Some(Value::Number(after))) => {
            let numbers = [before, between, after].map(|number| number.as_f64());
            let [Some(before), Some(between), Some(after)] = numbers else {
                return Found::Open;
            };
            between >= before.min(after) && between <= before.max(after)
        }
        (Some(Value::String(before)), Some(Value::String(between)), Some(Value::String(after))) => {
            let is_in_order = between >= before.min(after) && between <= before.max(after);
            [before, between, after]
                .iter()
                .all(|text| is_sequential(text))
                && before.len() == between.len()
                && between.len() == after.len()
                && is_in_order
        }
        _ => false,
    };
    if moves { Found::Agrees } else { Found::Open }
}

/// A time, or an identifier without a name in it: between two of them is one of the same kind.
fn is_sequential(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_hexdigit() || b"-:.TZ+ ".contains(&byte);
    let has_digit = text.bytes().any(|byte| byte.is_ascii_digit());
    text.len() <= 64 && has_digit && text.bytes().all(is_part)
}
