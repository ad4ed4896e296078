//! The field map of a hot response, kept as it is delivered: a copy of it costs a fifth of
//! unpacking the fields and hashing their names for each answer.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::ledger::{Charge, Ledger};

/// One answer in so many makes the map: what is asked for once in a while is not worth its bytes.
const ONE_IN: u8 = 8;

/// What a field costs in a map, beside its value: a bucket of `HeaderMap`, and its share of the
/// table.
const FIELD: usize = 112;

/// What a name costs beside its letters, and a field after the first of its name.
const NAME: usize = 40;
const REPEATED: usize = 80;

/// What a map costs beside its fields.
const OVERHEAD: usize = 224;

/// A place for a ready map, empty at first. A copy of the fields begins with an empty one.
#[derive(Debug, Default)]
pub struct Place(OnceLock<Box<Ready>>);

#[derive(Debug)]
struct Ready {
    map: HeaderMap,
    _charge: Charge,
}

impl Clone for Place {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Place {
    /// A copy of the map.
    pub fn copy(&self) -> Option<HeaderMap> {
        self.0.get().map(|ready| ready.map.clone())
    }

    /// Makes the map, for one answer in some, of what `unpack` gives with the `own` fields of an
    /// answer, where `ledger` has room.
    pub fn make_by_chance(
        &self,
        own: &[HeaderName],
        ledger: &Arc<Ledger>,
        unpack: impl FnOnce() -> HeaderMap,
    ) {
        if self.0.get().is_some() || fastrand::u8(..ONE_IN) != 0 {
            return;
        }
        let mut map = unpack();
        // Their places are taken here, so that no copy has to grow.
        for name in own {
            map.entry(name).or_insert(HeaderValue::from_static(""));
        }
        let mut charge = ledger.open();
        // Names that are not of the usual ones allocate for themselves, and so do repeated fields.
        let names = map.keys().map(|name| name.as_str().len() + NAME);
        let repeated = (map.len() - map.keys_len()) * REPEATED;
        let bytes = map.capacity() * FIELD + OVERHEAD + names.sum::<usize>() + repeated;
        if charge.grow(bytes as u64) {
            let ready = Ready {
                map,
                _charge: charge,
            };
            let _ = self.0.set(Box::new(ready));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_made_by_and_by_where_there_is_room_and_charged_while_it_is_kept() {
        let own = [HeaderName::from_static("x-own")];
        let unpack =
            || HeaderMap::from_iter([(HeaderName::from_static("x-a"), "1".parse().unwrap())]);
        let (ledger, none) = (Ledger::new(10_000), Ledger::new(100));
        let (place, poor) = (Place::default(), Place::default());
        for _ in 0..1000 {
            place.make_by_chance(&own, &ledger, unpack);
            poor.make_by_chance(&own, &none, unpack);
        }
        let copy = place.copy().unwrap();
        assert_eq!((copy.len(), &copy["x-a"]), (2, &"1".parse().unwrap()));
        assert!(copy["x-own"].is_empty());
        assert!(poor.copy().is_none() && none.held() == 0);
        // What is copied from it begins anew.
        assert!(place.clone().copy().is_none());
        let held = ledger.held();
        assert!(held > 0);
        drop(place);
        assert_eq!(ledger.held(), 0);
    }
}
