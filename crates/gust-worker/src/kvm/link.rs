//! What a guest's runtime speaks: our device, or the Runtime API on a loopback port that ends here.

use std::collections::BTreeMap;

use gust_linux::{DeviceAnswerKind, DeviceMessageKind, Kernel, ServiceEvent};
use serde::{Deserialize, Serialize};

use crate::{
    device_text,
    protocol::{InitSpec, Interface, RESPONSE_BYTES_MAX},
    runtime_api::{self, ConnectionId, Event, RuntimeApi, Said},
};

/// One guest's link. It is part of a snapshot: a runtime that waits on a connection waits on it after a restore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Link {
    /// The device.
    Device,
    /// The Runtime API, and its connections by the personality's numbers.
    Api {
        api: Box<RuntimeApi>,
        connections: BTreeMap<u32, ConnectionId>,
    },
}

/// What is told to a guest that has just been restored.
#[derive(Debug, Clone, Default)]
pub(super) struct Renewal {
    /// Bytes for the runtime's own generators.
    pub(super) entropy: [u8; 32],
    /// Environment variables that changed.
    pub(super) environment: Vec<(String, String)>,
}

impl Link {
    pub(super) fn new(interface: Interface, kernel: &mut Kernel) -> Self {
        match interface {
            Interface::Device => Self::Device,
            Interface::RuntimeApi => {
                kernel.offer_service(runtime_api::PORT);
                Self::Api {
                    api: Box::default(),
                    connections: BTreeMap::new(),
                }
            }
        }
    }

    /// Gives a runtime of our own its function.
    pub(super) fn send_function(kernel: &mut Kernel, init: &InitSpec) {
        kernel.device_send(
            DeviceMessageKind::Function,
            false,
            device_text::function(init).as_bytes(),
            b"",
        );
    }

    /// Delivers an event.
    pub(super) fn deliver(
        &mut self,
        kernel: &mut Kernel,
        event: Event,
        renewal: Option<&Renewal>,
        said: &mut Vec<Said>,
    ) {
        match self {
            Self::Device => {
                let meta = event_meta(&event, renewal);
                kernel.device_send(
                    DeviceMessageKind::Event,
                    renewal.is_some(),
                    meta.as_bytes(),
                    &event.payload,
                );
            }
            Self::Api { api, connections } => {
                api.deliver(event, said);
                flush(api, connections, kernel);
            }
        }
    }

    /// Works on what the guest has done; tells what its runtime said. `true` when there was anything: a thread of the
    /// guest may be able to go on then.
    pub(super) fn turn(&mut self, kernel: &mut Kernel, handler_ns: &mut u64, said: &mut Vec<Said>) -> bool {
        let before = said.len();
        match self {
            Self::Device => {
                while let Some(answer) = kernel.take_device_answer() {
                    *handler_ns = answer.handler_ns;
                    let too_large = answer.body_bytes > RESPONSE_BYTES_MAX;
                    said.push(match answer.kind {
                        DeviceAnswerKind::Response | DeviceAnswerKind::Error if too_large => {
                            Said::TooLarge(answer.body_bytes)
                        }
                        DeviceAnswerKind::Response => Said::Response(answer.body),
                        DeviceAnswerKind::Error => Said::Error(answer.body),
                        DeviceAnswerKind::InitError => Said::InitError(answer.body),
                    });
                }
                if kernel.device_waits() {
                    said.push(Said::Waits);
                }
                said.len() > before
            }
            Self::Api { api, connections } => {
                let events = kernel.take_service_events();
                if events.is_empty() {
                    return false;
                }
                for event in events {
                    take_in(api, connections, kernel, event, said);
                }
                flush(api, connections, kernel);
                true
            }
        }
    }
}

fn take_in(
    api: &mut RuntimeApi,
    connections: &mut BTreeMap<u32, ConnectionId>,
    kernel: &mut Kernel,
    event: ServiceEvent,
    said: &mut Vec<Said>,
) {
    match event {
        ServiceEvent::Opened { connection, port: _ } => match api.open() {
            Some(id) => {
                connections.insert(connection, id);
            }
            None => kernel.service_close(connection),
        },
        ServiceEvent::Data { connection, bytes } => {
            let Some(id) = connections.get(&connection).copied() else {
                return;
            };
            let mut taken = 0;
            // The machine takes what it has room for; an answer frees room.
            while taken < bytes.len() {
                let took = api.receive(id, &bytes[taken..], said);
                if took == 0 {
                    kernel.service_close(connection);
                    api.close(id);
                    connections.remove(&connection);
                    return;
                }
                taken += took;
            }
        }
        ServiceEvent::Closed { connection } => {
            if let Some(id) = connections.remove(&connection) {
                api.close(id);
            }
        }
    }
}

/// Sends the guest what the API has for it.
fn flush(api: &mut RuntimeApi, connections: &mut BTreeMap<u32, ConnectionId>, kernel: &mut Kernel) {
    let mut done = Vec::new();
    for (connection, id) in connections.iter() {
        let output = api.output(*id).to_vec();
        if !output.is_empty() {
            kernel.service_send(*connection, &output);
            api.sent(*id, output.len());
        }
        if api.is_done(*id) {
            done.push((*connection, *id));
        }
    }
    for (connection, id) in done {
        kernel.service_close(connection);
        api.close(id);
        connections.remove(&connection);
    }
}

/// The fields of an event, as the device has them.
fn event_meta(event: &Event, renewal: Option<&Renewal>) -> String {
    let renewal = renewal.map_or_else(String::new, |renewal| {
        let entropy: String = renewal.entropy.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{entropy}\n{}\n", device_text::object(&renewal.environment))
    });
    device_text::event(event, &renewal)
}
