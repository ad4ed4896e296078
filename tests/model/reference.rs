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

use super::kept::{HEURISTIC, Kept, Rules, directives, says, seconds};
use super::world::{Answer, Ask, Fields, Heard, Plan, date, field, opaque, written};

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
    rules: Rules,
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

impl Reference {
    pub fn new(rules: Rules) -> Self {
        Self {
            kept: Vec::new(),
            rules,
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
        if self.rules.obeys && says(&ask.fields, "no-store") {
            return Err(false);
        }
        if says(fields, "no-store") || says(fields, "private") {
            return Err(true);
        }
        if field(fields, "set-cookie").is_some() && !self.rules.stores_cookies {
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
        match kept.lifetime(&self.rules) {
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
        let wishes = if self.rules.obeys {
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
            let lifetime = kept.lifetime(&self.rules).unwrap_or(0);
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
            let over = kept.staleness(&self.rules, *now);
            let serves_stale = over.is_some_and(|over| {
                let asked_for = takes_stale(over) && !no_cache && !kept.forbids_stale();
                asked_for || (kept.may_revalidate_behind(&self.rules, *now) && !refuses(0))
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
            let on_error = over.is_some_and(|over| {
                over >= kept.windows(&self.rules).0 && over < kept.windows(&self.rules).1
            });
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
            let describes = same("etag") && same("last-modified");
            let updates = known.status == 200
                && match answer.status {
                    // One that names nothing says nothing: what is stored would never be asked for
                    // again, however it has changed.
                    200 => describes && new.has_validator(),
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
            } else if answer.status == 200 && known.status == 200 && !describes {
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
                        .is_some_and(|known| known.may_replace_error(&self.rules, *now))
            }
        };
        if failed {
            // C5, C6.
            if let Some(at) = selected {
                self.kept[at].left_alone_until = *now + 1;
            }
            match known {
                Some(known) if known.may_replace_error(&self.rules, *now) => {
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
