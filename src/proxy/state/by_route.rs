//! What is known of routes, whatever plan they are in: kept by the digest of a route's identity, as
//! long as a plan that has it is held somewhere.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// What is known of all routes of the plans that are held somewhere.
#[derive(Debug)]
pub struct ByRoute<K, T> {
    routes: Mutex<HashMap<K, Weak<T>>>,
}

impl<K, T> Default for ByRoute<K, T> {
    fn default() -> Self {
        let routes = Mutex::default();
        Self { routes }
    }
}

impl<K: Eq + Hash, T: Default> ByRoute<K, T> {
    /// What is known of the route with this digest; every plan that has it shares that.
    pub fn of(&self, digest: K) -> Arc<T> {
        let mut routes = self.routes.lock();
        if let Some(known) = routes.get(&digest).and_then(Weak::upgrade) {
            return known;
        }
        routes.retain(|_, route| route.strong_count() > 0);
        let fresh = Arc::new(T::default());
        routes.insert(digest, Arc::downgrade(&fresh));
        fresh
    }
}
