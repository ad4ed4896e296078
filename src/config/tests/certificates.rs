//! Mistakes in where clients come in, and in what they are shown.

use super::{mistakes, parse};

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
            "[[listen]]\naddress = \"unix:/a\"\n[[listen]]\nproxy_protocol = false\n".to_owned(),
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
            "[[listen]]\naddress = \"unix:/b\"\nworkers = 1\n[[listen]]\naddress = \"unix:/a\"\nworkers = 2\n".to_owned(),
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
        let found = mistakes(&text);
        let place = format!("iris.toml:{line}:");
        assert!(
            found.len() == 1 && found[0].starts_with(&place) && found[0].contains(expected),
            "{text}\n{found:?}"
        );
    }
}
