//! What a 304 changes in the response that it confirms (RFC 9111 §3.2, §4.3.4).

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName};

use crate::http::fields;

/// Replaces the stored fields by those of the 304, but for the ones that describe the body that
/// we hold and the 304 did not bring.
pub fn merge(stored: &mut HeaderMap, update: &HeaderMap) {
    for name in update.keys().filter(|name| updates(name)) {
        stored.remove(name);
        for value in update.get_all(name) {
            stored.append(name.clone(), value.clone());
        }
    }
}

fn updates(name: &HeaderName) -> bool {
    let of_the_body = [
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
    ];
    !of_the_body.contains(name) && !fields::is_hop_by_hop(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn new_fields_replace_old_ones_but_never_describe_another_body() {
        let value = HeaderValue::from_static;
        let mut stored = HeaderMap::new();
        stored.insert("content-length", value("5"));
        stored.insert("cache-control", value("max-age=1"));
        stored.insert("x-kept", value("1"));
        let mut update = HeaderMap::new();
        update.insert("content-length", value("0"));
        update.insert("cache-control", value("max-age=9"));
        update.append("x-new", value("a"));
        update.append("x-new", value("b"));
        merge(&mut stored, &update);
        assert_eq!(stored["content-length"], "5");
        assert_eq!(stored["cache-control"], "max-age=9");
        assert_eq!(stored["x-kept"], "1");
        assert_eq!(stored.get_all("x-new").iter().count(), 2);
    }
}
