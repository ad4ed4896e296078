//! What an endpoint reads of its request, beside the body.

use std::net::IpAddr;

/// A request to the admin port.
pub struct AdminRequest<'a> {
    pub query: Option<&'a str>,
    /// `Accept`.
    pub accept: Option<&'a str>,
    pub peer: IpAddr,
    /// Has the token, where one is needed.
    pub is_operator: bool,
}
