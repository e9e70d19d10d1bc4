//! Tests of the fleet as a whole.

mod book;
mod fair;
mod pressure;
mod property;
mod world;

use crate::{FunctionSpec, NodeSpec, TenantId};

const MIB: u64 = 1 << 20;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn function(tenant: u32) -> FunctionSpec {
    FunctionSpec {
        tenant: TenantId(tenant),
        memory_bytes: 128 * MIB,
        concurrency_per_instance: 1,
        instances_min: 0,
        instances_max: None,
        reserved: None,
        queue_timeout_ns: 10 * SECOND,
        home: 0,
    }
}

fn node(instances: u32) -> NodeSpec {
    NodeSpec {
        memory_bytes: u64::from(instances) * 128 * MIB,
        instances_max: 1000,
        restores_max: 128,
        region: 0,
    }
}
