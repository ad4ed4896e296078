//! The three sides of a flight together.

use super::*;
use crate::store::Ledger;

fn board(flights: &Arc<Flights>, key: &[u8]) -> Boarding {
    flights.board(key, 0, |_| false, || None::<()>).unwrap()
}

fn lead(flights: &Arc<Flights>) -> Ticket {
    match board(flights, b"k") {
        Boarding::Lead(ticket) => ticket,
        _ => panic!("somebody else leads"),
    }
}

fn wait(flights: &Arc<Flights>) -> Waiter {
    match board(flights, b"k") {
        Boarding::Wait(waiter) => waiter,
        _ => panic!("nobody leads"),
    }
}

async fn read(reader: &mut Reader) -> Option<Result<Bytes, FailureKind>> {
    let frame = poll_fn(|context| reader.poll_frame(context)).await;
    frame.map(|frame| match frame {
        Ok(frame) => Ok(frame.into_data().unwrap()),
        Err(failure) => Err(failure.kind),
    })
}

#[tokio::test]
async fn waiters_read_from_byte_zero_while_the_body_comes_in() {
    let flights = Flights::new(10);
    let ticket = lead(&flights);
    let waiter = wait(&flights);
    ticket.push(Bytes::from_static(b"a"));
    let mut reader = waiter.reader(PATIENCE).await.unwrap();
    let reading = tokio::spawn(async move {
        let first = read(&mut reader).await;
        let second = read(&mut reader).await;
        (first, second, read(&mut reader).await)
    });
    tokio::task::yield_now().await;
    ticket.push(Bytes::from_static(b"b"));
    ticket.finish(Ok(None));
    let (first, second, end) = reading.await.unwrap();
    assert_eq!(first.unwrap().unwrap(), "a");
    assert_eq!(second.unwrap().unwrap(), "b");
    assert!(end.is_none());
    assert_eq!(flights.count(), 0);
}

#[tokio::test]
async fn a_dropped_ticket_abandons_its_flight_and_another_may_lead() {
    let flights = Flights::new(10);
    let ticket = lead(&flights);
    let waiter = wait(&flights);
    drop(ticket);
    assert!(matches!(waiter.outcome().await, Outcome::Abandoned));
    lead(&flights);
}

#[tokio::test]
async fn a_failure_reaches_every_reader() {
    let flights = Flights::new(10);
    let ticket = lead(&flights);
    let waiter = wait(&flights);
    ticket.push(Bytes::from_static(b"a"));
    let mut readers = [ticket.reader(), waiter.reader(PATIENCE).await.unwrap()];
    ticket.finish(Err(Failure::new(FailureKind::ResponseIncomplete, "cut")));
    for reader in &mut readers {
        assert!(read(reader).await.unwrap().is_ok());
        assert_eq!(
            read(reader).await,
            Some(Err(FailureKind::ResponseIncomplete))
        );
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

/// A flight that passes through, with two readers of which neither has read anything.
fn passing(pieces: usize) -> (Ticket, [Reader; 2], Charge) {
    let ticket = lead(&Flights::new(10));
    let readers = [ticket.reader(), ticket.reader()];
    (0..pieces).for_each(|_| ticket.push(Bytes::from(vec![0; 64 << 10])));
    ticket.pass_through();
    let mut charge = Ledger::new(u64::MAX).open();
    charge.grow_anyway((pieces as u64) << 16);
    (ticket, readers, charge)
}

async fn read_all(reader: &mut Reader, count: usize) {
    for _ in 0..count {
        assert!(read(reader).await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn the_slowest_reader_holds_back_what_passes_through_and_loses_nothing() {
    let (ticket, [mut fast, mut slow], mut charge) = passing(20);
    read_all(&mut fast, 20).await;
    let producing = tokio::spawn(async move {
        let is_wanted = ticket.room(&mut charge, PATIENCE).await;
        (is_wanted, ticket)
    });
    for _ in 0..16 {
        tokio::task::yield_now().await;
        assert!(!producing.is_finished());
        read_all(&mut slow, 1).await;
    }
    let (is_wanted, ticket) = producing.await.unwrap();
    assert!(is_wanted);
    assert!(ticket.flight.state.lock().buffered <= AHEAD);
    read_all(&mut slow, 4).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_is_cut_when_others_have_waited_too_long_for_one_mib() {
    let (ticket, [mut fast, mut slow], mut charge) = passing(36);
    read_all(&mut fast, 36).await;
    // Nine seconds for each of the first two MiB.
    let reading = tokio::spawn(async move {
        for _ in 0..2 {
            tokio::time::advance(PATIENCE * 9 / 10).await;
            read_all(&mut slow, 16).await;
        }
        slow
    });
    let begun = Instant::now();
    assert!(ticket.room(&mut charge, PATIENCE).await);
    let mut slow = reading.await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 18);
    // Nobody waits while there is something for the fast one.
    tokio::time::advance(PATIENCE * 5).await;
    (0..8).for_each(|_| ticket.push(Bytes::from(vec![0; 64 << 10])));
    charge.grow_anyway(8 << 16);
    read_all(&mut fast, 8).await;
    assert!(ticket.room(&mut charge, PATIENCE).await);
    assert_eq!(read(&mut slow).await, Some(Err(FailureKind::BodyTimeout)));
    drop((fast, slow));
    assert!(!ticket.room(&mut charge, PATIENCE).await);
}

#[tokio::test(start_paused = true)]
async fn a_reader_for_whom_nobody_waits_has_all_time() {
    let (ticket, [mut slow, other], mut charge) = passing(20);
    drop(other);
    let producing = tokio::spawn(async move { ticket.room(&mut charge, PATIENCE).await });
    tokio::task::yield_now().await;
    tokio::time::advance(PATIENCE * 100).await;
    tokio::task::yield_now().await;
    assert!(!producing.is_finished());
    read_all(&mut slow, 20).await;
    assert!(producing.await.unwrap());
}

#[tokio::test]
async fn past_the_size_limit_nobody_joins() {
    let flights = Flights::new(10);
    let ticket = lead(&flights);
    let waiter = wait(&flights);
    ticket.push(Bytes::from_static(b"a"));
    assert!(waiter.reader(PATIENCE).await.is_some());
    ticket.pass_through();
    assert!(waiter.reader(PATIENCE).await.is_none());
}

#[test]
fn flights_are_bounded() {
    let flights = Flights::new(1);
    let _ticket = lead(&flights);
    assert!(matches!(board(&flights, b"other"), Boarding::Full));
}

#[test]
fn what_was_stored_meanwhile_is_not_fetched_again() {
    let flights = Flights::new(1);
    let stored = flights.board(b"k", 0, |_| false, || Some("stored"));
    assert_eq!(stored.err(), Some("stored"));
    assert_eq!(flights.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_another_ones_body_does_so_for_a_time_after_its_last_byte() {
    let flights = Flights::new(10);
    let (ticket, waiter) = (lead(&flights), wait(&flights));
    let begun = Instant::now();
    assert!(waiter.reader(PATIENCE).await.is_none(), "nothing came");
    assert_eq!(begun.elapsed(), PATIENCE);
    let mut own = ticket.reader();
    ticket.push(Bytes::from_static(b"a"));
    let mut reader = waiter.reader(PATIENCE).await.unwrap();
    read_all(&mut reader, 1).await;
    tokio::time::advance(PATIENCE * 9 / 10).await;
    ticket.push(Bytes::from_static(b"b"));
    read_all(&mut reader, 1).await;
    let begun = Instant::now();
    assert_eq!(read(&mut reader).await, Some(Err(FailureKind::BodyTimeout)));
    assert_eq!(begun.elapsed(), PATIENCE);
    // Nobody joins what has stood still for so long; whose fetch it is waits on.
    assert!(waiter.reader(PATIENCE).await.is_none());
    read_all(&mut own, 2).await;
    let reading = tokio::spawn(async move { read(&mut own).await });
    tokio::time::advance(PATIENCE * 10).await;
    assert!(!reading.is_finished());
    ticket.finish(Ok(None));
    assert!(reading.await.unwrap().is_none());
}
