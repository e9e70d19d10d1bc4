//! Nodes are thrown out: their connections end, and no member lets them in again.

use std::{sync::Arc, time::Duration};

use rustls::pki_types::CertificateDer;

use super::{Hub, Member};
use crate::{
    link::Link,
    message::{NodeRequest, Request, encode_body},
    trust::{NodeName, Revoked},
};

/// Longest time for a node to take the names of those that have been thrown out.
const TELL_LIMIT: Duration = Duration::from_secs(30);

/// Names that are made up for a newcomer before it is refused. That one of them is taken is one chance in a million.
const NAMES_TRIED_MAX: usize = 4;

impl Hub {
    /// Throws nodes out, for as long as the hub lives: ends their connections, here at once and on other nodes as soon as
    /// those have been told in the background. Calls that run on them are lost. `false` when there are so many already
    /// ([`REVOKED_MAX`](crate::trust::REVOKED_MAX)) that not all could be.
    ///
    /// # Panics
    /// Outside of a tokio runtime, when nodes are linked.
    pub fn revoke(&self, names: impl IntoIterator<Item = NodeName>) -> bool {
        let were_all = self.0.revoked.add(names);
        let members: Vec<_> = self.members().values().cloned().collect();
        for member in members {
            self.tell_revoked(&member);
        }
        were_all
    }

    /// Whether [`Hub::revoke`] can throw a node out.
    pub fn can_revoke(&self, name: &NodeName) -> bool {
        self.0.revoked.has_room_for(name)
    }

    /// Tells a node, in the background, whom it must not let in.
    pub(super) fn tell_revoked(&self, member: &Arc<Member>) {
        let names = self.0.revoked.names();
        let Some(link) = member.link() else { return };
        if names.is_empty() || self.0.revoked.has(&member.name) {
            return;
        }
        let names: Vec<_> = names.iter().map(NodeName::as_str).collect();
        // As many as there may be are shorter than a body.
        let Ok(body) = encode_body(&names) else { return };
        let member = Arc::clone(member);
        tokio::spawn(async move {
            let request = Request::Node(NodeRequest::Revoked);
            if let Err(error) = link.call(&request, body.into(), TELL_LIMIT).await {
                // It is told again when it links again.
                tracing::debug!(node = %member.name, %error, "a node does not know who was thrown out");
            }
        });
    }

    /// A name for a newcomer, not that of a node that was thrown out; `None` if there is bad luck beyond belief.
    pub(super) fn new_name(&self, wanted: &str) -> Option<NodeName> {
        let made_up = || {
            let mut random = [0; 4];
            crate::fill_random(&mut random);
            NodeName::unlike_others(wanted, random)
        };
        std::iter::repeat_with(made_up)
            .take(NAMES_TRIED_MAX)
            .find(|name| !self.0.revoked.has(name))
    }
}

/// Ends a link as soon as the node of a certificate has been thrown out. Returns when the link has ended.
pub(crate) async fn cut_off(revoked: &Revoked, certificate: &CertificateDer<'_>, link: &Link) {
    tokio::select! {
        () = revoked.until(certificate) => {
            tracing::warn!("a node that has been thrown out is cut off");
            link.close();
        }
        _ended = link.wait_closed() => {}
    }
}
