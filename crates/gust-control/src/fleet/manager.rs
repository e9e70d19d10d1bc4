//! The embedded cluster manager: makes regular instances on the nodes of this control plane.
//!
//! It is told and answers as a conventional one: what it is asked for is there some time later, or will not be. That time
//! can be drawn out, for comparison with cluster managers that store every step and agree on it.

use std::time::Duration;

use gust_node::{InvokeError, NodeError};
use gust_policy::{Class, InstanceId};
use tokio::time::sleep;

use super::{LiveFleet, named, state::Creation};

/// Configuration of the cluster manager.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ManagerConfig {
    /// Least time that it takes to answer, beside the node's own.
    pub delay_min: Duration,
    /// Most time that it takes to answer.
    pub delay_max: Duration,
}

impl ManagerConfig {
    /// The delay of one creation: evenly spread, and the same for the same instance.
    fn delay(&self, instance: InstanceId) -> Duration {
        let span = self.delay_max.saturating_sub(self.delay_min);
        // Fibonacci hashing: neighbours in number lie far apart.
        let spread = instance.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.delay_min + span.mul_f64(spread as f64 / f64::from(u32::MAX))
    }
}

impl LiveFleet {
    /// Has a regular instance made, in the background.
    pub(super) fn spawn_creation(&self, creation: Creation) {
        let fleet = self.clone();
        let Creation {
            agent,
            instance,
            version,
        } = creation;
        let delay = self.0.manager.delay(instance);
        tokio::spawn(async move {
            if delay > Duration::ZERO {
                sleep(delay).await;
            }
            let created = agent.create(&version, named(instance, Class::Regular)).await;
            let is_there = match &created {
                // Whoever calls it is to be told what is wrong with it, as in a start of its own.
                Ok(()) | Err(InvokeError::Node(NodeError::Init { .. })) => true,
                Err(InvokeError::Stopping) => false,
                Err(error) => {
                    tracing::warn!(%version, %error, "a regular instance could not be made");
                    false
                }
            };
            let mut state = fleet.state();
            let is_wanted = state.created(fleet.now(), instance, is_there);
            fleet.finish(state);
            if !is_wanted {
                agent.end(named(instance, Class::Regular).name, Duration::ZERO);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_spread_over_their_range() {
        let manager = ManagerConfig {
            delay_min: Duration::from_millis(5),
            delay_max: Duration::from_millis(50),
        };
        let delays: Vec<Duration> = (0..1000).map(|n| manager.delay(InstanceId(n))).collect();
        assert!(
            delays
                .iter()
                .all(|delay| (manager.delay_min..=manager.delay_max).contains(delay))
        );
        let middle = Duration::from_micros(27_500);
        let below = delays.iter().filter(|delay| **delay < middle).count();
        assert!((450..550).contains(&below), "{below}");
        assert_eq!(ManagerConfig::default().delay(InstanceId(7)), Duration::ZERO);
    }
}
