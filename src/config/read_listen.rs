//! `[listen]` and `[[listen]]`, key by key.

use crate::tls::Identity;
use crate::tls::server::{ClientAuth, ServerTls};

use super::listen::{Address, Listen, Place};
use super::read_value::{certificate_files, file, set};
use super::section::{At, Section};

/// Keys that are of the whole process, and stand in one of several tables at most.
const OF_ALL: [&str; 4] = ["workers", "trusted_proxies", "drain_delay", "drain_timeout"];

/// Reads one table or several.
pub fn listen(sections: Vec<Section<'_, '_>>) -> Listen {
    let mut listen = Listen::default();
    let mut said: Vec<&str> = Vec::new();
    let mut places: Vec<Place> = Vec::new();
    let (mut proxied, mut source) = (None, None);
    for mut section in sections {
        for key in OF_ALL.into_iter().filter(|key| !section.is_missing(key)) {
            if said.contains(&key) {
                let message = format!(
                    "listen.{key} is of the whole process, and is said in another [[listen]] \
                        already: expected it once"
                );
                section.source().mistake(section.span(), message);
            }
            said.push(key);
        }
        of_all(&mut section, &mut listen);
        let place = place(&mut section);
        if place.proxy_protocol {
            (proxied, source) = (Some(section.span()), Some(section.source()));
        }
        if places.iter().any(|known| {
            let is_any_port = place
                .address
                .tcp()
                .is_some_and(|address| address.port() == 0);
            known.address == place.address && !is_any_port
        }) {
            let message = format!("[[listen]] address {} stands there twice", place.address);
            section.source().mistake(section.span(), message);
        }
        places.push(place);
        section.finish();
    }
    listen.places = places;
    if let (Some(span), true) = (proxied, listen.trusted_proxies.is_empty()) {
        let message = "listen.proxy_protocol has no effect without listen.trusted_proxies: of \
            nobody else is it read";
        if let Some(source) = source {
            source.mistake(span, message);
        }
    }
    listen
}

fn of_all(section: &mut Section<'_, '_>, listen: &mut Listen) {
    let workers = section.integer("workers", 1..1025);
    if let Some(number) = workers {
        listen.workers = Some(number as usize);
    }
    let network = |text: &str| {
        let alone = || {
            let address = text.parse::<std::net::IpAddr>().ok();
            address.map(ipnet::IpNet::from)
        };
        text.parse::<ipnet::IpNet>().ok().or_else(alone)
    };
    let expected = "an address or network such as \"10.0.0.0/8\"";
    set(
        &mut listen.trusted_proxies,
        section.list("trusted_proxies", expected, network),
    );
    set(&mut listen.drain_delay, section.duration("drain_delay"));
    set(&mut listen.drain_timeout, section.duration("drain_timeout"));
}

fn place(section: &mut Section<'_, '_>) -> Place {
    let mut place = Place::default();
    let expected =
        "an address and port such as \"127.0.0.1:8080\" or \"[::]:8080\", or \"unix:/path\"";
    let address = section.parsed("address", expected, Address::parse);
    if section.is_of_several() && section.is_missing("address") {
        let message = format!("a [[listen]] has no address: expected {expected}");
        section.source().mistake(section.span(), message);
    }
    set(&mut place.address, address.map(|at| at.value));
    set(&mut place.proxy_protocol, section.boolean("proxy_protocol"));
    let tls = section.table("tls");
    if tls.is_present() {
        place.tls = server_tls(tls);
    }
    place
}

fn server_tls(mut section: Section<'_, '_>) -> Option<ServerTls> {
    let mut identities = Vec::new();
    let first = identity(&mut section);
    let has_one = |section: &Section<'_, '_>| {
        !section.is_missing("cert_file") || !section.is_missing("key_file")
    };
    let mut is_given = has_one(&section);
    identities.extend(first);
    for mut more in section.tables("certificates") {
        identities.extend(identity(&mut more));
        if !has_one(&more) {
            let message = "listen.tls.certificates: expected cert_file and key_file";
            more.source().mistake(more.span(), message);
        }
        is_given = true;
        more.finish();
    }
    let client_ca = file(&mut section, "client_ca");
    let auth = |text: &str| match text {
        "required" => Some(ClientAuth::Required),
        "optional" => Some(ClientAuth::Optional),
        _ => None,
    };
    let auth = section.parsed("client_auth", "\"required\" or \"optional\"", auth);
    if let (Some(At { span, .. }), None) = (&auth, &client_ca) {
        let message = "listen.tls.client_auth has no effect without client_ca, the roots that \
            clients' certificates are by";
        section.source().mistake(span.clone(), message);
    }
    let version = |text: &str| match text {
        "1.2" => Some(false),
        "1.3" => Some(true),
        _ => None,
    };
    let version = section.parsed("min_version", "\"1.2\" or \"1.3\"", version);
    let (span, source) = (section.span(), section.source());
    section.finish();
    if identities.is_empty() {
        if !is_given {
            let message = "[listen.tls] has no certificate: expected cert_file = \"...\" and \
                key_file = \"...\"";
            source.mistake(span, message);
        }
        return None;
    }
    let client_ca = client_ca.as_ref().map(|At { value, .. }| {
        let auth = auth.map_or(ClientAuth::Required, |at| at.value);
        (value, auth)
    });
    let is_tls_13_alone = version.is_some_and(|at| at.value);
    let made = ServerTls::new(identities, client_ca, is_tls_13_alone);
    made.map_err(|why| source.mistake(span, format!("[listen.tls] {why}")))
        .ok()
}

/// The certificate of one table, where it has one.
fn identity(section: &mut Section<'_, '_>) -> Option<Identity> {
    let (certificate, key) = certificate_files(section)?;
    let source = section.source();
    let read = Identity::read(&certificate.value, &key.value);
    read.map_err(|why| source.mistake(certificate.span, format!("listen.tls.cert_file: {why}")))
        .ok()
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(text: &str) -> Result<Config, Vec<String>> {
        Config::parse("iris.toml", text, &|_| None)
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn certificates_that_could_not_be_shown_are_mistakes_with_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let one = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["b.example".to_owned()]).unwrap();
        let (certificate, key) = (
            write("a.pem", &one.cert.pem()),
            write("a.key", &one.signing_key.serialize_pem()),
        );
        let others_key = write("b.key", &other.signing_key.serialize_pem());
        let garbage = write("garbage.pem", "not PEM");
        let tls = |keys: &str| format!("[listen]\n[listen.tls]\n{keys}");
        let pair = |certificate: &str, key: &str| {
            tls(&format!(
                "cert_file = \"{certificate}\"\nkey_file = \"{key}\"\n"
            ))
        };
        let right = parse(&pair(&certificate, &key)).unwrap();
        let place = &right.listen.places[0];
        assert!(place.tls.as_ref().unwrap().names.cover("a.example"));
        assert_eq!(right.named_files.len(), 2, "they are looked at for changes");
        for (text, line, expected) in [
            (
                pair(&certificate, &others_key),
                3,
                "is not that of the certificate in",
            ),
            (pair(&garbage, &key), 3, "holds no certificate"),
            (pair(&certificate, &garbage), 3, "holds no private key"),
            (
                pair("/no/such", &key),
                3,
                "expected the path of a readable PEM file",
            ),
            (
                pair(&certificate, "/no/such"),
                4,
                "expected the path of a readable PEM file",
            ),
            (
                tls(&format!("cert_file = \"{certificate}\"\n")),
                3,
                "key_file is missing beside this",
            ),
            (
                tls(&format!("key_file = \"{key}\"\n")),
                3,
                "cert_file is missing beside this",
            ),
            (tls(""), 2, "has no certificate: expected cert_file"),
            (tls("certificates = []\n"), 2, "has no certificate"),
            (
                tls("certificates = [{}]\n"),
                3,
                "expected cert_file and key_file",
            ),
            (
                format!("[[listen]]\naddress = \"unix:/{}\"\n", "x".repeat(150)),
                2,
                "or \"unix:/path\"",
            ),
            (
                "[[listen]]\naddress = \"unix:/a\"\n[[listen]]\nproxy_protocol = false\n"
                    .to_owned(),
                3,
                "has no address",
            ),
            (
                "[listen]\nproxy_protocol = true\n".to_owned(),
                1,
                "has no effect without listen.trusted_proxies",
            ),
            (
                format!("{}client_auth = \"optional\"\n", pair(&certificate, &key)),
                5,
                "has no effect without client_ca",
            ),
            (
                format!("{}client_ca = \"{garbage}\"\n", pair(&certificate, &key)),
                2,
                "holds no certificate",
            ),
            (
                format!("{}min_version = \"1.1\"\n", pair(&certificate, &key)),
                5,
                "expected \"1.2\" or \"1.3\"",
            ),
            (
                "[[listen]]\naddress = \"unix:/b\"\nworkers = 1\n[[listen]]\naddress \
                    = \"unix:/a\"\nworkers = 2\n"
                    .to_owned(),
                4,
                "listen.workers is of the whole process",
            ),
            (
                "[[listen]]\naddress = \"unix:/a\"\n[[listen]]\naddress = \"unix:/a\"\n".to_owned(),
                3,
                "stands there twice",
            ),
            (
                "[listen]\naddress = \"unix:a\"\n".to_owned(),
                2,
                "or \"unix:/path\"",
            ),
        ] {
            let found = parse(&text).unwrap_err();
            let place = format!("iris.toml:{line}:");
            assert!(
                found.len() == 1 && found[0].starts_with(&place) && found[0].contains(expected),
                "{text}\n{found:?}"
            );
        }
    }
}
