//! Who a client is by its address: what trusted proxies say of it, and nobody else.

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::http::fields;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the last hop that no trusted proxy vouches for, read from the right: what stands
/// further left was written by the client.
pub fn of(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    if !is_trusted(&client) {
        return client;
    }
    let hops: Vec<&[u8]> = fields::members(headers, X_FORWARDED_FOR).collect();
    for hop in hops.into_iter().rev() {
        let Some(address) = read(hop) else { break };
        client = address;
        if !is_trusted(&client) {
            break;
        }
    }
    client
}

fn read(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let bare = std::str::from_utf8(fields::without_port(hop)).ok()?;
    let inner = fields::without_brackets(bare);
    let address: IpAddr = text.parse().or_else(|_| inner.parse()).ok()?;
    Some(address.to_canonical())
}

/// What is counted as one client: an address, or the /64 of IPv6, of which one site has all.
pub fn counted(address: IpAddr) -> [u8; 16] {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            Ipv6Addr::from(network).octets()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn found(peer: &str, forwarded: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_str(line).unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        of(&headers, peer.parse().unwrap(), &trusted).to_string()
    }

    #[test]
    fn only_trusted_proxies_say_who_asks() {
        assert_eq!(found("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(found("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(found("::ffff:10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        // The client wrote the first one itself.
        assert_eq!(
            found("10.0.0.1", &["1.1.1.1, 198.51.100.7"]),
            "198.51.100.7"
        );
        assert_eq!(
            found("10.0.0.1", &["1.1.1.1", "198.51.100.7, 10.0.0.2"]),
            "198.51.100.7"
        );
        assert_eq!(found("fd00::1", &["[2001:db8::1]:443"]), "2001:db8::1");
        assert_eq!(found("10.0.0.1", &["198.51.100.7:80"]), "198.51.100.7");
        assert_eq!(found("10.0.0.1", &["unknown"]), "10.0.0.1");
        assert_eq!(found("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn one_site_of_ipv6_is_one_client() {
        let counted = |text: &str| super::counted(text.parse().unwrap());
        assert_eq!(counted("2001:db8::1"), counted("2001:db8::ffff"));
        assert_ne!(counted("2001:db8::1"), counted("2001:db8:0:1::1"));
        assert_ne!(counted("192.0.2.1"), counted("192.0.2.2"));
        assert_eq!(counted("192.0.2.1"), counted("::ffff:192.0.2.1"));
    }
}
