//! Where a running sidecar's admin port is, and one question to it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use http::{Method, StatusCode};
use serde_json::Value;

use crate::config::{Config, admin_of, admin_of_environment};
use crate::upstream::ask_admin;

use super::ending::{Ending, environment, load};

/// How long an answer is waited for: a purge waits for the fleet.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which sidecar is asked, and how its answer is shown.
#[derive(Debug, Args)]
pub struct Reached {
    /// Its admin port
    #[arg(long, value_name = "URL", env = "IRIS_ADMIN_URL")]
    admin: Option<String>,
    /// The configuration that it runs with: its admin port and token are taken from there
    #[arg(long, short, value_name = "FILE", env = "IRIS_CONFIG", value_parser = path())]
    config: Option<PathBuf>,
    /// The token of the admin port (better than an argument: those stand in ps)
    #[arg(long, hide = true, env = "IRIS_ADMIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print the answer as it came, in JSON
    #[arg(long)]
    json: bool,
}

/// A path; an empty one too, by which a variable of the environment says none.
pub fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// The path that was given, if any.
pub fn given(path: Option<&PathBuf>) -> Option<&Path> {
    let path = path.map(PathBuf::as_path);
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Where a sidecar's admin port is.
pub struct Place {
    address: SocketAddr,
    /// Asked where nobody is at the first: of all addresses one family may be missing.
    otherwise: Option<SocketAddr>,
    token: Option<String>,
    /// Its answers are printed as they came.
    pub is_json: bool,
}

impl Place {
    /// Of the sidecar that runs with a configuration, or is to: its token is taken from there.
    pub fn named(admin: &str, config: &Config) -> anyhow::Result<Self> {
        let of_file = config.admin.token.as_ref().map(|token| token.text.clone());
        let said = environment("IRIS_ADMIN_TOKEN").filter(|token| !token.is_empty());
        Self::at(admin, said.or(of_file))
    }

    /// What answers at an address.
    pub fn at(admin: &str, token: Option<String>) -> anyhow::Result<Self> {
        Ok(Self {
            address: address_of(admin)?,
            otherwise: None,
            token,
            is_json: false,
        })
    }

    pub fn of(reached: &Reached) -> Result<Self, Ending> {
        // A file with mistakes elsewhere is no reason not to ask what runs.
        let configured = match given(reached.config.as_ref()) {
            Some(file) if !file.is_file() => {
                return Err(load(file).err().unwrap_or(Ending::Missed));
            }
            Some(file) => admin_of(file, &environment),
            None => admin_of_environment(&environment),
        };
        let mut address = configured.address;
        let mut otherwise = None;
        if address.ip().is_unspecified() {
            let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
            otherwise = address.is_ipv6().then_some(v4);
            address.set_ip(match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        if let Some(url) = reached.admin.as_ref().filter(|url| !url.is_empty()) {
            address = address_of(url).map_err(Ending::Unreadable)?;
            otherwise = None;
        }
        let configured = configured.token.map(|token| token.text);
        let token = reached.token.clone().filter(|token| !token.is_empty());
        Ok(Self {
            address,
            otherwise,
            token: token.or(configured),
            is_json: reached.json,
        })
    }

    /// Asks; what is answered, with its status.
    pub fn ask(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> anyhow::Result<(StatusCode, String)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let asking = async {
            let token = self.token.as_deref();
            for address in [Some(self.address), self.otherwise].into_iter().flatten() {
                let asked = (method.clone(), path);
                let told = ask_admin(address, token, asked, body.clone(), PATIENCE).await;
                if told.is_some() {
                    return told;
                }
            }
            None
        };
        runtime.block_on(asking).with_context(|| {
            format!(
                "no sidecar answers on {} (its admin port): name it by --admin URL, or by \
                    --config FILE",
                self.address
            )
        })
    }

    /// Asks for something in JSON; an error is what the sidecar says is wrong.
    pub fn told(&self, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let (status, text) = self.ask(method, path, body)?;
        let told: Value = serde_json::from_str(&text).with_context(|| {
            format!(
                "{} {path} is no answer of a sidecar: {status}",
                self.address
            )
        })?;
        if status == StatusCode::UNAUTHORIZED {
            bail!(
                "the admin port wants its token: set IRIS_ADMIN_TOKEN, or name the configuration \
                    by --config FILE"
            );
        }
        // Readiness is told by a status too.
        if status.is_client_error() {
            let mut why = told["error"].as_str().unwrap_or(&text).to_owned();
            for mistake in told["mistakes"].as_array().into_iter().flatten() {
                why.push('\n');
                why.push_str(mistake.as_str().unwrap_or_default());
            }
            return Err(anyhow!(why));
        }
        Ok(told)
    }
}

fn address_of(text: &str) -> anyhow::Result<SocketAddr> {
    let place = text
        .strip_prefix("http://")
        .unwrap_or(text)
        .trim_end_matches('/');
    let place = if place
        .rsplit_once(':')
        .is_none_or(|(_, port)| port.parse::<u16>().is_err())
    {
        format!("{place}:9180")
    } else {
        place.to_owned()
    };
    let mut addresses = place
        .to_socket_addrs()
        .with_context(|| format!("--admin {text}: expected a URL such as http://127.0.0.1:9180"))?;
    addresses
        .next()
        .with_context(|| format!("--admin {text}: the name has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_port_is_named_in_the_ways_that_people_do() {
        for text in [
            "http://127.0.0.1:9180",
            "127.0.0.1:9180/",
            "127.0.0.1",
            "http://127.0.0.1",
        ] {
            assert_eq!(
                address_of(text).unwrap(),
                "127.0.0.1:9180".parse().unwrap(),
                "{text}"
            );
        }
        assert!(address_of("http://").is_err());
    }
}
