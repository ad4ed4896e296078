//! `GET /`: the live page. One document that asks nobody but this port; the charts are
//! [uPlot](https://github.com/leeoniya/uPlot) (MIT, Leon Sorokin), as its package has it.

use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response};

static PAGE: LazyLock<Bytes> = LazyLock::new(|| {
    let page = include_str!("page.html")
        .replace("/*style of the charts*/", include_str!("uPlot.min.css"))
        .replace("/*charts*/", include_str!("uPlot.iife.min.js"));
    page.into()
});

/// Nothing of it comes from elsewhere, and nobody shows it in a frame.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn page() -> Response<Bytes> {
    let mut response = Response::new(PAGE.clone());
    let fields = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in fields {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
