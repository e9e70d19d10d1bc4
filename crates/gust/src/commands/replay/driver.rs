//! Calls functions when a workload says: open loop.
//!
//! A thread waits for each arrival's moment and hands it on; no answer is waited for before the next call is sent. Calls in flight are
//! bounded: one that finds the bound reached is not sent, and counted, because a generator that waits would hide what it measures
//! (coordinated omission). How late the generator is, from an arrival's moment to where its request is written, is
//! noted for each call; times of records begin where the request is written.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use gust_policy::{Class, InstanceId};
use gust_replay::{Arrival, Components, Ending, Record, Start, Workload};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc};

use super::target::{self, Targets, Work};
use crate::client::{Answer, Client, ClientError, Connection};

/// Idle connections that are kept.
const CONNECTIONS_MAX: usize = 512;

/// What a run of calls came to.
#[derive(Debug, Default)]
pub struct Driven {
    /// One for each call that was sent, in order of arrival.
    pub records: Vec<Record>,
    /// How late each was sent, in nanoseconds.
    pub lateness_ns: Vec<u64>,
    /// Calls that were not sent.
    pub unsent: u64,
    /// The first error of those that were not answered.
    pub first_error: Option<String>,
}

/// How calls are made.
#[derive(Debug, Clone)]
pub struct Driver {
    /// The server.
    pub client: Client,
    /// Its functions.
    pub targets: Arc<Targets>,
    /// What handlers do.
    pub work: Work,
    /// Calls that may be in flight.
    pub in_flight_max: usize,
    /// Begin of the run.
    pub began: Instant,
    /// Processor time asked of handlers that have ended, in nanoseconds.
    pub handlers_ns: Arc<AtomicU64>,
}

/// What the server says of a call.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Timings {
    start: String,
    class: Option<Class>,
    instance: String,
    queue_ns: u64,
    scheduling_ns: u64,
    worker_ns: u64,
    fetch_ns: u64,
    map_ns: u64,
    fill_ns: u64,
    faults_ns: u64,
    boot_ns: u64,
    runtime_ns: u64,
    handler_ns: u64,
}

/// State that all calls share.
struct Shared {
    driver: Driver,
    idle: Mutex<Vec<Connection>>,
    instances: Mutex<HashMap<String, u64>>,
    driven: Mutex<Driven>,
}

impl Driver {
    /// Makes all calls of a workload and waits for their answers.
    pub async fn drive(self, workload: &Workload, progress: impl Fn(usize)) -> Result<Driven> {
        let (sender, mut due) = mpsc::channel(self.in_flight_max.max(1));
        let clock = clock(workload.arrivals.clone(), self.began, sender);
        let in_flight = Arc::new(Semaphore::new(self.in_flight_max));
        let bound = u32::try_from(self.in_flight_max).unwrap_or(u32::MAX);
        let shared = Arc::new(Shared {
            driver: self,
            idle: Mutex::default(),
            instances: Mutex::default(),
            driven: Mutex::default(),
        });
        let mut seen = 0;
        while let Some(arrival) = due.recv().await {
            seen += 1;
            progress(seen);
            match Arc::clone(&in_flight).try_acquire_owned() {
                Err(_full) => lock(&shared.driven).unsent += 1,
                Ok(permit) => {
                    let shared = Arc::clone(&shared);
                    tokio::spawn(async move {
                        shared.call(arrival).await;
                        drop(permit);
                    });
                }
            }
        }
        // Every call has a deadline in the server, so that all of them end.
        let _all = in_flight.acquire_many(bound).await.context("wait for answers")?;
        let unhanded = clock.join().map_err(|_| anyhow::anyhow!("the clock failed"))?;
        let mut driven = std::mem::take(&mut *lock(&shared.driven));
        driven.unsent += unhanded;
        driven.records.sort_by_key(|record| record.arrived_ns);
        Ok(driven)
    }
}

/// Hands on each arrival when its moment has come; answers how many could not be.
pub(super) fn clock(
    arrivals: Vec<Arrival>,
    began: Instant,
    sender: mpsc::Sender<Arrival>,
) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut unhanded = 0;
        for arrival in arrivals {
            let moment = began + Duration::from_nanos(arrival.at_ns);
            std::thread::sleep(moment.saturating_duration_since(Instant::now()));
            match sender.try_send(arrival) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => unhanded += 1,
                Err(mpsc::error::TrySendError::Closed(_)) => break,
            }
        }
        unhanded
    })
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Shared {
    async fn call(&self, arrival: Arrival) {
        let driver = &self.driver;
        let path = driver.targets.path(arrival.function);
        let event = driver.targets.event(arrival.function, arrival.duration_ns);
        let connection = self.connection().await;
        let sent_ns = nanos(driver.began.elapsed());
        let answer = match connection {
            Err(error) => Err(error),
            Ok(mut connection) => {
                let answer = connection
                    .send(Method::POST, path, &[("x-gust-timings", "1")], event.into())
                    .await;
                self.give_back(connection, &answer);
                answer
            }
        };
        let ended_ns = nanos(driver.began.elapsed());
        let (record, error) = self.record(arrival, sent_ns, ended_ns, answer);
        if record.ending == Ending::Answered && driver.work.is_busy() {
            driver
                .handlers_ns
                .fetch_add(arrival.duration_ns, Ordering::Relaxed);
        }
        let mut driven = lock(&self.driven);
        driven.records.push(record);
        driven.lateness_ns.push(sent_ns.saturating_sub(arrival.at_ns));
        if driven.first_error.is_none() {
            driven.first_error = error;
        }
    }

    async fn connection(&self) -> Result<Connection, ClientError> {
        loop {
            let idle = lock(&self.idle).pop();
            match idle {
                Some(connection) if connection.is_open() => return Ok(connection),
                Some(_) => {}
                None => return self.driver.client.connect().await,
            }
        }
    }

    fn give_back(&self, connection: Connection, answer: &Result<Answer, ClientError>) {
        let is_whole = match answer {
            Ok(_) | Err(ClientError::Refused { .. }) => true,
            Err(
                ClientError::Endpoint(_)
                | ClientError::NoServer { .. }
                | ClientError::Broken { .. }
                | ClientError::Nonsense(_),
            ) => false,
        };
        let mut idle = lock(&self.idle);
        if is_whole && idle.len() < CONNECTIONS_MAX {
            idle.push(connection);
        }
    }

    /// The record of a call, and what went wrong.
    fn record(
        &self,
        arrival: Arrival,
        arrived_ns: u64,
        ended_ns: u64,
        answer: Result<Answer, ClientError>,
    ) -> (Record, Option<String>) {
        let (ending, error) = ending(&answer);
        let answer = answer.ok();
        let timings: Timings = answer
            .as_ref()
            .and_then(|answer| serde_json::from_str(answer.header("x-gust-timings")?).ok())
            .unwrap_or_default();
        // The server cannot see where the handler of a runtime that it did not write begins; the function itself says.
        let handler_ns = answer
            .and_then(|answer| target::took_ns(&answer.body))
            .unwrap_or(timings.handler_ns);
        let hidden_ns = handler_ns.saturating_sub(timings.handler_ns);
        let instance = self.instance(&timings.instance);
        let started_ns = match ending {
            Ending::Answered | Ending::Failed => ended_ns.saturating_sub(handler_ns).max(arrived_ns),
            Ending::Refused | Ending::Lost => ended_ns,
        };
        let record = Record {
            function: arrival.function,
            arrived_ns,
            started_ns,
            ended_ns,
            requested_ns: arrival.duration_ns,
            instance,
            class: timings.class.unwrap_or(Class::Regular),
            start: start(&timings.start),
            ending,
            components: Components {
                queue_ns: timings.queue_ns,
                scheduling_ns: timings.scheduling_ns,
                worker_ns: timings.worker_ns,
                fetch_ns: timings.fetch_ns,
                map_ns: timings.map_ns + timings.fill_ns,
                faults_ns: timings.faults_ns,
                boot_ns: timings.boot_ns,
                runtime_ns: timings.runtime_ns.saturating_sub(hidden_ns),
            },
        };
        (record, error)
    }

    fn instance(&self, name: &str) -> Option<InstanceId> {
        if name.is_empty() {
            return None;
        }
        let mut instances = lock(&self.instances);
        let next = instances.len() as u64;
        Some(InstanceId(*instances.entry(name.to_owned()).or_insert(next)))
    }
}

/// How an instance came to be, from the server's word.
fn start(word: &str) -> Start {
    match word {
        "armed" | "thawed" => Start::Armed,
        "restored" => Start::Restored,
        "booted" => Start::Booted,
        _ => Start::Warm,
    }
}

/// How a call ended, and what went wrong.
fn ending(answer: &Result<Answer, ClientError>) -> (Ending, Option<String>) {
    match answer {
        Ok(answer) if answer.header("x-amz-function-error").is_some() => (
            Ending::Failed,
            Some(String::from_utf8_lossy(&answer.body).into_owned()),
        ),
        Ok(_) => (Ending::Answered, None),
        Err(error) => {
            let ending = match error {
                ClientError::Refused { status, .. } if *status == StatusCode::TOO_MANY_REQUESTS => {
                    Ending::Refused
                }
                ClientError::Refused { status, .. } if status.is_server_error() => Ending::Lost,
                ClientError::Refused { .. } => Ending::Failed,
                ClientError::Endpoint(_)
                | ClientError::NoServer { .. }
                | ClientError::Broken { .. }
                | ClientError::Nonsense(_) => Ending::Lost,
            };
            (ending, Some(error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::*;

    fn answered(headers: &[(&'static str, &str)]) -> Result<Answer, ClientError> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        Ok(Answer {
            status: StatusCode::OK,
            headers,
            body: bytes::Bytes::from_static(b"{}"),
        })
    }

    fn refused(status: StatusCode) -> Result<Answer, ClientError> {
        Err(ClientError::Refused {
            code: "X".to_owned(),
            status,
            message: "no".to_owned(),
        })
    }

    #[test]
    fn endings_are_told_apart() {
        for (answer, wanted) in [
            (answered(&[]), Ending::Answered),
            (answered(&[("x-amz-function-error", "Unhandled")]), Ending::Failed),
            (refused(StatusCode::TOO_MANY_REQUESTS), Ending::Refused),
            (refused(StatusCode::BAD_GATEWAY), Ending::Lost),
            (refused(StatusCode::NOT_FOUND), Ending::Failed),
            (Err(ClientError::Nonsense("x".to_owned())), Ending::Lost),
        ] {
            let (ending, error) = ending(&answer);
            assert_eq!(ending, wanted, "{answer:?}");
            assert_eq!(error.is_none(), wanted == Ending::Answered);
        }
    }

    #[test]
    fn arrivals_are_handed_on_in_order_and_none_waits() {
        let arrivals: Vec<Arrival> = (0..5)
            .map(|at| Arrival {
                at_ns: at * 1000,
                function: u32::try_from(at).unwrap(),
                duration_ns: 1,
            })
            .collect();
        let (sender, mut due) = mpsc::channel(3);
        // No one takes them meanwhile: two find no room.
        let unhanded = clock(arrivals, Instant::now(), sender).join().unwrap();
        assert_eq!(unhanded, 2);
        let handed: Vec<u32> =
            std::iter::from_fn(|| due.blocking_recv().map(|arrival| arrival.function)).collect();
        assert_eq!(handed, [0, 1, 2]);
    }
}
