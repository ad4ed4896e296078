//! Counters with one label whose values are the variants of an enum: the list of them is the enum's
//! own, so that no variant can be forgotten.

use std::fmt;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use strum::VariantArray;

/// One counter for each variant, each shown from the first scrape.
pub struct ByVariant<E: VariantArray> {
    counters: Vec<(E, Counter)>,
}

impl<E: VariantArray + Copy + PartialEq + Into<&'static str>> ByVariant<E> {
    /// Registers the family `name`, with a label named `label`.
    pub fn register(
        registry: &mut Registry,
        name: &'static str,
        help: &'static str,
        label: &'static str,
    ) -> Self {
        let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
        registry.register(name, help, family.clone());
        let variants = E::VARIANTS.iter().copied();
        let counters = variants.map(|variant| {
            let counter = family.get_or_create_owned(&[(label, variant.into())]);
            (variant, counter)
        });
        Self {
            counters: counters.collect(),
        }
    }

    pub fn inc(&self, variant: E) {
        let found = self.counters.iter().find(|(known, _)| *known == variant);
        if let Some((_, counter)) = found {
            counter.inc();
        }
    }
}

impl<E: VariantArray> Default for ByVariant<E> {
    /// Counts nothing.
    fn default() -> Self {
        Self {
            counters: Vec::new(),
        }
    }
}

impl<E: VariantArray> fmt::Debug for ByVariant<E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("ByVariant")
            .field(&self.counters.len())
            .finish()
    }
}
