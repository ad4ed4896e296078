//! The connection that listens: ended leases, a longer purge log, and that it listens at all.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, mpsc};
use tracing::debug;

use super::super::{Event, LeaseOutcome};

/// Between two attempts to connect again.
pub(super) const RECONNECT_MILLIS: u32 = 200;

/// Listens for ever, to what is at `place`. Whenever the connection was lost or is there again,
/// somebody may have missed something, and is told.
pub(super) async fn listen(
    client: Client,
    place: String,
    channels: [String; 3],
    events: mpsc::UnboundedSender<Event>,
    anew: Arc<Notify>,
) {
    let (mut connected, mut errors) = (client.reconnect_rx(), client.error_rx());
    let mut messages = client.message_rx();
    drop(client.connect());
    let mut is_subscribed = false;
    while !events.is_closed() {
        let event = tokio::select! {
            // What was lost goes before what comes next.
            biased;
            error = errors.recv() => match error {
                Err(RecvError::Closed) => return,
                error => {
                    is_subscribed = false;
                    if let Ok((error, server)) = error {
                        let place = server.map_or_else(|| place.clone(), |server| server.to_string());
                        let why = format!("{place}: {}", in_words(error.details()));
                        let _ = events.send(Event::Trouble { why });
                    }
                    Event::Interrupted
                }
            },
            () = anew.notified() => {
                debug!("nothing is heard from Redis: listening over a new connection");
                let _ = client.force_reconnection().await;
                is_subscribed = false;
                Event::Interrupted
            }
            _ = connected.recv() => {
                is_subscribed = false;
                continue;
            }
            message = messages.recv() => match message {
                Ok(message) if message.channel == channels[0] => Event::LogGrew,
                Ok(message) if message.channel == channels[1] => match message.value.as_string() {
                    Some(name) => Event::Recalled { name },
                    None => continue,
                },
                Ok(message) => match settled(&message.value) {
                    Some(event) => event,
                    None => continue,
                },
                // Too many came at once.
                Err(RecvError::Lagged(_)) => Event::Listening,
                Err(RecvError::Closed) => return,
            },
            subscribed = subscribe(&client, &channels), if !is_subscribed => {
                is_subscribed = subscribed;
                if !subscribed {
                    continue;
                }
                Event::Listening
            }
        };
        let _ = events.send(event);
    }
}

/// What the system said, where the library tells it as Rust writes it: `Os { code: 111, …, message:
/// "…" }`.
fn in_words(details: &str) -> &str {
    let message = details.split_once("message: \"");
    let message = message.and_then(|(_, after)| after.split_once('"'));
    message.map_or(details, |(message, _)| message)
}

/// Subscribes, or waits a while before the next attempt.
async fn subscribe(client: &Client, channels: &[String; 3]) -> bool {
    match client.subscribe(channels.to_vec()).await {
        Ok(()) => true,
        Err(error) => {
            debug!(%error, "Redis does not take a subscription: it is tried again");
            tokio::time::sleep(Duration::from_millis(RECONNECT_MILLIS.into())).await;
            false
        }
    }
}

/// `lease outcome`, or a beat.
fn settled(message: &Value) -> Option<Event> {
    let text = message.as_str()?;
    if &*text == "beat" {
        return Some(Event::Beat);
    }
    let (lease, outcome) = text.rsplit_once(' ')?;
    Some(Event::Settled {
        lease: lease.to_owned(),
        outcome: LeaseOutcome::of(outcome),
    })
}
