//! The addresses that the upstream's name stands for: looked up again and again, connected to by
//! who is well and least loaded, and raced where one is silent (RFC 8305).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::{Mutex, MutexGuard};
use tracing::{debug, info, warn};

use crate::metrics::AddressReading;

use super::address::{Address, Open, To};
use super::socket::Socket;

/// How long an attempt is waited for before the next address is tried beside it (RFC 8305 §5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How long it is taken for granted that a name is not known.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);

/// Where an upstream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Name { host: String, port: u16 },
    Unix(String),
}

/// All addresses of an upstream.
#[derive(Debug)]
pub struct Addresses {
    place: Place,
    /// Failures that eject one.
    most_lost: u32,
    known: Mutex<Known>,
    /// Held by who looks the name up.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    list: Vec<Arc<Address>>,
    looked_up: Option<Instant>,
    /// Why the last look-up has failed, where it has.
    failure: Option<(io::ErrorKind, String)>,
    /// Whose turn it is among those that are equal.
    turn: usize,
}

impl Addresses {
    pub fn new(place: Place, most_lost: u32) -> Self {
        let list = match &place {
            Place::Unix(path) => vec![Address::new(To::Unix(path.clone()))],
            Place::Name { .. } => Vec::new(),
        };
        Self {
            place,
            most_lost,
            known: Mutex::new(Known {
                list,
                ..Known::default()
            }),
            looking: tokio::sync::Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    pub fn all(&self) -> Vec<Arc<Address>> {
        self.lock().list.clone()
    }

    pub fn readings(&self) -> Vec<AddressReading> {
        let known = self.lock();
        known.list.iter().map(|one| one.reading()).collect()
    }

    /// Looks the name up, where it was not looked up for so long; one look-up serves all who wait
    /// for it, and what was known stays where it fails.
    pub async fn look_up(&self, older_than: Duration) -> io::Result<()> {
        let Place::Name { host, port } = &self.place else {
            return Ok(());
        };
        let _alone = self.looking.lock().await;
        if let Some(known) = self.looked_up(older_than) {
            return known;
        }
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        let mut known = self.lock();
        known.looked_up = Some(Instant::now());
        match found {
            Ok(found) => {
                known.failure = None;
                known.become_these(found);
            }
            Err(error) => {
                if known.failure.is_none() && !known.list.is_empty() {
                    warn!(host, %error, "the upstream's name does not resolve any more: its last \
                        addresses are used on");
                }
                known.failure = Some((error.kind(), error.to_string()));
            }
        }
        known.outcome()
    }

    /// What came of the last look-up, where that was not so long ago.
    fn looked_up(&self, older_than: Duration) -> Option<io::Result<()>> {
        let known = self.lock();
        let at = known.looked_up?;
        // That a name is not known may have been mended a moment ago.
        let older_than = match known.list.is_empty() {
            true => older_than.min(UNKNOWN_FOR),
            false => older_than,
        };
        (at.elapsed() < older_than).then(|| known.outcome())
    }

    /// Whether nobody has looked the name up for so long.
    pub fn is_older_than(&self, limit: Duration) -> bool {
        let looked_up = self.lock().looked_up;
        matches!(self.place, Place::Name { .. }) && looked_up.is_none_or(|at| at.elapsed() > limit)
    }

    /// Whether nothing is known yet, so that a look-up has to be waited for.
    pub fn is_unknown(&self) -> bool {
        self.lock().list.is_empty()
    }

    /// A connection to the best address; where that is silent, to the next beside it, and the first
    /// that stands is taken. Who is passed is taken for ill.
    pub async fn connect(&self) -> io::Result<(Socket, Open)> {
        let mut left = self.lock().in_order().into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut begun: Vec<Arc<Address>> = Vec::new();
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        loop {
            if let Some(address) = left.next() {
                begun.push(Arc::clone(&address));
                attempts.push(async move { (address.connect().await, address) });
            } else if attempts.is_empty() {
                return Err(last);
            }
            let has_more = left.len() > 0;
            let ended = tokio::select! {
                ended = attempts.next() => ended,
                () = tokio::time::sleep(ATTEMPT_DELAY), if has_more => continue,
            };
            match ended {
                Some((Ok(socket), address)) => {
                    // Those that were asked before it, and are still silent.
                    let passed = begun.iter().take_while(|one| !Arc::ptr_eq(one, &address));
                    passed.for_each(|silent| self.eject(silent, "it is silent"));
                    return Ok((socket, Open::of(address)));
                }
                Some((Err(error), address)) => {
                    debug!(address = address.shown(), %error, "an address of the upstream does \
                        not accept connections");
                    begun.retain(|one| !Arc::ptr_eq(one, &address));
                    self.lost(&address);
                    last = error;
                }
                None => {}
            }
        }
    }

    /// A connection to this very address.
    pub async fn connect_to(&self, address: &Arc<Address>) -> io::Result<(Socket, Open)> {
        let socket = address.connect().await?;
        Ok((socket, Open::of(Arc::clone(address))))
    }

    /// Counts a request that an address has not answered, by a hash of its URL; too many with no
    /// answer between them eject it.
    pub fn failed(&self, address: &Arc<Address>, url: u64) {
        let failures = address.note_failure(Some(url));
        self.judge(address, failures);
    }

    /// The same of a connection that did not come to stand: no request can have caused that.
    pub fn lost(&self, address: &Arc<Address>) {
        let failures = address.note_failure(None);
        self.judge(address, failures);
    }

    fn judge(&self, address: &Arc<Address>, failures: u32) {
        if failures >= self.most_lost {
            self.eject(address, "it has failed again and again");
        }
    }

    /// Passes an address over until it is found to be well, unless it is the last.
    pub fn eject(&self, address: &Arc<Address>, why: &str) {
        let known = self.lock();
        let is_other_well = known
            .list
            .iter()
            .any(|other| !Arc::ptr_eq(other, address) && !other.is_ejected());
        if is_other_well && address.eject() {
            warn!(
                address = address.shown(),
                why, "an address of the upstream is passed over"
            );
        }
    }

    /// An ejected address was found to be well.
    pub fn take_back(&self, address: &Address) {
        if address.take_back() {
            info!(
                address = address.shown(),
                "an address of the upstream is used again"
            );
        }
    }
}

impl Known {
    /// A look-up that fails takes nothing away.
    fn outcome(&self) -> io::Result<()> {
        match &self.failure {
            Some((kind, why)) if self.list.is_empty() => Err(io::Error::new(*kind, why.clone())),
            _ => Ok(()),
        }
    }

    fn become_these(&mut self, found: impl Iterator<Item = SocketAddr>) {
        let mut list: Vec<Arc<Address>> = Vec::new();
        for address in found {
            let to = To::Tcp(address);
            if list.iter().all(|known| *known.to() != to) {
                let known = self.list.iter().find(|known| *known.to() == to);
                list.push(known.map_or_else(|| Address::new(to), Arc::clone));
            }
        }
        if list.is_empty() {
            return;
        }
        for old in &self.list {
            if list.iter().all(|new| !Arc::ptr_eq(new, old)) {
                old.set_gone();
                info!(
                    address = old.shown(),
                    "the upstream's name does not stand for this address any more"
                );
            }
        }
        // Where all that is left was passed over, it is not any more.
        if list.iter().all(|one| one.is_ejected()) {
            for one in &list {
                one.take_back();
            }
        }
        self.list = list;
    }

    /// Those that are well and have the fewest connections first, families by turns (RFC 8305 §4).
    fn in_order(&mut self) -> Vec<Arc<Address>> {
        self.turn = self.turn.wrapping_add(1);
        let mut order = self.list.clone();
        if !order.is_empty() {
            let at = self.turn % order.len();
            order.rotate_left(at);
        }
        order.sort_by_key(|one| (one.is_ejected(), one.open()));
        let Some(first) = order.first() else {
            return order;
        };
        let (first_is_v6, well) = (first.is_v6(), |one: &Arc<Address>| !one.is_ejected());
        let (mut same, mut other): (Vec<_>, Vec<_>) = order
            .iter()
            .filter(|one| well(one))
            .cloned()
            .partition(|one| one.is_v6() == first_is_v6);
        same.reverse();
        other.reverse();
        let mut by_turns = Vec::with_capacity(order.len());
        while !same.is_empty() || !other.is_empty() {
            by_turns.extend(same.pop());
            by_turns.extend(other.pop());
        }
        by_turns.extend(order.into_iter().filter(|one| one.is_ejected()));
        by_turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    fn of(found: &[SocketAddr]) -> Addresses {
        let place = Place::Name {
            host: "api".to_owned(),
            port: 1,
        };
        let addresses = Addresses::new(place, 2);
        addresses.become_these(found);
        addresses
    }

    impl Addresses {
        fn become_these(&self, found: &[SocketAddr]) {
            let mut known = self.lock();
            known.become_these(found.iter().copied());
            known.looked_up = Some(Instant::now());
        }

        fn order(&self) -> Vec<String> {
            let order = self.lock().in_order();
            order.iter().map(|one| one.shown()).collect()
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// One that accepts nothing and refuses nothing: its queue is full. The connections fill it.
    async fn silent() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(at("127.0.0.1:0")).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(stream) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            filling.push(stream.unwrap());
        }
        (address, listener, filling)
    }

    #[test]
    fn the_least_loaded_come_first_families_by_turns_and_ejected_ones_last() {
        let addresses = of(&[
            at("[::1]:1"),
            at("[::2]:1"),
            at("127.0.0.1:1"),
            at("127.0.0.2:1"),
        ]);
        let all = addresses.all();
        let _open: Vec<Open> = [0, 0, 2]
            .map(|at: usize| Open::of(Arc::clone(&all[at])))
            .into();
        addresses.eject(&all[3], "a test");
        assert_eq!(
            addresses.order(),
            ["[::2]:1", "127.0.0.1:1", "[::1]:1", "127.0.0.2:1"]
        );
        // Among equals each is the first in its turn.
        let equals = of(&[at("127.0.0.1:1"), at("127.0.0.2:1"), at("127.0.0.3:1")]);
        let firsts: std::collections::HashSet<String> =
            (0..3).map(|_| equals.order().remove(0)).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn the_last_address_is_never_passed_over_and_one_that_comes_back_is_used() {
        let addresses = of(&[at("127.0.0.1:1"), at("127.0.0.2:1")]);
        let all = addresses.all();
        for url in 0..5 {
            all.iter().for_each(|one| addresses.failed(one, url));
        }
        let ejected = all.iter().filter(|one| one.is_ejected()).count();
        assert_eq!(ejected, 1, "{all:?}");
        // The last one is told of failures for as long as it is the last.
        let last = all.iter().find(|one| !one.is_ejected()).unwrap();
        (0..10_000).for_each(|url| addresses.failed(last, url));
        assert!(!last.is_ejected());
        all.iter().for_each(|one| addresses.take_back(one));
        assert!(all.iter().all(|one| !one.is_ejected()));
        // A success between failures: they are not one after another.
        all[0].succeeded();
        addresses.failed(&all[0], 1);
        all[0].succeeded();
        addresses.failed(&all[0], 2);
        // One URL that fails may be at fault itself.
        (0..9).for_each(|_| addresses.failed(&all[0], 2));
        assert!(!all[0].is_ejected());
        // The only one that the name stands for now was passed over before.
        addresses.eject(&all[0], "a test");
        addresses.become_these(&[at("127.0.0.1:1")]);
        assert!(!all[0].is_ejected() && !all[0].is_gone());
        assert!(all[1].is_gone());
        // A name that stands for nothing for a moment takes nothing away.
        addresses.become_these(&[]);
        assert_eq!(addresses.all().len(), 1);
    }

    #[tokio::test]
    async fn a_silent_address_costs_a_fraction_of_a_second_once() {
        let (hole, _listener, _filling) = silent().await;
        let well = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = well.local_addr().unwrap();
        let addresses = of(&[hole, other]);
        let mut delayed = 0;
        for _ in 0..6 {
            let begun = Instant::now();
            let (_, open) = addresses.connect().await.unwrap();
            assert_eq!(open.address().shown(), other.to_string());
            delayed += u32::from(begun.elapsed() >= ATTEMPT_DELAY);
            // What is counted is what is held.
            assert_eq!(open.address().open(), 1);
        }
        assert_eq!(delayed, 1);
        assert!(addresses.all()[0].is_ejected());
    }

    #[tokio::test]
    async fn one_that_refuses_costs_nothing_and_all_that_do_are_said() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refusing = gone.local_addr().unwrap();
        drop(gone);
        let well = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = of(&[refusing, well.local_addr().unwrap()]);
        for _ in 0..4 {
            assert!(addresses.connect().await.is_ok());
        }
        assert!(addresses.all()[0].is_ejected());
        let error = of(&[refusing]).connect().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        // A socket of this machine needs no name.
        let nowhere = Addresses::new(Place::Unix("/no/such/socket".to_owned()), 1);
        nowhere.look_up(Duration::ZERO).await.unwrap();
        assert_eq!(
            nowhere.connect().await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
