//! The wire vocabulary of HTTP without policy: field lists, cache directives, dates, entity tags,
//! hop-by-hop fields. Nothing here decides anything about caching.

pub mod cache_control;
pub mod dates;
pub mod etag;
pub mod fields;

pub use cache_control::CacheControl;
pub use etag::EntityTag;
