//! The PROXY protocol (HAProxy, versions 1 and 2): a proxy that passes bytes on says first whose
//! they are.

use std::io;
use std::net::IpAddr;

use ppp::{HeaderResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What begins version 2 (§2.2); no shorter piece of version 1 is whole.
const BEGINNING: usize = 12;

/// The longest line of version 1 (§2.1).
const LONGEST_LINE: usize = 107;

/// The longest header of version 2 that is read: addresses, and what proxies add to them.
const LONGEST: usize = 4096;

/// Reads the header and nothing of what comes after it: the address of whom the proxy speaks for;
/// `None` where it speaks for itself, as health checks do.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<IpAddr>> {
    let mut header = vec![0; BEGINNING];
    stream.read_exact(&mut header).await?;
    if header.starts_with(b"PROXY") {
        while !header.ends_with(b"\r\n") {
            if header.len() == LONGEST_LINE {
                return Err(wrong("its line does not end"));
            }
            header.push(stream.read_u8().await?);
        }
    } else if header == v2::PROTOCOL_PREFIX {
        header.resize(16, 0);
        stream.read_exact(&mut header[BEGINNING..]).await?;
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if length > LONGEST {
            return Err(wrong("it is too long"));
        }
        header.resize(16 + length, 0);
        stream.read_exact(&mut header[16..]).await?;
    } else {
        return Err(wrong("there is none"));
    }
    match HeaderResult::parse(&header) {
        HeaderResult::V1(Ok(header)) => Ok(match header.addresses {
            v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
            v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
            v1::Addresses::Unknown => None,
        }),
        HeaderResult::V2(Ok(header)) => Ok(match (header.command, header.addresses) {
            (v2::Command::Local, _) => None,
            (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => {
                Some(addresses.source_address.into())
            }
            (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => {
                Some(addresses.source_address.into())
            }
            (v2::Command::Proxy, v2::Addresses::Unix(_) | v2::Addresses::Unspecified) => None,
        }),
        HeaderResult::V1(Err(error)) => Err(wrong(&error.to_string())),
        HeaderResult::V2(Err(error)) => Err(wrong(&error.to_string())),
    }
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("PROXY header: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(bytes: &[u8]) -> (Result<Option<IpAddr>, String>, Vec<u8>) {
        let mut rest = bytes;
        let read = read(&mut rest).await.map_err(|error| error.to_string());
        (read, rest.to_vec())
    }

    #[tokio::test]
    async fn both_versions_name_the_client_and_nothing_after_them_is_read() {
        let mut second = v2::PROTOCOL_PREFIX.to_vec();
        second.extend([0x21, 0x11, 0, 12, 192, 0, 2, 7, 10, 0, 0, 1, 1, 2, 0, 80]);
        let mut six = v2::PROTOCOL_PREFIX.to_vec();
        six.extend([0x21, 0x21, 0, 36]);
        six.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        six.extend([0; 16]);
        six.extend([1, 2, 0, 80]);
        let mut local = v2::PROTOCOL_PREFIX.to_vec();
        local.extend([0x20, 0x00, 0, 3, 4, 0, 0]);
        let headers: [(&[u8], Option<&str>); 6] = [
            (
                b"PROXY TCP4 192.0.2.7 10.0.0.1 258 80\r\n",
                Some("192.0.2.7"),
            ),
            (
                b"PROXY TCP6 2001:db8::7 ::1 258 80\r\n",
                Some("2001:db8::7"),
            ),
            (b"PROXY UNKNOWN\r\n", None),
            (&second, Some("192.0.2.7")),
            (&six, Some("2001:db8::7")),
            (&local, None),
        ];
        for (header, client) in headers {
            let sent = [header, b"GET / HTTP/1.1\r\n"].concat();
            let client = client.map(|text| text.parse().unwrap());
            assert_eq!(
                of(&sent).await,
                (Ok(client), b"GET / HTTP/1.1\r\n".to_vec())
            );
        }
    }

    #[tokio::test]
    async fn what_is_none_is_refused() {
        let mut long = v2::PROTOCOL_PREFIX.to_vec();
        long.extend([0x21, 0x11, 0xff, 0xff]);
        let endless = format!("PROXY TCP4 {}", "1".repeat(200));
        for wrong in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 300.0.2.7 10.0.0.1 258 80\r\n",
            b"PROXY TCP4\r\n\r\n",
            b"PROXY TC",
            &long,
            endless.as_bytes(),
        ] {
            assert!(of(wrong).await.0.is_err(), "{wrong:?}");
        }
    }
}
