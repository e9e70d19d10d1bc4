//! A guest's ways out, as the worker sees them: requests for the node, and descriptors that come back.
//!
//! The worker has no network. It tells the node in numbers where the guest wants to go, and gets pipes, whose other ends
//! the node joins to what it has connected after having asked its policy.

use std::os::fd::OwnedFd;

use gust_linux::{Kernel, OutsideRequest as Asked};

use super::ports::{End, Ports, Way};
use crate::{
    channel::{Channel, ChannelError},
    protocol::{FORWARDED_MAX, NetworkSpec, OUTSIDE_UNANSWERED_MAX, OutsideAnswer, OutsideRequest, Report},
};

/// The requests of one guest.
#[derive(Debug, Default)]
pub(super) struct Network {
    unanswered: usize,
}

impl Network {
    /// Opens a guest's way out.
    pub(super) fn open(kernel: &mut Kernel, network: NetworkSpec) {
        kernel.open_outside(network.forwarded.into_iter().take(FORWARDED_MAX));
    }

    /// Tells the node what the guest asks for, and what it has done with.
    pub(super) fn tell(
        &mut self,
        kernel: &mut Kernel,
        ports: &mut Ports,
        channel: &mut Channel,
    ) -> Result<(), ChannelError> {
        while self.unanswered < OUTSIDE_UNANSWERED_MAX {
            let Some(request) = kernel.next_outside_request() else {
                break;
            };
            let (connection, request) = match request {
                Asked::Connect { connection, to } => (connection, OutsideRequest::Connect(to)),
                Asked::Datagrams { connection } => (connection, OutsideRequest::Datagrams),
            };
            // One that the guest has closed already is asked for no more.
            if kernel.outside_is_known(connection) {
                self.unanswered += 1;
                channel.send(&Report::Outside { connection, request }, b"")?;
            }
        }
        for connection in ports.take_ended(kernel) {
            let request = OutsideRequest::Closed;
            channel.send(&Report::Outside { connection, request }, b"")?;
        }
        Ok(())
    }

    /// Closes everything, for a guest that is to be another one.
    pub(super) fn close(
        kernel: &Kernel,
        ports: &mut Ports,
        channel: &mut Channel,
    ) -> Result<(), ChannelError> {
        ports.clear();
        for connection in kernel.outside_numbers() {
            let request = OutsideRequest::Closed;
            channel.send(&Report::Outside { connection, request }, b"")?;
        }
        Ok(())
    }

    /// Takes in what the node says of a way out. `false` when its descriptors are not what it says.
    pub(super) fn answered(
        &mut self,
        kernel: &mut Kernel,
        ports: &mut Ports,
        connection: u32,
        answer: OutsideAnswer,
        descriptors: Vec<OwnedFd>,
    ) -> bool {
        let end = End::Connection(connection);
        let mut descriptors = descriptors.into_iter();
        let handed = (descriptors.next(), descriptors.next(), descriptors.next());
        match (answer, handed) {
            (OutsideAnswer::Broken(errno), (None, None, None)) => {
                ports.break_connection(kernel, connection, errno);
                return true;
            }
            (OutsideAnswer::Failed(errno), (None, None, None)) => kernel.outside_failed(connection, errno),
            (OutsideAnswer::Stream, (Some(comes), Some(goes), None)) => {
                // The guest may have closed it meanwhile: then the ports end at once, and the node hears of that.
                kernel.outside_connected(connection);
                ports.join(Way::In, end, comes);
                ports.join(Way::Out, end, goes);
            }
            (OutsideAnswer::Datagrams, (Some(packets), None, None)) => {
                ports.join(Way::Datagrams, end, packets);
            }
            (
                OutsideAnswer::Stream
                | OutsideAnswer::Datagrams
                | OutsideAnswer::Failed(_)
                | OutsideAnswer::Broken(_),
                _,
            ) => return false,
        }
        self.unanswered = self.unanswered.saturating_sub(1);
        true
    }
}
