//! Instances that the control plane knows by name.
//!
//! Which instance serves a call, how many there are and when one goes is the control plane's decision. It gives each a
//! name, once, and says with a call which one is to serve it. The node keeps to that as far as it can: an instance that
//! is gone is replaced by a new one of the same name, because a call is worth more than a plan. What the node does by
//! itself (arming, freezing, making room, noticing what has died) goes on, and names that ended that way are told.

/// Name of an instance, given by the control plane; never the same for two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName(pub u64);

/// Which track an instance was made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceClass {
    /// The cluster manager, ahead of calls.
    Regular,
    /// This node, for a call that found no other.
    Emergency,
}

/// An instance as the control plane knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// Its name.
    pub name: InstanceName,
    /// Which track it was made by.
    pub class: InstanceClass,
}

/// What serves a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// Any that has no name, or a new one: the node alone decides.
    #[default]
    Any,
    /// The one of this name, which rests; a new one of the same name when it is gone ([`crate::Outcome::replaced`]).
    Resting(Named),
    /// A new one, from whatever is prepared.
    New(Named),
}

impl Wanted {
    /// The name that it goes by, if it has one.
    pub(crate) fn named(self) -> Option<Named> {
        match self {
            Self::Any => None,
            Self::Resting(named) | Self::New(named) => Some(named),
        }
    }
}

/// An instance that a node has, as a control plane is told that has just started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Its name and class.
    pub named: Named,
    /// What it runs.
    pub version: crate::VersionId,
    /// It rests: a call can be sent to it.
    pub rests: bool,
}
