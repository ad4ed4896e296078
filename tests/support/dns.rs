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
}

impl NameServer {
    /// One on an address of loopback of its own; `None` where this process may not listen on port 53.
    pub async fn start() -> Option<Self> {
        let [_, low, high, _] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 53, low, high);
        let socket = UdpSocket::bind((address, 53)).await.ok()?;
        let answers: Arc<Mutex<Option<Vec<IpAddr>>>> = Arc::default();
        let known = Arc::clone(&answers);
        let (count, asked) = watch::channel(0);
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let answers = known.lock().unwrap().clone();
                if let Some(answer) = answer(&query[..length], answers.as_deref()) {
                    let _ = socket.send_to(&answer, from).await;
                }
                count.send_modify(|count| *count += 1);
            }
        });
        Some(Self {
            address,
            asked,
            answers,
        })
    }

    /// What a name stands for from now on; `None`: the server fails.
    pub fn say(&self, answers: Option<&[&str]>) {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        *self.answers.lock().unwrap() = answers.map(parse);
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
fn answer(query: &[u8], answers: Option<&[IpAddr]>) -> Option<Vec<u8>> {
    let name_end = 12 + query.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let question = query.get(12..name_end + 4)?;
    let kind = u16::from_be_bytes([query[name_end], query[name_end + 1]]);
    let fits = |address: &&IpAddr| kind == if address.is_ipv4() { 1 } else { 28 };
    let found: Vec<&IpAddr> = answers.into_iter().flatten().filter(fits).collect();
    // SERVFAIL where there are none at all.
    let code = if answers.is_some() { 0 } else { 2 };
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
