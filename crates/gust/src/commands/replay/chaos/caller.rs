//! Makes the calls of a workload, open loop, part of them as events, and keeps a ledger of how each ended.
//!
//! Each call has a connection of its own: what breaks one breaks no other. A synchronous call that fails with an error that says
//! that it can be tried again is tried again until it is answered, as a client would.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use gust_replay::{
    Arrival, Workload,
    chaos::{Call, CallEnd},
    random::Random,
};
use hyper::{Method, StatusCode};
use tokio::sync::{Semaphore, mpsc};

use super::super::{
    driver::{clock, lock, nanos},
    target::Targets,
};
use crate::client::{Answer, Client, ClientError};

/// Stream of the random numbers that say which calls are events.
const STREAM: u64 = 0xc4a0_5001;

/// Longest wait for an answer: longer than any function may run.
const CALL_LIMIT: Duration = Duration::from_secs(180);

/// Longest time in which a call is tried again, and the pause before each time.
const RETRY_LIMIT: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How a header of Lambda's says that a call is an event.
const EVENT: (&str, &str) = ("x-amz-invocation-type", "Event");

/// What calls came to.
#[derive(Debug)]
pub struct Called {
    /// In order of their numbers.
    pub calls: Vec<Call>,
    /// Calls that were not sent, because too many were in flight.
    pub unsent: u64,
}

/// Makes calls.
#[derive(Debug)]
pub struct Caller {
    client: Client,
    targets: Targets,
    began: Instant,
    seed: u64,
    events: f64,
}

impl Caller {
    /// For functions of a server; `events` is the part of calls that are events, drawn from the seed.
    pub fn new(client: Client, targets: Targets, began: Instant, seed: u64, events: f64) -> Self {
        Self {
            client,
            targets,
            began,
            seed,
            events,
        }
    }

    /// Makes all calls of a workload and waits for the end of each.
    pub async fn call_all(
        self,
        workload: &Workload,
        in_flight_max: usize,
        progress: impl Fn(usize),
    ) -> Result<Called> {
        let (sender, mut due) = mpsc::channel(in_flight_max);
        let clock = clock(workload.arrivals.clone(), self.began, sender);
        let in_flight = Arc::new(Semaphore::new(in_flight_max));
        let bound = u32::try_from(in_flight_max).context("bound the calls in flight")?;
        let mut random = Random::new(self.seed, STREAM);
        let (caller, calls) = (Arc::new(self), Arc::new(Mutex::new(Vec::new())));
        let (mut number, mut unsent) = (0, 0);
        while let Some(arrival) = due.recv().await {
            let is_event = random.unit() < caller.events;
            number += 1;
            progress(number as usize);
            match Arc::clone(&in_flight).try_acquire_owned() {
                Err(_full) => unsent += 1,
                Ok(permit) => {
                    let (caller, calls) = (Arc::clone(&caller), Arc::clone(&calls));
                    tokio::spawn(async move {
                        let call = caller.call(number, arrival, is_event).await;
                        lock(&calls).push(call);
                        drop(permit);
                    });
                }
            }
        }
        // Every call ends within its limits.
        let _all = in_flight.acquire_many(bound).await.context("wait for answers")?;
        unsent += clock.join().map_err(|_| anyhow::anyhow!("the clock failed"))?;
        let mut calls = std::mem::take(&mut *lock(&calls));
        calls.sort_by_key(|call: &Call| call.number);
        Ok(Called { calls, unsent })
    }

    async fn call(&self, number: u64, arrival: Arrival, is_event: bool) -> Call {
        let event = self
            .targets
            .numbered_event(arrival.function, arrival.duration_ns, number);
        let sent_ns = nanos(self.began.elapsed());
        let end = self.send(arrival.function, &event, is_event).await;
        let ended_ns = nanos(self.began.elapsed());
        let retried_ns = match &end {
            CallEnd::WorkerLost | CallEnd::NodeLost(_) | CallEnd::Unreachable if !is_event => {
                self.try_again(arrival.function, &event).await
            }
            CallEnd::Answered
            | CallEnd::Accepted
            | CallEnd::WorkerLost
            | CallEnd::NodeLost(_)
            | CallEnd::Unreachable
            | CallEnd::Failed(_) => None,
        };
        Call {
            number,
            function: arrival.function,
            is_event,
            sent_ns,
            ended_ns,
            end,
            retried_ns,
        }
    }

    /// When a call was answered after all.
    async fn try_again(&self, function: u32, event: &str) -> Option<u64> {
        let began = Instant::now();
        while began.elapsed() < RETRY_LIMIT {
            tokio::time::sleep(RETRY_PAUSE).await;
            if self.send(function, event, false).await == CallEnd::Answered {
                return Some(nanos(self.began.elapsed()));
            }
        }
        None
    }

    async fn send(&self, function: u32, event: &str, is_event: bool) -> CallEnd {
        let headers: &[(&'static str, &str)] = if is_event { &[EVENT] } else { &[] };
        let path = self.targets.path(function);
        let sending = self.client.send(Method::POST, path, headers, event.to_owned());
        match tokio::time::timeout(CALL_LIMIT, sending).await {
            Ok(answer) => end(answer),
            Err(_elapsed) => CallEnd::Failed(format!("there was no answer in {} s", CALL_LIMIT.as_secs())),
        }
    }
}

/// How a call ended, from its answer.
fn end(answer: Result<Answer, ClientError>) -> CallEnd {
    match answer {
        Ok(answer) if answer.header("x-amz-function-error").is_some() => {
            CallEnd::Failed(String::from_utf8_lossy(&answer.body).into_owned())
        }
        Ok(answer) if answer.status == StatusCode::ACCEPTED => CallEnd::Accepted,
        Ok(_) => CallEnd::Answered,
        Err(ClientError::NoServer { .. } | ClientError::Broken { .. }) => CallEnd::Unreachable,
        Err(ClientError::Refused {
            code,
            status,
            message,
        }) => lost(&code, &message).unwrap_or_else(|| CallEnd::Failed(format!("{status} {code}: {message}"))),
        Err(error @ (ClientError::Endpoint(_) | ClientError::Nonsense(_))) => {
            CallEnd::Failed(error.to_string())
        }
    }
}

/// What was lost, where an answer is the error that is stated for that (docs/cluster.md).
fn lost(code: &str, message: &str) -> Option<CallEnd> {
    let what = message
        .strip_prefix("The invocation failed: ")?
        .strip_suffix(" was lost. It can be tried again.")?;
    if code != "ServiceException" {
        return None;
    }
    if what.starts_with("the worker of instance ") {
        return Some(CallEnd::WorkerLost);
    }
    // Its name, with what makes it unlike others.
    let (number, _) = what.strip_prefix("node node")?.split_once('-')?;
    Some(CallEnd::NodeLost(number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stated_errors_are_losses() {
        let node = "The invocation failed: node node2-0a1b2c3d was lost. It can be tried again.";
        let worker = "The invocation failed: the worker of instance abc was lost. It can be tried again.";
        assert_eq!(lost("ServiceException", node), Some(CallEnd::NodeLost(2)));
        assert_eq!(lost("ServiceException", worker), Some(CallEnd::WorkerLost));
        assert_eq!(lost("TooManyRequestsException", node), None);
        for other in [
            "",
            "The invocation failed: node other was lost. It can be tried again.",
            "The invocation failed: node node2-0a1b2c3d was lost.",
            "The invocation failed: the node is stopping. It can be tried again.",
        ] {
            assert_eq!(lost("ServiceException", other), None, "{other}");
        }
    }
}
