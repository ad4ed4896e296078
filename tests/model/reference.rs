//! RFC 9111 written down once more: slow, plain, and by the text of its sections. It shares no code
//! with the cache.
//!
//! Where the RFC leaves a choice to the cache, the choice is named here:
//!
//! - C1: a URI has responses with `Vary` or one without; the newest of a kind ends the other kind.
//! - C2: a response that may not be stored ends what is stored in its place, unless it is an error
//!   or an answer to a credential.
//! - C3: without any lifetime a response is stored only for its validator, and only with a status
//!   that RFC 9110 §15.1 calls heuristically cacheable and that is no error.
//! - C4: a client's condition is answered here; the origin is asked with ours or none.
//! - C5: after a failure the origin is left alone about one response for a second, where stale may
//!   stand in.
//! - C6: stale stands in for an error, within the origin's `stale-if-error` or the operator's.
//! - C7: a stale answer is refreshed behind it.
//! - C8: a range is asked for as a whole; of what may not be stored, once more as the client did.

use super::world::{Answer, Ask, Fields, Heard, Plan, date, field, opaque, written};

/// A stored response (§3), and when it was asked for and came.
#[derive(Clone, Debug)]
struct Kept {
    path: &'static str,
    /// The request fields that `Vary` names, and what its request said in them (§4.1).
    selecting: Vec<(String, Option<String>)>,
    status: u16,
    fields: Fields,
    body: String,
    requested: u64,
    received: u64,
    stale_since: Option<u64>,
    left_alone_until: u64,
}

/// What a client must see, and the origin with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub status: u16,
    pub body: String,
    pub age: Option<u64>,
    pub content_range: Option<String>,
    /// Those of [`SHOWN`] that it has, in that order.
    pub fields: Fields,
    pub heard: Vec<Heard>,
}

#[derive(Debug)]
pub struct Reference {
    kept: Vec<Kept>,
    /// Whether clients' directives count.
    obeys: bool,
    /// The operator's `stale_if_error`.
    stale_if_error: u64,
    heuristic_cap: Option<u64>,
    stores_cookies: bool,
}

/// Fields that are compared, beside those that a client sees by their own name in [`Seen`].
pub const SHOWN: [&str; 6] = [
    "cache-control",
    "etag",
    "expires",
    "last-modified",
    "vary",
    "x-a",
];

fn shown(fields: &Fields) -> Fields {
    let line = |name: &'static str| Some((name, field(fields, name)?.to_owned()));
    SHOWN.into_iter().filter_map(line).collect()
}

const CAP: u64 = 1 << 31;

/// The directives of a `Cache-Control` (§5.2): names in lower case, arguments without quotes.
fn directives(fields: &Fields) -> Vec<(String, Option<String>)> {
    let value = field(fields, "cache-control").unwrap_or("");
    let words = value
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    words
        .map(|word| match word.split_once('=') {
            Some((name, value)) => {
                let value = value.trim().trim_matches('"').to_owned();
                (name.trim().to_lowercase(), Some(value))
            }
            None => (word.to_lowercase(), None),
        })
        .collect()
}

fn says(fields: &Fields, name: &str) -> bool {
    directives(fields).iter().any(|(known, _)| known == name)
}

/// A number of seconds (§1.2.2). Where one repeats, the smallest counts; what is no number is 0.
fn seconds(fields: &Fields, name: &str) -> Option<u64> {
    let all = directives(fields);
    let given = all.iter().filter(|(known, _)| known == name);
    given
        .map(|(_, value)| {
            let digits = value.as_deref().unwrap_or("");
            let is_number = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
            match is_number {
                true => digits.parse::<u64>().unwrap_or(CAP).min(CAP),
                false => 0,
            }
        })
        .min()
}

/// Status codes that are heuristically cacheable (RFC 9110 §15.1) and that this origin sends.
const HEURISTIC: [u16; 6] = [200, 203, 204, 301, 404, 410];

impl Kept {
    /// In milliseconds (§4.2.1); `None` where nobody says. What is `no-cache` is never fresh (§5.2.2.4).
    fn lifetime(&self, of: &Reference) -> Option<u64> {
        let stated = self.stated_lifetime(of)?;
        Some(if says(&self.fields, "no-cache") {
            0
        } else {
            stated
        })
    }

    fn stated_lifetime(&self, of: &Reference) -> Option<u64> {
        let fields = &self.fields;
        if let Some(lifetime) = seconds(fields, "s-maxage").or(seconds(fields, "max-age")) {
            return Some(lifetime * 1000);
        }
        let now = date(field(fields, "date").unwrap_or("")).unwrap_or(self.received);
        if let Some(expires) = field(fields, "expires") {
            return Some(date(expires).map_or(0, |expires| expires.saturating_sub(now) * 1000));
        }
        let cap = of.heuristic_cap?;
        let modified = date(field(fields, "last-modified")?)?;
        let may_guess = HEURISTIC.contains(&self.status) || says(fields, "public");
        may_guess.then(|| (now.saturating_sub(modified) * 100).min(cap * 1000))
    }

    /// §4.2.3.
    fn age(&self, now: u64) -> u64 {
        let date_value = date(field(&self.fields, "date").unwrap_or(""));
        let apparent_age = date_value.map_or(0, |date| self.received.saturating_sub(date));
        let age_value = field(&self.fields, "age").and_then(|age| age.parse().ok());
        let response_delay = self.received - self.requested;
        let corrected_age_value = age_value.unwrap_or(0) + response_delay;
        let corrected_initial_age = apparent_age.max(corrected_age_value);
        corrected_initial_age + (now - self.received)
    }

    /// Milliseconds since it went stale; `None` while it is fresh (§4.2).
    fn staleness(&self, of: &Reference, now: u64) -> Option<u64> {
        let lifetime = self.lifetime(of).unwrap_or(0);
        let by_age = (self.age(now) * 1000).checked_sub(lifetime);
        by_age.max(self.stale_since.map(|since| (now - since) * 1000))
    }

    /// §4.2.4: whether no stale response may be made of it.
    fn forbids_stale(&self) -> bool {
        let names = [
            "no-cache",
            "must-revalidate",
            "proxy-revalidate",
            "s-maxage",
        ];
        names.iter().any(|name| says(&self.fields, name))
    }

    /// How many milliseconds it may be used while it is revalidated (RFC 5861 §3), and in the place of an error
    /// (§4).
    fn windows(&self, of: &Reference) -> (u64, u64) {
        let fields = &self.fields;
        let stated = (
            seconds(fields, "stale-while-revalidate"),
            seconds(fields, "stale-if-error"),
        );
        let forbidden = ["no-cache", "must-revalidate", "proxy-revalidate"];
        if self.lifetime(of).is_none() || forbidden.iter().any(|name| says(fields, name)) {
            return (0, 0);
        }
        let own = if says(fields, "s-maxage") {
            0
        } else {
            of.stale_if_error
        };
        (stated.0.unwrap_or(0) * 1000, stated.1.unwrap_or(own) * 1000)
    }

    fn may_revalidate_behind(&self, of: &Reference, now: u64) -> bool {
        let over = self.staleness(of, now);
        over.is_some_and(|over| over < self.windows(of).0)
    }

    fn may_replace_error(&self, of: &Reference, now: u64) -> bool {
        match self.staleness(of, now) {
            None => true,
            Some(over) => {
                let (behind, on_error) = self.windows(of);
                over < behind || over < on_error
            }
        }
    }

    fn has_validator(&self) -> bool {
        ["etag", "last-modified"]
            .iter()
            .any(|name| field(&self.fields, name).is_some())
    }
}

impl Reference {
    pub fn new(
        obeys: bool,
        stale_if_error: u64,
        heuristic_cap: Option<u64>,
        stores_cookies: bool,
    ) -> Self {
        Self {
            kept: Vec::new(),
            obeys,
            stale_if_error,
            heuristic_cap,
            stores_cookies,
        }
    }

    /// §4.1: the stored response that this request selects, the newest first.
    fn select(&self, ask: &Ask) -> Option<usize> {
        self.kept.iter().rposition(|kept| {
            let same = |(name, value): &(String, Option<String>)| {
                field(&ask.fields, name) == value.as_deref()
            };
            kept.path == ask.path && kept.selecting.iter().all(same)
        })
    }

    /// §3: whether this answer to this request may be stored. `Err(true)`: it is the response that
    /// forbids it.
    fn may_store(&self, ask: &Ask, kept: &Kept) -> Result<(), bool> {
        let fields = &kept.fields;
        if self.obeys && says(&ask.fields, "no-store") {
            return Err(false);
        }
        if says(fields, "no-store") || says(fields, "private") {
            return Err(true);
        }
        if field(fields, "set-cookie").is_some() && !self.stores_cookies {
            return Err(true);
        }
        if field(fields, "vary") == Some("*") {
            return Err(true);
        }
        // §3.5.
        let shared = ["public", "must-revalidate", "s-maxage"];
        let is_shared = shared.iter().any(|name| says(fields, name));
        if field(&ask.fields, "authorization").is_some() && !is_shared {
            return Err(false);
        }
        let is_worth_it = kept.status < 400 && HEURISTIC.contains(&kept.status);
        match kept.lifetime(self) {
            Some(_) => Ok(()),
            None if is_worth_it && kept.has_validator() => Ok(()), // C3
            None => Err(true),
        }
    }

    fn store(&mut self, kept: Kept) {
        let is_varied = !kept.selecting.is_empty();
        // C1, and §4: a new response replaces the one that it would have been selected for.
        self.kept.retain(|known| {
            known.path != kept.path
                || (is_varied && !known.selecting.is_empty() && known.selecting != kept.selecting)
        });
        self.kept.push(kept);
    }

    fn kept(ask: &Ask, answer: &Answer, requested: u64, received: u64) -> Kept {
        let mut fields = answer.fields.clone();
        if field(&fields, "date").is_none() {
            fields.push(("date", written(received)));
        }
        let varied = field(&fields, "vary").unwrap_or("").to_owned();
        let names = varied
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        let selecting =
            names.map(|name| (name.to_owned(), field(&ask.fields, name).map(str::to_owned)));
        Kept {
            path: ask.path,
            selecting: selecting.collect(),
            status: answer.status,
            fields,
            body: answer.body.clone(),
            requested,
            received,
            stale_since: None,
            left_alone_until: 0,
        }
    }

    /// Asks the origin; time passes.
    fn hear(
        ask: &Ask,
        ours: Option<&Kept>,
        as_client: bool,
        plan: &Plan,
        now: &mut u64,
        seen: &mut Seen,
    ) -> Option<Answer> {
        let theirs = |name: &str| {
            field(&ask.fields, name)
                .map(str::to_owned)
                .filter(|_| as_client)
        };
        let own = |name: &str| {
            ours.and_then(|kept| field(&kept.fields, name))
                .map(str::to_owned)
        };
        let heard = Heard {
            method: ask.method.to_owned(),
            if_none_match: theirs("if-none-match").or(own("etag")),
            if_modified_since: theirs("if-modified-since").or(own("last-modified")),
            range: theirs("range"),
        };
        seen.heard.push(heard.clone());
        *now += plan.delay;
        plan.answer(&heard)
    }

    /// What this client sees of a response that is whole: its own conditions (RFC 9110 §13) and
    /// ranges (§14) answered here.
    fn deliver(
        ask: &Ask,
        is_stored: bool,
        status: u16,
        fields: &Fields,
        body: &str,
        age: Option<u64>,
        seen: &mut Seen,
    ) {
        (seen.status, seen.age) = (status, age);
        // §4.3.2: `Date` stands in for a missing Last-Modified of what is stored.
        let date_of_stored = field(fields, "date").filter(|_| is_stored);
        seen.fields = shown(fields);
        let tag = field(fields, "etag");
        let modified = field(fields, "last-modified")
            .or(date_of_stored)
            .and_then(date);
        let is_known = match (
            field(&ask.fields, "if-none-match"),
            field(&ask.fields, "if-modified-since"),
        ) {
            (Some(theirs), _) => {
                theirs == "*" || tag.is_some_and(|tag| opaque(tag) == opaque(theirs))
            }
            (None, Some(since)) => modified.is_some_and(|modified| Some(modified) <= date(since)),
            (None, None) => false,
        };
        if status == 200 && is_known {
            seen.status = 304;
            // RFC 9110 §15.4.5: what is known by its tag needs no date.
            seen.fields
                .retain(|(name, _)| *name != "last-modified" || tag.is_none());
            return;
        }
        if ask.method == "HEAD" {
            return;
        }
        seen.body = body.to_owned();
        let range = field(&ask.fields, "range").and_then(|range| range.strip_prefix("bytes="));
        let (Some(range), 200) = (range, status) else {
            return;
        };
        let (first, last) = range.split_once('-').expect("one range");
        let length = body.len();
        let (first, last) = match (first, last) {
            ("", count) => (
                length.saturating_sub(count.parse().expect("a count")),
                length - 1,
            ),
            (first, "") => (first.parse().expect("a place"), length - 1),
            (first, last) => (
                first.parse().expect("a place"),
                last.parse().expect("a place"),
            ),
        };
        let last = last.min(length - 1);
        if first >= length {
            seen.fields.clear();
            (seen.status, seen.body) = (416, String::new());
            (seen.content_range, seen.age) = (Some(format!("bytes */{length}")), None);
            return;
        }
        (seen.status, seen.body) = (206, body[first..=last].to_owned());
        seen.content_range = Some(format!("bytes {first}-{last}/{length}"));
    }

    fn deliver_kept(&self, ask: &Ask, kept: &Kept, now: u64, seen: &mut Seen) {
        let age = Some(kept.age(now));
        Self::deliver(ask, true, kept.status, &kept.fields, &kept.body, age, seen);
    }

    /// The whole of one exchange.
    pub fn exchange(&mut self, ask: &Ask, plan: &Plan, now: &mut u64) -> Seen {
        let mut seen = Seen {
            status: 0,
            body: String::new(),
            age: None,
            content_range: None,
            fields: Vec::new(),
            heard: Vec::new(),
        };
        match ask.method {
            "GET" | "HEAD" => self.read(ask, plan, now, &mut seen),
            _ => self.write(ask, plan, now, &mut seen),
        }
        seen
    }

    /// §4.4.
    fn write(&mut self, ask: &Ask, plan: &Plan, now: &mut u64, seen: &mut Seen) {
        let Some(answer) = Self::hear(ask, None, true, plan, now, seen) else {
            // Whether the origin has acted on it nobody knows.
            self.kept.retain(|kept| kept.path != ask.path);
            seen.status = 502;
            return;
        };
        if (200..400).contains(&answer.status) || [502, 504].contains(&answer.status) {
            self.kept.retain(|kept| kept.path != ask.path);
        }
        Self::pass(answer, seen);
    }

    fn pass(answer: Answer, seen: &mut Seen) {
        seen.age = field(&answer.fields, "age").and_then(|age| age.parse().ok());
        seen.fields = shown(&answer.fields);
        (seen.status, seen.body) = (answer.status, answer.body);
    }

    fn read(&mut self, ask: &Ask, plan: &Plan, now: &mut u64, seen: &mut Seen) {
        let wishes = if self.obeys {
            ask.fields.clone()
        } else {
            Vec::new()
        };
        let no_cache = says(&wishes, "no-cache");
        let selected = self.select(ask);
        let mut validates = false;
        if let Some(at) = selected {
            let kept = self.kept[at].clone();
            let age = kept.age(*now);
            let lifetime = kept.lifetime(self).unwrap_or(0);
            let left = lifetime.saturating_sub(age * 1000);
            // §5.2.1.
            let too_old = no_cache || seconds(&wishes, "max-age").is_some_and(|limit| age > limit);
            let refuses = |left: u64| {
                too_old || seconds(&wishes, "min-fresh").is_some_and(|least| left < least * 1000)
            };
            let takes_stale = |over: u64| {
                let bare = directives(&wishes).contains(&("max-stale".to_owned(), None));
                bare || seconds(&wishes, "max-stale").is_some_and(|limit| over <= limit * 1000)
            };
            let is_left_alone = *now < kept.left_alone_until;
            let over = kept.staleness(self, *now);
            let serves_stale = over.is_some_and(|over| {
                let asked_for = takes_stale(over) && !no_cache && !kept.forbids_stale();
                asked_for || (kept.may_revalidate_behind(self, *now) && !refuses(0))
            });
            if over.is_none() && !refuses(left) {
                return self.deliver_kept(ask, &kept, *now, seen);
            }
            if serves_stale {
                self.deliver_kept(ask, &kept, *now, seen);
                if !is_left_alone {
                    let mut ask = ask.clone();
                    ask.method = "GET";
                    ask.fields.retain(|(name, _)| *name != "range");
                    self.fetch(&ask, Some(at), true, plan, now, seen); // C7
                }
                return;
            }
            let on_error = over
                .is_some_and(|over| over >= kept.windows(self).0 && over < kept.windows(self).1);
            if on_error && is_left_alone {
                return self.deliver_kept(ask, &kept, *now, seen); // C5
            }
            validates = kept.has_validator();
        }
        if says(&ask.fields, "only-if-cached") {
            seen.status = 504;
            return;
        }
        if ask.method == "HEAD" {
            return self.head(ask, selected, plan, now, seen);
        }
        let _ = validates;
        self.fetch(ask, selected, false, plan, now, seen);
    }

    /// A HEAD that the origin answers (§4.3.5).
    fn head(
        &mut self,
        ask: &Ask,
        selected: Option<usize>,
        plan: &Plan,
        now: &mut u64,
        seen: &mut Seen,
    ) {
        let requested = *now;
        let Some(answer) = Self::hear(ask, None, true, plan, now, seen) else {
            seen.status = 502;
            return;
        };
        if let Some(at) = selected {
            let new = Self::kept(ask, &answer, requested, *now);
            let known = &self.kept[at];
            let same = |name: &str| match field(&new.fields, name) {
                Some(value) => field(&known.fields, name) == Some(value),
                None => true,
            };
            let updates = known.status == 200
                && match answer.status {
                    200 => {
                        // What names nothing does not undo a purge.
                        let may_tell = known.stale_since.is_none() || new.has_validator();
                        may_tell && same("etag") && same("last-modified")
                    }
                    304 => new.has_validator() && is_selected(&known.fields, &new.fields),
                    _ => false,
                };
            if updates {
                let updated = Self::updated(known, &new);
                match self.may_store(ask, &updated) {
                    Ok(()) => self.replace(at, updated),
                    Err(true) => drop(self.kept.remove(at)),
                    Err(false) => {}
                }
            } else if answer.status == 200 && known.status == 200 {
                let since = known.stale_since.unwrap_or(*now);
                self.kept[at].stale_since = Some(since.min(*now));
            }
        }
        Self::pass(answer, seen);
    }

    /// §3.2: what is new replaces what is stored.
    fn updated(known: &Kept, new: &Kept) -> Kept {
        let is_new = |name: &str| field(&new.fields, name).is_some();
        let mut fields: Fields = known
            .fields
            .iter()
            .filter(|(name, _)| !is_new(name))
            .cloned()
            .collect();
        // An age is of the exchange that brought it.
        fields.retain(|(name, _)| *name != "age");
        fields.extend(new.fields.iter().cloned());
        Kept {
            fields,
            requested: new.requested,
            received: new.received,
            selecting: new_selecting(known, new),
            stale_since: None,
            left_alone_until: 0,
            ..known.clone()
        }
    }

    fn replace(&mut self, at: usize, updated: Kept) {
        self.kept.remove(at);
        self.store(updated);
    }

    /// A GET that the origin answers; `behind`: after a stale answer was given.
    fn fetch(
        &mut self,
        ask: &Ask,
        selected: Option<usize>,
        behind: bool,
        plan: &Plan,
        now: &mut u64,
        seen: &mut Seen,
    ) {
        let known = selected.map(|at| self.kept[at].clone());
        let validated = known.clone().filter(Kept::has_validator);
        let mut requested = *now;
        let mut answer = Self::hear(ask, validated.as_ref(), false, plan, now, seen);
        if let (Some(new), Some(known)) = (&answer, &validated)
            && new.status == 304
            && !is_selected(&known.fields, &new.fields)
        {
            // §4.3.4: about something that is not stored.
            requested = *now;
            answer = Self::hear(ask, None, false, plan, now, seen);
        }
        let mut unseen = seen.clone();
        let shown = if behind { &mut unseen } else { &mut *seen };
        let failed = match &answer {
            None => true,
            Some(answer) => {
                let is_error = [429, 500, 502, 503, 504].contains(&answer.status);
                is_error
                    && known
                        .as_ref()
                        .is_some_and(|known| known.may_replace_error(self, *now))
            }
        };
        if failed {
            // C5, C6.
            if let Some(at) = selected {
                self.kept[at].left_alone_until = *now + 1;
            }
            match known {
                Some(known) if known.may_replace_error(self, *now) => {
                    self.deliver_kept(ask, &known, *now, shown);
                }
                _ => shown.status = 502,
            }
        } else if let Some(answer) = answer {
            let new = Self::kept(ask, &answer, requested, *now);
            match validated {
                Some(validated) if answer.status == 304 => {
                    let updated = Self::updated(&validated, &new);
                    self.deliver_kept(ask, &updated, *now, shown);
                    let at = selected.expect("it was validated");
                    match self.may_store(ask, &updated) {
                        Ok(()) => self.replace(at, updated),
                        Err(true) => drop(self.kept.remove(at)),
                        Err(false) => {}
                    }
                }
                _ => self.whole(ask, selected, new, plan, now, shown),
            }
        }
        seen.heard = match behind {
            true => unseen.heard,
            false => std::mem::take(&mut seen.heard),
        };
    }

    /// A response to GET that is not 304.
    fn whole(
        &mut self,
        ask: &Ask,
        selected: Option<usize>,
        new: Kept,
        plan: &Plan,
        now: &mut u64,
        seen: &mut Seen,
    ) {
        match self.may_store(ask, &new) {
            Ok(()) => {
                self.deliver_kept(ask, &new, *now, seen);
                self.store(new);
            }
            Err(of_response) => {
                let is_personal = field(&ask.fields, "authorization").is_some();
                if let (Some(at), true, false) =
                    (selected, of_response && new.status < 400, is_personal)
                {
                    self.kept.remove(at); // C2
                }
                let range = field(&ask.fields, "range").is_some();
                if new.status == 200 && range {
                    // C8.
                    match Self::hear(ask, None, true, plan, now, seen) {
                        Some(answer) => Self::pass(answer, seen),
                        None => seen.status = 502,
                    }
                    return;
                }
                let age = field(&new.fields, "age").and_then(|age| age.parse().ok());
                Self::deliver(ask, false, new.status, &new.fields, &new.body, age, seen);
            }
        }
    }
}

fn new_selecting(known: &Kept, new: &Kept) -> Vec<(String, Option<String>)> {
    match field(&new.fields, "vary") {
        Some(_) => new.selecting.clone(),
        None => known.selecting.clone(),
    }
}

/// §4.3.4: by the validator that the 304 brings.
fn is_selected(stored: &Fields, new: &Fields) -> bool {
    match (field(new, "etag"), field(stored, "etag")) {
        (Some(new), Some(stored)) if new.starts_with("W/") => opaque(new) == opaque(stored),
        (Some(new), stored) => Some(new) == stored,
        (None, _) => match field(new, "last-modified") {
            Some(modified) => field(stored, "last-modified") == Some(modified),
            None => true,
        },
    }
}
