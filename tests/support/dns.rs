//! A name server on loopback whose answers change.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::sync::watch;

/// Answers every name with the same addresses.
pub struct NameServer {
    pub address: Ipv4Addr,
    /// Queries that it was sent.
    asked: watch::Receiver<u64>,
    answers: Arc<Mutex<Option<Vec<IpAddr>>>>,
    /// The only name that there is.
    only: Arc<Mutex<Option<String>>>,
}

impl NameServer {
    /// One on an address of loopback of its own; `None` where this process may not listen on port
    /// 53.
    pub async fn start() -> Option<Self> {
        let [_, low, high, _] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 53, low, high);
        let socket = UdpSocket::bind((address, 53)).await.ok()?;
        let answers: Arc<Mutex<Option<Vec<IpAddr>>>> = Arc::default();
        let (known, only) = (
            Arc::clone(&answers),
            Arc::<Mutex<Option<String>>>::default(),
        );
        let name = Arc::clone(&only);
        let (count, asked) = watch::channel(0);
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let answers = known.lock().unwrap().clone();
                let only = name.lock().unwrap().clone();
                let query = &query[..length];
                if let Some(answer) = answer(query, answers.as_deref(), only.as_deref()) {
                    let _ = socket.send_to(&answer, from).await;
                }
                count.send_modify(|count| *count += 1);
            }
        });
        Some(Self {
            address,
            asked,
            answers,
            only,
        })
    }

    /// What a name stands for from now on; `None`: the server fails.
    pub fn say(&self, answers: Option<&[&str]>) {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        *self.answers.lock().unwrap() = answers.map(parse);
    }

    /// There is no other name from now on.
    pub fn know_only(&self, name: &str) {
        *self.only.lock().unwrap() = Some(name.to_owned());
    }

    /// Waits until it was asked so often from now on.
    pub async fn is_asked(&self, times: u64) {
        let mut asked = self.asked.clone();
        let until = *asked.borrow() + times;
        let told = asked.wait_for(|count| *count >= until).await;
        told.expect("it answers until its test ends");
    }

    /// The file that makes this the name server of a process.
    pub fn resolver(&self) -> String {
        format!(
            "nameserver {}\noptions timeout:1 attempts:1\n",
            self.address
        )
    }
}

/// An answer to a query (RFC 1035 §4); no record of it lasts.
fn answer(query: &[u8], answers: Option<&[IpAddr]>, only: Option<&str>) -> Option<Vec<u8>> {
    let name_end = 12 + query.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let question = query.get(12..name_end + 4)?;
    let kind = u16::from_be_bytes([query[name_end], query[name_end + 1]]);
    let fits = |address: &&IpAddr| kind == if address.is_ipv4() { 1 } else { 28 };
    let is_known = only.is_none_or(|only| only == name(&query[12..name_end]));
    let found = answers.into_iter().flatten().filter(fits);
    let found: Vec<&IpAddr> = found.filter(|_| is_known).collect();
    // SERVFAIL where there are none at all, NXDOMAIN for a name that there is not.
    let code = match answers {
        None => 2,
        Some(_) if !is_known => 3,
        Some(_) => 0,
    };
    let mut out = query[..2].to_vec();
    out.extend([0x81, 0x80 | code, 0, 1, 0, found.len() as u8, 0, 0, 0, 0]);
    out.extend_from_slice(question);
    for address in found {
        let bytes = match address {
            IpAddr::V4(four) => four.octets().to_vec(),
            IpAddr::V6(six) => six.octets().to_vec(),
        };
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 0, 0, bytes.len() as u8]);
        out.extend(bytes);
    }
    Some(out)
}

/// A name with dots between its labels.
fn name(mut labels: &[u8]) -> String {
    let mut name = Vec::new();
    while let Some((&length @ 1.., rest)) = labels.split_first() {
        let (label, rest) = rest.split_at(usize::from(length).min(rest.len()));
        name.push(String::from_utf8_lossy(label).into_owned());
        labels = rest;
    }
    name.join(".")
}
