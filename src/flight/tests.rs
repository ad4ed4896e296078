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
    let mut reader = waiter.reader().unwrap();
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
    let mut readers = [ticket.reader(), wait(&flights).reader().unwrap()];
    ticket.push(Bytes::from_static(b"a"));
    ticket.finish(Err(Failure::new(FailureKind::ResponseIncomplete, "cut")));
    for reader in &mut readers {
        assert!(read(reader).await.unwrap().is_ok());
        assert_eq!(
            read(reader).await,
            Some(Err(FailureKind::ResponseIncomplete))
        );
    }
}

#[tokio::test]
async fn past_the_size_limit_nobody_joins_and_the_window_is_bounded() {
    let flights = Flights::new(10);
    let ticket = lead(&flights);
    let waiter = wait(&flights);
    let (mut fast, mut slow) = (ticket.reader(), waiter.reader().unwrap());
    ticket.pass_through();
    assert!(waiter.reader().is_none());
    let mut charge = Ledger::new(u64::MAX).open();
    let piece = Bytes::from(vec![0; 64 << 10]);
    for _ in 0..40 {
        assert!(ticket.room(&mut charge).await);
        charge.grow_anyway(piece.len() as u64);
        ticket.push(piece.clone());
        assert!(read(&mut fast).await.unwrap().is_ok());
    }
    assert!(ticket.room(&mut charge).await);
    assert!(lock(&ticket.flight.state).buffered <= WINDOW);
    // The slow reader has lost its beginning.
    assert_eq!(read(&mut slow).await, Some(Err(FailureKind::BodyTimeout)));
    drop((fast, slow));
    assert!(!ticket.room(&mut charge).await);
}

#[tokio::test]
async fn the_producer_waits_for_its_fastest_reader() {
    let flights = Flights::new(10);
    let ticket = lead(&flights);
    let mut reader = ticket.reader();
    ticket.pass_through();
    ticket.push(Bytes::from(vec![0; AHEAD + 1]));
    let mut charge = Ledger::new(u64::MAX).open();
    let producing = tokio::spawn(async move { ticket.room(&mut charge).await });
    tokio::task::yield_now().await;
    assert!(!producing.is_finished());
    assert!(read(&mut reader).await.unwrap().is_ok());
    assert!(producing.await.unwrap());
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
