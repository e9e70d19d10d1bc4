//! Calls at a set rate, whatever becomes of them: arrivals that do not wait for answers (an open loop).
//!
//! Arrivals are exponential, from a seed. A number of connections takes them in turn. A call's time begins when it is
//! due, so that one that had to wait for a connection has waited for the server; where the connection has slept until
//! then it begins when it woke, since a timer's own lateness is not the server's.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;

use crate::{
    bench::calls::{self, Sample},
    client::Client,
};

/// Connections of one load.
pub const CONNECTIONS: usize = 256;

/// Calls at a set rate.
pub struct Load {
    /// Functions, called in turn.
    pub names: Vec<String>,
    /// The event.
    pub event: Bytes,
    /// Calls a second.
    pub rate: f64,
    /// For how long.
    pub length: Duration,
    /// Connections that take them.
    pub connections: usize,
}

/// What came of a load.
#[derive(Default)]
pub struct Taken {
    /// Answers.
    pub samples: Vec<Sample>,
    /// Calls that were not answered, and why.
    pub failures: Vec<String>,
    /// From the first call's due time to the last answer.
    pub elapsed: Duration,
}

/// Offers a load, and waits for every answer.
pub async fn offer(client: &Client, load: &Load) -> Result<Taken> {
    offer_until(client, load, Duration::MAX).await
}

/// Offers a load; what has not been sent within `limit` is let go.
pub async fn offer_until(client: &Client, load: &Load, limit: Duration) -> Result<Taken> {
    let due = Arc::new(arrivals(load.rate, load.length));
    let next = Arc::new(AtomicUsize::new(0));
    let names: Arc<[String]> = load.names.clone().into();
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        connections.push(client.connect().await?);
    }
    let origin = Instant::now();
    let mut running = Vec::new();
    for mut connection in connections {
        let (client, due, next, names) = (
            client.clone(),
            Arc::clone(&due),
            Arc::clone(&next),
            Arc::clone(&names),
        );
        let event = load.event.clone();
        running.push(tokio::spawn(async move {
            let mut taken = Taken::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(due) = due.get(number).filter(|_| origin.elapsed() < limit) else {
                    return Ok::<_, anyhow::Error>(taken);
                };
                let at = origin + *due;
                let began = if Instant::now() < at {
                    tokio::time::sleep_until(at.into()).await;
                    Instant::now()
                } else {
                    at
                };
                // As every client does that keeps connections.
                if !connection.can_send().await {
                    connection = client.connect().await?;
                }
                match calls::call(&mut connection, &names[number % names.len()], &event).await {
                    Ok(sample) => taken.samples.push(Sample {
                        latency: began.elapsed(),
                        ..sample
                    }),
                    Err(error) => {
                        taken.failures.push(format!("{error:#}"));
                        connection = client.connect().await?;
                    }
                }
            }
        }));
    }
    let mut all = Taken::default();
    for connection in running {
        let taken = connection.await.context("a client failed")??;
        all.samples.extend(taken.samples);
        all.failures.extend(taken.failures);
    }
    all.elapsed = origin.elapsed();
    Ok(all)
}

/// Waits for several futures, which run side by side in this task.
pub async fn all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<(Pin<Box<_>>, Option<T>)> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut is_over = true;
        for (future, value) in &mut pending {
            if value.is_none() {
                match Future::poll(future.as_mut(), context) {
                    std::task::Poll::Ready(ready) => *value = Some(ready),
                    std::task::Poll::Pending => is_over = false,
                }
            }
        }
        match is_over {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    pending.into_iter().filter_map(|(_, value)| value).collect()
}

/// Times of arrivals at a rate a second, exponential in their gaps.
pub fn arrivals(rate: f64, length: Duration) -> Vec<Duration> {
    let mut random = Random(0x5eed);
    let mut at = 0.0;
    let mut times = Vec::new();
    loop {
        at -= (1.0 - random.unit()).ln() / rate;
        let time = Duration::from_secs_f64(at);
        if time >= length {
            return times;
        }
        times.push(time);
    }
}

/// Numbers that look random and are the same in every run (SplitMix64, Steele et al., OOPSLA'14).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next, from 0 (included) to 1 (excluded).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_their_rate_and_in_order() {
        let times = arrivals(1000.0, Duration::from_secs(10));
        assert!((9_500..10_500).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted() && times.last().unwrap().as_secs() < 10);
        assert_eq!(times, arrivals(1000.0, Duration::from_secs(10)));
    }

    #[tokio::test]
    async fn futures_side_by_side_are_all_waited_for() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let waits = async move { receiver.await.unwrap_or(0) };
        let sends = async move { sender.send(1).map_or(0, |()| 2) };
        let futures: Vec<Pin<Box<dyn Future<Output = i32>>>> = vec![Box::pin(waits), Box::pin(sends)];
        assert_eq!(all(futures.into_iter()).await, [1, 2]);
    }
}
